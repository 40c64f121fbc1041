"""Encodes a folder with Dask: `python encode_with_dask.py pictures codes [MODEL]`.

`map_partitions` of a bag of files writes one file of codes for each partition. A run that was interrupted goes on:
partitions whose file is there are left out.
"""

import sys
import time
from pathlib import Path

import dask
import dask.bag
import diffae
import numpy as np
from PIL import Image

PARTITION = 128


def encode(model: diffae.Model, blocks: list[tuple[int, list[str]]], out: Path) -> list[int]:
    """Encodes the pictures of some partitions, each to its file."""
    counts = []
    for number, files in blocks:
        pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        codes = model.encode(pictures, names=[Path(file).stem for file in files], threads=1)
        # A worker may have died between the file and its report, and the partition is encoded once more.
        codes.save(out / f"{number:05}.safetensors", overwrite=True)
        counts.append(len(codes))
    return counts


def main(pictures: Path, out: Path, path: str = "toonheads", scheduler: str = "threads") -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(str(file) for file in pictures.rglob("*.png"))
    blocks = [(at // PARTITION, files[at : at + PARTITION]) for at in range(0, len(files), PARTITION)]
    left = [block for block in blocks if not (out / f"{block[0]:05}.safetensors").exists()]
    if not left:
        return {"pictures": 0, "per_second": 0.0}
    model = diffae.load(path)  # threads share it; to processes it is shipped by its name
    bag = dask.bag.from_sequence(left, npartitions=len(left))
    encoding = bag.map_partitions(lambda part: encode(model, list(part), out))
    start = time.perf_counter()
    total = sum(encoding.compute(scheduler=scheduler, num_workers=2))
    return {"pictures": total, "per_second": total / (time.perf_counter() - start)}


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
