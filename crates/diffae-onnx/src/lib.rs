//! Diffusion Autoencoders as ONNX graphs, for onnxruntime, onnxruntime-web and other runtimes.
//!
//! [`Export`] turns any model into graphs of standard operators, and a [`Manifest`] from which a chain can be driven in any
//! language: the noise schedule, the default chain with the coefficients of its exact form, normalization, attributes.
//!
//! | graph | computes |
//! |---|---|
//! | `encoder.onnx` | `x_0 -> z_sem` |
//! | `decoder_step.onnx` | `(x_t, timestep, z_sem) -> prediction`; without `z_sem` in a plain DDPM |
//! | `decoder.onnx` | `(z_sem, x_T) -> x_0`, in place of the former in a one-shot autoencoder |
//! | `to_latents.onnx`, `from_latents.onnx` | `x_0 -> latents` and back, in a model on latents: the states of its chain |
//! | `latent.onnx` | `(z_t, timestep) -> prediction`, in normalized codes |
//! | `directions.onnx` | `(z_sem, strengths) -> edited` |
//!
//! ```
//! use diffae_infer::ModelSource;
//! use diffae_onnx::{Export, Precision};
//!
//! let export = Export::new(&ModelSource::built_in()?, Precision::F16)?;
//! assert_eq!(export.files.len(), 4);
//! let chain = &export.manifest.diffusion.as_ref().unwrap().chain;
//! assert_eq!((chain.sampler.as_str(), chain.timesteps.len()), ("ddim", 10));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod compact;
mod directions;
mod encoder;
mod endpoint;
mod error;
mod export;
mod frozen_encoder;
mod graph;
mod latent_net;
mod layers;
mod manifest;
mod proto;
mod res_block;
mod spatial;
mod unet;

pub use error::{Error, Result};
pub use export::{Export, MANIFEST_FILE};
pub use graph::{OPSET, Precision};
pub use manifest::{
    Attribute, Axis, Chain, Diffusion, Exact, FORMAT_VERSION, GraphFile, Manifest, Normalization, Port, Update,
};
