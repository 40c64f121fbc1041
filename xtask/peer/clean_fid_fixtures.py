"""Pixels that clean-fid resizes, for the test of `diffae eval fid --resize clean`.

Pictures are made by a formula, and of the results every so many pixels are stored. Prints JSON; the versions are part of it.

    venv/bin/pip install clean-fid
    venv/bin/python xtask/peer/clean_fid_fixtures.py > crates/diffae-nets/tests/fixtures/clean_fid.json
"""

import json
from importlib.metadata import version

import numpy as np
from cleanfid.resize import make_resizer

# Height and width of the picture, side of the result.
SIZES = [(64, 64, 299), (256, 256, 299), (512, 640, 299), (299, 299, 299), (20, 33, 50), (61, 48, 17)]
STORED = 150


def picture(height, width):
    y, x, c = np.mgrid[:height, :width, :3]
    return ((7 * y * y + 91 * x + 53 * c * (y + 1) + x * y) % 256).astype(np.uint8)


def resized(height, width, side):
    made = make_resizer("PIL", False, "bicubic", (side, side))(picture(height, width))
    places = np.arange(STORED) * 104729 % (side * side * 3)
    # Clipped values, at both ends, are among them.
    places = sorted({*places.tolist(), int(made.argmin()), int(made.argmax())})
    at = [tuple(int(i) for i in np.unravel_index(place, made.shape)) for place in places]
    return {"height": height, "width": width, "side": side, "pixels": [[*i, round(float(made[i]), 5)] for i in at]}


print(json.dumps({
    "versions": {name: version(name) for name in ("clean-fid", "pillow", "numpy")},
    "resized": [resized(*sizes) for sizes in SIZES],
}))
