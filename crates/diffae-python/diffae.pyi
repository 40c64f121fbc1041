"""Encode, decode, edit, interpolate and sample pictures with Diffusion Autoencoders.

`diffae.load("toonheads")` returns the built-in model of cartoon faces, `diffae.load(path)` any other. Pictures are uint8
arrays [N, H, W, 3], codes float32 arrays; results are those of the program `diffae`, to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict, final, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

__version__: str

_Path = str | PathLike[str]
_Pictures = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Strengths = Mapping[str, float | None]

class Error(Exception):
    """Base of all exceptions of diffae."""

class InvalidInput(Error, ValueError):
    """What was given cannot be used: an array, a file, a name or a setting."""

class Failure(Error, RuntimeError):
    """What was asked for could not be done: a file system, memory or arithmetic failed."""

class _Computing(TypedDict, total=False):
    batch_size: int | None
    """Pictures per batch; by default by the size of the model, at most 32. Results do not depend on it."""
    threads: int | None
    """Threads of the call; by default one per core. The same number gives the same bits."""
    progress: Callable[[int, int], object] | None
    """Called with how much is done and how much there is in all; an exception ends the work."""

class _Decoding(_Computing, total=False):
    steps: int | None
    """Decoding steps; by default 10, or what the model was distilled to."""
    sampler: str | None
    """ddim, ddpm, ddpm-small, ipndm2 to ipndm4, dpm++2m, dpm++3m, unipc2, unipc3; by default ddim."""
    eta: float | None
    """Noise that ddim adds at each step, 0 to 1."""
    spacing: str | None
    """Spacing of the timesteps; by default log-snr."""
    reference: bool | None
    """The paper's chain: ddim on evenly spaced timesteps."""
    clip: bool | None
    """Clamping of the estimate of the picture at each step; by default on."""
    seed: int | None
    """Seed of all noise; by default 0."""

class _Inverting(_Decoding, total=False):
    inversion: Literal["exact", "fixed-point", "ddim"] | None
    """Inversion of pictures to x_T; by default exact."""
    invert_steps: int | None
    """Steps of the inversion ddim; by default 250."""
    check_domain: bool | None
    """Whether pictures that the model was not made for are warned of; by default they are, for two network calls each."""

class _Changing(_Inverting, total=False):
    levels: Sequence[int] | None
    """Levels of a hierarchical z_sem to change, from 0, the finest; by default all. The rest stays that of the (first) picture."""

class _Sampling(_Decoding, total=False):
    latent_steps: int | None
    """Steps of the latent diffusion; by default 20."""
    latent_sampler: str | None
    """Sampler of the latent diffusion; by default dpm++2m."""
    latent_spacing: str | None
    """Spacing of its timesteps; by default log-snr."""
    first: int | None
    """Number of the first picture in the sequence of the seed; by default 0."""
    x_T: Literal["random", "endpoint"] | None
    """Source of x_T; by default random, of a polished model its endpoint network."""

class _Encoding(_Computing, total=False):
    steps: int | None
    """Steps of the inversion; by default 10, of ddim 250."""
    spacing: str | None
    reference: bool | None
    inversion: Literal["exact", "fixed-point", "ddim"] | None
    names: Sequence[str] | None
    """Names of the pictures; by default their numbers."""
    semantic_only: bool | None
    """Whether only z_sem is encoded, which is much faster."""
    check_domain: bool | None

class _Decode(_Decoding, total=False):
    x_T: Literal["stored", "random", "endpoint", "zero"] | None
    """Source of x_T; by default the codes."""

class _Variations(_Decoding, total=False):
    check_domain: bool | None

class _Evaluation(_Computing, total=False):
    out: _Path | None
    """Folder of the report; by default it is not kept."""
    limit: int | None
    """Number of pictures; by default all."""
    seed: int | None
    overwrite: bool | None
    """Whether results of other settings in the folder are replaced."""

class _Recon(_Evaluation, total=False):
    steps: Sequence[int] | None
    """Numbers of decoding steps; by default 10, 20 and 50."""
    invert_steps: int | None
    """Inversion steps; by default as many as decoding steps."""
    sampler: str | None

class _Inversion(_Evaluation, total=False):
    exact_steps: Sequence[int] | None
    """Steps of the exact chains, instead of the usual chains."""

class _ZUsage(_Evaluation, total=False):
    steps: int | None
    """Decoding steps."""
    sampler: str | None

class _Training(TypedDict, total=False):
    out: _Path
    """Folder of the run."""
    data: _Path | None
    """Folder, archive or table of the pictures."""
    labels: _Path | None
    """File of the labels of the third stage, or "folders"."""
    init_from: _Path | None
    """Model with the initial weights."""
    spatial_weights: _Path | None
    """Spatial autoencoder of a model on latents, in place of the stage that trains one."""
    encoder_weights: _Path | None
    """Weights of the pretrained network that is the encoder, where model.encoder names one."""
    lpips_weights: _Path | None
    """Weights of VGG-16 for LPIPS, where spatial_net.perceptual_weight is above 0."""
    freeze: Sequence[str] | None
    """Parts that are not trained: encoder, unet."""
    stage: Literal["spatial", "autoencoder", "latent", "classifier"] | None
    """The one stage to train; by default all."""
    resume: bool | None
    """Whether a run that was begun goes on; inputs that are given again must be its own, but for labels."""
    settings: Mapping[str, Any] | None
    """Settings to change by their dotted keys, as --set."""
    threads: int | None
    """Threads of the call; by default one per core. The same number gives the same bits."""
    device: str | None
    """cpu, which is the default, cuda, cuda:N or metal."""
    dtype: Literal["f32", "bf16", "f16"] | None
    """Numbers of the arithmetic: f32, which is the default, or on a GPU bf16 or f16, with parameters in f32."""

@final
class Codes:
    """Codes of N pictures: z_sem, which holds what they show, and x_T, which holds the rest.

    Made by Model.encode, read by Codes.open, or put together from arrays. Pickled by value.
    """

    def __init__(
        self,
        z_sem: _Floats | None = None,
        x_T: _Floats | None = None,
        *,
        residual: _Floats | None = None,
        chain: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = None,
        fingerprint: str | None = None,
    ) -> None: ...
    @property
    def z_sem(self) -> _Floats | None:
        """Semantic codes, float32 [N, D]; None in a plain DDPM. Read only."""
    @property
    def x_T(self) -> _Floats | None:
        """Noise maps, float32 [N, C, H, W], or [N, D] in a one-shot autoencoder; None if only z_sem was encoded. Read only."""
    @property
    def residual(self) -> _Floats | None:
        """Residuals of an exact chain, float32, shape of x_T; None of other chains. Read only."""
    @property
    def chain(self) -> dict[str, Any] | None:
        """The chain that made x_T and decodes it: kind, steps, spacing and, if exact, weights, of samples sampler; None for ddim."""
    @property
    def names(self) -> list[str]:
        """Names of the pictures, one each."""
    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the codes; empty if it is not known."""
    def save(self, path: _Path, *, overwrite: bool = False) -> None:
        """Writes the codes to a .safetensors file, as `diffae encode` does: whole or not at all."""
    @staticmethod
    def open(path: _Path) -> Codes:
        """Reads codes that Codes.save or `diffae encode` wrote."""
    @staticmethod
    def join(all: Sequence[Codes]) -> Codes:
        """Joins several codes of one model and one chain, in their order; settings that all share are kept for their file."""
    def __len__(self) -> int: ...
    def __getitem__(self, index: int | slice) -> Codes:
        """Returns the codes of one picture by its number, or of those of a slice, as Codes."""

@final
class Model:
    """A model in use; diffae.load makes it. Pickled by its path, device and fingerprint."""

    def encode(self, pictures: _Pictures, **settings: Unpack[_Encoding]) -> Codes:
        """Encodes pictures to Codes: z_sem [N, D], and unless semantic_only is set x_T [N, C, H, W], of the shape of
        latents in a model on latents."""
    def decode(self, codes: Codes, **settings: Unpack[_Decode]) -> _Pictures:
        """Decodes Codes to pictures, uint8 [N, H, W, 3], along the chain that made them; of samples, settings may name another."""
    def edit(
        self, pictures_or_codes: _Pictures | Codes, edits: _Strengths, **settings: Unpack[_Changing]
    ) -> _Pictures:
        """Edits attributes of pictures, or of Codes, and decodes the result: uint8 [N, H, W, 3]."""
    def edit_codes(self, codes: Codes, edits: _Strengths, levels: Sequence[int] | None = None) -> Codes:
        """Edits attributes of Codes, without decoding: their z_sem moves, at all levels or those given, the rest stays."""
    def interpolate(
        self,
        codes_a: _Pictures | Codes,
        codes_b: _Pictures | Codes,
        frames: int,
        **settings: Unpack[_Changing],
    ) -> _Pictures:
        """Interpolates between one picture, or the Codes of one, and another: uint8 [frames, H, W, 3] with both ends."""
    def sample(self, n: int, **settings: Unpack[_Sampling]) -> _Pictures:
        """Samples n new pictures, uint8 [n, H, W, 3]: those of the seed from number first on."""
    def variations(
        self, pictures_or_codes: _Pictures | Codes, n: int, **settings: Unpack[_Variations]
    ) -> _Pictures:
        """Decodes the z_sem of each picture, or of each of the Codes, with n random x_T: uint8 [N, n, H, W, 3]."""
    @overload
    def evaluate(self, measure: Literal["recon"], data: _Path, **settings: Unpack[_Recon]) -> dict[str, Any]:
        """Measures the model on the pictures of a folder or an archive, and returns the report."""
    @overload
    def evaluate(self, measure: Literal["inversion"], data: _Path, **settings: Unpack[_Inversion]) -> dict[str, Any]: ...
    @overload
    def evaluate(self, measure: Literal["z_usage"], data: _Path, **settings: Unpack[_ZUsage]) -> dict[str, Any]: ...
    @property
    def directions(self) -> dict[str, float | None]:
        """Attributes that edit knows, each with the strength of a full edit; None where that is not known."""
    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights that encode and decode, by which codes know their model."""
    @property
    def path(self) -> str:
        """Absolute path or name that the model was loaded from."""
    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of the model's pictures: channels, height, width."""

def load(path: _Path = "toonheads", device: str = "auto", *, dtype: Literal["f32", "bf16", "f16"] = "f32") -> Model:
    """Loads a model: a folder, a run of training, a released checkpoint, or "toonheads", which is built in."""

def built_in_pictures() -> tuple[list[str], _Pictures]:
    """Returns eight cartoon faces that the built-in model was not trained on: their names, and pictures [8, 64, 64, 3]."""

def train(
    config: str | PathLike[str] | Mapping[str, Any] | None = None,
    on_step: Callable[[dict[str, Any]], bool | None] | None = None,
    **arguments: Unpack[_Training],
) -> Literal["finished", "stopped"]:
    """Trains a model: encoder and decoder, a latent diffusion, and with labels an attribute classifier."""

def presets() -> dict[str, str]:
    """Returns the presets of training: their names, each with its purpose."""
