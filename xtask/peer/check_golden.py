"""Check the twin against golden folders:  python check_golden.py DIR

DIR is one golden folder, or a directory of them (with `math.safetensors` beside them or not).  Prints a line per
quantity: the error (relative to the largest magnitude), the tolerance, and ok or FAIL.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file as load_safetensors

import chain as ch
import quantities
import twin

# Longest matching prefix wins; errors are relative to the recorded tensor's largest magnitude.
TOLERANCES = {
    "": 1e-4,                                                         # one network call
    "x_T_inverted": 1e-3, "recon_": 1e-3, "interp_": 1e-3, "manip_img": 1e-3, "z_0": 1e-3, "sample_img": 1e-3,
    "train_loss": 1e-5, "latent_train_loss": 1e-5, "train_grad": 1e-3,
}
INPUTS = ("x", "noise", "t", "t_mid", "x_T", "z_T", "interp_alpha", "conds_mean", "conds_std", "train_x", "train_t",
          "train_noise", "train_lr", "latent_train_z", "latent_train_noise")


def tolerance(name):
    return TOLERANCES[max((p for p in TOLERANCES if name.startswith(p)), key=len)]


class Report:
    def __init__(self):
        self.failed = self.count = 0

    def line(self, name, got, want, limit):
        got, want = torch.as_tensor(got).double(), torch.as_tensor(want).double()
        if got.shape != want.shape:
            error, bad = f"shape {tuple(got.shape)} for {tuple(want.shape)}", True
        else:
            size = float(want.abs().max()) or 1.0
            e = float((got - want).abs().max()) / size
            error, bad = f"{e:9.2e} (limit {limit:.0e})", not e <= limit
        self.failed += bad
        self.count += 1
        print(f"{'FAIL' if bad else 'ok  '} {error}  {name}")


def check_model(folder, report):
    gold = load_safetensors(str(folder / "golden.safetensors"))
    checkpoint = twin.load_file(folder / "last.ckpt")
    state = checkpoint["state_dict"]
    classifier = None
    if (folder / "classifier.ckpt").exists():
        classifier = twin.load_file(folder / "classifier.ckpt")["state_dict"]
        latent = twin.load_file(folder / "latent.pkl")
        for name, value in (("conds_mean", latent["conds"].mean(0)), ("conds_std", latent["conds"].std(0))):
            report.line(f"{name} against latent.pkl's conds", value, gold[name], 1e-5)
            for where, tensors in (("latent.pkl", latent), ("classifier.ckpt", classifier), ("last.ckpt", state)):
                if name in tensors:
                    report.line(f"{name} against {where}", tensors[name].reshape(-1), gold[name], 0)
    inputs = {k: gold[k] for k in INPUTS if k in gold}

    def named(prefix):
        return [k[len(prefix):] for k in gold if k.startswith(prefix)]

    got = quantities.inference(checkpoint, inputs, classifier)
    got.update(quantities.training(checkpoint, inputs, named("train_after3."), named("latent_train_after3.")))
    for name in sorted(set(gold) - set(INPUTS)):
        if name in got:
            report.line(name, got[name], gold[name], tolerance(name))
        else:
            report.failed += 1
            print(f"FAIL not computed  {name}")
    for name in sorted(set(got) - set(gold)):
        vanishing = name.startswith(("train_grad0.", "train_gradnorm0."))      # make_golden.py leaves those out
        report.failed += not vanishing
        print(f"{'--  ' if vanishing else 'FAIL'} not recorded  {name}")


def check_math(path, report):
    gold = load_safetensors(str(path))
    for name, want in gold.items():
        kind, _, rest = name.partition(".")
        if kind in ("betas", "alphas_cumprod"):
            schedule, total = rest.rsplit(".", 1)
            b = ch.betas(schedule, int(total))
            report.line(name, b if kind == "betas" else np.cumprod(1 - b), want, 1e-12)
        elif kind == "timesteps":
            report.line(name, ch.steps_of(rest.removeprefix("sections.")), want, 0)
        elif name.startswith("timestep_embedding.") and rest != "t":
            got = twin.timestep_embedding(gold["timestep_embedding.t"], int(rest))
            report.line(name, got, want, 1e-4)
    c = ch.Chain.of("linear", "ddim20")
    table = {"alphas_cumprod": c.ab, "alphas_cumprod_next": c.ab_next, "alphas_cumprod_prev": c.ab_prev,
             "betas": c.betas, "posterior_log_variance_clipped": c.posterior_log_variance,
             "posterior_mean_coef1": c.mean_x0, "posterior_mean_coef2": c.mean_xt,
             "posterior_variance": c.posterior_variance, "timestep_map": c.steps}
    for name, value in table.items():
        report.line(f"spaced20.{name}", value, gold[f"spaced20.{name}"], 1e-12)
    a = {k.partition(".")[2]: v for k, v in gold.items() if k.startswith("ancestral.")}
    got = ch.Chain.of("linear").ancestral(a["x_t"], a["t"], a["eps"])
    for name, value in zip(("mean", "variance", "log_variance", "pred_xstart"), got):
        report.line(f"ancestral.{name}", value, a[name], 1e-6)
    for name in ("mse", "psnr", "ssim"):
        value = getattr(ch, name)(gold["metrics.x"], gold["metrics.y"])
        report.line(f"metrics.{name}", value, gold[f"metrics.{name}"], 1e-5)
    report.line("fid.value", np.array([ch.frechet(gold["fid.features_a"], gold["fid.features_b"])]),
                gold["fid.value"], 1e-8)


def main():
    torch.set_num_threads(1)
    root, report = Path(sys.argv[1]), Report()
    if (root / "math.safetensors").exists():
        print("== math")
        check_math(root / "math.safetensors", report)
    for folder in [root] if (root / "last.ckpt").exists() else sorted(p.parent for p in root.glob("*/last.ckpt")):
        print(f"== {folder.name}")
        check_model(folder, report)
    print(f"{report.count} quantities, {report.failed} failed")
    return 1 if report.failed or not report.count else 0


if __name__ == "__main__":
    sys.exit(main())
