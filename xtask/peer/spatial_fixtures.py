"""Numbers of the KL-regularized autoencoder of diffusers, for the tests of `diffae-nets`.

Its parameters are waves, which the test makes in the same way: of the tensor with place i among all names, sorted, value k is
`a sin(k (0.7 + 0.01 i))`, with `a = sqrt(3 / fan_in)` for weights of two axes or more and 0.1 for others, and 1 more for scales of
norms. Pictures and latents are waves as well. All is computed in f64: in f32 the
decoded pictures differ by 1e-4.

    venv/bin/pip install torch safetensors diffusers==0.42.1
    venv/bin/python xtask/peer/spatial_fixtures.py crates/diffae-nets/tests/data/spatial.safetensors
"""

import math
import sys

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file


def wave(shape, frequency, amplitude):
    values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * frequency) * amplitude
    return values.to(torch.float32).to(torch.float64).reshape(shape)


net = AutoencoderKL(
    block_out_channels=(32, 64),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=32,
)
state = net.state_dict()
for place, name in enumerate(sorted(state)):
    shape = state[name].shape
    amplitude = math.sqrt(3 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
    state[name] = wave(shape, 0.7 + 0.01 * place, amplitude)
    if "norm" in name and name.endswith("weight"):
        state[name] += 1
net.double().load_state_dict(state)

with torch.no_grad():
    posterior = net.encode(wave((2, 3, 16, 16), 0.05, 1.0)).latent_dist
    decoded = net.decode(wave((2, 4, 8, 8), 1.7, 1.0)).sample
numbers = {"mean": posterior.mean, "log_variance": posterior.logvar, "decoded": decoded}
save_file(
    {name: value.float().contiguous() for name, value in numbers.items()},
    sys.argv[1],
    metadata={"made_by": "xtask/peer/spatial_fixtures.py"},
)
