#!/usr/bin/env bash
# IPNDMScheduler of diffusers 0.35.2 takes `trained_betas` for noise levels, and as many steps as there are of them.
#
# Expected: the betas of the training schedule, 1000 of them, as DDIMScheduler and others take `trained_betas`; then
#           set_timesteps(10) leads to ten whole timesteps below 1000.
# Seen:     each value is taken for the standard deviation of the noise at a node of sampling, `alpha = sqrt(1 - beta^2)`, so the
#           scheduler believes that there is hardly any noise at all: 0.02 at most, where the schedule ends at 0.99998.
#           set_timesteps(10) leaves 999 timesteps, fractions between 0 and 0.013, and warns of nothing.
# For us:   `ipndm4` is compared with it on noise levels of the nodes, the noisiest first and 0 last (docs/parity.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install diffusers==0.35.2 torch==2.15.0 numpy==2.3.5
cat >"$folder/try.py" <<'PYTHON'
import torch
from diffusers import DDIMScheduler, IPNDMScheduler

betas = torch.linspace(1e-4, 0.02, 1000)
alpha_bars = torch.cumprod(1 - betas, 0)
noisiest_first = betas.flip(0).tolist()

ddim = DDIMScheduler(num_train_timesteps=1000, trained_betas=betas.tolist())
ddim.set_timesteps(10)
assert len(ddim.timesteps) == 10 and ddim.timesteps.dtype == torch.int64
assert torch.allclose(ddim.alphas_cumprod, alpha_bars)

for given in (betas.tolist(), noisiest_first):
    ipndm = IPNDMScheduler(num_train_timesteps=1000, trained_betas=given)
    ipndm.set_timesteps(10)
    print(f"asked for 10 steps: {len(ipndm.timesteps)}, from {ipndm.timesteps[0]:.4f} to {ipndm.timesteps[-1]:.4f}")
    assert len(ipndm.timesteps) == 999
    assert ipndm.timesteps.is_floating_point() and ipndm.timesteps.max() < 0.013
    assert torch.allclose(ipndm.alphas, (1 - torch.tensor(given) ** 2).sqrt())

sigmas = (1 - alpha_bars).sqrt()
print(f"largest noise level: {max(ipndm.betas):.4f} in the scheduler, {sigmas[-1]:.5f} in the schedule")
assert max(ipndm.betas) < 0.021 and sigmas[-1] > 0.9999

# Noise levels of ten nodes and 0 make the ten steps.
nodes = torch.arange(99, 1000, 100).flip(0)
ipndm = IPNDMScheduler(trained_betas=[*sigmas[nodes].tolist(), 0.0])
ipndm.set_timesteps(10)
assert len(ipndm.timesteps) == 10 and torch.allclose(ipndm.alphas[:-1] ** 2, alpha_bars[nodes], atol=1e-6)
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
echo "as described"
