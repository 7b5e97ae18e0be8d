// upfirdn2d on the CPU: a fast path for separable filters, and the element function in a parallel loop for the rest.
#include <algorithm>
#include <vector>
#include <ATen/Parallel.h>
#include "upfirdn2d.h"

using namespace hx;

namespace {

constexpr int64_t GRAIN = 32768;  // elements worth a thread

// The x direction of one output row: buf holds the padded row (W samples of C channels), out gets OW samples of C channels.
template <int UP, int DOWN, int TAPS, class A, class T>
void filter_row(const A* __restrict buf, T* __restrict out, const A* __restrict f, int ow, int C, int tap0) {
  if (C == 1) {
    for (int p = 0; p < UP; p++) {                   // outputs of one phase use the same taps
      int q = p * DOWN - tap0, tap = ((-q) % UP + UP) % UP, i0 = (q + tap) / UP;
      constexpr int n = TAPS / UP;
      const A* x = buf + i0;
      const int count = (ow - p + UP - 1) / UP;
      for (int k = 0; k < count; k++) {
        A y = 0;
        for (int j = 0; j < n; j++) y += f[tap + j * UP] * x[k * DOWN + j];
        out[p + k * UP] = T(y);
      }
    }
    return;
  }
  for (int o = 0; o < ow; o++) {
    int q = o * DOWN - tap0, tap = ((-q) % UP + UP) % UP, i0 = (q + tap) / UP;
    const A* x = buf + (int64_t)i0 * C;
    T* y = out + (int64_t)o * C;
    for (int c = 0; c < C; c++) {
      A s = 0;
      for (int j = 0; j < TAPS / UP; j++) s += f[tap + j * UP] * x[(int64_t)j * C + c];
      y[c] = T(s);
    }
  }
}

template <class A, class T>
void filter_row_any(const A* buf, T* out, const A* f, Axis ax, int C, int tap0) {
  for (int o = 0; o < ax.out; o++) {
    int q = o * ax.down - tap0, tap = ((-q) % ax.up + ax.up) % ax.up, i0 = (q + tap) / ax.up;
    int n = (ax.taps - tap + ax.up - 1) / ax.up;
    for (int c = 0; c < C; c++) out[(int64_t)o * C + c] = T(fir(f + tap, ax.up, buf + (int64_t)i0 * C + c, C, n));
  }
}

template <class A, class T> using RowFn = void (*)(const A*, T*, const A*, int, int, int);

template <class A, class T> RowFn<A, T> row_filter(const Axis& a) {
#define HX_CASE(U, D, N) if (a.up == U && a.down == D && a.taps == N) return filter_row<U, D, N, A, T>;
  HX_CASE(1, 1, 4) HX_CASE(2, 1, 4) HX_CASE(1, 2, 4) HX_CASE(1, 1, 12) HX_CASE(2, 1, 12) HX_CASE(1, 2, 12)
#undef HX_CASE
  return nullptr;
}

// Separable: for each output row the y direction first, into a buffer that already has the x direction's padding, so that the inner
// loops have no borders to ask for. A plane is H rows of W pixels of C channels (C = 1 for NCHW, all channels for channels-last).
template <class T>
void separable(const T* x, T* out, const Acc<T>* fy, const Acc<T>* fx, Axis ay, Axis ax, int64_t planes, int C) {
  using A = Acc<T>;
  const int left = std::max((ax.pad + ax.up - 1) / ax.up, 0);                       // samples of padding before the row
  const int last = (ax.out - 1) * ax.down - ax.pad + ax.taps - 1;                   // last grid position met
  const int right = std::max((last >= 0 ? last / ax.up : 0) + 1 - ax.n, 0) + 1;
  const int tap0 = ax.pad - left * ax.up;                                           // padding that is left, in (-up, 0] or negative
  const int64_t width = (int64_t)ax.n * C, row = (int64_t)ax.out * C;
  RowFn<A, T> fast = row_filter<A, T>(ax);
  const int64_t work = row * ax.taps + width * ax.taps;
  at::parallel_for(0, planes * ay.out, std::max<int64_t>(1, 4 * GRAIN / std::max<int64_t>(work, 1)), [&](int64_t r0, int64_t r1) {
    std::vector<A> buf((left + right) * (int64_t)C + width, A(0));
    A* __restrict mid = buf.data() + (int64_t)left * C;
    for (int64_t r = r0; r < r1; r++) {
      const T* plane = x + r / ay.out * ay.n * width;
      int tap, first;
      ay.start(r % ay.out, tap, first);
      if (first < 0) { tap -= first * ay.up; first = 0; }
      int n = std::min((ay.taps - tap + ay.up - 1) / ay.up, ay.n - first);
      if (n <= 0) std::fill(mid, mid + width, A(0));
      for (int j = 0; j < n; j++) {
        const T* __restrict src = plane + (first + j) * width;
        const A w = fy[tap + j * ay.up];
        if (j == 0) for (int64_t i = 0; i < width; i++) mid[i] = w * A(src[i]);
        else for (int64_t i = 0; i < width; i++) mid[i] += w * A(src[i]);
      }
      if (fast) fast(buf.data(), out + r * row, fx, ax.out, C, tap0);
      else filter_row_any(buf.data(), out + r * row, fx, ax, C, tap0);
    }
  });
}

// Anything: the element function that a GPU thread runs, for every element.
template <class T>
void elementwise(const T* x, T* out, const Acc<T>* fy, const Acc<T>* fx, Axis ay, Axis ax, int64_t planes, int C) {
  const int64_t sy = (int64_t)ax.n * C, per = std::max<int64_t>(1, GRAIN / std::max<int64_t>((int64_t)ax.out * C * ax.taps * ay.taps, 1));
  at::parallel_for(0, planes * ay.out, per, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; r++)
      for (int ox = 0; ox < ax.out; ox++)
        for (int c = 0; c < C; c++)
          out[(r * ax.out + ox) * C + c] = T(upfirdn2d_at(x + r / ay.out * ay.n * sy + c, sy, C, fy, fx, ay, ax, (int)(r % ay.out), ox));
  });
}

}  // namespace

// Plain C interface. Pointers are to dense memory; filters are in the type that sums are kept in. Returns 0, or 1 for an unknown type.
extern "C" {

// axes: n, out, taps, up, down, pad of y, then of x. fast: 0 runs the element function everywhere.
int hx_upfirdn2d(int dtype, const void* x, void* out, const void* fy, const void* fx, const int* axes, int64_t planes, int C, int fast, void*) {
  Axis ay{axes[0], axes[1], axes[2], axes[3], axes[4], axes[5]}, ax{axes[6], axes[7], axes[8], axes[9], axes[10], axes[11]};
  return with_type(dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    auto go = fy && fast ? separable<T> : elementwise<T>;
    go((const T*)x, (T*)out, (const Acc<T>*)fy, (const Acc<T>*)fx, ay, ax, planes, C);
  });
}

}
