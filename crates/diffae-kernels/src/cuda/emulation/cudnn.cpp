// A stand-in for cuDNN: the part of its backend interface that convolutions need, computed on the CPU.
//
// It is stricter than cuDNN: an attribute of another type, a number of values that does not fit, and a descriptor that is used before
// it is finalized, or changed after it, are refused. Engines differ so that a test sees which one was taken.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#define PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

enum Status { SUCCESS = 0, BAD_PARAMETER = 2000, NOT_SUPPORTED = 3000 };

enum Kind {
    CONVOLUTION = 1,
    ENGINE = 2,
    ENGINE_CONFIG = 3,
    HEURISTICS = 4,
    PLAN = 5,
    FORWARD = 10,
    WEIGHT_GRADIENT = 11,
    INPUT_GRADIENT = 12,
    GRAPH = 15,
    VARIANT_PACK = 16,
    TENSOR = 17,
};

enum Type {
    HANDLE = 0,
    DATA_TYPE = 1,
    INT64 = 3,
    FLOAT = 4,
    ADDRESS = 6,
    CONVOLUTION_MODE = 7,
    HEURISTICS_MODE = 8,
    NOTE = 11,
    DESCRIPTOR = 15,
};

size_t size_of(int type) {
    switch (type) {
        case HANDLE: case INT64: case ADDRESS: case DESCRIPTOR: return 8;
        case DATA_TYPE: case FLOAT: case CONVOLUTION_MODE: case HEURISTICS_MODE: case NOTE: return 4;
        default: return 0;
    }
}

/// What an attribute must be: its type, and how many values it has.
struct Rule {
    int type;
    int64_t count;
};

/// The attributes of each kind that must be there, and no others.
const std::map<int, std::map<int, Rule>> RULES = {
    {TENSOR, {{900, {INT64, 1}}, {901, {DATA_TYPE, 1}}, {902, {INT64, 4}}, {903, {INT64, 4}}, {906, {INT64, 1}}}},
    {CONVOLUTION,
     {{100, {DATA_TYPE, 1}}, {101, {CONVOLUTION_MODE, 1}}, {102, {INT64, 2}}, {103, {INT64, 2}}, {104, {INT64, 2}},
      {105, {INT64, 2}}, {106, {INT64, 1}}}},
    {FORWARD,
     {{700, {FLOAT, 1}}, {701, {FLOAT, 1}}, {702, {DESCRIPTOR, 1}}, {703, {DESCRIPTOR, 1}}, {704, {DESCRIPTOR, 1}},
      {705, {DESCRIPTOR, 1}}}},
    {INPUT_GRADIENT,
     {{706, {FLOAT, 1}}, {707, {FLOAT, 1}}, {708, {DESCRIPTOR, 1}}, {709, {DESCRIPTOR, 1}}, {710, {DESCRIPTOR, 1}},
      {711, {DESCRIPTOR, 1}}}},
    {WEIGHT_GRADIENT,
     {{712, {FLOAT, 1}}, {713, {FLOAT, 1}}, {714, {DESCRIPTOR, 1}}, {715, {DESCRIPTOR, 1}}, {716, {DESCRIPTOR, 1}},
      {717, {DESCRIPTOR, 1}}}},
    {GRAPH, {{800, {HANDLE, 1}}, {801, {DESCRIPTOR, 1}}}},
    {HEURISTICS, {{200, {HEURISTICS_MODE, 1}}, {201, {DESCRIPTOR, 1}}}},
    {PLAN, {{400, {HANDLE, 1}}, {401, {DESCRIPTOR, 1}}}},
    {VARIANT_PACK, {{1000, {INT64, 3}}, {1001, {ADDRESS, 3}}, {1003, {ADDRESS, 1}}}},
    {ENGINE, {}},
    {ENGINE_CONFIG, {}},
};

/// Engines: a number, and the notes on their results.
struct Engine {
    int64_t index;
    std::vector<int> notes;
};

/// As the heuristics list them: the fastest first.
const std::vector<Engine> ENGINES = {
    {9, {0, 4}},  // differs from run to run
    {8, {0, 5}},  // Winograd
    {7, {0}},     // tensor cores, which need more memory than anybody gives
    {6, {0}},     // tensor cores, which find out late that they cannot
    {5, {0}},     // tensor cores
    {4, {}},      // finds out late that it cannot
    {3, {}},      // computes
};
/// The one that the heuristics fall back to.
const Engine FALLBACK = {2, {9}};

const int64_t TOO_LARGE = int64_t(1) << 40;
const int64_t WORKSPACE = 1000;

struct Object {
    int kind = 0;
    bool is_final = false;
    std::map<int, std::vector<unsigned char>> attributes;
    // Of engines, of configurations and of plans.
    Engine engine = {};
    const Object* graph = nullptr;
};

struct Handle {
    void* stream = nullptr;
};

int live_objects = 0;
int live_handles = 0;

template <typename T>
std::vector<T> values(const Object& object, int name) {
    const auto& bytes = object.attributes.at(name);
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

const Object& other(const Object& object, int name) { return *values<const Object*>(object, name).at(0); }

/// A convolution as the descriptors describe it.
struct Operation {
    int kind;
    int64_t n, c, o, h, w, k;
    int type;
    int64_t ids[3];
};

int64_t product(const std::vector<int64_t>& dims) { return dims[0] * dims[1] * dims[2] * dims[3]; }

bool describe(const Object& graph, Operation& operation) {
    const Object& node = other(graph, 801);
    int first = node.kind == FORWARD ? 700 : node.kind == INPUT_GRADIENT ? 706 : 712;
    const Object& geometry = other(node, first + 2);
    const Object& weight = other(node, first + 3);
    const Object& x = other(node, first + 4);
    const Object& y = other(node, first + 5);
    auto xd = values<int64_t>(x, 902), wd = values<int64_t>(weight, 902), yd = values<int64_t>(y, 902);
    for (const Object* tensor : {&x, &weight, &y}) {
        auto dims = values<int64_t>(*tensor, 902), strides = values<int64_t>(*tensor, 903);
        if (strides != std::vector<int64_t>{product({1, dims[1], dims[2], dims[3]}), dims[2] * dims[3], dims[3], 1}) return false;
        if (values<int>(*tensor, 901) != values<int>(x, 901)) return false;
    }
    int64_t pad = wd[2] / 2;
    bool is_known = values<float>(node, first) == std::vector<float>{1} && values<float>(node, first + 1) == std::vector<float>{0} &&
        values<int>(geometry, 100)[0] == 0 && values<int>(geometry, 101)[0] == 1 &&
        values<int64_t>(geometry, 102) == std::vector<int64_t>{1, 1} && values<int64_t>(geometry, 103) == std::vector<int64_t>{1, 1} &&
        values<int64_t>(geometry, 104) == std::vector<int64_t>{pad, pad} && values<int64_t>(geometry, 105) == std::vector<int64_t>{pad, pad} &&
        values<int64_t>(geometry, 106)[0] == 2;
    bool fits = yd == std::vector<int64_t>{xd[0], wd[0], xd[2], xd[3]} && wd[1] == xd[1] && wd[2] == wd[3] && wd[2] % 2 == 1;
    operation = {node.kind, xd[0], xd[1], yd[1], xd[2], xd[3], wd[2], values<int>(x, 901)[0],
                 {values<int64_t>(x, 906)[0], values<int64_t>(weight, 906)[0], values<int64_t>(y, 906)[0]}};
    return is_known && fits;
}

/// Rounds to the ten bits of mantissa that TF32 keeps.
float to_tf32(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = (bits + 0x1000) & ~uint32_t(0x1fff);
    std::memcpy(&value, &bits, 4);
    return value;
}

float read(const void* data, int64_t at, int type) {
    if (type == 0) return static_cast<const float*>(data)[at];
    if (type == 2) return float(static_cast<const _Float16*>(data)[at]);
    uint32_t bits = uint32_t(static_cast<const uint16_t*>(data)[at]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

void write(void* data, int64_t at, int type, float value) {
    if (type == 0) static_cast<float*>(data)[at] = value;
    else if (type == 2) static_cast<_Float16*>(data)[at] = _Float16(value);
    else {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits += 0x7fff + ((bits >> 16) & 1);
        static_cast<uint16_t*>(data)[at] = uint16_t(bits >> 16);
    }
}

/// Adds each product of a convolution to the tensor that is computed, in f64.
void convolve(const Operation& op, bool rounds, void* const tensors[3]) {
    int64_t sizes[3] = {op.n * op.c * op.h * op.w, op.o * op.c * op.k * op.k, op.n * op.o * op.h * op.w};
    int result = op.kind == FORWARD ? 2 : op.kind == INPUT_GRADIENT ? 0 : 1;
    std::vector<double> parts[3];
    for (int t = 0; t < 3; ++t) {
        parts[t].resize(size_t(sizes[t]));
        for (int64_t i = 0; t != result && i < sizes[t]; ++i) {
            float value = read(tensors[t], i, op.type);
            parts[t][size_t(i)] = rounds && op.type == 0 ? to_tf32(value) : value;
        }
    }
    int64_t pad = op.k / 2;
    for (int64_t n = 0; n < op.n; ++n) for (int64_t o = 0; o < op.o; ++o) for (int64_t c = 0; c < op.c; ++c)
    for (int64_t i = 0; i < op.h; ++i) for (int64_t j = 0; j < op.w; ++j)
    for (int64_t a = 0; a < op.k; ++a) for (int64_t b = 0; b < op.k; ++b) {
        int64_t row = i + a - pad, column = j + b - pad;
        if (row < 0 || row >= op.h || column < 0 || column >= op.w) continue;
        size_t x = size_t(((n * op.c + c) * op.h + row) * op.w + column);
        size_t w = size_t(((o * op.c + c) * op.k + a) * op.k + b);
        size_t y = size_t(((n * op.o + o) * op.h + i) * op.w + j);
        if (result == 2) parts[2][y] += parts[0][x] * parts[1][w];
        else if (result == 0) parts[0][x] += parts[2][y] * parts[1][w];
        else parts[1][w] += parts[0][x] * parts[2][y];
    }
    for (int64_t i = 0; i < sizes[result]; ++i) write(tensors[result], i, op.type, float(parts[result][size_t(i)]));
}

Status finish(Object& object) {
    for (const auto& [name, rule] : RULES.at(object.kind)) {
        if (!object.attributes.contains(name)) return BAD_PARAMETER;
        if (rule.type != DESCRIPTOR || object.kind == PLAN) continue;
        if (!other(object, name).is_final) return BAD_PARAMETER;
    }
    Operation operation;
    switch (object.kind) {
        case GRAPH: return describe(object, operation) ? SUCCESS : NOT_SUPPORTED;
        case HEURISTICS: object.graph = &other(object, 201); return SUCCESS;
        case PLAN: {
            const Object& config = other(object, 401);
            object.graph = config.graph;
            object.engine = config.engine;
            bool fails = config.graph == nullptr || config.engine.index == 6 || config.engine.index == 4;
            return fails ? NOT_SUPPORTED : SUCCESS;
        }
        default: return SUCCESS;
    }
}

}  // namespace

PUBLIC size_t cudnnGetVersion() { return 91000; }

PUBLIC const char* cudnnGetErrorString(int status) {
    switch (status) {
        case SUCCESS: return "CUDNN_STATUS_SUCCESS";
        case BAD_PARAMETER: return "CUDNN_STATUS_BAD_PARAM";
        default: return "CUDNN_STATUS_NOT_SUPPORTED";
    }
}

PUBLIC int cudnnCreate(void** handle) {
    *handle = new Handle;
    ++live_handles;
    return SUCCESS;
}

PUBLIC int cudnnDestroy(void* handle) {
    delete static_cast<Handle*>(handle);
    --live_handles;
    return SUCCESS;
}

PUBLIC int cudnnSetStream(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return SUCCESS;
}

PUBLIC int cudnnBackendCreateDescriptor(int kind, void** result) {
    if (!RULES.contains(kind)) return NOT_SUPPORTED;
    auto* object = new Object;
    object->kind = kind;
    *result = object;
    ++live_objects;
    return SUCCESS;
}

PUBLIC int cudnnBackendDestroyDescriptor(void* object) {
    delete static_cast<Object*>(object);
    --live_objects;
    return SUCCESS;
}

/// Number of descriptors and handles that are not freed, for tests.
PUBLIC int standin_live() { return live_objects + live_handles; }

PUBLIC int cudnnBackendSetAttribute(void* target, int name, int type, int64_t count, const void* values) {
    auto& object = *static_cast<Object*>(target);
    const auto& rules = RULES.at(object.kind);
    auto rule = rules.find(name);
    if (object.is_final || rule == rules.end() || rule->second.type != type || rule->second.count != count) return BAD_PARAMETER;
    const auto* bytes = static_cast<const unsigned char*>(values);
    object.attributes[name].assign(bytes, bytes + size_t(count) * size_of(type));
    return SUCCESS;
}

PUBLIC int cudnnBackendFinalize(void* target) {
    auto& object = *static_cast<Object*>(target);
    if (object.is_final) return BAD_PARAMETER;
    Status status = finish(object);
    object.is_final = status == SUCCESS;
    return status;
}

PUBLIC int cudnnBackendGetAttribute(void* source, int name, int type, int64_t capacity, int64_t* count, void* values) {
    auto& object = *static_cast<Object*>(source);
    if (object.kind == HEURISTICS && name == 202 && type == DESCRIPTOR && object.is_final) {
        int mode = ::values<int>(object, 200)[0];
        Operation operation;
        describe(*object.graph, operation);
        // The heuristics know nothing of a single channel; the fallback knows all.
        std::vector<Engine> engines = mode == 2 ? std::vector{FALLBACK} : operation.c == 1 ? std::vector<Engine>{} : ENGINES;
        *count = int64_t(engines.size());
        for (int64_t i = 0; values && i < capacity && i < *count; ++i) {
            auto& config = *static_cast<Object**>(values)[i];
            if (config.kind != ENGINE_CONFIG) return BAD_PARAMETER;
            config.engine = engines[size_t(i)];
            config.graph = object.graph;
            config.is_final = true;
        }
        return SUCCESS;
    }
    if (object.kind == ENGINE_CONFIG && name == 300 && type == DESCRIPTOR && capacity == 1) {
        auto& engine = *static_cast<Object**>(values)[0];
        if (engine.kind != ENGINE) return BAD_PARAMETER;
        engine.engine = object.engine;
        *count = 1;
        return SUCCESS;
    }
    if (object.kind == ENGINE && name == 1301 && type == INT64 && capacity == 1) {
        std::memcpy(values, &object.engine.index, 8);
        *count = 1;
        return SUCCESS;
    }
    if (object.kind == ENGINE && name == 1303 && type == NOTE) {
        *count = int64_t(object.engine.notes.size());
        if (*count > capacity) return BAD_PARAMETER;
        if (*count > 0) std::memcpy(values, object.engine.notes.data(), size_t(*count) * 4);
        return SUCCESS;
    }
    if (object.kind == PLAN && name == 402 && type == INT64 && capacity == 1 && object.is_final) {
        int64_t size = object.engine.index == 7 ? TOO_LARGE : WORKSPACE;
        std::memcpy(values, &size, 8);
        *count = 1;
        return SUCCESS;
    }
    return BAD_PARAMETER;
}

PUBLIC int cudnnBackendExecute(void* handle, void* plan_object, void* pack_object) {
    const auto& plan = *static_cast<Object*>(plan_object);
    const auto& pack = *static_cast<Object*>(pack_object);
    if (!static_cast<Handle*>(handle)->stream || !plan.is_final || !pack.is_final) return BAD_PARAMETER;
    Operation operation;
    describe(*plan.graph, operation);
    auto ids = values<int64_t>(pack, 1000);
    auto addresses = values<void*>(pack, 1001);
    void* tensors[3] = {};
    for (int t = 0; t < 3; ++t)
        for (size_t i = 0; i < ids.size(); ++i)
            if (ids[i] == operation.ids[t]) tensors[t] = addresses[i];
    for (void* tensor : tensors)
        if (!tensor || reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return BAD_PARAMETER;
    std::memset(values<void*>(pack, 1003)[0], 0xff, WORKSPACE);
    convolve(operation, plan.engine.index == 5, tensors);
    return SUCCESS;
}
