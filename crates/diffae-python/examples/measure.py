"""Measures encoding in Python beside the program: `DIFFAE_PROGRAM=diffae python measure.py pictures [ray] [dask]`.

Rounds of each in turn, from the start of the work to its end, with the reading of the files; the program's time holds its start.
Prints medians in pictures per second.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import diffae
import numpy as np
from PIL import Image

ROUNDS = 5


def with_program(pictures: Path, folder: Path) -> float:
    words = [os.environ["DIFFAE_PROGRAM"], "encode", "--model", "toonheads", pictures, "--quiet"]
    start = time.perf_counter()
    subprocess.run([*words, "--out", folder / "codes.safetensors"], check=True, capture_output=True)
    return time.perf_counter() - start


def with_module(pictures: Path, folder: Path) -> float:
    start = time.perf_counter()
    model = diffae.load("toonheads")
    files = sorted(pictures.rglob("*.png"))
    arrays = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    model.encode(arrays, names=[file.stem for file in files]).save(folder / "codes.safetensors")
    return time.perf_counter() - start


def main(pictures: Path, others: list[str]) -> dict[str, float]:
    count = len(list(pictures.rglob("*.png")))
    ways = {"program": with_program, "module": with_module}
    if "ray" in others:
        import encode_with_ray
        import ray

        ray.init(num_cpus=2, logging_level="error")
        ways["ray"] = lambda pictures, out: count / encode_with_ray.main(pictures, out)["per_second"]
    if "dask" in others:
        import encode_with_dask

        ways["dask"] = lambda pictures, out: count / encode_with_dask.main(pictures, out)["per_second"]
    rounds = int(os.environ.get("ROUNDS", ROUNDS))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(way(pictures, Path(folder)))
            print(f"round {number}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr)
    return {name: round(count / statistics.median(of), 2) for name, of in seconds.items()}


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2:]))
