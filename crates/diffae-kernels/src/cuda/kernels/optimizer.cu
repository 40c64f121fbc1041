// Adam with a moving average, and sums of squares, for all parameters in one launch over tables of pointers.
//
// A block has `block` elements of one tensor: `tensors[blockIdx.x]` is the tensor, `starts[blockIdx.x]` its first element.
#include "common.cuh"

// Pointers of a parameter; without a moving average, that is null.
struct Buffers {
    float *parameter;
    const float *gradient;
    float *m, *v, *average;
};

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    adam(const Buffers *table, const long long *lengths, const int *tensors, const long long *starts, int block,
         float gradient_scale, float beta_1, float beta_2, float step, float inv_sqrt_correction, float eps, float decay,
         float ema_decay) {
    const int tensor = tensors[blockIdx.x];
    const Buffers buffers = table[tensor];
    const long long start = starts[blockIdx.x], left = lengths[tensor] - start;
    const int count = left < block ? static_cast<int>(left) : block;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const long long at = start + i;
        const float g = buffers.gradient[at] * gradient_scale;
        const float m = beta_1 * buffers.m[at] + (1.f - beta_1) * g;
        const float v = beta_2 * buffers.v[at] + (1.f - beta_2) * g * g;
        const float p = buffers.parameter[at] * (1.f - decay) - step * m / (sqrtf(v) * inv_sqrt_correction + eps);
        buffers.m[at] = m;
        buffers.v[at] = v;
        buffers.parameter[at] = p;
        if (buffers.average) buffers.average[at] = ema_decay * buffers.average[at] + (1.f - ema_decay) * p;
    }
}

// The sum of squares of each block.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    squares(const float *const *table, const long long *lengths, const int *tensors, const long long *starts, int block,
            float *sums) {
    const int tensor = tensors[blockIdx.x];
    const float *x = table[tensor];
    const long long start = starts[blockIdx.x], left = lengths[tensor] - start;
    const int count = left < block ? static_cast<int>(left) : block;
    float2 sum = {0.f, 0.f};
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum.x += x[start + i] * x[start + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum.x;
}
