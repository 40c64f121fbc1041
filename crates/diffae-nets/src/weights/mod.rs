//! Files that hold weights: safetensors and released `PyTorch` checkpoints.
//!
//! | file | read with |
//! |---|---|
//! | `model.safetensors` of a model directory | [`SafetensorsFile`] |
//! | an autoencoder, autoencoder with latent net, or plain DDPM under released names | [`Checkpoint`] |
//! | an attribute classifier | [`ClassifierCheckpoint`] |
//! | `latent.pkl` | [`read_latent_moments`] |
//! | the spatial autoencoder of a latent diffusion model | [`SpatialWeights`] |
//! | tensors of any other network | [`read_state_dict`] |
//!
//! The last five are files of `torch.save` (its zip format and the one before PyTorch 1.6), safetensors files or the
//! index of several; the content tells which, not the name. All are memory-mapped. Nothing in a pickle is ever
//! executed: anything but plain data and tensors is passed over. [`Weights`] builds networks from such a file and
//! proves that every tensor was used exactly once.

pub mod torch;

mod architecture;
mod bytes;
mod checkpoint;
mod concatenate;
mod hyper_parameter_files;
mod hyper_parameters;
mod infer_architecture;
mod parameter_sets;
mod pytorch_names;
mod safetensors;
mod shapes;
mod sharded;
mod source;
mod spatial_weights;
mod state_dict;
mod weight_file;
mod wrappers;

pub use architecture::{Architecture, ArchitectureHints, DiffusionFacts, LatentArchitecture};
pub use bytes::float_bytes;
pub use checkpoint::{Checkpoint, ClassifierCheckpoint, LatentMoments, read_latent_moments};
pub use concatenate::Concatenation;
pub use parameter_sets::ParameterSet;
pub use pytorch_names::name_from_pytorch;
pub use safetensors::{SafetensorsFile, safetensors_bytes};
pub use source::{StoredTensor, TensorMap, TensorSource, Weights, is_finite};
pub use spatial_weights::SpatialWeights;
pub use state_dict::read_state_dict;
pub use torch::{ArchiveError, FileKind, JsonError, PickleError, TorchError, ZipKind};
pub use weight_file::is_sharded_checkpoint;
