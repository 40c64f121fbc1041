// Group norm with an affine map for each image and channel, and SiLU; its backward pass.
//
//   x_hat = (x - mean) / sqrt(variance + eps),  u = x_hat scale + shift,  y = u  or  u sigmoid(u)
//
// x, y: [N, C, pixels], of `groups` groups of `size = C / groups * pixels` elements an image. scale, shift: [N, C] with
// `row = C`, or [C] with `row = 0`. A group may be cut into `gridDim.y` parts, so that few large groups fill a card.
#include "common.cuh"

// Sums of `x - first` and of its square, where `first` is the first element of the group: [groups of all images, parts].
// Without that origin, the variance of numbers far from zero would be lost to rounding.
template <typename T, int WIDTH>
__device__ void sum_moments(const T *x, float2 *partial, int size) {
    const T *group = x + static_cast<long long>(blockIdx.x) * size;
    const float origin = to_float(group[0]);
    const Share share = share_of(size / WIDTH);
    float2 sums = {0.f, 0.f};
    for (int i = share.start + threadIdx.x; i < share.end; i += blockDim.x) {
        const Pack<T, WIDTH> pack = load<T, WIDTH>(group + static_cast<long long>(i) * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const float d = to_float(pack.values[k]) - origin;
            sums.x += d;
            sums.y += d * d;
        }
    }
    sums = block_sum(sums);
    if (threadIdx.x == 0) partial[blockIdx.x * gridDim.y + blockIdx.y] = sums;
}

struct Moments {
    float mean, inv_deviation;
};

// Mean and deviation of a group from the sums of its parts; 0 and 1 without normalization.
template <typename T>
__device__ inline Moments moments_of(const T *x, const float2 *partial, int group, int size, int parts, float eps,
                                     int has_moments) {
    if (!has_moments) return {0.f, 1.f};
    float2 sums = {0.f, 0.f};
    for (int part = 0; part < parts; part++) {
        sums.x += partial[group * parts + part].x;
        sums.y += partial[group * parts + part].y;
    }
    const float shift = sums.x / size;
    const float variance = fmaxf(sums.y / size - shift * shift, 0.f);
    return {to_float(x[static_cast<long long>(group) * size]) + shift, 1.f / sqrtf(variance + eps)};
}

__device__ inline float sigmoid(float u) { return 1.f / (1.f + expf(-u)); }

// The derivative of u sigmoid(u).
__device__ inline float silu_slope(float u) {
    const float s = sigmoid(u);
    return s * (1.f + u * (1.f - s));
}

// y from x. A block has a part of a group; `blockIdx.x` counts the groups of all images.
template <typename T, int WIDTH>
__device__ void normalize(const T *x, T *y, const float *scale, const float *shift, const float2 *partial, int parts,
                          int channels, int groups, int pixels, int row, float eps, int silu, int has_moments) {
    const int of_group = channels / groups, size = of_group * pixels;
    const int image = blockIdx.x / groups, first = blockIdx.x % groups * of_group;
    const long long start = static_cast<long long>(blockIdx.x) * size;
    const Moments moments = moments_of(x, partial, blockIdx.x, size, parts, eps, has_moments);
    const Share share = share_of(size / WIDTH);
    for (int i = share.start + threadIdx.x; i < share.end; i += blockDim.x) {
        const int channel = image * row + first + i * WIDTH / pixels;
        const float factor = moments.inv_deviation * scale[channel];
        const float offset = shift[channel] - moments.mean * factor;
        const long long at = start + static_cast<long long>(i) * WIDTH;
        Pack<T, WIDTH> pack = load<T, WIDTH>(x + at);
        for (int k = 0; k < WIDTH; k++) {
            const float u = to_float(pack.values[k]) * factor + offset;
            set(pack.values[k], silu ? u * sigmoid(u) : u);
        }
        store<T, WIDTH>(y + at, pack);
    }
}

// For each image and channel the sums of `du x_hat` and of `du`, [2, N, C], where du is the gradient w.r.t. u: the gradients
// w.r.t. scale and shift. A block has a channel of an image.
template <typename T, int WIDTH>
__device__ void sum_gradients(const T *x, const T *dy, const float *scale, const float *shift, const float2 *partial,
                              float *sums, int parts, int channels, int groups, int pixels, int row, float eps, int silu, int has_moments) {
    const int of_group = channels / groups, size = of_group * pixels;
    const int image = blockIdx.x / channels, channel = blockIdx.x % channels;
    const Moments moments = moments_of(x, partial, image * groups + channel / of_group, size, parts, eps, has_moments);
    const float a = scale[image * row + channel], b = shift[image * row + channel];
    const long long start = static_cast<long long>(blockIdx.x) * pixels;
    float2 sum = {0.f, 0.f};
    for (int i = threadIdx.x * WIDTH; i < pixels; i += blockDim.x * WIDTH) {
        const Pack<T, WIDTH> x_pack = load<T, WIDTH>(x + start + i), dy_pack = load<T, WIDTH>(dy + start + i);
        for (int k = 0; k < WIDTH; k++) {
            const float x_hat = (to_float(x_pack.values[k]) - moments.mean) * moments.inv_deviation;
            float du = to_float(dy_pack.values[k]);
            if (silu) du *= silu_slope(x_hat * a + b);
            sum.x += du * x_hat;
            sum.y += du;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum.x;
        sums[gridDim.x + blockIdx.x] = sum.y;
    }
}

// With g = du scale, dx = (g - mean of g - x_hat mean of g x_hat) / sqrt(variance + eps); means over the group, from the sums of
// its channels. Without normalization, dx = g. A block has a part of a group.
template <typename T, int WIDTH>
__device__ void input_gradient(const T *x, const T *dy, T *dx, const float *scale, const float *shift,
                               const float2 *partial, const float *sums, int parts, int channels, int groups, int pixels,
                               int row, float eps, int silu, int has_moments) {
    const int of_group = channels / groups, size = of_group * pixels;
    const int image = blockIdx.x / groups, first = blockIdx.x % groups * of_group;
    const long long start = static_cast<long long>(blockIdx.x) * size, all = static_cast<long long>(gridDim.x / groups) * channels;
    const Moments moments = moments_of(x, partial, blockIdx.x, size, parts, eps, has_moments);
    float2 means = {0.f, 0.f};
    for (int i = threadIdx.x; i < of_group && has_moments; i += blockDim.x) {
        const float a = scale[image * row + first + i] / size;
        const long long at = static_cast<long long>(image) * channels + first + i;
        means.x += a * sums[at];
        means.y += a * sums[all + at];
    }
    means = block_sum(means);
    const Share share = share_of(size / WIDTH);
    for (int i = share.start + threadIdx.x; i < share.end; i += blockDim.x) {
        const int channel = image * row + first + i * WIDTH / pixels;
        const float a = scale[channel], b = shift[channel];
        const long long at = start + static_cast<long long>(i) * WIDTH;
        const Pack<T, WIDTH> x_pack = load<T, WIDTH>(x + at);
        Pack<T, WIDTH> pack = load<T, WIDTH>(dy + at);
        for (int k = 0; k < WIDTH; k++) {
            const float x_hat = (to_float(x_pack.values[k]) - moments.mean) * moments.inv_deviation;
            float du = to_float(pack.values[k]);
            if (silu) du *= silu_slope(x_hat * a + b);
            set(pack.values[k], (du * a - means.y - x_hat * means.x) * moments.inv_deviation);
        }
        store<T, WIDTH>(dx + at, pack);
    }
}

#define DEFINE(T, WIDTH, SUFFIX)                                                                                              \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS) group_norm_moments_##SUFFIX(const T *x, float2 *partial, int size) { \
        sum_moments<T, WIDTH>(x, partial, size);                                                                              \
    }                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                                 \
        group_norm_forward_##SUFFIX(const T *x, T *y, const float *scale, const float *shift, const float2 *partial,          \
                                    int parts, int channels, int groups, int pixels, int row, float eps, int silu, int has_moments) {          \
        normalize<T, WIDTH>(x, y, scale, shift, partial, parts, channels, groups, pixels, row, eps, silu, has_moments);                    \
    }                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS) group_norm_sums_##SUFFIX(                                       \
        const T *x, const T *dy, const float *scale, const float *shift, const float2 *partial, float *sums, int parts,       \
        int channels, int groups, int pixels, int row, float eps, int silu, int has_moments) {                                                 \
        sum_gradients<T, WIDTH>(x, dy, scale, shift, partial, sums, parts, channels, groups, pixels, row, eps, silu, has_moments);         \
    }                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS) group_norm_input_##SUFFIX(                                      \
        const T *x, const T *dy, T *dx, const float *scale, const float *shift, const float2 *partial, const float *sums,     \
        int parts, int channels, int groups, int pixels, int row, float eps, int silu, int has_moments) {                                      \
        input_gradient<T, WIDTH>(x, dy, dx, scale, shift, partial, sums, parts, channels, groups, pixels, row, eps, silu, has_moments);    \
    }
FOR_EACH_TYPE(DEFINE)
