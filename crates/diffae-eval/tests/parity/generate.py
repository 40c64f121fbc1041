"""Copies the image metrics out of the golden numbers: `python generate.py MATH_SAFETENSORS`.

The numbers were computed by the reference implementation (see manifest.toml); this script only selects.
"""

import hashlib
import pathlib
import sys

from safetensors.numpy import load_file, save_file

PREFIX = "metrics."
DATA = pathlib.Path(__file__).parent / "data" / "metrics.safetensors"

golden = load_file(sys.argv[1])
selected = {name.removeprefix(PREFIX): tensor for name, tensor in golden.items() if name.startswith(PREFIX)}
assert set(selected) == {"x", "y", "mse", "psnr", "ssim"}, sorted(selected)
save_file(selected, DATA)
print(DATA.name, hashlib.sha256(DATA.read_bytes()).hexdigest())
