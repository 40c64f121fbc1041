"""Trajectories of the schedulers of diffusers on an analytic denoiser, for the tests of `diffae-schedule`.

The denoiser stands for data that is not normal, so that no scheduler is exact: `x_0 = s tanh(x a / (1 - a^2 + a^2 s^2))` with
`a = sqrt(alpha_bar)` and `s = 0.5`, over the linear schedule of 1000 timesteps.

    venv/bin/pip install torch safetensors diffusers==0.35.2
    venv/bin/python xtask/peer/scheduler_fixtures.py crates/diffae-schedule/tests/parity/data/diffusers.safetensors
"""

import sys

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, IPNDMScheduler, UniPCMultistepScheduler
from safetensors.torch import save_file

NUM_STEPS = 10
SPREAD = 0.5
X_T = torch.tensor([1.3, -0.4, 0.7, -2.1], dtype=torch.float64).reshape(1, 1, 1, 4)
SCHEDULE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}

betas = torch.linspace(SCHEDULE["beta_start"], SCHEDULE["beta_end"], 1000, dtype=torch.float64)
alpha_bars = torch.cumprod(1 - betas, 0)


def eps(x, t):
    alpha_bar = alpha_bars[int(t)]
    x_0 = SPREAD * torch.tanh(x * alpha_bar.sqrt() / (1 - alpha_bar + alpha_bar * SPREAD**2))
    return (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()


def trajectory(scheduler):
    """Timesteps from the noisiest, and the state after each step."""
    scheduler.set_timesteps(NUM_STEPS)
    x, states = X_T, []
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x).prev_sample
        states.append(x.flatten())
    return scheduler.timesteps.to(torch.int64), torch.stack(states)


def ipndm(timesteps):
    """The same of IPNDMScheduler, which takes noise levels, the noisiest first and 0 last, as `trained_betas`, and velocities."""
    levels = (1 - alpha_bars[timesteps]).sqrt()
    scheduler = IPNDMScheduler(trained_betas=[*levels.tolist(), 0.0])
    scheduler.set_timesteps(len(timesteps))
    x, states = X_T, []
    for t, t_there in zip(timesteps, scheduler.timesteps):
        sigma, alpha = (1 - alpha_bars[t]).sqrt(), alpha_bars[t].sqrt()
        velocity = (eps(x, t) - sigma * x) / alpha
        x = scheduler.step(velocity, t_there, x).prev_sample
        states.append(x.flatten())
    return timesteps.clone(), torch.stack(states)


def schedulers(spacing):
    common = {**SCHEDULE, "timestep_spacing": spacing}
    multistep = {**common, "final_sigmas_type": "zero"}
    yield "ddim", DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    for order in (2, 3):
        yield f"dpm++{order}m", DPMSolverMultistepScheduler(**multistep, solver_order=order, algorithm_type="dpmsolver++")
        yield f"unipc{order}", UniPCMultistepScheduler(**multistep, solver_order=order, solver_type="bh2")


tensors = {"x_T": X_T.flatten().clone()}
for spacing in ("linspace", "trailing"):
    for name, scheduler in schedulers(spacing):
        tensors[f"{name}/{spacing}/timesteps"], tensors[f"{name}/{spacing}/states"] = trajectory(scheduler)
    timesteps = tensors[f"dpm++2m/{spacing}/timesteps"]
    tensors[f"ipndm4/{spacing}/timesteps"], tensors[f"ipndm4/{spacing}/states"] = ipndm(timesteps)
save_file(tensors, sys.argv[1], metadata={"diffusers": diffusers.__version__})
print(f"{len(tensors)} tensors of diffusers {diffusers.__version__} in {sys.argv[1]}")
