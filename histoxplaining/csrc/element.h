// What every kernel file shares: where a function runs, how numbers are stored, in what precision they are added up.
#pragma once
#include <cstdint>
#include <cmath>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#ifdef __CUDACC__
#define HX_FN __host__ __device__ __forceinline__
#else
#define HX_FN inline
#endif

namespace hx {

// stored as T, computed as Acc<T>: float, but double for double
template <class T> struct AccOf { using type = float; };
template <> struct AccOf<double> { using type = double; };
template <class T> using Acc = typename AccOf<T>::type;

// calls f with a null pointer of the stored type: 0 float, 1 double, 2 half, 3 bfloat16
template <class F> int with_type(int dtype, F f) {
  switch (dtype) {
    case 0: f((float*)nullptr); return 0;
    case 1: f((double*)nullptr); return 0;
    case 2: f((c10::Half*)nullptr); return 0;
    case 3: f((c10::BFloat16*)nullptr); return 0;
  }
  return 1;
}

}  // namespace hx
