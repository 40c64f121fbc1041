"""Encodes a folder with `ray.data`: `python encode_with_ray.py pictures codes [MODEL] [--semantic-only]`.

Each block of pictures becomes one file of codes. A run that was interrupted goes on: blocks whose file is there are left out.
A worker that dies is started again by Ray, and so is its block.
"""

import sys
import time
from pathlib import Path

import diffae
import numpy as np
import ray
import ray.data
from PIL import Image

BLOCK = 128


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


def main(pictures: Path, out: Path, path: str = "toonheads", workers: int = 2, **settings) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(str(file) for file in pictures.rglob("*.png"))
    blocks = [{"number": at // BLOCK, "files": files[at : at + BLOCK]} for at in range(0, len(files), BLOCK)]
    left = [block for block in blocks if not (out / f"{block['number']:05}.safetensors").exists()]
    if not left:
        return {"pictures": 0, "per_second": 0.0}
    arguments = {"model": diffae.load(path), "out": out, "threads": 1, **settings}  # workers share the cores
    encoding = ray.data.from_items(left, override_num_blocks=len(left)).map_batches(
        Encoder, batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers), fn_constructor_kwargs=arguments
    )
    start = time.perf_counter()
    total = sum(int(row["pictures"]) for row in encoding.iter_rows())
    return {"pictures": total, "per_second": total / (time.perf_counter() - start)}


if __name__ == "__main__":
    ray.init(num_cpus=2)
    words = [word for word in sys.argv[1:] if word != "--semantic-only"]
    print(main(Path(words[0]), Path(words[1]), *words[2:], semantic_only="--semantic-only" in sys.argv))
