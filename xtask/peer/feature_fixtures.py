"""Features and perceptual distances of Python packages, on weights and pictures that a formula makes.

Only results are stored: the first 16 features of each picture, their sum and their length. Prints JSON.

    venv/bin/pip install torch torchvision pytorch-fid lpips timm efficientnet-lite-pytorch
    venv/bin/python xtask/peer/feature_fixtures.py > crates/diffae-eval/tests/fixtures/networks.json
"""

import json
import sys
import zlib
from contextlib import redirect_stdout
from importlib.metadata import version
from unittest import mock

import lpips
import numpy as np
import pytorch_fid.inception
import timm
import torch
import torch.nn.functional as F
import torchvision
from efficientnet_lite_pytorch import EfficientNet


def uniform(count, seed):
    """Numbers in [-1, 1): a hash of their places."""
    bits = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    bits ^= bits >> np.uint32(16)
    return bits.astype(np.float64) / 2.0**31 - 1


def fill(name, shape):
    """Weights of about the size that training gives."""
    values = uniform(int(np.prod(shape)), zlib.crc32(name.encode())).reshape(shape)
    if name.endswith("running_var"):
        values = 1 + 0.5 * values
    elif name.endswith("weight") and len(shape) > 1:
        values = values * np.sqrt(6 / np.prod(shape[1:]))
    elif name.endswith(("weight", "gamma")):
        values = 1 + 0.2 * values
    else:
        values = 0.2 * values
    return torch.tensor(values, dtype=torch.float32)


SHAPES = {}


def filled(module, name):
    state = module.state_dict()
    SHAPES[name] = [" ".join(map(str, (k, *v.shape))) for k, v in state.items() if v.is_floating_point()]
    module.load_state_dict({k: fill(k, tuple(v.shape)) if v.is_floating_point() else v for k, v in state.items()})
    return module.eval()


def picture(count, side, seed):
    rows, columns = np.arange(side)[None, None, :, None], np.arange(side)[None, None, None, :]
    channels, pictures = np.arange(3)[None, :, None, None], np.arange(count)[:, None, None, None]
    wave = np.sin(0.37 * rows + 0.05 * (1 + channels) * columns + seed + pictures)
    return torch.tensor(0.5 + 0.5 * wave * np.cos(0.013 * rows * columns + seed), dtype=torch.float32)


def facts(features):
    return [{"first": f[:16].tolist(), "sum": float(f.sum()), "length": float(f.norm())} for f in features.double()]


def inception(x):
    net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    blocks = pytorch_fid.inception
    for name, block in {
        "Mixed_5b": blocks.FIDInceptionA(192, pool_features=32), "Mixed_5c": blocks.FIDInceptionA(256, pool_features=64),
        "Mixed_5d": blocks.FIDInceptionA(288, pool_features=64), "Mixed_6b": blocks.FIDInceptionC(768, channels_7x7=128),
        "Mixed_6c": blocks.FIDInceptionC(768, channels_7x7=160), "Mixed_6d": blocks.FIDInceptionC(768, channels_7x7=160),
        "Mixed_6e": blocks.FIDInceptionC(768, channels_7x7=192), "Mixed_7b": blocks.FIDInceptionE_1(1280),
        "Mixed_7c": blocks.FIDInceptionE_2(2048),
    }.items():
        setattr(net, name, block)
    filled(net, "inception")
    # The package downloads its weights when it builds its network: here it gets ours.
    with mock.patch.object(blocks, "fid_inception_v3", lambda: net):
        return blocks.InceptionV3([3])(x)[0].flatten(1)


def efficientnet(x):
    net = filled(EfficientNet.from_name("efficientnet-lite0"), "efficientnet-lite0")
    x = F.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
    return net.extract_features((255 * x - 127) / 128).mean((2, 3))


def dinov2(x):
    net = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224, dynamic_img_size=False)
    state = {k: fill(k, tuple(v.shape)) for k, v in net.state_dict().items() if k != "pos_embed"}
    # As the authors' own code: 37 by 37 positions become 16 by 16.
    positions = fill("pos_embed", (1, 1 + 37 * 37, 384))
    grid = positions[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()} | {"pos_embed": tuple(positions.shape)}
    SHAPES["dinov2"] = [" ".join(map(str, (k, *shape))) for k, shape in shapes.items()]
    state["pos_embed"] = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, 384)], 1)
    net.load_state_dict(state)
    x = F.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return net.eval()((x - mean) / std)


def perceptual(net, x, y):
    backbone = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16, "squeeze": torchvision.models.squeezenet1_1}[net]
    ours = filled(backbone(weights=None), net)
    name = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[net]
    with mock.patch.object(lpips.pretrained_networks.tv, name, lambda pretrained: ours):
        distance = lpips.LPIPS(net=net, verbose=False)
    return distance(x, y, normalize=True).flatten().tolist()


with torch.no_grad(), redirect_stdout(sys.stderr):
    networks = {
        name: {"side": side, "pictures": facts(function(picture(2, side, 3)))}
        for name, function, side in (("inception", inception, 64), ("efficientnet-lite0", efficientnet, 300), ("dinov2", dinov2, 64))
    }
    pairs = {
        net: [{"side": side, "distances": perceptual(net, picture(2, side, 3), picture(2, side, 4))} for side in (64, 45)]
        for net in ("alex", "vgg", "squeeze")
    }
names = ("numpy", "torch", "torchvision", "pytorch-fid", "lpips", "timm", "efficientnet-lite-pytorch")
print(json.dumps({"versions": {name: version(name) for name in names}, "networks": networks, "lpips": pairs, "shapes": SHAPES}, indent=1))
