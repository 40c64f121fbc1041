"""An independent PyTorch twin of the Diffusion Autoencoder: the networks and the reading of checkpoints.

Written from the paper and docs/parity.md, to cross-check the Rust implementation: same parameter names, same numbers,
nothing shared.  The diffusion itself (schedules, chains,
edits) is in `chain.py`.  Everything runs on the CPU, in the precision of the
weights (float32; float64 only to judge conditioning).
"""
import io
import math
import pickle
import types
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


# ---------------------------------------------------------------------------------------------- configuration

@dataclass
class LatentConf:
    """An MLP of `layers` layers and width `hidden` on vectors of width `width`."""
    width: int
    hidden: int
    layers: int
    skip: tuple
    time_width: int = 64
    dropout: float = 0.0


@dataclass
class ModelConf:
    """Sizes of the networks.  `enc_mult` is None for the plain DDPM."""
    image_size: int
    in_channels: int
    out_channels: int
    width: int                    # M
    mult: tuple
    blocks: int                   # R
    in_blocks: int                # R_in, equal to R where the checkpoint leaves it unset
    embed: int                    # E
    attention: tuple
    heads: int = 1
    dropout: float = 0.0
    enc_mult: tuple = None
    enc_blocks: int = 0
    enc_attention: tuple = ()
    enc_out: int = 0              # D
    latent: LatentConf = None

    @classmethod
    def from_hyper_parameters(cls, hyper):
        """Build from a checkpoint's `hyper_parameters` (the nested `model_conf` says it all)."""
        c = hyper["model_conf"]
        if not c.get("resblock_updown", True):
            raise ValueError("resblock_updown = false is not supported")
        attention = tuple(c["attention_resolutions"])
        conf = cls(
            image_size=c["image_size"], in_channels=c["in_channels"], out_channels=c["out_channels"],
            width=c["model_channels"], mult=tuple(c["channel_mult"]), blocks=c["num_res_blocks"],
            in_blocks=c.get("num_input_res_blocks") or c["num_res_blocks"], embed=c["embed_channels"],
            attention=attention, heads=c.get("num_heads", 1), dropout=c.get("dropout", 0.0))
        if c.get("enc_channel_mult"):
            own = c.get("enc_attn_resolutions")
            conf.enc_mult = tuple(c["enc_channel_mult"])
            conf.enc_blocks = c["enc_num_res_block"]
            conf.enc_attention = attention if own is None else tuple(own)
            conf.enc_out = c["enc_out_channels"]
            if conf.enc_out != conf.embed:
                raise ValueError(f"z_sem's width {conf.enc_out} must equal embed_channels {conf.embed}")
        n = c.get("latent_net_conf")
        if n:
            conf.latent = LatentConf(
                width=n["num_channels"], hidden=n["num_hid_channels"], layers=n["num_layers"],
                skip=tuple(n["skip_layers"]), time_width=n["num_time_emb_channels"], dropout=n.get("dropout", 0))
        return conf


# --------------------------------------------------------------------------------------------- building blocks

def timestep_embedding(t, dim):
    """[cos(t f), sin(t f)] with f_i = 10000^(-i/half), in float32; one zero appended where dim is odd."""
    half = dim // 2
    freq = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.to(torch.float32)[:, None] * freq[None]
    out = torch.cat([angle.cos(), angle.sin()], dim=1)
    return F.pad(out, (0, 1)) if dim % 2 else out


def group_norm(channels):
    groups = min(32, channels)
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be cut into {groups} normalization groups")
    return nn.GroupNorm(groups, channels, eps=1e-5)


def zeroed(layer):
    """The layer with all of its parameters set to zero (how the last layer of a residual branch starts)."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def resample(x, direction):
    if direction == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if direction == "down" else x


class ResBlock(nn.Module):
    """The residual block.  Without `embed` it is the encoder's short block: one convolution and the skip."""

    def __init__(self, c_in, c_out, embed=None, semantic=False, dropout=0.0, direction=None):
        super().__init__()
        self.direction = direction
        self.in_layers = nn.Sequential(group_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = self.cond_emb_layers = self.out_layers = None
        if embed is not None:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, 2 * c_out))
            if semantic:
                self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, c_out))
            self.out_layers = nn.Sequential(group_norm(c_out), nn.SiLU(), nn.Dropout(dropout),
                                            zeroed(nn.Conv2d(c_out, c_out, 3, padding=1)))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, t_emb=None, z=None):
        norm, act, conv = self.in_layers
        h = conv(resample(act(norm(x)), self.direction))
        x = resample(x, self.direction)
        if self.emb_layers is not None:
            norm, act, drop, conv = self.out_layers
            scale, shift = self.emb_layers(t_emb)[:, :, None, None].chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
            if self.cond_emb_layers is not None:
                h = h * (1 + self.cond_emb_layers(z)[:, :, None, None])
            h = conv(drop(act(h)))
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Self-attention over pixels.  The 3C outputs of `qkv` are heads-major: head 0's q, k, v, then head 1's, and so on."""

    def __init__(self, channels, heads):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be cut into {heads} attention heads")
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x, t_emb=None, z=None):
        n, c = x.shape[:2]
        flat = x.reshape(n, c, -1)
        q, k, v = self.qkv(self.norm(flat)).reshape(n * self.heads, 3 * c // self.heads, -1).chunk(3, dim=1)
        scale = (c / self.heads) ** -0.25
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q * scale, k * scale), dim=-1)
        out = torch.einsum("bqk,bck->bcq", weights, v).reshape(n, c, -1)
        return x + self.proj_out(out).reshape(x.shape)


class Stack(nn.ModuleList):
    """Layers applied in turn; the embeddings reach those that use them."""

    def forward(self, h, t_emb=None, z=None):
        for layer in self:
            h = layer(h) if isinstance(layer, nn.Conv2d) else layer(h, t_emb, z)
        return h


class InputHalf(nn.Module):
    """The part that the UNet and the semantic encoder share: `input_blocks` and `middle_block`."""

    def __init__(self, conf, mult, blocks, attention, block):
        """`block(c_in, c_out, direction)` makes a residual block."""
        super().__init__()
        res, width = conf.image_size, mult[0] * conf.width
        if res % 2 ** (len(mult) - 1):
            raise ValueError(f"image size {res} cannot be halved {len(mult) - 1} times")
        self.input_blocks = nn.ModuleList([Stack([nn.Conv2d(conf.in_channels, width, 3, padding=1)])])
        self.lateral_level = [0]          # the level each input block's output belongs to
        self.lateral_width = [width]
        for level, m in enumerate(mult):
            for _ in range(blocks):
                stack = Stack([block(width, m * conf.width, None)])
                width = m * conf.width
                if res in attention:
                    stack.append(Attention(width, conf.heads))
                self._push(stack, level, width)
            if level + 1 < len(mult):
                res //= 2
                self._push(Stack([block(width, width, "down")]), level + 1, width)
        self.middle_block = Stack([block(width, width, None), Attention(width, conf.heads),
                                   block(width, width, None)])
        self.final_width, self.final_res = width, res

    def _push(self, stack, level, width):
        self.input_blocks.append(stack)
        self.lateral_level.append(level)
        self.lateral_width.append(width)


class Encoder(InputHalf):
    """Images to z_sem."""

    def __init__(self, conf):
        super().__init__(conf, conf.enc_mult, conf.enc_blocks, conf.enc_attention,
                         lambda a, b, direction: ResBlock(a, b, direction=direction))
        self.out = nn.Sequential(group_norm(self.final_width), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
                                 nn.Conv2d(self.final_width, conf.enc_out, 1))

    def forward(self, x):
        for stack in self.input_blocks:
            x = stack(x)
        return self.out(self.middle_block(x)).flatten(1)


class LatentLayer(nn.Module):
    """One layer of the latent network.  `linear_emb` is also reachable (and stored) as `cond_layers.1`."""

    def __init__(self, c_in, c_out, cond, last, dropout):
        super().__init__()
        self.last = last
        self.linear = nn.Linear(c_in, c_out)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        if not last:
            self.linear_emb = nn.Linear(cond, c_out)
            nn.init.kaiming_normal_(self.linear_emb.weight, nonlinearity="relu")
            self.cond_layers = nn.Sequential(nn.SiLU(), self.linear_emb)
            self.norm = nn.LayerNorm(c_out)
            self.dropout = nn.Dropout(dropout)

    def forward(self, h, cond):
        h = self.linear(h)
        if self.last:
            return h
        return self.dropout(F.silu(self.norm(h * (1 + self.cond_layers(cond)))))


class LatentNet(nn.Module):
    """Predicts the noise in a normalized z."""

    def __init__(self, conf):
        super().__init__()
        d, self.skip, self.time_width = conf.width, set(conf.skip), conf.time_width
        self.time_embed = nn.Sequential(nn.Linear(conf.time_width, d), nn.SiLU(), nn.Linear(d, d))
        self.layers = nn.ModuleList()
        for k in range(conf.layers):
            last = k == conf.layers - 1
            c_in = d if k == 0 else conf.hidden + (d if k in self.skip else 0)
            self.layers.append(LatentLayer(c_in, d if last else conf.hidden, d, last, conf.dropout))

    def forward(self, x, t):
        cond = self.time_embed(timestep_embedding(t, self.time_width).to(x.dtype))
        h = x
        for k, layer in enumerate(self.layers):
            h = layer(torch.cat([h, x], dim=1) if k and k in self.skip else h, cond)
        return h


class TimeEmbed(nn.Module):
    """The autoencoder nests its time network one level deeper than the plain DDPM does."""

    def __init__(self, layers):
        super().__init__()
        self.time_embed = layers

    def forward(self, t_emb):
        return self.time_embed(t_emb)


class Model(InputHalf):
    """The UNet, and with `enc_mult` the autoencoder's `encoder` and `latent_net` inside it."""

    def __init__(self, conf):
        semantic = conf.enc_mult is not None

        def block(c_in, c_out, direction):
            return ResBlock(c_in, c_out, conf.embed, semantic, conf.dropout, direction)

        super().__init__(conf, conf.mult, conf.in_blocks, conf.attention, block)
        self.conf = conf
        time = nn.Sequential(nn.Linear(conf.width, conf.embed), nn.SiLU(), nn.Linear(conf.embed, conf.embed))
        self.time_embed = TimeEmbed(time) if semantic else time
        self.output_blocks = nn.ModuleList()
        self.output_level = []
        left = list(zip(self.lateral_level, self.lateral_width))
        width, res = self.final_width, self.final_res
        for level in reversed(range(len(conf.mult))):
            mine = [w for at, w in left if at == level]
            for i in range(conf.blocks + 1):
                lateral = mine.pop() if mine else 0
                stack = Stack([block(width + lateral, conf.mult[level] * conf.width, None)])
                width = conf.mult[level] * conf.width
                if res in conf.attention:
                    stack.append(Attention(width, conf.heads))
                if level and i == conf.blocks:
                    res *= 2
                    stack.append(block(width, width, "up"))
                self.output_blocks.append(stack)
                self.output_level.append(level)
        self.out = nn.Sequential(group_norm(width), nn.SiLU(),
                                 zeroed(nn.Conv2d(width, conf.out_channels, 3, padding=1)))
        self.encoder = Encoder(conf) if semantic else None
        self.latent_net = LatentNet(conf.latent) if conf.latent else None

    def forward(self, x, t, z=None):
        """The predicted noise.  t: original step numbers, [N]; z: z_sem [N, D], absent for the plain DDPM."""
        if (z is None) != (self.encoder is None):
            raise ValueError("z_sem goes with an autoencoder, and only with it")
        t_emb = self.time_embed(timestep_embedding(t, self.conf.width).to(x.dtype))
        laterals = [[] for _ in self.conf.mult]
        h = x
        for stack, level in zip(self.input_blocks, self.lateral_level):
            h = stack(h, t_emb, z)
            laterals[level].append(h)
        h = self.middle_block(h, t_emb, z)
        for stack, level in zip(self.output_blocks, self.output_level):
            if laterals[level]:
                h = torch.cat([h, laterals[level].pop()], dim=1)
            h = stack(h, t_emb, z)
        return self.out(h)

    def stylespace(self, z):
        """Style space: every block's z scale, input, middle and output blocks in this order."""
        stacks = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return torch.cat([layer.cond_emb_layers(z) for stack in stacks for layer in stack
                          if isinstance(layer, ResBlock)], dim=1)


# ------------------------------------------------------------------------------------------------- checkpoints

class _Skipped:
    """Stands in for every class a checkpoint mentions that is not plain data; nothing of it is run."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class _DataOnly(pickle.Unpickler):
    def find_class(self, module, name):
        data = {"collections": ("OrderedDict",), "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter")}
        if name in data.get(module, ()) or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        return type(name, (_Skipped,), {"__module__": module})


def load_file(path):
    """torch.load, restricted to tensors and containers."""
    reader = types.SimpleNamespace(__name__="data_only", Unpickler=_DataOnly,
                                   load=lambda f, **kw: _DataOnly(f, **kw).load(),
                                   loads=lambda b, **kw: _DataOnly(io.BytesIO(b), **kw).load())
    return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)


def load_weights(model, tensors):
    """Strict loading; of a latent layer's two names for one tensor either will do, but both must agree."""
    tensors = dict(tensors)
    for name in list(tensors):
        if ".linear_emb." in name or ".cond_layers.1." in name:
            pair = (".linear_emb.", ".cond_layers.1.")
            other = name.replace(*(pair if pair[0] in name else pair[::-1]))
            if not torch.equal(tensors.setdefault(other, tensors[name]), tensors[name]):
                raise ValueError(f"{name} and {other} differ")
    model.load_state_dict(tensors, strict=True)


def build(checkpoint, weights="ema_model"):
    """The model of a loaded checkpoint with its `ema_model` (inference) or `model` (training) weights."""
    model = Model(ModelConf.from_hyper_parameters(checkpoint["hyper_parameters"]))
    prefix = weights + "."
    tensors = {k[len(prefix):]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    load_weights(model.to(next(iter(tensors.values())).dtype), tensors)
    return model.eval()
