// bias_act on a GPU: one thread, one element, the element function that the CPU runs too. No headers of PyTorch but its number types.
#include <cuda_runtime.h>
#include "bias_act.h"

using namespace hx;

namespace {

constexpr int THREADS = 256;
inline unsigned blocks(int64_t n) { return (unsigned)((n + THREADS - 1) / THREADS < 1 << 20 ? (n + THREADS - 1) / THREADS : 1 << 20); }
#define HX_EACH(i, n) for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS)

template <int ACT, int ORDER, bool FROM_Y, class T>
__global__ void bias_act_kernel(const T* x, const T* b, const T* dy, const T* u, T* out, int64_t n, int64_t len, int64_t nb, bool cycle, Acc<T> alpha, Acc<T> gain, Acc<T> clamp) {
  using A = Acc<T>;
  HX_EACH(i, n)
    out[i] = T(bias_act_at<ACT, ORDER, FROM_Y, A>(A(x[i]), b ? A(b[cycle ? i % len : i / len % nb]) : A(0), ORDER > 0 ? A(dy[i]) : A(0), ORDER > 1 ? A(u[i]) : A(0), alpha, gain, clamp));
}

}  // namespace

// The interface of bias_act_cpu.cpp; the last argument is the stream. Returns 0, 1 for an unknown type, or a CUDA error.
extern "C" {

int hx_bias_act(int dtype, int act, int order, int from_y, const void* x, const void* b, const void* dy, const void* u, void* out, int64_t rows, int64_t len, int64_t nb, int cycle,
                double alpha, double gain, double clamp, void* stream) {
  int bad = 1;
  with_type(dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    bad = with_act(act, [&](auto a) {
      constexpr int ACT = decltype(a)::value;
      auto go = order == 0 ? bias_act_kernel<ACT, 0, false, T> : order == 1 ? (from_y ? bias_act_kernel<ACT, 1, true, T> : bias_act_kernel<ACT, 1, false, T>) : bias_act_kernel<ACT, 2, false, T>;
      go<<<blocks(rows * len), THREADS, 0, (cudaStream_t)stream>>>((const T*)x, (const T*)b, (const T*)dy, (const T*)u, (T*)out, rows * len, len, nb, cycle, Acc<T>(alpha), Acc<T>(gain), Acc<T>(clamp));
    });
  });
  return bad ? bad : (int)cudaGetLastError();
}

}
