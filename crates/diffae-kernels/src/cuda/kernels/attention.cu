// Softmax over rows, and its backward pass; the condition of a norm.
#include "common.cuh"

// The largest of a value over the threads of a block, whose number is a multiple of 32, to each.
__device__ inline float block_max(float value) {
    __shared__ float of_warps[MAX_THREADS / WARP];
    for (int lane = WARP / 2; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
    __syncthreads();
    float largest = of_warps[0];
    for (int warp = 1; warp < static_cast<int>(blockDim.x) / WARP; warp++) largest = fmaxf(largest, of_warps[warp]);
    return largest;
}

// y = exp(scale x - max) / sum over a row of `width`. A block has a row.
template <typename T>
__device__ void softmax(const T *x, T *y, int width, float scale) {
    const T *row = x + static_cast<long long>(blockIdx.x) * width;
    T *to = y + static_cast<long long>(blockIdx.x) * width;
    float largest = -INFINITY;
    for (int i = threadIdx.x; i < width; i += blockDim.x) largest = fmaxf(largest, scale * to_float(row[i]));
    largest = block_max(largest);
    float2 sum = {0.f, 0.f};
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum.x += expf(scale * to_float(row[i]) - largest);
    sum = block_sum(sum);
    const float inverse = 1.f / sum.x;
    for (int i = threadIdx.x; i < width; i += blockDim.x) set(to[i], expf(scale * to_float(row[i]) - largest) * inverse);
}

// dx = scale p (dp - sum of p dp) over a row of `width`, where p is the softmax. A block has a row.
template <typename T>
__device__ void softmax_gradient(const T *p, const T *dp, T *dx, int width, float scale) {
    const long long start = static_cast<long long>(blockIdx.x) * width;
    float2 sum = {0.f, 0.f};
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum.x += to_float(p[start + i]) * to_float(dp[start + i]);
    sum = block_sum(sum);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        set(dx[start + i], scale * to_float(p[start + i]) * (to_float(dp[start + i]) - sum.x));
    }
}

// The affine map of a norm under conditions, [N, C] each:
//
//   scale = (1 + z) (1 + t) weight,  shift = (1 + z) ((1 + t) bias + t')
//
// t and t' are side by side in `time`, [N, 2C], or [1, 2C] with `time_row = 0`; z is [N, C], [1, C] with `z_row = 0`, or null.
template <typename T>
__device__ void modulate(const T *time, const T *z, const T *weight, const T *bias, float *scale, float *shift, int channels,
                         int count, int time_row, int z_row) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int image = i / channels, channel = i % channels;
    const long long at = static_cast<long long>(image) * time_row + channel;
    const float gain_t = to_float(time[at]) + 1.f;
    const float gain_z = z ? to_float(z[static_cast<long long>(image) * z_row + channel]) + 1.f : 1.f;
    scale[i] = gain_z * (gain_t * to_float(weight[channel]));
    shift[i] = gain_z * (gain_t * to_float(bias[channel]) + to_float(time[at + channels]));
}

#define DEFINE(T, SUFFIX)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS) softmax_##SUFFIX(const T *x, T *y, int width, float scale) {   \
        softmax<T>(x, y, width, scale);                                                                                      \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                                \
        softmax_gradient_##SUFFIX(const T *p, const T *dp, T *dx, int width, float scale) {                                  \
        softmax_gradient<T>(p, dp, dx, width, scale);                                                                        \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                                \
        modulate_##SUFFIX(const T *time, const T *z, const T *weight, const T *bias, float *scale, float *shift,             \
                          int channels, int count, int time_row, int z_row) {                                                \
        modulate<T>(time, z, weight, bias, scale, shift, channels, count, time_row, z_row);                                  \
    }
DEFINE(float, f32)
DEFINE(__half, f16)
DEFINE(__nv_bfloat16, bf16)
