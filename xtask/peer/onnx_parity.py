"""Runs the ONNX exports of `cargo xtask onnx --out DIR` with other runtimes, and compares with our numbers.

    python onnx_parity.py DIR

Each model folder below DIR holds f32/, f16/ and numbers.safetensors. A line per quantity: the largest absolute difference to our
own numbers by onnxruntime, of both precisions, and by OpenVINO, of f32. f32 must agree within 1e-4, and within 1e-3 after an exact
inversion, which amplifies rounding, above all with networks that were not trained; f16 must be finite.
Every file is checked by the ONNX checker with full type and shape inference first.

A folder that also holds pictures.safetensors has a picture with our reconstruction and our edit of it: the program of docs/onnx.md
runs on the picture as it stands there, and no pixel of its results may differ by more than one step of 255.
"""
import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from safetensors import safe_open
from safetensors.numpy import load_file

TOLERANCE = 1e-4
INVERTED_TOLERANCE = 1e-3


class Onnxruntime:
    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs):
        return self.session.run(None, inputs)[0]


class OpenVino:
    def __init__(self, path):
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        self.model = openvino.Core().compile_model(path, "CPU", options)

    def __call__(self, **inputs):
        return self.model(inputs)[0]


class Model:
    """The graphs of an export, and the chains that its manifest describes."""

    def __init__(self, folder, runtime):
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.graphs = {part: runtime(folder / graph["file"]) for part, graph in self.manifest["graphs"].items()}

    def eps(self, part, alpha_bars, x, t, **condition):
        """The noise that a network predicts at one timestep."""
        key = "x_t" if part == "decoder_step" else "z_t"
        timestep = np.full(len(x), t, np.float32)
        predicted = self.graphs[part](**{key: x, "timestep": timestep}, **condition)
        kind = self.manifest["diffusion" if part == "decoder_step" else "latent"]["prediction"]
        a = alpha_bars[t]
        if kind == "v":
            return math.sqrt(a) * predicted + math.sqrt(1 - a) * x
        if kind == "x_0":
            return (math.sqrt(1 / a) * x - predicted) / math.sqrt(1 / a - 1)
        return predicted

    def sampled(self, part, x, **condition):
        """From noise to data by the default sampler, DDIM or DPM-Solver++(2M)."""
        diffusion = self.manifest["diffusion" if part == "decoder_step" else "latent"]
        chain = diffusion["chain"]
        before = None
        for i, (t, a) in reversed(list(enumerate(zip(chain["timesteps"], chain["alpha_bars"])))):
            eps = self.eps(part, diffusion["alpha_bars"], x, t, **condition)
            x_0 = math.sqrt(1 / a) * x - math.sqrt(1 / a - 1) * eps
            if chain["clip"]:
                x_0 = x_0.clip(-1, 1)
                eps = (math.sqrt(1 / a) * x - x_0) / math.sqrt(1 / a - 1)
            a_prev = chain["alpha_bars"][i - 1] if i else 1.0
            if chain["sampler"] == "ddim":
                x = math.sqrt(a_prev) * x_0 + math.sqrt(1 - a_prev) * eps
                continue
            assert chain["sampler"] == "dpm++2m", chain["sampler"]
            h = half_log_snr(a_prev) - half_log_snr(a)
            data = x_0
            if before is not None and i and h <= 2 * before[1]:
                weight = 0.5 * h / before[1]
                data = (1 + weight) * x_0 - weight * before[0]
            x = math.sqrt((1 - a_prev) / (1 - a)) * x - math.sqrt(a_prev) * math.expm1(-h) * data
            before = (x_0, h)
        return x

    def levels(self):
        """Signal and noise of the nodes of the exact chain: the clean picture, then the timesteps."""
        bars = [1.0, *self.manifest["diffusion"]["chain"]["alpha_bars"]]
        return [(math.sqrt(a), math.sqrt(1 - a)) for a in bars]

    def eps_at(self, node, x, **condition):
        diffusion = self.manifest["diffusion"]
        return self.eps("decoder_step", diffusion["alpha_bars"], x, diffusion["chain"]["timesteps"][node - 1], **condition)

    def ddim(self, x, eps, start, end):
        (alpha, sigma), (alpha_end, sigma_end) = self.levels()[start], self.levels()[end]
        return alpha_end / alpha * x + (sigma_end - alpha_end / alpha * sigma) * eps

    def inverted(self, x_0, **condition):
        """Data to x_T and its residual, along the exact chain."""
        last = len(self.levels()) - 1
        before = x_0
        here = self.ddim(x_0, self.eps_at(1, x_0, **condition), 0, 1)
        for node, update in enumerate(self.manifest["diffusion"]["chain"]["exact"]["updates"], 1):
            eps = self.eps_at(node, here, **condition)
            after = update["before"] * before + update["here"] * here + update["eps"] * eps
            before, here = here, after
        return here, before - self.ddim(here, self.eps_at(last, here, **condition), last, last - 1)

    def decoded_along(self, x_terminal, residual, **condition):
        """x_T and its residual to data, along the exact chain."""
        last = len(self.levels()) - 1
        after = x_terminal
        here = self.ddim(after, self.eps_at(last, after, **condition), last, last - 1) + residual
        updates = self.manifest["diffusion"]["chain"]["exact"]["updates"]
        for node, update in reversed(list(enumerate(updates, 1))):
            eps = self.eps_at(node, here, **condition)
            before = (after - update["here"] * here - update["eps"] * eps) / update["before"]
            after, here = here, before
        return here


def half_log_snr(a):
    return math.inf if a == 1 else 0.5 * math.log(a / (1 - a))


def results(model, ours):
    """The same quantities as ours, from the same inputs."""
    graphs, found = model.graphs, {}
    condition = {}
    if "encoder" in graphs:
        found["z_sem"] = graphs["encoder"](x_0=ours["x_0"])
        condition["z_sem"] = ours["z_sem"]
    if "decoder" in graphs:
        found["decoded"] = graphs["decoder"](x_T=ours["x_T"], **condition)
    if "directions" in graphs:
        found["edited"] = graphs["directions"](z_sem=ours["z_sem"], strengths=ours["strengths"])
    if "latent" in graphs:
        found["latent_prediction"] = graphs["latent"](z_t=ours["z_t"], timestep=ours["timesteps"])
        if model.manifest["normalization"]:
            mean, std = (np.array(model.manifest["normalization"][key], np.float32) for key in ("mean", "std"))
            found["sampled_z_sem"] = model.sampled("latent", ours["z_t"]) * std + mean
    if "decoder_step" in graphs:
        found["prediction"] = graphs["decoder_step"](x_t=ours["x_T"], timestep=ours["timesteps"], **condition)
        found["decoded"] = model.sampled("decoder_step", ours["x_T"], **condition)
        found["inverted"], residual = model.inverted(ours["x_0"], **condition)
        edited = {"z_sem": ours["edited"]} if "edited" in ours else condition
        found["decoded_along"] = model.decoded_along(found["inverted"], residual, **edited).clip(-1, 1)
    return found


def check_files(folder):
    """Checks all files by the checker, with types and shapes inferred everywhere, and by their hashes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for graph in manifest["graphs"].values():
        data = (folder / graph["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == graph["sha256"], graph["file"]
        proto = onnx.load_from_string(data)
        onnx.checker.check_model(proto, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
        missing = [name for node in inferred.graph.node for name in node.output if name not in known]
        assert not missing, (graph["file"], missing[:5])
        for port, value in zip(graph["inputs"] + graph["outputs"], (*proto.graph.input, *proto.graph.output)):
            shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            assert (port["name"], port["shape"]) == (value.name, shape), (port, shape)


def compare_documented(folder):
    """Runs the program of docs/onnx.md, and compares its pictures with ours; returns whether one differs."""
    document = (Path(__file__).resolve().parents[2] / "docs/onnx.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    with safe_open(folder / "pictures.safetensors", "np") as file:
        ours, attribute = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["attribute"]
    original = ours.pop("original")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        header = b"P6 %d %d 255\n" % (original.shape[1], original.shape[0])
        (Path(scratch) / "picture.ppm").write_bytes(header + original.tobytes())
        arguments = [str((folder / "f32").resolve()), "picture.ppm", attribute]
        subprocess.run([sys.executable, "-c", program, *arguments], cwd=scratch, check=True)
        for name, expected in sorted(ours.items()):
            got = np.fromfile(Path(scratch) / f"{name}.ppm", np.uint8)[-expected.size :].reshape(expected.shape)
            steps = np.abs(got.astype(int) - expected.astype(int))
            bad = bool(steps.max() > 1)
            failed |= bad
            mean = f"{steps.mean() / 255:.1e} of the range on average"
            print(f"docs/onnx.md, {folder.name}, {name} ({attribute}): {steps.max()} steps of 255 at most, {mean}{' FAIL' if bad else ''}")
    return failed


def main():
    failed = False
    print(f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}, onnx {onnx.__version__}")
    print("| model | quantity | largest value | onnxruntime f32 | OpenVINO f32 | onnxruntime f16 |\n|---|---|---|---|---|---|")
    for folder in sorted(path.parent for path in Path(sys.argv[1]).glob("*/numbers.safetensors")):
        ours = load_file(folder / "numbers.safetensors")
        for precision in ("f32", "f16"):
            check_files(folder / precision)
        runs = [("f32", Onnxruntime), ("f32", OpenVino), ("f16", Onnxruntime)]
        found = [results(Model(folder / precision, runtime), ours) for precision, runtime in runs]
        inputs = {"x_0", "x_T", "z_t", "timesteps", "strengths"}
        assert set(found[0]) == set(ours) - inputs, (set(found[0]) ^ (set(ours) - inputs))
        for name in found[0]:
            differences = [float(np.abs(result[name] - ours[name]).max()) for result in found]
            tolerance = INVERTED_TOLERANCE if name in ("inverted", "decoded_along") else TOLERANCE
            bad = not all(difference <= tolerance for difference in differences[:2]) or not math.isfinite(differences[2])
            failed |= bad
            cells = " | ".join(f"{difference:.1e}" for difference in differences)
            print(f"| {folder.name} | {name} | {np.abs(ours[name]).max():.2f} | {cells} |{' FAIL' if bad else ''}")
    for pictures in sorted(Path(sys.argv[1]).glob("*/pictures.safetensors")):
        failed |= compare_documented(pictures.parent)
    sys.exit(failed)


main()
