"""What a golden folder records, computed with the twin: shared by `check_golden.py` and `make_golden.py`."""
import torch

import chain as ch
import twin

STEPS = "ddim10"
ATTRIBUTE, STRENGTH = 2, 0.3
FULL_GRADIENT_LIMIT = 4096


@torch.no_grad()
def inference(checkpoint, inputs, classifier=None):
    """All quantities of the EMA model.  `inputs`: x, noise, t_mid, t, x_T, interp_alpha, and where they apply
    conds_mean, conds_std, z_T.  `classifier`: the state_dict of a classifier checkpoint."""
    model = twin.build(checkpoint, "ema_model")
    full, short = ch.Chain.of("linear"), ch.Chain.of("linear", STEPS)
    x, x_T, t_mid = inputs["x"], inputs["x_T"], inputs["t_mid"]
    out = {}
    z = None
    if model.encoder is not None:
        z = out["z_sem"] = model.encoder(x)
        out["stylespace"] = model.stylespace(z)
    net = ch.with_z(model, z)
    x_t = out["x_t"] = full.noised(x, t_mid, inputs["noise"])
    out["eps"] = model(x_t, t_mid, z)
    out["eps_ends"] = model(x_t, inputs["t"], z)
    inverted = out["x_T_inverted"] = short.invert(net, x)
    out["recon_inverted"] = short.decode(net, inverted)
    out["recon_random"] = short.decode(net, x_T)
    out["recon_noclip"] = short.decode(net, x_T, clip=False)
    if z is not None:
        alpha = inputs["interp_alpha"]
        iz = out["interp_z"] = ch.lerp(z[0], z[1], alpha)
        ix = out["interp_x_T"] = ch.slerp(inverted[0], inverted[1], alpha)
        out["interp_img"] = short.decode(ch.with_z(model, iz), ix)
    if classifier is not None:
        mean, std = inputs["conds_mean"], inputs["conds_std"]
        out["manip_logits"] = torch.nn.functional.linear(
            (z - mean) / std, classifier["ema_classifier.weight"], classifier["ema_classifier.bias"])
        mz = out["manip_z"] = ch.edit(z, classifier["classifier.weight"], ATTRIBUTE, STRENGTH, mean, std)
        out["manip_img"] = short.decode(ch.with_z(model, mz), inverted)
    if model.latent_net is not None:
        latent_full, latent_short = ch.Chain.of("const0.008"), ch.Chain.of("const0.008", STEPS)
        assert latent_full.steps[-1] == 999
        out["latent_eps"] = model.latent_net(inputs["z_T"], t_mid)
        z0 = out["z_0_normalized"] = ch.sample_latent(model, latent_short, inputs["z_T"])
        z0 = out["z_0"] = z0 * inputs["conds_std"] + inputs["conds_mean"]
        out["sample_img"] = short.decode(ch.with_z(model, z0), x_T)
    return out


def training(checkpoint, inputs, after3, latent_after3=()):
    """Three steps from the `model.*` weights.  `inputs`: train_x, train_t, train_noise, train_lr, and for latent
    models latent_train_z, latent_train_noise.  `after3` and `latent_after3` name the parameters to record."""
    out = {}
    model, ema = twin.build(checkpoint, "model"), twin.build(checkpoint, "ema_model")
    image_chain, lr = ch.Chain.of("linear"), round(float(inputs["train_lr"]), 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses, norms = [], []
    for i in range(len(inputs["train_x"])):
        model.zero_grad(set_to_none=True)
        each = ch.loss_per_sample(model, image_chain, *(inputs[f"train_{n}"][i] for n in ("x", "t", "noise")))
        each.mean().backward()
        if i == 0:
            for name, p in model.named_parameters():
                if p.grad is None:
                    continue
                if p.numel() <= FULL_GRADIENT_LIMIT or name in after3:
                    out[f"train_grad0.{name}"] = p.grad.clone()
                if p.numel() > FULL_GRADIENT_LIMIT:
                    out[f"train_gradnorm0.{name}"] = p.grad.norm().reshape(1)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        ch.ema_update(ema, model)
        losses.append(float(each.detach().mean()))
        out[f"train_loss_per_sample_{i}"] = each.detach()
    out["train_loss"] = torch.tensor(losses, dtype=torch.float64)
    out["train_grad_norm"] = torch.tensor(norms, dtype=torch.float64)
    for name in after3:
        out[f"train_after3.{name}"] = model.get_parameter(name).detach().clone()
        out[f"train_ema_after3.{name}"] = ema.get_parameter(name).detach().clone()

    if "latent_train_z" in inputs:
        net = twin.build(checkpoint, "model")
        latent_chain = ch.Chain.of("const0.008")
        optimizer = torch.optim.AdamW(net.latent_net.parameters(), lr=lr, weight_decay=0.01)
        losses = []
        for i in range(len(inputs["latent_train_z"])):
            optimizer.zero_grad()
            loss = ch.latent_loss(net, latent_chain, inputs["latent_train_z"][i], inputs["train_t"][i],
                                  inputs["latent_train_noise"][i])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.latent_net.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        out["latent_train_loss"] = torch.tensor(losses, dtype=torch.float64)
        for name in latent_after3:
            out[f"latent_train_after3.{name}"] = net.latent_net.get_parameter(name).detach().clone()
    return out
