// upfirdn2d on a GPU: one thread, one element, the element function that the CPU runs too. No headers of PyTorch but its number types.
#include <cuda_runtime.h>
#include "upfirdn2d.h"

using namespace hx;

namespace {

constexpr int THREADS = 256;
inline unsigned blocks(int64_t n) { return (unsigned)((n + THREADS - 1) / THREADS < 1 << 20 ? (n + THREADS - 1) / THREADS : 1 << 20); }
#define HX_EACH(i, n) for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS)

template <class T>
__global__ void upfirdn2d_kernel(const T* x, T* out, const Acc<T>* fy, const Acc<T>* fx, Axis ay, Axis ax, int64_t planes, int C) {
  const int64_t sy = (int64_t)ax.n * C;
  HX_EACH(i, planes * ay.out * ax.out * C) {
    int64_t c = i % C, p = i / C;
    int ox = (int)(p % ax.out), oy = (int)(p / ax.out % ay.out);
    out[i] = T(upfirdn2d_at(x + p / ax.out / ay.out * ay.n * sy + c, sy, C, fy, fx, ay, ax, oy, ox));
  }
}

}  // namespace

// The interface of upfirdn2d_cpu.cpp; the last argument is the stream. Returns 0, 1 for an unknown type, or a CUDA error.
extern "C" {

int hx_upfirdn2d(int dtype, const void* x, void* out, const void* fy, const void* fx, const int* axes, int64_t planes, int C, int fast, void* stream) {
  Axis ay{axes[0], axes[1], axes[2], axes[3], axes[4], axes[5]}, ax{axes[6], axes[7], axes[8], axes[9], axes[10], axes[11]};
  (void)fast;
  int bad = with_type(dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    upfirdn2d_kernel<T><<<blocks(planes * ay.out * ax.out * C), THREADS, 0, (cudaStream_t)stream>>>((const T*)x, (T*)out, (const Acc<T>*)fy, (const Acc<T>*)fx, ay, ax, planes, C);
  });
  return bad ? bad : (int)cudaGetLastError();
}

}
