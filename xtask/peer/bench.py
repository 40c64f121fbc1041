"""The PyTorch side of `cargo xtask bench --peer`.

Started with the number of threads and, after it, a device other than the CPU.  Each line on standard input is answered by one
on standard output: a piece of work as JSON builds its model, `run N` does it N times and answers the milliseconds of one,
`graph N` does so as a CUDA graph, `memory` answers the most bytes that the process has held above what it held before the
first model; on a card, the most bytes of its memory since the model was built.
"""
import gc
import json
import sys
import time

import torch

from chain import Chain
from twin import LatentConf, LatentNet, Model, ModelConf

CHAIN_STEPS = "ddim10"
DEVICE = torch.device(sys.argv[2] if len(sys.argv) > 2 else "cpu")


def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def model_of(preset):
    conf = ModelConf(
        image_size=preset["image_size"], in_channels=3, out_channels=3, width=preset["model_channels"],
        mult=tuple(preset["channel_mult"]), blocks=preset["num_res_blocks"], in_blocks=preset["num_res_blocks"],
        embed=preset["embed_channels"], attention=(16,), enc_mult=tuple(preset["encoder_channel_mult"]),
        enc_blocks=preset["num_res_blocks"], enc_attention=(16,), enc_out=preset["embed_channels"])
    return Model(conf).to(DEVICE)


class Training:
    """Forward, backward, clip, Adam, EMA; activations in bf16 on request."""

    def __init__(self, model, x, dtype):
        self.autocast = torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)
        self.model = model.train()
        self.parameters = list(model.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-4, fused=True)
        self.x, self.noise = x, torch.randn_like(x)
        self.x_t = 0.8 * x + 0.6 * self.noise
        self.t = torch.arange(len(x), dtype=torch.float32, device=x.device) * 31

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            predicted = self.model(self.x_t, self.t, self.model.encoder(self.x))
        (predicted.float() - self.noise).square().mean().backward()
        self.update()

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1e-4)


def prepare(work):
    torch.manual_seed(0)
    # Convolutions and products alike in what PyTorch calls TF32, or in f32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = work["numbers"] == "tf32"
    preset, batch = work["preset"], work["batch"]
    model = model_of(preset)
    x = torch.randn(batch, 3, preset["image_size"], preset["image_size"], device=DEVICE)
    dtype = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}[work["numbers"]]
    if work["kind"] == "train":
        return Training(model, x, dtype)
    if work["kind"] == "update":
        training = Training(model, x, dtype)
        for parameter in training.parameters:
            parameter.grad = torch.randn_like(parameter) * 1e-3
        return training.update
    model.eval().requires_grad_(False).to(dtype)
    x = x.to(dtype)
    z = torch.randn(batch, preset["embed_channels"], device=DEVICE, dtype=dtype)
    t = torch.full((batch,), 500.0, device=DEVICE)
    if work["kind"] == "unet":
        return torch.inference_mode()(lambda: model(x, t, z))
    if work["kind"] == "encoder":
        return torch.inference_mode()(lambda: model.encoder(x))
    chain = Chain.of("linear", CHAIN_STEPS)
    if work["kind"] == "sample":
        layers = preset["latent_num_layers"]
        latent = LatentNet(LatentConf(
            width=preset["embed_channels"], hidden=preset["latent_hidden_channels"], layers=layers,
            skip=tuple(range(1, layers)))).eval().requires_grad_(False)
        z_chain = Chain.of("const0.008", CHAIN_STEPS)

        def invented():
            z_0 = z_chain.decode(latent, z, clip=False)
            return chain.decode(lambda x, t: model(x, t, z_0), x)
        return torch.inference_mode()(invented)

    def both_ways():
        z = model.encoder(x)
        noise_of = lambda x, t: model(x, t, z)
        return chain.decode(noise_of, chain.invert(noise_of, x))
    return torch.inference_mode()(both_ways)


def recorded(work):
    """The work as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(work, repeats):
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - start) * 1e3 / repeats


def main():
    torch.set_num_threads(int(sys.argv[1]))
    idle = status("VmRSS")
    work = graph = None
    print("ready", flush=True)
    for line in sys.stdin:
        line = line.strip()
        if line.startswith(("run", "graph")):
            how, repeats = line.split()
            if how == "graph" and graph is None:
                graph = recorded(work)
            print(milliseconds(graph if how == "graph" else work, int(repeats)), flush=True)
        elif line == "memory":
            on_card = DEVICE.type == "cuda"
            print(torch.cuda.max_memory_reserved() if on_card else status("VmHWM") - idle, flush=True)
        else:
            work = graph = None
            if DEVICE.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            work = prepare(json.loads(line))
            print("prepared", flush=True)


if __name__ == "__main__":
    main()
