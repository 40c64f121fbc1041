"""Encodes a folder with `ray.data`: `python encode_with_ray.py pictures codes [MODEL] [--workers N] [--semantic-only]`.

Without a cluster, two workers on this machine. `RAY_ADDRESS` (or a job submitted to Ray) names a cluster, whose nodes see the
folders under the same paths; there are as many workers as `--workers` says, each on `--threads` CPUs. Each block of pictures becomes one file of codes. A run that was interrupted goes on: blocks whose file is there are left out.
A worker that dies is started again by Ray, and so is its block.
"""

import argparse
import os
import time
from pathlib import Path

import diffae
import numpy as np
import ray
import ray.data
from PIL import Image

BLOCK = 128
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Encoder:
    """A worker with a model of its own."""

    def __init__(self, model: diffae.Model, out: Path, **settings):
        self.model, self.out, self.settings = model, out, settings  # the model was shipped by its name

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        done = []
        for number, files in zip(batch["number"], batch["files"]):
            files = [Path(file) for file in files]
            pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
            codes = self.model.encode(pictures, names=[file.stem for file in files], **self.settings)
            # A worker may have died between the file and its report, and the block is encoded once more.
            codes.save(self.out / f"{number:05}.safetensors", overwrite=True)
            done.append(len(codes))
        return {"pictures": np.array(done)}


def main(pictures: Path, out: Path, path: str = "toonheads", workers: int = 2, threads: int = 1, **settings) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(str(file) for file in pictures.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"there are no pictures in {pictures}")
    blocks = [{"number": at // BLOCK, "files": files[at : at + BLOCK]} for at in range(0, len(files), BLOCK)]
    left = [block for block in blocks if not (out / f"{block['number']:05}.safetensors").exists()]
    if not left:
        return {"pictures": 0, "per_second": 0.0}
    arguments = {"model": diffae.load(path), "out": out, "threads": threads, **settings}
    encoding = ray.data.from_items(left, override_num_blocks=len(left)).map_batches(
        Encoder,
        batch_size=1,
        num_cpus=threads,
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_kwargs=arguments,
    )
    start = time.perf_counter()
    total = sum(int(row["pictures"]) for row in encoding.iter_rows())
    return {"pictures": total, "per_second": total / (time.perf_counter() - start)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("path", nargs="?", default="toonheads", metavar="MODEL")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--semantic-only", action="store_true")
    arguments = vars(parser.parse_args())
    # A cluster knows its CPUs; here, one for each thread of a worker.
    ray.init(**({} if "RAY_ADDRESS" in os.environ else {"num_cpus": arguments["workers"] * arguments["threads"]}))
    print(main(**arguments))
