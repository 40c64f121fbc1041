"""A linear probe on z_sem: `python probe.py held-out`, of `diffae dataset toonheads --out held-out`.

Encodes the pictures, fits scikit-learn's logistic regression to an attribute on half of them, and prints its accuracy
on the other half beside that of the more frequent answer.
"""

import sys
from pathlib import Path

import diffae
import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def read_labels(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Reads a table in CelebA's form: names of the pictures and of the attributes, and which picture has which."""
    _, names, *rows = path.read_text().splitlines()
    cells = [row.split() for row in rows if row.strip()]
    return [row[0] for row in cells], names.split(), np.array([[cell == "1" for cell in row[1:]] for row in cells])


def main(folder: Path, attribute: str = "Smiling") -> dict[str, float]:
    files, attributes, labels = read_labels(folder / "attributes.txt")
    paths = {path.name: path for path in (folder / "images").rglob("*.png")}
    pictures = np.stack([np.asarray(Image.open(paths[file]).convert("RGB")) for file in files])
    z_sem = diffae.load("toonheads").encode(pictures, semantic_only=True).z_sem
    wanted = labels[:, attributes.index(attribute)]
    half = len(files) // 2
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(z_sem[:half], wanted[:half])
    share = wanted[half:].mean()
    return {"accuracy": probe.score(z_sem[half:], wanted[half:]), "majority": max(share, 1 - share)}


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
