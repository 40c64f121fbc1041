// Runs launches of the kernels on the CPU. Reads from the standard input, in words with spaces between:
//
//   backwards 0|1
//   buffer BYTES, followed by a line end and so many bytes
//   table COUNT, followed by so many arguments b or n: a buffer of addresses
//   launch NAME GRID_X GRID_Y THREADS COUNT, followed by arguments: b BUFFER OFFSET | n | i INT | l LONG | u UNSIGNED | f FLOAT
//   end
//
// b is the address OFFSET bytes into a buffer, n the null pointer. At the end it writes all buffers. The bytes around each buffer are
// guarded.
#include "emulator.h"

#include <iostream>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "../kernels/attention.cu"
#undef DEFINE
#include "../kernels/elementwise.cu"
#undef DEFINE
#include "../kernels/group_norm.cu"
#undef DEFINE
#include "../kernels/optimizer.cu"
#undef DEFINE
#include "../kernels/resample.cu"

namespace {

constexpr size_t GUARD = 256;
constexpr char GUARD_BYTE = '\x5a';

struct Buffer {
    std::vector<char> bytes;
    // Aligned like memory of a card.
    char *start;
    size_t length;

    explicit Buffer(size_t length) : bytes(length + 3 * GUARD, GUARD_BYTE), length(length) {
        const auto address = reinterpret_cast<uintptr_t>(bytes.data()) + GUARD;
        start = bytes.data() + GUARD + (GUARD - address % GUARD) % GUARD;
    }

    bool is_whole() const {
        for (const char *at = bytes.data(); at < bytes.data() + bytes.size(); at++) {
            if ((at < start || at >= start + length) && *at != GUARD_BYTE) return false;
        }
        return true;
    }
};

struct Argument {
    char kind;
    void *pointer;
    long long integer;
    unsigned long long natural;
    float real;

    template <typename T>
    T as() const {
        if constexpr (std::is_pointer_v<T>) {
            if (kind != 'b' && kind != 'n') fail("a kernel takes a pointer where it gets a number");
            return static_cast<T>(pointer);
        } else if constexpr (std::is_same_v<T, float>) {
            if (kind != 'f') fail("a kernel takes f32 where it gets another type");
            return real;
        } else if constexpr (std::is_same_v<T, unsigned long long>) {
            if (kind != 'u') fail("a kernel takes u64 where it gets another type");
            return natural;
        } else if constexpr (std::is_same_v<T, long long>) {
            if (kind != 'l') fail("a kernel takes i64 where it gets another type");
            return integer;
        } else {
            static_assert(std::is_same_v<T, int>);
            if (kind != 'i') fail("a kernel takes i32 where it gets another type");
            return static_cast<int>(integer);
        }
    }
};

struct Launch {
    unsigned grid_x, grid_y, num_threads;
    std::vector<Argument> arguments;
};

template <typename... Ts, size_t... IDX>
void launch_with(void (*kernel)(Ts...), const Launch &launch, std::index_sequence<IDX...>) {
    if (launch.arguments.size() != sizeof...(Ts)) fail("a kernel takes another number of arguments");
    auto call = std::make_pair(kernel, std::tuple<Ts...>(launch.arguments[IDX].as<Ts>()...));
    using Call = decltype(call);
    const auto body = [](void *argument) {
        const auto &call = *static_cast<Call *>(argument);
        std::apply(call.first, call.second);
    };
    emulator::launch(launch.grid_x, launch.grid_y, launch.num_threads, body, &call);
}

template <typename... Ts>
void run(void (*kernel)(Ts...), const Launch &launch) {
    launch_with(kernel, launch, std::index_sequence_for<Ts...>());
}

const std::map<std::string, void (*)(const Launch &)> KERNELS = {
#define KERNEL(NAME) {#NAME, [](const Launch &launch) { run(NAME, launch); }},
#define KERNELS_OF(T, WIDTH, SUFFIX)   \
    KERNEL(group_norm_moments_##SUFFIX) \
    KERNEL(group_norm_forward_##SUFFIX) \
    KERNEL(group_norm_sums_##SUFFIX)    \
    KERNEL(group_norm_input_##SUFFIX)   \
    KERNEL(add_bias_##SUFFIX)           \
    KERNEL(sum_pixels_##SUFFIX)
    FOR_EACH_TYPE(KERNELS_OF)
    KERNEL(sum_images_f32) KERNEL(sum_images_f16) KERNEL(sum_images_bf16)
    KERNEL(dropout_f32) KERNEL(dropout_f16) KERNEL(dropout_bf16)
    KERNEL(softmax_f32) KERNEL(softmax_f16) KERNEL(softmax_bf16)
    KERNEL(softmax_gradient_f32) KERNEL(softmax_gradient_f16) KERNEL(softmax_gradient_bf16)
    KERNEL(modulate_f32) KERNEL(modulate_f16) KERNEL(modulate_bf16)
    KERNEL(upsample_f32) KERNEL(upsample_f16) KERNEL(upsample_bf16)
    KERNEL(pool_f32) KERNEL(pool_f16) KERNEL(pool_bf16)
    KERNEL(adam) KERNEL(squares)
};

template <typename T>
T word() {
    T value;
    if (!(std::cin >> value)) fail("the input ends or is no number");
    return value;
}

Argument argument(std::vector<Buffer> &buffers) {
    Argument argument = {};
    argument.kind = word<char>();
    switch (argument.kind) {
    case 'b': {
        const auto buffer = word<size_t>(), offset = word<size_t>();
        argument.pointer = buffers.at(buffer).start + offset;
        break;
    }
    case 'n': break;
    case 'i':
    case 'l': argument.integer = word<long long>(); break;
    case 'u': argument.natural = word<unsigned long long>(); break;
    case 'f': {
        // As bits, so that nothing is rounded.
        const auto bits = word<uint32_t>();
        std::memcpy(&argument.real, &bits, sizeof bits);
        break;
    }
    default: fail("an argument of an unknown kind");
    }
    return argument;
}

} // namespace

int main() {
    std::ios::sync_with_stdio(false);
    std::vector<Buffer> buffers;
    buffers.reserve(64);
    for (auto command = word<std::string>(); command != "end"; command = word<std::string>()) {
        if (command == "backwards") {
            emulator::backwards = word<int>() != 0;
        } else if (command == "buffer") {
            Buffer &buffer = buffers.emplace_back(word<size_t>());
            std::cin.get();
            std::cin.read(buffer.start, static_cast<std::streamsize>(buffer.length));
        } else if (command == "table") {
            // A buffer of addresses of other buffers.
            const auto count = word<size_t>();
            Buffer &buffer = buffers.emplace_back(count * sizeof(void *));
            for (size_t i = 0; i < count; i++) {
                const Argument entry = argument(buffers);
                std::memcpy(buffer.start + i * sizeof(void *), &entry.pointer, sizeof(void *));
            }
        } else if (command == "launch") {
            const auto name = word<std::string>();
            const auto kernel = KERNELS.find(name);
            if (kernel == KERNELS.end()) fail(("there is no kernel " + name).c_str());
            Launch launch = {word<unsigned>(), word<unsigned>(), word<unsigned>(), {}};
            const auto count = word<size_t>();
            for (size_t i = 0; i < count; i++) launch.arguments.push_back(argument(buffers));
            kernel->second(launch);
        } else {
            fail("an unknown command");
        }
    }
    for (const Buffer &buffer : buffers) {
        if (!buffer.is_whole()) fail("a kernel wrote outside of a buffer");
        std::cout.write(buffer.start, static_cast<std::streamsize>(buffer.length));
    }
}
