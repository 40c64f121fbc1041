//! Files that hold weights: safetensors and released `PyTorch` checkpoints.
//!
//! | file | read with |
//! |---|---|
//! | `model.safetensors` | [`SafetensorsFile`] |
//! | `last.ckpt` of an autoencoder, autoencoder with latent net, or plain DDPM | [`Checkpoint`] |
//! | `last.ckpt` of an attribute classifier | [`ClassifierCheckpoint`] |
//! | `latent.pkl` | [`read_latent_moments`] |
//! | tensors of any other network, `.pth` or `.safetensors` | [`read_state_dict`] |
//!
//! All are memory-mapped. Nothing in a pickle is ever executed: what is not plain data or a tensor is passed over.
//! [`Weights`] builds networks from such a file and proves that every tensor was used exactly once.

pub mod torch;

mod architecture;
mod checkpoint;
mod pytorch_names;
mod safetensors;
mod shapes;
mod source;
mod state_dict;

pub use architecture::{Architecture, ArchitectureHints, DiffusionFacts, LatentArchitecture};
pub use checkpoint::{Checkpoint, ClassifierCheckpoint, LatentMoments, ParameterSet, read_latent_moments};
pub use pytorch_names::name_from_pytorch;
pub use safetensors::{SafetensorsFile, safetensors_bytes};
pub use source::{StoredTensor, TensorMap, TensorSource, Weights, is_finite};
pub use state_dict::read_state_dict;
pub use torch::{ArchiveError, FileKind, JsonError, PickleError, TorchError};
