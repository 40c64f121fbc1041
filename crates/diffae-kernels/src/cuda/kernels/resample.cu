// Resampling of planes by a factor of two, each the other's backward pass up to its factor.
#include "common.cuh"

// y[.., 2i + a, 2j + b] = factor x[.., i, j]; `count` elements of y, whose rows have `width`.
template <typename T>
__device__ void upsample(const T *x, T *y, int width, long long count, float factor) {
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        const long long row = i / width;
        set(y[i], factor * to_float(x[row / 2 * (width / 2) + i % width / 2]));
    }
}

// y[.., i, j] = factor (sum of x[.., 2i..2i+2, 2j..2j+2]); `count` elements of y, whose rows have `width`.
template <typename T>
__device__ void pool(const T *x, T *y, int width, long long count, float factor) {
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        const T *first = x + i / width * 4 * width + i % width * 2;
        const T *second = first + 2 * width;
        set(y[i], factor * ((to_float(first[0]) + to_float(first[1])) + (to_float(second[0]) + to_float(second[1]))));
    }
}

#define DEFINE(T, SUFFIX)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                                \
        upsample_##SUFFIX(const T *x, T *y, int width, long long count, float factor) {                                      \
        upsample<T>(x, y, width, count, factor);                                                                             \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                                \
        pool_##SUFFIX(const T *x, T *y, int width, long long count, float factor) {                                          \
        pool<T>(x, y, width, count, factor);                                                                                 \
    }
DEFINE(float, f32)
DEFINE(__half, f16)
DEFINE(__nv_bfloat16, bf16)
