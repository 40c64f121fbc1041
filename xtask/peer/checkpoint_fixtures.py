"""Writes tests/fixtures/faults/checkpoints: files of weights as PyTorch and Lightning write them.

    python xtask/peer/checkpoint_fixtures.py tests/fixtures/faults/checkpoints

needs torch and lightning.
"""

import pathlib
import shutil
import sys

import lightning
import torch
import torch.distributed.checkpoint
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel

OUT = pathlib.Path(sys.argv[1])


def statistics():
    """Statistics of codes in every protocol and format, and without checksums."""
    codes = torch.randn(6, 4)
    latent = {"conds": codes, "conds_mean": codes.mean(0), "conds_std": codes.std(0)}
    for protocol in range(6):
        for name, is_zip in [("zip", True), ("legacy", False)]:
            path = OUT / f"latent_{name}_p{protocol}.pkl"
            torch.save(latent, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    torch.serialization.set_crc32_options(False)
    torch.save(latent, OUT / "latent_nocrc.pkl")
    torch.serialization.set_crc32_options(True)


def programs():
    """One layer as what is no checkpoint, and as its state dict."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 2))
    torch.jit.save(torch.jit.script(network), OUT / "torchscript.pt")
    torch.export.save(torch.export.export(network, (torch.randn(1, 4),)), OUT / "exported.pt2")
    torch.save(network, OUT / "whole_module.pt")
    torch.save(network.state_dict(), OUT / "bare.pt")
    average = AveragedModel(network)
    average.update_parameters(network)
    torch.save(average.state_dict(), OUT / "averaged.pt")


class Network(torch.nn.Module):
    """The first layer of a UNet."""

    def __init__(self):
        super().__init__()
        self.input_blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1))])

    def forward(self, x):
        return self.input_blocks[0](x)


class Training(lightning.LightningModule):
    """Trains it on nothing."""

    def __init__(self, img_size=16):
        super().__init__()
        self.save_hyperparameters()
        self.model = Network()

    def training_step(self, batch, _):
        return self.model(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAtEnd(lightning.Callback):
    """Saves while the callback still averages."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


def averages():
    """What Lightning writes while it averages."""
    for name, is_compiled in [("lightning_average.ckpt", False), ("lightning_average_compiled.ckpt", True)]:
        training = Training()
        if is_compiled:
            training.model = torch.compile(training.model, backend="eager")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=3,
            callbacks=[EMAWeightAveraging(decay=0.5), SaveAtEnd(OUT / name)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(training, torch.utils.data.DataLoader(torch.randn(6, 1, 4, 4), batch_size=2))


def pieces():
    """A checkpoint in pieces."""
    shutil.rmtree(OUT / "dcp", ignore_errors=True)
    state_dict = {"model.a": torch.arange(6.0).reshape(2, 3), "model.b": torch.ones(2, dtype=torch.float16), "x": 3}
    saved = {"state_dict": state_dict, "hyper_parameters": {"img_size": 16}}
    torch.distributed.checkpoint.save(saved, checkpoint_id=OUT / "dcp")


torch.manual_seed(0)
OUT.mkdir(parents=True, exist_ok=True)
statistics()
programs()
averages()
pieces()
