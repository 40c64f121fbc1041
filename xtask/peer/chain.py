"""The diffusion side of the twin: schedules, short chains, DDIM both ways, the ancestral step, edits, training
steps and image metrics.  Tables are float64 (numpy), images
are float32 (or whatever precision they come in).
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


# --------------------------------------------------------------------------------------------------- schedules

def betas(name, steps=1000):
    """Betas of a named schedule, float64."""
    if name == "linear":
        s = 1000.0 / steps
        return np.linspace(s * 1e-4, s * 0.02, steps, dtype=np.float64)
    if name == "cosine":
        u = np.arange(steps + 1, dtype=np.float64) / steps
        f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1.0 - f[1:] / f[:-1], 0.999)
    if name.startswith("const"):
        return np.full(steps, float(name[len("const"):]) * 1000.0 / steps, dtype=np.float64)
    raise ValueError(f"no schedule called {name!r}")


def ddim_steps(count, total=1000):
    """`ddimN`: the smallest stride that gives exactly `count` steps."""
    counts = {}
    for stride in range(1, total + 1):
        counts.setdefault(len(range(0, total, stride)), stride)
    if count not in counts:
        near = sorted(sorted(counts, key=lambda c: abs(c - count))[:4])
        raise ValueError(f"no stride visits exactly {count} of {total} steps; possible nearby: {near}")
    return list(range(0, total, counts[count]))


def section_steps(sections, total=1000):
    """Sections such as "10,15,20": that many steps from each of equal parts."""
    wanted = [int(s) for s in sections.split(",")]
    size, extra = divmod(total, len(wanted))
    out, start = [], 0
    for i, n in enumerate(wanted):
        m = size + (i < extra)
        if n > m:
            raise ValueError(f"a section of {m} steps cannot be cut into {n}")
        stride = (m - 1) / (n - 1) if n > 1 else 0.0
        out += [start + round(j * stride) for j in range(max(n, 1))]
        start += m
    return out


def steps_of(text, total=1000):
    return ddim_steps(int(text[4:]), total) if text.startswith("ddim") else section_steps(text, total)


@dataclass
class Chain:
    """The chain over the kept steps, with its tables; `steps[i]` is the number the network is given at index i."""
    steps: list
    betas: np.ndarray

    @classmethod
    def of(cls, schedule="linear", spacing=None, total=1000):
        """`spacing`: "ddimN", sections, or None for every step."""
        b = betas(schedule, total)
        if spacing is None:
            return cls(list(range(total)), b)
        steps = steps_of(spacing, total)
        kept = np.cumprod(1.0 - b)[steps]
        return cls(steps, 1.0 - kept / np.append(1.0, kept[:-1]))

    def __post_init__(self):
        b = self.betas
        self.ab = np.cumprod(1.0 - b)
        self.ab_prev = np.append(1.0, self.ab[:-1])
        self.ab_next = np.append(self.ab[1:], 0.0)
        self.posterior_variance = b * (1.0 - self.ab_prev) / (1.0 - self.ab)
        self.posterior_log_variance = np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))
        self.mean_x0 = b * np.sqrt(self.ab_prev) / (1.0 - self.ab)
        self.mean_xt = (1.0 - self.ab_prev) * np.sqrt(1.0 - b) / (1.0 - self.ab)

    def at(self, table, i, x):
        """Entries i (one index per sample) of a table, in x's precision, shaped to multiply x."""
        return torch.from_numpy(table).to(x.dtype)[i].reshape(-1, *[1] * (x.dim() - 1))

    def times(self, i):
        return torch.tensor(self.steps)[i].float()

    def noised(self, x0, i, noise):
        """q(x_t | x_0) with the given noise."""
        return self.at(np.sqrt(self.ab), i, x0) * x0 + self.at(np.sqrt(1.0 - self.ab), i, x0) * noise

    def x0_and_eps(self, x, i, eps, clip):
        """The x_0 estimate, clamped if wanted, and the noise that agrees with it."""
        recip, recip_m1 = np.sqrt(1.0 / self.ab), np.sqrt(1.0 / self.ab - 1.0)
        recip, recip_m1 = self.at(recip, i, x), self.at(recip_m1, i, x)
        x0 = recip * x - recip_m1 * eps
        if clip:
            x0 = x0.clamp(-1, 1)
        return x0, (recip * x - x0) / recip_m1

    # ------------------------------------------------------------------------------------------------- chains

    @torch.no_grad()
    def decode(self, net, x, clip=True, eta=0.0, noise=torch.randn_like):
        """DDIM from x_T down to x_0; `net(x, t)` predicts the noise."""
        for k in reversed(range(len(self.steps))):
            i = torch.full((len(x),), k)
            x0, eps = self.x0_and_eps(x, i, net(x, self.times(i)), clip)
            ab, ab_prev = self.ab[k], self.ab_prev[k]
            sigma = eta * math.sqrt((1 - ab_prev) / (1 - ab)) * math.sqrt(1 - ab / ab_prev)
            x = math.sqrt(ab_prev) * x0 + math.sqrt(max(1 - ab_prev - sigma ** 2, 0.0)) * eps
            if k and sigma:
                x = x + sigma * noise(x)
        return x

    @torch.no_grad()
    def invert(self, net, x, clip=True):
        """DDIM upwards, x_0 to x_T; the last step returns the noise estimate itself."""
        for k in range(len(self.steps)):
            i = torch.full((len(x),), k)
            x0, eps = self.x0_and_eps(x, i, net(x, self.times(i)), clip)
            x = math.sqrt(self.ab_next[k]) * x0 + math.sqrt(1 - self.ab_next[k]) * eps
        return x

    def ancestral(self, x, i, eps, clip=True, large=True):
        """Mean, variance, log variance and x_0 estimate of p(x_{t-1} | x_t)."""
        x0, _ = self.x0_and_eps(x, i, eps, clip)
        mean = self.at(self.mean_x0, i, x) * x0 + self.at(self.mean_xt, i, x) * x
        if large:
            variance = np.append(self.posterior_variance[1], self.betas[1:])
            log_variance = np.log(variance)
        else:
            variance, log_variance = self.posterior_variance, self.posterior_log_variance
        return mean, self.at(variance, i, x).expand_as(x), self.at(log_variance, i, x).expand_as(x), x0

    @torch.no_grad()
    def sample_ancestral(self, net, x, clip=True, large=True, noise=torch.randn_like):
        for k in reversed(range(len(self.steps))):
            i = torch.full((len(x),), k)
            x, _, log_variance, _ = self.ancestral(x, i, net(x, self.times(i)), clip, large)
            if k:
                x = x + (0.5 * log_variance).exp() * noise(x)
        return x


# -------------------------------------------------------------------------------------- using an autoencoder (7)

def with_z(model, z):
    """The noise predictor of `model` under the condition z."""
    return lambda x, t: model(x, t, z)


def slerp(u, v, alpha):
    """Spherical interpolation of the flattened tensors, one result per alpha."""
    cosine = F.cosine_similarity(u.flatten(), v.flatten(), dim=0)
    theta = torch.arccos(cosine)
    alpha = alpha.reshape(-1, *[1] * u.dim())
    return (torch.sin((1 - alpha) * theta) * u + torch.sin(alpha * theta) * v) / torch.sin(theta)


def lerp(u, v, alpha):
    alpha = alpha.reshape(-1, *[1] * u.dim())
    return (1 - alpha) * u + alpha * v


def edit(z, weight, attribute, strength, mean, std):
    """Move z along an attribute's direction; `weight` is the classifier's [A, D]."""
    direction = F.normalize(weight[attribute], dim=0)
    return ((z - mean) / std + strength * math.sqrt(z.shape[1]) * direction) * std + mean


def sample_latent(model, chain, z_T):
    """The latent DDIM: normalized z_T to normalized z_0."""
    return chain.decode(model.latent_net, z_T, clip=False)


# ---------------------------------------------------------------------------------------------------- training

def loss_per_sample(model, chain, x, t, noise):
    """Mean squared error of the noise; the encoder sees the clean image and is trained along."""
    z = None if model.encoder is None else model.encoder(x)
    return (model(chain.noised(x, t, noise), t.float(), z) - noise).square().flatten(1).mean(1)


def latent_loss(model, chain, z, t, noise):
    """Mean absolute error of the noise in a normalized z."""
    return (model.latent_net(chain.noised(z, t, noise), t.float()) - noise).abs().mean()


@torch.no_grad()
def ema_update(ema, model, decay=0.9999):
    for a, b in zip(ema.parameters(), model.parameters()):
        a.mul_(decay).add_(b, alpha=1 - decay)


# ----------------------------------------------------------------------------------------------------- metrics

def mse(x, y):
    return (x - y).square().flatten(1).mean(1)


def psnr(x, y):
    return -10 * torch.log10(mse(x, y))


def ssim(x, y):
    """SSIM: 11x11 Gaussian window, sigma 1.5, zero padding, images in [0, 1]; one value per image."""
    c = x.shape[1]
    g = torch.exp(-torch.arange(-5, 6).float() ** 2 / (2 * 1.5 ** 2))
    g = g / g.sum()
    window = (g[:, None] * g[None]).expand(c, 1, 11, 11)

    def blur(a):
        return F.conv2d(a, window, padding=5, groups=c)

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return score.flatten(1).mean(1)


def frechet(a, b):
    """The Frechet distance between Gaussians fitted to two sets of features [n, d]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    w, v = np.linalg.eigh(ca)
    root = (v * np.sqrt(np.clip(w, 0, None))) @ v.T
    trace = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cb @ root), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * trace)
