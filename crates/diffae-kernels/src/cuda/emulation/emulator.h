// CUDA's model of execution on the CPU, for the kernels beside: one block after another, each thread a context of its own that runs
// until it meets the others. Threads that meet at different places (or not all of them) are an error, where a card would hang or
// give nonsense. The order of the threads between two meetings is forwards or backwards: what depends on it is a race.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads)

struct float2 {
    float x, y;
};

struct Index {
    unsigned x, y, z;
};

inline Index threadIdx, blockIdx, blockDim, gridDim;

// Numbers of two bytes, rounded to nearest even.
struct __half {
    _Float16 value;
};
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isnan(x)) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

[[noreturn]] inline void fail(const char *problem) {
    std::fprintf(stderr, "%s\n", problem);
    std::exit(1);
}

namespace emulator {

constexpr size_t STACK = 1 << 16;
constexpr unsigned WARP = 32;

// What a thread does next.
enum class Meeting { None, Block, Warp, End };

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    Meeting meeting;
    // Place of the meeting in the source: all that meet must be at the same.
    const void *place;
    float given;
};

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline unsigned current;
inline bool backwards;
inline void (*body)(void *);
inline void *body_argument;

inline void enter() {
    body(body_argument);
    threads[current].meeting = Meeting::End;
}

inline void meet(Meeting meeting, const void *place) {
    Thread &self = threads[current];
    self.meeting = meeting;
    self.place = place;
    swapcontext(&self.context, &scheduler);
}

// Whether threads `first..end` have all come to one meeting.
inline bool agree(unsigned first, unsigned end) {
    for (unsigned i = first; i < end; i++) {
        if (threads[i].meeting != threads[first].meeting || threads[i].place != threads[first].place) return false;
    }
    return true;
}

inline void run_block() {
    const unsigned count = blockDim.x;
    for (unsigned i = 0; i < count; i++) {
        Thread &thread = threads[i];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &scheduler;
        thread.meeting = Meeting::None;
        makecontext(&thread.context, enter, 0);
    }
    while (true) {
        for (unsigned i = 0; i < count; i++) {
            current = backwards ? count - 1 - i : i;
            if (threads[current].meeting == Meeting::End) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &threads[current].context);
        }
        for (unsigned first = 0; first < count; first += WARP) {
            if (!agree(first, first + WARP)) fail("the threads of a warp meet at different places");
        }
        // A warp whose shuffle is not that of the other warps is right on a card, too; no kernel here does that.
        if (!agree(0, count)) fail("the threads of a block meet at different places");
        if (threads[0].meeting == Meeting::End) return;
    }
}

// Runs a kernel, `body(argument)` for each thread.
inline void launch(unsigned grid_x, unsigned grid_y, unsigned num_threads, void (*kernel)(void *), void *argument) {
    if (num_threads == 0 || num_threads % WARP != 0) fail("the number of threads is no multiple of a warp");
    if (num_threads > 1024 || grid_x == 0 || grid_y == 0 || grid_x >= 1u << 31 || grid_y > 65535) fail("no card has such a grid");
    threads.resize(num_threads);
    for (Thread &thread : threads) thread.stack.resize(STACK);
    blockDim = {num_threads, 1, 1};
    gridDim = {grid_x, grid_y, 1};
    body = kernel;
    body_argument = argument;
    for (unsigned y = 0; y < grid_y; y++) {
        for (unsigned x = 0; x < grid_x; x++) {
            blockIdx = {x, y, 0};
            run_block();
        }
    }
    body_argument = nullptr;
}

} // namespace emulator

// Not inlined, so that the address of the caller is the place.
__attribute__((noinline)) inline void __syncthreads() {
    emulator::meet(emulator::Meeting::Block, __builtin_return_address(0));
}

__attribute__((noinline)) inline float __shfl_xor_sync(unsigned, float value, int lane) {
    using namespace emulator;
    const void *place = __builtin_return_address(0);
    const unsigned other = current ^ static_cast<unsigned>(lane);
    threads[current].given = value;
    meet(Meeting::Warp, place);
    const float got = threads[other].given;
    // Nobody gives anew before all have taken.
    meet(Meeting::Warp, place);
    return got;
}
