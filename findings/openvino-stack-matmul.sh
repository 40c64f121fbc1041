#!/usr/bin/env bash
# OpenVINO 2026.4.1 cannot multiply a matrix of dynamic height by a constant stack of matrices on the CPU.
#
# Expected: MatMul of [N, 6] and a constant [3, 6, 4] is [3, N, 4], by the broadcasting that ONNX takes from NumPy; the ONNX
#           checker infers it, onnxruntime computes it, and so does OpenVINO where N is a number.
# Seen:     with a dynamic N the model is not compiled ("ranks are not equal"). With a leading axis of 1, [1, N, 6], it is
#           compiled, and its first inference fails ("Can not clone with new dims"). A leading axis of 3 works.
# For us:   the edits of a model are such a product, a code by one matrix for each attribute; `diffae export` writes them as one
#           Gemm of all attributes and a Reshape.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6
cat >"$folder/multiply.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

STACK = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)


def outcome(sizes, x):
    """Multiplies x by the stack in both runtimes: OpenVINO agrees, or its error."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, sizes[-2], 4])]
    stack = helper.make_tensor("stack", TensorProto.FLOAT, STACK.shape, STACK.ravel())
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "stack"], ["y"])], "product", inputs, outputs, [stack])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = f"{sys.argv[1]}/model.onnx"
    onnx.save(model, path)
    (wanted,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    assert np.allclose(wanted, np.matmul(x, STACK), atol=1e-5)
    try:
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        return "not compiled: " + str(error).strip().splitlines()[-1]
    try:
        got = compiled({"x": x})[0]
    except RuntimeError as error:
        return "not run: " + str(error).strip().splitlines()[-1]
    return "agrees" if got.shape == wanted.shape and np.allclose(got, wanted, atol=1e-5) else "differs"


x = np.ones((2, 6), dtype=np.float32)
seen = [
    outcome([2, 6], x),
    outcome(["N", 6], x),
    outcome([1, 2, 6], x[None]),
    outcome([1, "N", 6], x[None]),
    outcome([3, "N", 6], np.stack([x] * 3)),
]
print("\n".join(seen))
assert [line for line in seen if line == "agrees"] == [seen[0], seen[2], seen[4]], "it changed"
assert seen[1].startswith("not compiled") and "ranks are not equal" in seen[1], "it changed"
assert seen[3].startswith("not run") and "Can not clone with new dims" in seen[3], "it changed"
PYTHON
"$folder/venv/bin/python" "$folder/multiply.py" "$folder"
