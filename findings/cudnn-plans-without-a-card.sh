#!/usr/bin/env bash
# cuDNN 9.28.1 makes plans of convolutions for a card that is described by hand, without GPU or driver, but not without a file called
# libcuda.so.1; and for f32 its heuristics list engines that compute in TF32 alone.
#
# Expected: properties of a card, documented as a text that cuDNN itself writes on a machine with that card, cannot be made up; with
#           them "creating a plan does not require the device", so no driver either; sums and elements of f32 mean f32.
# Seen:     numbers out of NVIDIA's tables are taken for an H200. Without libcuda.so.1, even one without a single useful function,
#           the properties are refused as a sublibrary that cannot be loaded. Of the 40 configurations that the heuristics list for
#           f32, 40 in NCHW and 39 in NHWC compute on tensor cores, whose factors have ten bits of mantissa; those of the fallback do not. In NCHW the
#           first of them wants 64 MiB to transpose input and output, in NHWC nothing.
# For us:   `cargo xtask cudnn-plans` shows without a card which engines our convolutions get; for f32, engines on tensor cores are
#           passed over unless --dtype tf32 allows them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install --no-deps \
    nvidia-cudnn-cu13==9.28.1.4 nvidia-cublas==13.10.0.20
packages=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia
# A driver that has no card: every function that cuDNN looks for returns CUDA_ERROR_NO_DEVICE.
mkdir "$folder/driver"
for name in cuGetErrorString cuModuleGetFunction cuModuleLoadData cuModuleUnload cuTensorMapEncodeIm2col cuTensorMapEncodeTiled; do
    echo "int $name(void) { return 100; }"
done | cc -shared -fPIC -Wl,-soname,libcuda.so.1 -x c -o "$folder/driver/libcuda.so.1" -
cat >"$folder/plans.py" <<'PYTHON'
import ctypes
import json
import sys

cudnn = ctypes.CDLL("libcudnn.so.9")
TYPES = {"data": (1, ctypes.c_int), "i64": (3, ctypes.c_int64), "f32": (4, ctypes.c_float), "mode": (7, ctypes.c_int),
         "heuristics": (8, ctypes.c_int), "note": (11, ctypes.c_int), "descriptor": (15, ctypes.c_void_p),
         "text": (24, ctypes.c_char)}


class Refused(Exception):
    pass


def check(status):
    if status:
        cudnn.cudnnGetErrorString.restype = ctypes.c_char_p
        raise Refused(cudnn.cudnnGetErrorString(status).decode())


def new(kind):
    made = ctypes.c_void_p()
    check(cudnn.cudnnBackendCreateDescriptor(kind, ctypes.byref(made)))
    return made.value


def descriptor(kind, **attributes):
    """Makes a descriptor of attributes a_NUMBER=(type, values)."""
    made = new(kind)
    for name, (kind_of_values, values) in attributes.items():
        number, c_type = TYPES[kind_of_values]
        values = (c_type * len(values))(*values)
        check(cudnn.cudnnBackendSetAttribute(ctypes.c_void_p(made), int(name[2:]), number, ctypes.c_int64(len(values)), values))
    check(cudnn.cudnnBackendFinalize(ctypes.c_void_p(made)))
    return made


def get(of, name, kind_of_values, values):
    number, c_type = TYPES[kind_of_values]
    values, count = (c_type * max(len(values), 1))(*values), ctypes.c_int64()
    capacity = ctypes.c_int64(len(values) if values[0] is not None else 0)
    check(cudnn.cudnnBackendGetAttribute(ctypes.c_void_p(of), name, number, capacity, ctypes.byref(count), values))
    return list(values[:count.value])


def count(of, name):
    counted = ctypes.c_int64()
    check(cudnn.cudnnBackendGetAttribute(ctypes.c_void_p(of), name, 15, ctypes.c_int64(0), ctypes.byref(counted), None))
    return counted.value


H200 = {
    "maxGridSize": [2**31 - 1, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "cudaDeviceId": 0, "deviceVer": 900,
    "driverVer": 13000, "regsPerBlock": 65536, "multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
    "oversizedSharedMemoryPerBlock": 0, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 151 * 10**9,
    "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "memoryBusWidth": 6144, "l2CacheSize": 62914560,
    "deviceName": "NVIDIA H200",
}


def tensor(number, n, c, h, w, channels_last):
    strides = [c * h * w, 1, c * w, c] if channels_last else [c * h * w, h * w, w, 1]
    return descriptor(17, a_901=("data", [0]), a_902=("i64", [n, c, h, w]), a_903=("i64", strides), a_900=("i64", [16]),
                      a_906=("i64", [number]))


def convolution(channels_last):
    """A 3x3 convolution in f32 of 16 pictures of 64 pixels, from 128 channels to 128."""
    x = tensor(1, 16, 128, 64, 64, channels_last)
    weight = tensor(2, 128, 128, 3, 3, channels_last)
    y = tensor(3, 16, 128, 64, 64, channels_last)
    ones = ("i64", [1, 1])
    geometry = descriptor(1, a_100=("data", [0]), a_101=("mode", [1]), a_102=ones, a_103=ones, a_104=ones, a_105=ones,
                          a_106=("i64", [2]))
    operation = descriptor(10, a_700=("f32", [1]), a_701=("f32", [0]), a_702=("descriptor", [geometry]),
                           a_703=("descriptor", [weight]), a_704=("descriptor", [x]), a_705=("descriptor", [y]))
    return descriptor(15, a_801=("descriptor", [operation]))


try:
    card = descriptor(38, a_2702=("text", [bytes([byte]) for byte in json.dumps(H200).encode()]))
except Refused as status:
    print(f"{sys.argv[1]}: {status}")
    sys.exit()
for layout in ("NCHW", "NHWC"):
    graph = convolution(layout == "NHWC")
    for name, mode in (("heuristics", 3), ("fallback", 2)):
        heuristics = descriptor(4, a_201=("descriptor", [graph]), a_200=("heuristics", [mode]), a_204=("descriptor", [card]))
        configurations = get(heuristics, 202, "descriptor", [new(3) for _ in range(count(heuristics, 202))])
        engines = [get(each, 300, "descriptor", [new(2)])[0] for each in configurations]
        on_tensor_cores = sum(0 in get(engine, 1303, "note", [-1] * 32) for engine in engines)
        print(f"{sys.argv[1]}, {layout}, {name}: {on_tensor_cores} of {len(engines)} on tensor cores")
        if name == "heuristics":
            plan = descriptor(5, a_401=("descriptor", configurations[:1]), a_407=("descriptor", [card]))
            [workspace] = get(plan, 402, "i64", [0])
            print(f"{sys.argv[1]}, {layout}, workspace of the first: {workspace >> 20} MiB")
PYTHON
cat >"$folder/expected" <<'OUTPUT'
without libcuda.so.1: CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED
with an empty one, NCHW, heuristics: 40 of 40 on tensor cores
with an empty one, NCHW, workspace of the first: 64 MiB
with an empty one, NCHW, fallback: 0 of 3 on tensor cores
with an empty one, NHWC, heuristics: 39 of 40 on tensor cores
with an empty one, NHWC, workspace of the first: 0 MiB
with an empty one, NHWC, fallback: 0 of 3 on tensor cores
OUTPUT
run() { LD_LIBRARY_PATH=$packages/cudnn/lib:$packages/cu13/lib:$2 "$folder/venv/bin/python" "$folder/plans.py" "$1" 2>/dev/null; }
{ run "without libcuda.so.1" ""; run "with an empty one" "$folder/driver"; } | tee "$folder/seen"
diff "$folder/expected" "$folder/seen"
