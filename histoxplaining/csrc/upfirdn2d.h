// upfirdn2d, one element: output (oy, ox) is the sum of those taps of the filter that meet a sample and not an inserted zero.
#pragma once
#include "element.h"

namespace hx {

// One direction. Output o covers the zero-inserted grid from o * down - pad on; the first tap that meets a sample is number `tap`,
// the sample is number `first`, and from there on every `up`-th tap meets the next sample.
struct Axis {
  int n, out, taps, up, down, pad;
  HX_FN void start(int o, int& tap, int& first) const {
    int q = o * down - pad;
    tap = ((-q) % up + up) % up;
    int p = q + tap;                                 // a multiple of up, perhaps negative
    first = p >= 0 ? p / up : -((-p) / up);
  }
};

// The arithmetic of both machines: a dot product of taps and samples, both at a stride.
template <class A, class S> HX_FN A fir(const A* f, int up, const S* x, int64_t step, int count) {
  A y = 0;
  for (int j = 0; j < count; j++) y += f[j * up] * A(x[j * step]);
  return y;
}

// One output element of a picture plane whose pixels lie `sx` apart and whose rows lie `sy` apart. The filter is fy x fx, or, where
// fy is null, the full fx[ay.taps][ax.taps]. Both are to be applied as they stand (correlation).
template <class T> HX_FN Acc<T> upfirdn2d_at(const T* x, int64_t sy, int64_t sx, const Acc<T>* fy, const Acc<T>* fx, Axis ay, Axis ax, int oy, int ox) {
  using A = Acc<T>;
  int ty, y0, tx, x0;
  ay.start(oy, ty, y0);
  ax.start(ox, tx, x0);
  if (y0 < 0) { ty -= y0 * ay.up; y0 = 0; }          // taps over the padding meet zeros
  if (x0 < 0) { tx -= x0 * ax.up; x0 = 0; }
  int ny = (ay.taps - ty + ay.up - 1) / ay.up, nx = (ax.taps - tx + ax.up - 1) / ax.up;
  if (ny > ay.n - y0) ny = ay.n - y0;
  if (nx > ax.n - x0) nx = ax.n - x0;
  A sum = 0;
  for (int j = 0; j < ny; j++) {
    const T* row = x + (y0 + j) * sy + x0 * sx;
    int t = ty + j * ay.up;
    if (fy) sum += fy[t] * fir(fx + tx, ax.up, row, sx, nx);
    else sum += fir(fx + (int64_t)t * ax.taps + tx, ax.up, row, sx, nx);
  }
  return sum;
}

}  // namespace hx
