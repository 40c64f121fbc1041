"""Trajectories of the samplers of k-diffusion on an analytic denoiser, for the tests of `diffae-schedule`.

The denoiser is that of `scheduler_fixtures.py`. k-diffusion moves `x / alpha` along noise-to-signal ratios `sigma / alpha`, and its
models return `x_0`; the states that are written are those of this repository, `x`. Only its file of samplers is loaded, which
needs none of the packages that the rest of it imports.

    venv/bin/pip install torch safetensors scipy tqdm torchdiffeq torchsde
    venv/bin/pip install --no-deps k-diffusion==0.1.1.post1
    venv/bin/python xtask/peer/k_diffusion_fixtures.py crates/diffae-schedule/tests/parity/data/k_diffusion.safetensors
"""

import importlib.metadata
import importlib.util
import sys
import types

import torch
from safetensors.torch import save_file

NUM_STEPS = 10
SPREAD = 0.5
X_T = torch.tensor([[1.3, -0.4, 0.7, -2.1]], dtype=torch.float64)

alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
ratios = ((1 - alpha_bars) / alpha_bars).sqrt()


def samplers():
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
    # What its file of utilities imports and the samplers do not call.
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "PIL", "PIL.Image"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
    sys.modules["PIL"].Image = sys.modules["PIL.Image"]
    sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def x_0(y, ratio):
    """Denoises `y = x / alpha`."""
    alpha = (1 + ratio.reshape(-1, 1) ** 2).rsqrt()
    x = y * alpha
    return SPREAD * torch.tanh(x * alpha / (1 - alpha**2 + alpha**2 * SPREAD**2))


def timesteps(spacing):
    """Timesteps from the noisiest."""
    if spacing == "linspace":
        return torch.linspace(999, 0, NUM_STEPS + 1, dtype=torch.float64)[:-1].round().long()
    logs = ratios.log()
    wanted = torch.linspace(float(logs[999]), float(logs[20]), NUM_STEPS, dtype=torch.float64)
    return torch.stack([(logs - log).abs().argmin() for log in wanted])


def trajectory(sample, chain, **options):
    """Returns the state after each step."""
    sigmas = torch.cat([ratios[chain], torch.zeros(1, dtype=torch.float64)])
    states = []
    note = lambda info: states.append(info["x"].flatten())
    y = sample(x_0, X_T / alpha_bars[chain[0]].sqrt(), sigmas, callback=note, disable=True, **options)
    alphas = torch.cat([alpha_bars[chain[1:]].sqrt(), torch.ones(1, dtype=torch.float64)])
    return torch.stack([*states[1:], y.flatten()]) * alphas[:, None]


module = samplers()
methods = {
    "ddim": (module.sample_euler, {}),
    "dpm++2m": (module.sample_dpmpp_2m, {}),
    "dpm++3m": (module.sample_dpmpp_3m_sde, {"eta": 0.0, "noise_sampler": lambda *_: 0.0}),
}
tensors = {"x_T": X_T.flatten().clone()}
for spacing in ("linspace", "log-snr"):
    chain = timesteps(spacing)
    for name, (sample, options) in methods.items():
        tensors[f"{name}/{spacing}/timesteps"] = chain.clone()
        tensors[f"{name}/{spacing}/states"] = trajectory(sample, chain, **options)
version = importlib.metadata.version("k-diffusion")
save_file(tensors, sys.argv[1], metadata={"k-diffusion": version})
print(f"{len(tensors)} tensors of k-diffusion {version} in {sys.argv[1]}")
