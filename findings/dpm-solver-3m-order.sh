#!/usr/bin/env bash
# DPM-Solver++(3M) of diffusers 0.35.2 (solver_order=3) converges with order 2, and its DDIM steps beside the next timestep.
#
# Expected: halving the steps of a third-order method divides its error by 8, and of the second-order method by 4. A step of
#           DDIM ends at the noise level of the timestep that is visited next.
# Seen:     for normal data, whose exact solution is known, order 3 divides the error by 4 like order 2: its difference of
#           second order is a divided difference, half the second derivative, and is weighted like the whole. With twice that
#           term, and nothing else changed, the error is divided by 8. DDIM with timestep_spacing="linspace" visits 999, 888,
#           777, .., but each step ends at the noise level of t - 100: a stride, not the list, says where it goes.
# For us:   `dpm++3m` has the whole term, and agrees with no other program; neighbors come from the list of nodes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install diffusers==0.35.2 torch==2.15.0 numpy==2.3.5
cat >"$folder/try.py" <<'PYTHON'
import math

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

SPREAD, LAMBDA = 0.3, (-2.5, 2.5)  # standard deviation of the data; log(alpha / sigma) of the first and last node


def exact(x_first, first, here):
    """The probability-flow solution for normal data: x / sqrt(alpha^2 s^2 + sigma^2) stays the same."""
    std = lambda level: math.sqrt(level[0] ** 2 * SPREAD**2 + level[1] ** 2)
    return x_first * std(here) / std(first)


def level(lam):
    alpha = 1 / math.sqrt(1 + math.exp(-2 * lam))
    return alpha, math.sqrt(1 - alpha**2)


def error(order, num_steps, factor=1.0):
    """Runs the update of the scheduler itself on nodes that are even in lambda, with an exact start."""
    lams = [LAMBDA[0] + (LAMBDA[1] - LAMBDA[0]) * i / num_steps for i in range(num_steps + 1)]
    levels = [level(lam) for lam in lams]
    scheduler = DPMSolverMultistepScheduler(solver_order=order, algorithm_type="dpmsolver++")
    # Its own noise levels: sigma / alpha of each node, in f64.
    scheduler.sigmas = torch.tensor([sigma / alpha for alpha, sigma in levels], dtype=torch.float64)
    x = torch.tensor([1.0], dtype=torch.float64)
    outputs = []
    for i in range(num_steps):
        alpha, sigma = levels[i]
        if i < 2:
            x = torch.tensor([exact(1.0, levels[0], levels[i])], dtype=torch.float64)
        outputs.append(x * (alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)))
        scheduler._step_index = i
        if i < 2:
            x = torch.tensor([exact(1.0, levels[0], levels[i + 1])], dtype=torch.float64)
        elif order == 2:
            x = scheduler.multistep_dpm_solver_second_order_update(outputs[-2:], sample=x)
        else:
            before = x
            x = scheduler.multistep_dpm_solver_third_order_update(outputs[-3:], sample=x)
            if factor != 1.0:
                h = lams[i + 1] - lams[i]
                second = outputs[-1] - 2 * outputs[-2] + outputs[-3]
                weight = (math.exp(-h) - 1 + h) / h**2 - 0.5
                x = x - (factor - 1) * levels[i + 1][0] * weight * second / 2
    return abs(float(x) - exact(1.0, levels[0], levels[-1]))


for name, order, factor in [("order 2", 2, 1.0), ("order 3", 3, 1.0), ("order 3, whole second derivative", 3, 2.0)]:
    ratio = error(order, 200, factor) / error(order, 400, factor)
    print(f"{name}: half the step divides the error by {round(ratio)}")

ddim = DDIMScheduler(timestep_spacing="linspace", clip_sample=False)
ddim.set_timesteps(10)
first, second = (int(t) for t in ddim.timesteps[:2])
x, eps = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
moved = float(ddim.step(eps, first, x).prev_sample)
ends = min(range(1000), key=lambda t: abs(math.sqrt(ddim.alphas_cumprod[t] / ddim.alphas_cumprod[first]) - moved))
print(f"DDIM, linspace: from {first} the list goes to {second}, the step to {ends}")
PYTHON
cat >"$folder/expected" <<'OUTPUT'
order 2: half the step divides the error by 4
order 3: half the step divides the error by 4
order 3, whole second derivative: half the step divides the error by 8
DDIM, linspace: from 999 the list goes to 888, the step to 899
OUTPUT
"$folder/venv/bin/python" "$folder/try.py" >"$folder/got"
cat "$folder/got"
diff "$folder/expected" "$folder/got" && echo "as described: diffusers 0.35.2"
