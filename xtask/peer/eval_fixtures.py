"""Numbers of Python packages that diffae-eval is compared with.

Features are made by a formula, so that only results are stored. Prints JSON; the versions are part of it.

    venv/bin/pip install scikit-learn scikit-image scipy pytorch-fid torch torchmetrics prdc
    venv/bin/python xtask/peer/eval_fixtures.py > crates/diffae-eval/tests/fixtures/features.json
"""

import json
import sys
from contextlib import redirect_stdout
from importlib.metadata import version

import numpy as np
import torch
from prdc import compute_prdc
from pytorch_fid.fid_score import calculate_frechet_distance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd


def features(count, width, seed):
    rows, columns = np.arange(count)[:, None], np.arange(width)[None, :]
    return np.sin(12.9898 * rows * (1 + columns) + 78.233 * columns + seed) * (1 + columns % 3) + 0.1 * seed


def frechet(x, y):
    moments = [(f.mean(axis=0), np.cov(f, rowvar=False)) for f in (x, y)]
    return float(calculate_frechet_distance(*moments[0], *moments[1]))


def kernel_distance(x, y):
    xx, yy, xy = (polynomial_kernel(a, b, degree=3, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    m, n = len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def overlap(x, y, k):
    with redirect_stdout(sys.stderr):  # it talks
        found = compute_prdc(x, y, k)
    return [k, *(float(found[name]) for name in ("precision", "recall", "density", "coverage"))]


def probe(penalty):
    x = features(80, 5, 6)
    present = np.sin(x[:, 0] + 2 * x[:, 3]) > 0.2
    fit = LogisticRegression(C=penalty, tol=1e-12, max_iter=10000).fit(x, present)
    return {"inverse_penalty": penalty, "weight": fit.coef_[0].tolist(), "bias": float(fit.intercept_[0])}


def picture(height, width, seed):
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    channels = np.arange(3)[:, None, None]
    return 0.5 + 0.5 * np.sin(0.37 * rows + 0.05 * (1 + channels) * columns + seed) * np.cos(0.013 * rows * columns + seed)


def ms_ssim(height, width, mix):
    x, y = picture(height, width, 1), picture(height, width, 2)
    x, y = (torch.tensor(values[None], dtype=torch.float64) for values in (x, x + mix * (y - x)))
    return float(multiscale_structural_similarity_index_measure(y, x, data_range=1.0))


def ssim(height, width, mix):
    """Of a picture with zeros around: scikit-image mirrors the border, the authors of DiffAE count zeros."""
    x, y = picture(height, width, 1), picture(height, width, 2)
    margin = [(0, 0), (16, 16), (16, 16)]
    x, y = (np.pad(values, margin) for values in (x, x + mix * (y - x)))
    _, full = structural_similarity(
        x, y, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    return float(full[:, 16:-16, 16:-16].mean())


sets = [(60, 6, 1, 80, 6, 2), (50, 7, 1, 50, 7, 2.5), (300, 12, 1, 200, 12, 1.5), (5, 9, 1, 40, 9, 3)]
pairs = []
for m, width, first, n, _, second in sets:
    x, y = features(m, width, first), features(n, width, second)
    pairs.append({
        "counts": [m, n], "width": width, "seeds": [first, second],
        "frechet": frechet(x, y), "kernel": kernel_distance(x, y),
        "kernel_torchmetrics": float(poly_mmd(torch.tensor(x), torch.tensor(y), degree=3, gamma=None, coef=1.0)) if m == n else None,
        "overlap": [overlap(x, y, k) for k in (2, 3)],
    })
scores = np.round(features(200, 1, 4)[:, 0], 1)  # rounding makes ties
labels = features(200, 1, 5)[:, 0] + scores > 0.6
print(json.dumps({
    "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "scikit-image", "pytorch-fid", "torch", "torchmetrics", "prdc")},
    "pairs": pairs,
    "scores": scores.tolist(),
    "labels": labels.tolist(),
    "auroc": float(roc_auc_score(labels, scores)),
    "average_precision": float(average_precision_score(labels, scores)),
    "probes": [probe(penalty) for penalty in (0.1, 1.0, 30.0)],
    "ssim": [[height, width, mix, ssim(height, width, mix)] for height, width, mix in ((32, 32, 0.1), (17, 40, 1.0))],
    "ms_ssim": [[height, width, mix, ms_ssim(height, width, mix)]
                for height, width, mix in ((176, 176, 0.1), (177, 201, 0.3), (192, 180, 1.0))],
}, indent=1))
