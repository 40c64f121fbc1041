"""Reconstructs one picture with a model directory: what `diffae reconstruct` does, as a PyTorch script.

    python reconstruct.py MODEL_DIRECTORY PICTURE OUT.png STEPS THREADS
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from chain import Chain
from twin import Model, ModelConf


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    unet, encoder = config["unet"], config["encoder"]
    conf = ModelConf(
        image_size=unet["image_size"], in_channels=unet["in_channels"], out_channels=unet["out_channels"],
        width=unet["model_channels"], mult=tuple(unet["channel_mult"]), blocks=unet["num_res_blocks"],
        in_blocks=unet["num_res_blocks"], embed=unet["embed_channels"],
        attention=tuple(unet["attention_resolutions"]), enc_mult=tuple(encoder["channel_mult"]),
        enc_blocks=encoder["num_res_blocks"], enc_attention=tuple(encoder["attention_resolutions"]),
        enc_out=encoder["out_channels"])
    model = Model(conf)

    def released(name):
        if not name.startswith("unet."):
            return name
        name = name.removeprefix("unet.")
        return "time_embed." + name if name.startswith("time_embed.") else name

    tensors = load_file(folder / "model.safetensors")
    wanted = model.state_dict()
    named = {released(name): tensor for name, tensor in tensors.items()}
    model.load_state_dict({name: named[name].reshape(like.shape) for name, like in wanted.items()})
    return model.eval().requires_grad_(False)


def main():
    folder, picture, out, steps, threads = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
    torch.set_num_threads(threads)
    model = load(folder)
    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    chain = Chain.of("linear", f"ddim{steps}")
    with torch.inference_mode():
        z = model.encoder(x)

        def noise_of(x, t):
            return model(x, t, z)

        decoded = chain.decode(noise_of, chain.invert(noise_of, x))
    pixels = ((decoded[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(out)


if __name__ == "__main__":
    main()
