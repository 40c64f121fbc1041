"""What the tests share: the built-in model, its faces, and the program that results are compared with."""

import os
import subprocess
from pathlib import Path

import diffae
import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[3]
# For scripts that are to be interrupted: a background job ignores SIGINT, and what it starts inherits that.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.fixture(scope="session")
def model():
    return diffae.load("toonheads", device="cpu")


@pytest.fixture(scope="session")
def faces():
    """Eight cartoon faces, uint8 [8, 64, 64, 3]."""
    return diffae.built_in_pictures()[1]


@pytest.fixture(scope="session")
def checkpoint():
    """A small model of another kind: 16 pixels, without a classifier."""
    return REPOSITORY / "tests/fixtures/golden/autoenc16_latent/last.ckpt"


@pytest.fixture(scope="session")
def program():
    """Runs the program, which DIFFAE_PROGRAM names, on the CPU; fails if the program does and is not expected to."""
    path = os.environ.get("DIFFAE_PROGRAM")
    if path is None:
        pytest.skip("DIFFAE_PROGRAM names no program to compare with")

    def run(*words, fails=False):
        words = [path, *map(str, words), "--device", "cpu"]
        finished = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (finished.returncode != 0) == fails, finished.stderr
        return finished

    return run


@pytest.fixture(scope="session")
def face_files(faces, tmp_path_factory):
    """The first three faces as files."""
    folder = tmp_path_factory.mktemp("faces")
    for number, face in enumerate(faces[:3]):
        Image.fromarray(face).save(folder / f"face_{number}.png")
    return folder


@pytest.fixture(scope="session")
def pixels():
    """Reads the PNGs of a folder whose names match, in their order."""

    def read(folder, pattern="*.png"):
        files = sorted(Path(folder).glob(pattern))
        assert files, f"{folder} has no {pattern}"
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    return read


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """Forty small drawings to train on, with labels."""
    folder = tmp_path_factory.mktemp("drawings")
    rows = ["file,Red"]
    for number in range(40):
        picture = np.full((16, 16, 3), 220, np.uint8)
        color = [200, 40, 30] if number % 2 else [40, 60, 190]
        picture[3 + number % 5 : 12, 2 + number % 7 : 13] = color
        Image.fromarray(picture).save(folder / f"{number:03}.png")
        rows.append(f"{number:03}.png,{number % 2}")
    labels = folder.parent / f"{folder.name}.csv"
    labels.write_text("\n".join(rows) + "\n")
    return folder, labels
