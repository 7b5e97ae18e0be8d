// bias_act on the CPU: the element function in a parallel loop.
#include <algorithm>
#include <ATen/Parallel.h>
#include "bias_act.h"

using namespace hx;

namespace {

constexpr int64_t GRAIN = 32768;  // elements worth a thread

// Rows of `len` contiguous elements: each row has one bias, or (CYCLE) each element of a row has its own.
template <int ACT, int ORDER, bool FROM_Y, bool CYCLE, class T>
void rows(const T* x_, const T* b, const T* dy_, const T* u_, T* out_, int64_t rows, int64_t len, int64_t nb, Acc<T> alpha, Acc<T> gain, Acc<T> clamp) {
  using A = Acc<T>;
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / std::max<int64_t>(len, 1)), [=](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; r++) {
      const T* __restrict x = x_ + r * len;
      const T* __restrict dy = dy_ + r * len;
      const T* __restrict u = u_ + r * len;
      T* __restrict out = out_ + r * len;
      const A br = CYCLE || !b ? A(0) : A(b[r % nb]);
      for (int64_t i = 0; i < len; i++)
        out[i] = T(bias_act_at<ACT, ORDER, FROM_Y, A>(A(x[i]), CYCLE ? A(b[i]) : br, ORDER > 0 ? A(dy[i]) : A(0), ORDER > 1 ? A(u[i]) : A(0), alpha, gain, clamp));
    }
  });
}

}  // namespace

// Plain C interface, as in upfirdn2d_cpu.cpp. order 0: out = y. 1: out = dy * dy/dx, x being y itself if from_y. 2: out = dy * u * d2y/dx2.
// n rows of len elements; cycle: the bias runs along a row, else row r has bias r % nb. Returns 0, or 1 for an unknown type or activation.
extern "C" {

int hx_bias_act(int dtype, int act, int order, int from_y, const void* x, const void* b, const void* dy, const void* u, void* out, int64_t n, int64_t len, int64_t nb, int cycle,
                double alpha, double gain, double clamp, void*) {
  int bad = 1;
  with_type(dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    bad = with_act(act, [&](auto a) {
      constexpr int ACT = decltype(a)::value;
      auto go = from_y ? rows<ACT, 1, true, false, T>
              : cycle && b ? (order == 0 ? rows<ACT, 0, false, true, T> : order == 1 ? rows<ACT, 1, false, true, T> : rows<ACT, 2, false, true, T>)
                           : (order == 0 ? rows<ACT, 0, false, false, T> : order == 1 ? rows<ACT, 1, false, false, T> : rows<ACT, 2, false, false, T>);
      go((const T*)x, from_y ? nullptr : (const T*)b, (const T*)dy, (const T*)u, (T*)out, n, len, nb, Acc<T>(alpha), Acc<T>(gain), Acc<T>(clamp));
    });
  });
  return bad;
}

}
