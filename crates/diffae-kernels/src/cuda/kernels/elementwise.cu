// What surrounds a convolution: its bias with a residual, the gradient w.r.t. the bias, and dropout.
#include "common.cuh"

// y = x + bias[channel] + residual, where there is one; [N, C, pixels], of `count` elements.
template <typename T, int WIDTH>
__device__ void add_bias(const T *x, const T *bias, const T *residual, T *y, int channels, int pixels, long long count) {
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x * WIDTH;
    for (long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH; i < count; i += stride) {
        const float b = to_float(bias[i / pixels % channels]);
        Pack<T, WIDTH> pack = load<T, WIDTH>(x + i);
        for (int k = 0; k < WIDTH; k++) {
            const float r = residual ? to_float(residual[i + k]) : 0.f;
            set(pack.values[k], to_float(pack.values[k]) + b + r);
        }
        store<T, WIDTH>(y + i, pack);
    }
}

// Sums of a channel over the pixels of one image, [C, N]. A block has a channel of an image.
template <typename T, int WIDTH>
__device__ void sum_pixels(const T *x, float *sums, int channels, int images, int pixels) {
    const long long start = static_cast<long long>(blockIdx.x) * pixels;
    float2 sum = {0.f, 0.f};
    for (int i = threadIdx.x * WIDTH; i < pixels; i += blockDim.x * WIDTH) {
        const Pack<T, WIDTH> pack = load<T, WIDTH>(x + start + i);
        for (int k = 0; k < WIDTH; k++) sum.x += to_float(pack.values[k]);
    }
    sum = block_sum(sum);
    const int image = blockIdx.x / channels, channel = blockIdx.x % channels;
    if (threadIdx.x == 0) sums[channel * images + image] = sum.x;
}

// Sums over images of what `sum_pixels` has summed, [C]. A block has a channel.
template <typename T>
__device__ void sum_images(const float *sums, T *result, int images) {
    float2 sum = {0.f, 0.f};
    for (int i = threadIdx.x; i < images; i += blockDim.x) sum.x += sums[static_cast<long long>(blockIdx.x) * images + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) set(result[blockIdx.x], sum.x);
}

// The finalizer of SplitMix64 (Steele et al. 2014).
__device__ inline unsigned long long mix(unsigned long long z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// The mask of the CPU: sixteen random bits for an element, from the seed, its block of `block` elements, and its place there.
template <typename T>
__device__ void drop(const T *x, T *y, long long count, int block, unsigned long long seed, int threshold, float factor) {
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x * 4;
    for (long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 4; i < count; i += stride) {
        const unsigned long long place = static_cast<unsigned long long>(i % block / 4 + 1);
        unsigned long long bits = mix(mix(seed ^ mix(i / block)) + place * 0x9e3779b97f4a7c15ull);
        for (int k = 0; k < 4 && i + k < count; k++) {
            const bool dropped = static_cast<int>(bits & 0xffff) < threshold;
            set(y[i + k], dropped ? 0.f : to_float(x[i + k]) * factor);
            bits >>= 16;
        }
    }
}

#define DEFINE(T, WIDTH, SUFFIX)                                                                                             \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS) add_bias_##SUFFIX(                                             \
        const T *x, const T *bias, const T *residual, T *y, int channels, int pixels, long long count) {                     \
        add_bias<T, WIDTH>(x, bias, residual, y, channels, pixels, count);                                                   \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                                \
        sum_pixels_##SUFFIX(const T *x, float *sums, int channels, int images, int pixels) {                                 \
        sum_pixels<T, WIDTH>(x, sums, channels, images, pixels);                                                             \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

#define DEFINE(T, WIDTH, SUFFIX)                                                                                             \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS) sum_images_##SUFFIX(const float *sums, T *result, int images) { \
        sum_images<T>(sums, result, images);                                                                                 \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS) dropout_##SUFFIX(                                              \
        const T *x, T *y, long long count, int block, unsigned long long seed, int threshold, float factor) {                \
        drop<T>(x, y, count, block, seed, threshold, factor);                                                                \
    }
DEFINE(float, 1, f32)
DEFINE(__half, 1, f16)
DEFINE(__nv_bfloat16, 1, bf16)
