"""Landmarks of dlib and aligned faces of the FFHQ recipe, which `diffae align` is compared with.

Writes the fixtures of tests/fixtures/align: a photograph, a small landmark model that dlib trains on it, the landmarks that
dlib finds with it, the landmarks of dlib's own model, and aligned faces by a second implementation of the recipe (Karras et
al. 2019, arXiv:1812.04948, appendix A) on Pillow and SciPy.

    apt-get download libdlib-data && dpkg -x libdlib-data_*.deb dlib-data
    venv/bin/pip install dlib-bin scikit-image pillow scipy
    venv/bin/python xtask/peer/align_fixtures.py \
        dlib-data/usr/share/dlib/shape_predictor_68_face_landmarks.dat tests/fixtures/align
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import dlib
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data

LEFT, TOP, SIDE = 125, 20, 200  # the part of the portrait that is kept
# Which point a point becomes in the mirror: jaw, brows, nose, eyes, mouth.
MIRRORED = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, *range(35, 30, -1)]
MIRRORED += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
MIRRORED += [*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65]


def rectangle(box):
    left, top, width, height = box
    return dlib.rectangle(left, top, left + width - 1, top + height - 1)


def points(shape):
    return [[part.x, part.y] for part in shape.parts()]


def train(picture, box, landmarks, path):
    """A model so small that it can be kept: 3 cascades of 6 trees of depth 2."""
    options = dlib.shape_predictor_training_options()
    options.cascade_depth, options.num_trees_per_cascade_level, options.tree_depth = 3, 6, 2
    options.feature_pool_size, options.num_test_splits, options.oversampling_amount = 60, 20, 10
    options.nu, options.random_seed = 0.4, "diffae"
    pictures, objects = [], []
    for dx, dy, grow in [(0, 0, 0), (6, -4, 8), (-7, 5, -6), (4, 8, 3), (-5, -6, 10)]:
        moved = [box[0] + dx, box[1] + dy, box[2] + grow, box[3] + grow]
        for image in (picture, np.ascontiguousarray(picture[:, ::-1])):
            if image is not picture:
                marks = [[SIDE - 1 - landmarks[idx][0], landmarks[idx][1]] for idx in MIRRORED]
                moved = [SIDE - moved[0] - moved[2], *moved[1:]]
            else:
                marks = landmarks
            pictures.append(image)
            objects.append([dlib.full_object_detection(rectangle(moved), [dlib.point(x, y) for x, y in marks])])
    dlib.train_shape_predictor(pictures, objects, options).save(str(path))


def square_of(landmarks):
    """Corners of the crop, in pixel indices: upper left, lower left, lower right, upper right."""
    marks = np.array(landmarks, dtype=np.float64)
    left_eye, right_eye = marks[36:42].mean(axis=0), marks[42:48].mean(axis=0)
    eyes, mouth = (left_eye + right_eye) / 2, (marks[48] + marks[54]) / 2
    across, down = right_eye - left_eye, mouth - eyes
    half = across + np.array([down[1], -down[0]])
    half *= max(2 * np.hypot(*across), 1.8 * np.hypot(*down)) / np.hypot(*half)
    turned, center = np.array([-half[1], half[0]]), eyes + 0.1 * down
    return np.array([center - half - turned, center - half + turned, center + half + turned, center + half - turned])


def bounds(quad, border):
    return *(int(v) - border for v in np.floor(quad.min(axis=0))), *(int(v) + border for v in np.ceil(quad.max(axis=0)))


def padded(image, room, side):
    """Reflects the picture outwards; what is far outside fades to a blur, and then to the median color."""
    left, top, right, bottom = room
    values = np.pad(np.float32(image), ((top, bottom), (left, right), (0, 0)), "reflect")
    rows, columns = np.ogrid[: values.shape[0], : values.shape[1]]
    last_row, last_column = values.shape[0] - 1, values.shape[1] - 1
    depth = np.maximum(
        1 - np.minimum(np.float32(columns) / left, np.float32(last_column - columns) / right),
        1 - np.minimum(np.float32(rows) / top, np.float32(last_row - rows) / bottom),
    )[:, :, None]
    blurred = gaussian_filter(values, [side * 0.02, side * 0.02, 0])
    values += (blurred - values) * np.clip(depth * 3 + 1, 0, 1)
    values += (np.median(values, axis=(0, 1)) - values) * np.clip(depth, 0, 1)
    return Image.fromarray(np.uint8(np.clip(np.rint(values), 0, 255)), "RGB")


def aligned(picture, landmarks, size):
    image, quad = Image.fromarray(picture), square_of(landmarks)
    side = np.hypot(*(quad[3] - quad[0]))
    shrink = int(np.floor(side / size * 0.5))
    if shrink > 1:
        image = image.resize(tuple(int(np.rint(n / shrink)) for n in image.size), Image.Resampling.LANCZOS)
        quad, side = quad / shrink, side / shrink
    border = max(int(np.rint(side * 0.1)), 3)
    left, top, right, bottom = bounds(quad, border)
    crop = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    if crop[2] - crop[0] < image.width or crop[3] - crop[1] < image.height:
        image, quad = image.crop(crop), quad - crop[:2]
    left, top, right, bottom = bounds(quad, 0)
    room = [-left + border, -top + border, right - image.width + border, bottom - image.height + border]
    room = [max(n, 0) for n in room]
    if max(room) > border - 4:
        room = [max(n, int(np.rint(side * 0.3))) for n in room]
        image, quad = padded(image, room, side), quad + room[:2]
    large = (4 * size, 4 * size)
    image = image.transform(large, Image.Transform.QUAD, (quad + 0.5).flatten(), Image.Resampling.BILINEAR)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def changed(landmarks, degrees=0.0, scale=1.0, move=(0, 0)):
    marks, angle = np.array(landmarks, dtype=np.float64), np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = marks.mean(axis=0)
    return np.round((marks - center) @ turn.T + center + move, 3).tolist()


def main(model, folder):
    folder = Path(folder)
    picture = np.ascontiguousarray(data.astronaut()[TOP : TOP + SIDE, LEFT : LEFT + SIDE])
    Image.fromarray(picture).save(folder / "astronaut.png", optimize=True)
    [found] = dlib.get_frontal_face_detector()(picture, 0)
    box = [found.left(), found.top(), found.width(), found.height()]
    landmarks = points(dlib.shape_predictor(model)(picture, found))
    train(picture, box, landmarks, folder / "small_68.dat")
    small = dlib.shape_predictor(str(folder / "small_68.dat"))
    boxes = [box, [box[0] + 9, box[1] - 7, 80, 101], [20, 30, 160, 160], [-30, 90, 120, 100], [150, 150, 120, 90]]
    cases = {
        "plain_128": (landmarks, 128),
        "plain_64": (landmarks, 64),
        "shrunk_32": (landmarks, 32),
        "tilted_64": (changed(landmarks, degrees=35, move=(30, -20)), 64),
        "inside_64": (changed(landmarks, scale=0.5), 64),
        "far_64": (changed(landmarks, degrees=-12, scale=1.9), 64),
    }
    for name, (marks, size) in cases.items():
        aligned(picture, marks, size).save(folder / f"{name}.png", optimize=True)
    packages = ["dlib-bin", "numpy", "pillow", "scikit-image", "scipy"]
    record = {
        "versions": {name: version(name) for name in packages},
        "box": box,
        "landmarks": landmarks,
        "small_68": [{"box": b, "landmarks": points(small(picture, rectangle(b)))} for b in boxes],
        "aligned": [
            {"name": name, "size": size, "landmarks": marks, "corners": square_of(marks).tolist()}
            for name, (marks, size) in cases.items()
        ],
    }
    (folder / "align.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
