//! Networks of Diffusion Autoencoders (Preechakul et al. 2022, arXiv:2111.15640) on [Candle](candle_core), and readers
//! for the checkpoints that were released with the paper.
//!
//! | type | computes |
//! |---|---|
//! | [`SemanticEncoder`] | `x_0 -> z_sem` |
//! | [`Unet`] | `(x_t, t, z_sem) -> eps`, or `(x_t, t) -> eps` for a plain DDPM |
//! | [`DiffusionAutoencoder`] | both |
//! | [`LatentNet`] | `(z_t, t) -> eps` of the diffusion over `z_sem` |
//! | [`EndpointNet`] | `z_sem` -> an `x_T` for it |
//! | [`AttributeClassifier`] | normalized `z_sem` -> one logit per attribute |
//! | [`features`] | pictures -> features of pretrained networks, perceptual distances |
//!
//! Axes: N pictures, C channels, H x W pixels, D width of `z_sem`, E width of embeddings, L = H W. Timesteps are
//! positions on the training grid `0..T`, as floats. Dropout acts in [`Unet::forward_training`] alone. The crate knows
//! no noise schedule (`diffae-schedule`) and draws no random numbers.
//!
//! A layer is a config, `new(config, VarBuilder)` and `forward`. Paths below the `VarBuilder` are those of the released
//! checkpoints, below `encoder.`, `unet.`, `latent_net.` and `classifier.` ([`weights`]).
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use diffae_nets::{Conditioning, RawUnetConfig, Unet, UnetConfig, ZLevels};
//!
//! let config = UnetConfig::new(RawUnetConfig {
//!     image_size: 8.into(),
//!     in_channels: 3,
//!     out_channels: 3,
//!     model_channels: 32,
//!     channel_mult: vec![1, 2],
//!     num_res_blocks: 1,
//!     num_input_res_blocks: None,
//!     embed_channels: 24,
//!     attention_resolutions: vec![4],
//!     num_heads: 2,
//!     dropout: 0.1,
//!     conditioning: Conditioning::TimeAndZSem,
//!     z_levels: ZLevels::NONE, // all blocks see the whole code
//! })?;
//! let vars = VarMap::new();
//! let unet = Unet::new(&config, &VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//!
//! let x_t = Tensor::zeros((2, 3, 8, 8), DType::F32, &Device::Cpu)?;
//! let z_sem = unet.project_z_sem(&Tensor::zeros((2, 24), DType::F32, &Device::Cpu)?)?; // once a picture
//! for t in [950., 900., 850.] {
//!     let time = unet.project_time(&[t], &x_t)?; // once a step
//!     let eps = unet.forward_projected(&x_t, &time, Some(&z_sem))?;
//!     assert_eq!(eps.dims(), x_t.dims());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//! - `cuda`, `metal`, `accelerate`: compile the Candle backend of that name in. None is on by default.

pub mod features;
pub mod weights;

mod attention;
mod autoencoder;
mod classifier;
mod compact;
mod config;
mod conv;
mod cost;
mod counted;
mod edit_direction;
mod encoder;
mod endpoint;
mod error;
mod frozen_encoder;
mod image_size;
mod init;
mod latent_net;
mod linear;
mod norm;
mod plan;
mod precision;
mod res_block;
mod spatial;
mod time_embedding;
mod unet;
mod unet_replay;
mod z_levels;

pub use diffae_kernels::Winograd;

pub use autoencoder::DiffusionAutoencoder;
pub use classifier::AttributeClassifier;
pub use compact::{
    BatchMoments, CompactCode, CompactConfig, CompactDecoder, CompactEncoder, Discriminator, RawCompactConfig,
};
pub use config::{
    AutoencoderConfig, Check, ClassifierConfig, Conditioning, EncoderConfig, LatentNetConfig, RawClassifierConfig,
    RawEncoderConfig, RawLatentNetConfig, RawUnetConfig, UnetConfig, Valid,
};
pub use edit_direction::{EditDirection, LocalOffset};
pub use encoder::SemanticEncoder;
pub use endpoint::{EndpointConfig, EndpointNet, RawEndpointConfig};
pub use error::{Error, Result};
pub use frozen_encoder::{
    FrozenEncoder, FrozenEncoderConfig, FrozenNetwork, RawFrozenEncoderConfig, SemanticConfig, SemanticNetwork,
};
pub use image_size::{ImageShape, ImageSize};
pub use latent_net::LatentNet;
pub use norm::num_groups;
pub use plan::{InputPlan, InputStage, OutputStage, ResPlan, Resample};
pub use precision::compute_dtype;
pub use spatial::{Posterior, RawSpatialConfig, SpatialAutoencoder, SpatialConfig};
pub use time_embedding::{timestep_embedding, timestep_frequencies};
pub use unet::{TimeProjections, TrainingMode, Unet, ZSemProjections};
pub use unet_replay::{ChainConditions, UnetReplays};
pub use z_levels::ZLevels;
