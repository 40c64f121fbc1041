// What the kernels share: number types, packs of elements, shares of work, and sums over a block.
//
// Tensors hold f32, f16 or bf16; arithmetic is in f32. All sums are in a fixed order, so that a kernel gives the same bits from
// run to run; none depends on the number of images, so that a picture has the same bits in any batch.
#pragma once

#ifndef EMULATED // The emulation on the CPU brings its own.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

// Defines a kernel for each number type and each width of packs: NAME_f32_x1, NAME_f32_x4, NAME_f16_x1, ..
#define FOR_EACH_TYPE(DEFINE)     \
    DEFINE(float, 1, f32_x1)      \
    DEFINE(float, 4, f32_x4)      \
    DEFINE(__half, 1, f16_x1)     \
    DEFINE(__half, 4, f16_x4)     \
    DEFINE(__nv_bfloat16, 1, bf16_x1) \
    DEFINE(__nv_bfloat16, 4, bf16_x4)

// Threads of a block at most, and of a warp.
constexpr int MAX_THREADS = 256;
constexpr int WARP = 32;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void set(float &to, float x) { to = x; }
__device__ inline void set(__half &to, float x) { to = __float2half_rn(x); }
__device__ inline void set(__nv_bfloat16 &to, float x) { to = __float2bfloat16_rn(x); }

// Consecutive elements that are read and written at once.
template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Pack {
    T values[WIDTH];
};

template <typename T, int WIDTH>
__device__ inline Pack<T, WIDTH> load(const T *from) {
    return *reinterpret_cast<const Pack<T, WIDTH> *>(from);
}

template <typename T, int WIDTH>
__device__ inline void store(T *to, const Pack<T, WIDTH> &pack) {
    *reinterpret_cast<Pack<T, WIDTH> *>(to) = pack;
}

// The share of `count` packs that falls to the block `blockIdx.y` of `gridDim.y`. (Along y a card counts to 65,535 only.)
struct Share {
    int start, end;
};

__device__ inline Share share_of(int count) {
    const long long blocks = gridDim.y, block = blockIdx.y;
    return {static_cast<int>(count * block / blocks), static_cast<int>(count * (block + 1) / blocks)};
}

// Sums pairs over the threads of a block, whose number is a multiple of 32, and returns the sum to each.
__device__ inline float2 block_sum(float2 pair) {
    __shared__ float2 of_warps[MAX_THREADS / WARP];
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        pair.x += __shfl_xor_sync(0xffffffffu, pair.x, lane);
        pair.y += __shfl_xor_sync(0xffffffffu, pair.y, lane);
    }
    // Those who still read the sums of a call before are waited for.
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = pair;
    __syncthreads();
    float2 sum = {0.f, 0.f};
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / WARP; warp++) {
        sum.x += of_warps[warp].x;
        sum.y += of_warps[warp].y;
    }
    return sum;
}
