"""Make golden folders (the format of the reference's own) from small models that the twin trains itself.

    python make_golden.py OUT [names...]      names: a b c d, see MODELS

The models are briefly trained on smooth random color fields.  `ema_model.*` are the trained weights; `model.*` (which
only training starts from) differ from them in every tensor.  Every recorded number is also computed in float64: what
float32 cannot agree on (gradients that are zero but for rounding, and what Adam makes of such) is left out, the rest
must agree well.
"""
import copy
import json
import math
import sys
import types
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import chain as ch
import quantities
import twin

# attention, heads, in_blocks ... of the networks; `inputs` are the time steps and the learning rate recorded with it.
MODELS = {
    "a": dict(size=32, channels=3, width=32, mult=(1, 2, 2), blocks=2, in_blocks=1, embed=64, attention=(16, 8),
              heads=2, enc_mult=(1, 2, 2, 2), enc_blocks=1, attributes=7, t_mid=(211, 873), lr=1e-3, steps=260),
    "b": dict(size=16, channels=3, width=64, mult=(1, 2), blocks=1, embed=96, attention=(8,), heads=4,
              enc_mult=(1, 1, 1), enc_blocks=2, enc_attention=(4,), attributes=5, t_mid=(58, 702), lr=5e-4, steps=260,
              latent=dict(layers=6, hidden=96, skip=[1, 2, 3, 4, 5])),
    "c": dict(size=32, channels=1, width=32, mult=(1, 1, 2), blocks=2, in_blocks=3, embed=64, attention=(32, 8),
              heads=2, t_mid=(133, 590), lr=1e-3, steps=120, batch=4),
    "gray16_heads2": dict(size=16, channels=1, width=32, mult=(1, 1), blocks=2, in_blocks=1, embed=32, attention=(16, 8),
                          heads=2, enc_mult=(1, 1, 1), enc_blocks=2, enc_attention=(4,), attributes=3, t_mid=(77, 640),
                          lr=1e-3, steps=120, latent=dict(layers=6, hidden=48, skip=[1, 3])),
    "d": dict(size=24, channels=3, width=32, mult=(1, 3), blocks=1, embed=40, attention=(12,), heads=1,
              enc_mult=(1, 3, 3), enc_blocks=1, attributes=3, t_mid=(9, 450), lr=1e-3, steps=260),
}
# Recorded after three training steps, where the model has them.
AFTER3 = ("input_blocks.2.0.in_layers.2.weight", "middle_block.0.emb_layers.1.weight", "middle_block.1.proj_out.weight",
          "output_blocks.2.0.out_layers.0.weight", "out.2.weight", "time_embed.0.weight",
          "time_embed.time_embed.0.weight", "encoder.out.3.weight", "encoder.input_blocks.1.0.in_layers.2.weight",
          "output_blocks.1.0.cond_emb_layers.1.weight")
LATENT_AFTER3 = ("layers.0.linear.weight", "layers.2.linear_emb.weight", "layers.5.linear.bias")
LIMIT, AFTER3_LIMIT = 1e-4, 2e-5              # float32 against float64, relative to the largest magnitude


def hyper_parameters(spec):
    """All keys of a released checkpoint; those that describe the network from `spec`, the others customary."""
    enc, latent = spec.get("enc_mult"), spec.get("latent")
    heads, embed = spec["heads"], spec["embed"]
    conf = dict(
        image_size=spec["size"], in_channels=spec["channels"], model_channels=spec["width"],
        out_channels=spec["channels"], num_res_blocks=spec["blocks"], num_input_res_blocks=spec.get("in_blocks"),
        embed_channels=embed, attention_resolutions=spec["attention"], time_embed_channels=None, dropout=0.0,
        channel_mult=spec["mult"], input_channel_mult=None, conv_resample=True, dims=2, num_classes=None,
        use_checkpoint=False, num_heads=heads, num_head_channels=-1, num_heads_upsample=-1, resblock_updown=True,
        use_new_attention_order=False, resnet_two_cond=bool(enc), resnet_cond_channels=None,
        resnet_use_zero_module=True, attn_checkpoint=False)
    if enc:
        conf.update(enc_out_channels=embed, enc_attn_resolutions=spec.get("enc_attention"), enc_pool="adaptivenonzero",
                    enc_num_res_block=spec["enc_blocks"], enc_channel_mult=enc, enc_grad_checkpoint=False,
                    latent_net_conf=None)
    if latent:
        conf["latent_net_conf"] = dict(
            num_channels=embed, skip_layers=latent["skip"], num_hid_channels=latent["hidden"],
            num_layers=latent["layers"], num_time_emb_channels=64, use_norm=True, condition_bias=1, dropout=0,
            num_time_layers=2, time_last_act=False)
    return dict(
        seed=0, train_cond0_prob=0, train_pred_xstart_detach=True, train_interpolate_prob=0,
        train_interpolate_img=False, manipulate_cls=None, manipulate_shots=None, manipulate_znormalize=False,
        manipulate_seed=0, accum_batches=1, autoenc_mid_attn=True, batch_size=32, batch_size_eval=16,
        beatgans_rescale_timesteps=False, latent_infer_path=None, latent_znormalize=bool(latent),
        latent_rescale_timesteps=False, latent_T_eval=20 if latent else 1000, latent_clip_sample=False,
        latent_beta_scheduler="const0.008" if latent else "linear", beta_scheduler="linear", data_name="ffhqlmdb256",
        data_val_name="", diffusion_type="beatgans", dropout=0.0, ema_decay=0.9999, eval_num_images=5000,
        eval_every_samples=200000, eval_ema_every_samples=200000, fid_use_torch=True, fp16=False, grad_clip=1,
        img_size=spec["size"], lr=0.0001, weight_decay=0, model_conf=conf, net_attn=spec["attention"],
        net_beatgans_attn_head=heads, net_beatgans_embed_channels=embed, net_resblock_updown=True,
        net_enc_use_time=False, net_enc_pool="adaptivenonzero", net_beatgans_gradient_checkpoint=False,
        net_beatgans_resnet_two_cond=bool(enc), net_beatgans_resnet_use_zero_module=True,
        net_beatgans_resnet_cond_channels=None, net_ch_mult=spec["mult"], net_ch=spec["width"],
        net_enc_attn=spec.get("enc_attention"), net_enc_k=None, net_enc_num_res_blocks=spec.get("enc_blocks", 2),
        net_enc_channel_mult=enc or (1, 2, 4, 8, 8), net_enc_grad_checkpoint=False, net_autoenc_stochastic=False,
        net_latent_channel_mult=(1, 2, 4), net_latent_condition_bias=1 if latent else 0, net_latent_dropout=0,
        net_latent_layers=latent and latent["layers"], net_latent_num_hid_channels=latent["hidden"] if latent else 1024,
        net_latent_num_time_layers=2, net_latent_skip_layers=latent and latent["skip"], net_latent_time_emb_channels=64,
        net_latent_use_norm=bool(latent), net_latent_time_last_act=False, net_num_res_blocks=spec["blocks"],
        net_num_input_res_blocks=spec.get("in_blocks"), net_enc_num_cls=None, num_workers=4, parallel=False, postfix="",
        sample_size=32, sample_every_samples=20000, save_every_samples=100000, style_ch=embed if enc else 512,
        T_eval=20, T_sampler="uniform", T=1000, total_samples=10000000, warmup=0, pretrain=None, continue_from=None,
        eval_programs=None, eval_path=None, base_dir="checkpoints", use_cache_dataset=False, data_cache_dir="~/cache",
        work_cache_dir="~/mycache", name="")


# ---------------------------------------------------------------------------------------------------- the model

def color_fields(count, channels, size):
    """Smooth random images in [-1, 1]: coarse noise, enlarged."""
    coarse = torch.randn(count, channels, 4, 4)
    return (F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True) * 0.6).clamp(-1, 1)


@torch.no_grad()
def enliven(model):
    """Random values where initialization leaves zeros and ones, biases that matter, attention that is not flat."""
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.add_(torch.randn_like(p) * 0.3)
        elif not p.any():
            p.normal_(0, 1 / math.sqrt(p[0].numel()))
        elif name.endswith("qkv.weight") or (name.startswith("encoder.") and name.endswith("in_layers.2.weight")):
            p.mul_(2)


@torch.no_grad()
def disturbed(model):
    """A copy that differs by some 3 % in every tensor."""
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.add_(torch.randn_like(p) * (0.03 * p.square().mean().sqrt() + 1e-3))
    return other


def fit(params, steps, loss):
    optimizer = torch.optim.Adam(params, lr=1e-3)
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 2 * (1 - i / steps))
        optimizer.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
    return float(value.detach())


def train(spec, hyper):
    model = twin.Model(twin.ModelConf.from_hyper_parameters(hyper))
    enliven(model)
    image_chain, latent_chain = ch.Chain.of("linear"), ch.Chain.of("const0.008")

    def image_loss():
        x = color_fields(spec.get("batch", 8), spec["channels"], spec["size"])
        return ch.loss_per_sample(model, image_chain, x, torch.randint(0, 1000, (len(x),)), torch.randn_like(x)).mean()

    latent = list(model.latent_net.parameters()) if model.latent_net else []
    own = [p for p in model.parameters() if not any(p is q for q in latent)]
    print(f"  {sum(p.numel() for p in model.parameters())} parameters, loss {fit(own, spec['steps'], image_loss):.4f}")
    conds = None
    if model.encoder is not None:
        with torch.no_grad():
            conds = model.encoder(color_fields(64, spec["channels"], spec["size"]))
    if latent:
        z = (conds - conds.mean(0)) / conds.std(0)

        def z_loss():
            return ch.latent_loss(model, latent_chain, z, torch.randint(0, 1000, (64,)), torch.randn_like(z))

        print(f"  latent loss {fit(latent, 400, z_loss):.4f}")
    return model.eval(), conds


# ---------------------------------------------------------------------------------------------------- the files

def callback_class():
    """A class that pickles as Lightning's ModelCheckpoint without Lightning."""
    path = "pytorch_lightning.callbacks.model_checkpoint"
    parts = path.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[:i + 1]), types.ModuleType(".".join(parts[:i + 1])))
    module = sys.modules[path]
    if not hasattr(module, "ModelCheckpoint"):
        module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": path})
    return module.ModelCheckpoint


def lightning(model, ema, hyper, extra):
    """The dictionary of a Lightning 1.4 checkpoint."""
    state = OrderedDict()
    for prefix, m in (("model.", model), ("ema_model.", ema)):
        tensors = m.state_dict()
        for name in sorted(tensors, key=lambda n: not n.startswith("time_embed.")):     # time_embed comes first
            state[prefix + name] = tensors[name].clone()
    state.update(extra)
    first = list(model.parameters())[:2]
    moments = {i: {"step": 1234, "exp_avg": torch.zeros_like(p.data), "exp_avg_sq": torch.ones_like(p.data)}
               for i, p in enumerate(first)}
    group = {"lr": 0.0001, "betas": (0.9, 0.999), "eps": 1e-08, "weight_decay": 0, "amsgrad": False, "params": [0, 1]}
    return {
        "epoch": 3, "global_step": 1234, "pytorch-lightning_version": "1.4.5", "state_dict": state,
        "callbacks": {callback_class(): {
            "monitor": None, "best_model_score": None, "best_model_path": "checkpoints/x/epoch=3-step=1234.ckpt",
            "current_score": None, "dirpath": "checkpoints/x"}},
        "optimizer_states": [{"state": moments, "param_groups": [group]}], "lr_schedulers": [],
        "hyper_parameters": hyper, "hparams_name": "kwargs",
        "native_amp_scaling_state": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5,
                                     "growth_interval": 2000, "_growth_tracker": 12}}


def classifier_checkpoint(attributes, mean, std):
    d = len(mean)
    state = {"conds_mean": mean[None].clone(), "conds_std": std[None].clone()}
    for prefix in ("classifier.", "ema_classifier."):
        state[prefix + "weight"] = torch.randn(attributes, d) / math.sqrt(d)
        state[prefix + "bias"] = torch.randn(attributes) * 0.1
    return {"epoch": 0, "global_step": 7, "pytorch-lightning_version": "1.4.5", "state_dict": state,
            "hyper_parameters": {"manipulate_znormalize": True, "style_ch": d}}


def doubled(tensors):
    return {k: v.double() if torch.is_floating_point(v) else v for k, v in tensors.items()}


def make(name, folder):
    spec = MODELS[name]
    torch.manual_seed(1000 + sorted(MODELS).index(name))
    folder.mkdir(parents=True, exist_ok=True)
    hyper = hyper_parameters(spec)
    ema, conds = train(spec, hyper)
    model = disturbed(ema)
    channels, size = spec["channels"], spec["size"]
    extra, classifier = {"x_T": torch.randn(4, channels, size, size)}, None
    x = color_fields(2, channels, size)
    inputs = {"x": x, "noise": torch.randn_like(x), "x_T": torch.randn_like(x), "t": torch.tensor([0, 999]),
              "t_mid": torch.tensor(spec["t_mid"]), "train_lr": torch.tensor(spec["lr"]),
              "train_x": torch.stack([color_fields(2, channels, size) for _ in range(3)]),
              "train_t": torch.tensor([[480, 5], [997, 150], [1, 760]]),
              "train_noise": torch.randn(3, 2, channels, size, size)}
    if conds is not None:
        mean, std = conds.mean(0), conds.std(0)
        torch.save({"conds": conds, "conds_mean": mean, "conds_std": std}, folder / "latent.pkl")
        saved = classifier_checkpoint(spec["attributes"], mean, std)
        torch.save(saved, folder / "classifier.ckpt")
        classifier = saved["state_dict"]
        inputs.update(conds_mean=mean, conds_std=std, interp_alpha=torch.tensor([0, 0.2, 0.5, 0.7, 1]))
        if ema.latent_net is not None:
            extra.update(conds_mean=mean[None].clone(), conds_std=std[None].clone())
            inputs.update(z_T=torch.randn(2, len(mean)), latent_train_noise=torch.randn(3, 2, len(mean)),
                          latent_train_z=((conds[:6] - mean) / std).reshape(3, 2, -1).contiguous())
    torch.save(lightning(model, ema, hyper, extra), folder / "last.ckpt")
    (folder / "hyper_parameters.json").write_text(json.dumps(hyper, indent=1))

    checkpoint = twin.load_file(folder / "last.ckpt")
    known = {n for n, _ in ema.named_parameters()}
    after3 = [n for n in AFTER3 if n in known]

    def compute(ckpt, given, cls):
        found = quantities.inference(ckpt, given, cls)
        found.update(quantities.training(ckpt, given, after3, LATENT_AFTER3))
        return found

    results = compute(checkpoint, inputs, classifier)
    exact = compute({**checkpoint, "state_dict": doubled(checkpoint["state_dict"])}, doubled(inputs),
                    classifier and doubled(classifier))
    errors = {k: float((results[k] - exact[k]).abs().max() / exact[k].abs().max()) for k in results}
    left_out = [k for k, e in errors.items() if k.startswith("train_grad") and "0." in k and not e <= LIMIT]
    for n in after3:       # Adam makes full steps of gradients that are mostly rounding noise
        if not errors[f"train_after3.{n}"] <= AFTER3_LIMIT:
            left_out += [f"train_after3.{n}", f"train_ema_after3.{n}"]
            if ema.get_parameter(n).numel() > quantities.FULL_GRADIENT_LIMIT:
                left_out.append(f"train_grad0.{n}")
    for key in set(left_out):
        del results[key], errors[key]
    worst = max(errors, key=errors.get)
    if not errors[worst] <= LIMIT:
        raise SystemExit(f"{name}: float32 is off by {errors[worst]:.1e} in {worst}; the model is badly conditioned")
    path = folder / "golden.safetensors"
    save_file({k: v.detach().clone().contiguous() for k, v in {**inputs, **results}.items()}, str(path))
    path.chmod(0o644)
    recon = (results["recon_inverted"] - x).square().mean()
    megabytes = (folder / "last.ckpt").stat().st_size / 1e6
    print(f"  reconstruction MSE {recon:.4f}, last.ckpt {megabytes:.1f} MB")
    print(f"  float32 off by at most {errors[worst]:.1e} ({worst}); left out: {sorted(set(left_out))}")


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or MODELS:
        print(f"{name}:")
        make(name, out / name)


if __name__ == "__main__":
    main()
