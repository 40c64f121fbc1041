//! Encode, decode, edit, interpolate and sample pictures with a trained Diffusion Autoencoder.
//!
//! A [`Model`] is loaded from a model directory or from a checkpoint released with the paper (Preechakul et al. 2022,
//! arXiv:2111.15640). It turns pictures into two codes and back:
//!
//! | method | computes |
//! |---|---|
//! | [`Model::encode_semantic`] | `x_0 -> z_sem`, the semantics of the picture |
//! | [`Model::invert`] | `(x_0, z_sem) -> x_T`, the remaining details |
//! | [`Model::decode`] | `(z_sem, x_T) -> x_0` |
//! | [`Model::edit`] | `z_sem` moved along an attribute direction |
//! | [`Model::sample_z_sem`] | noise -> `z_sem` of a new picture |
//! | [`lerp`], [`slerp`] | interpolated codes |
//!
//! Tensors are f32: pictures `[N, C, H, W]` in `[-1, 1]`, semantic codes `[N, D]`. Noise comes from a seeded
//! [`NoiseSource`] and is the same on every device.
//!
//! ```
//! use std::path::Path;
//! use diffae_data::{read_image, rgb_from_tensor};
//! use diffae_infer::{DecodeOptions, LoadOptions, Model};
//! use diffae_schedule::{no_callback, no_noise};
//!
//! let fixtures = Path::new("../../tests/fixtures");
//! let model = Model::load(&fixtures.join("golden/autoenc16_latent/last.ckpt"), &LoadOptions::cpu())?;
//! let x_0 = read_image(&fixtures.join("photographs/cat.jpg"), model.picture_format())?.unsqueeze(0)?;
//! let z_sem = model.encode_semantic(&x_0)?;
//! let x_terminal = model.invert(&x_0, Some(&z_sem), 5, &mut no_callback)?; // 250 steps for good results
//! let decoded =
//!     model.decode(&x_terminal, Some(&z_sem), &DecodeOptions::ddim(5), &mut no_noise, &mut no_callback)?;
//! assert_eq!(rgb_from_tensor(&decoded.get(0)?)?.dimensions(), (16, 16));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A [`Pipeline`] does all of it with defaults, from pictures to pictures and batch by batch, and reports its progress
//! to an observer:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use diffae_infer::{Pipeline, PipelineSettings, no_observer};
//!
//! let (pipeline, settings) = (Pipeline::from_built_in()?, PipelineSettings::DEFAULT);
//! let face = image::open("face.png")?.to_rgb8();
//! let codes = pipeline.encode(&[face], &settings, &mut no_observer)?;
//! let smiling = pipeline.edit(&codes, "Smiling", pipeline.full_edit_strength("Smiling")?.unwrap_or(0.3))?;
//! pipeline.decode(&smiling, &settings, &mut no_observer)?[0].save("smiling.png")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! - `built-in` (on by default): [`BUILT_IN_MODEL`], a small model of cartoon faces that is part of the crate.
//! - `cuda`, `metal`, `accelerate`: compile the Candle backend of that name in. None is on by default.

mod animation;
mod attributes;
#[cfg(feature = "built-in")]
mod built_in;
mod chain;
mod code_cache;
mod codes;
mod codes_file;
mod decode;
mod device;
mod domain;
mod encode;
mod error;
mod foreign_pictures;
mod given_settings;
mod interpolate;
mod latent_stats;
mod manipulate;
mod model;
mod model_config;
mod model_dir;
mod model_location;
mod new_attributes;
mod noise;
mod observer;
mod partial;
mod pipeline;
mod sample;
mod sentence;
mod settings;
mod sheet;
mod stochastic_code;
mod subjects;
mod text;
mod tuning;

pub use animation::{FrameRate, animation_bytes, gif_bytes};
pub use attributes::{CELEBA_ATTRIBUTES, names_from_text};
#[cfg(feature = "built-in")]
pub use built_in::{BUILT_IN_MODEL, built_in_pictures};
pub use code_cache::{CachedCodes, CodeCache, Compute};
pub use codes::Codes;
pub use codes_file::CodesHeader;
pub use decode::DecodeOptions;
pub use device::{allow_tf32, arithmetic_name, device_from_name, free_memory};
pub use diffae_data::is_same_attribute;
pub use domain::PictureDomain;
pub use error::{Error, Result};
pub use given_settings::{GivenCodes, GivenSettings};
pub use interpolate::{PathEnd, PathFrame, lerp, path_frames, slerp};
pub use manipulate::{AttributeEdit, USUAL_EDIT_STRENGTH, keep_residual, rounded_full_strength};
pub use model::{LoadOptions, Model};
pub use model_config::{
    ChainsConfig, DiffusionConfig, DistilledChain, FORMAT_VERSION, LatentConfig, ModelConfig, ModelKind,
    RawModelConfig, TunedChain, ZSemConfig,
};
pub use model_dir::ModelSource;
pub use model_location::{CONFIG_FILE, WEIGHTS_FILE};
pub use new_attributes::{NewAttributes, NewDirections};
pub use noise::{NoisePurpose, NoiseSource, noise_warning};
pub use observer::{CallEvent, NetworkCall, Observer, no_observer};
pub use partial::{PartialFolder, Resume, Settings};
pub use pipeline::{CodesBatch, Pipeline};
pub use sentence::one_sentence;
pub use settings::{LatentMethod, PipelineSettings, XTerminalSource};
pub use sheet::{Sheet, enlarged_frames, sheet, square_rows};
pub use stochastic_code::{
    ChainSettings, CodeChain, ExactSettings, FixedPointSettings, Inversion, SampledSettings, StochasticCode,
};
pub use subjects::{CodesNeed, Encoded, Subject, Subjects, is_codes, list_subjects, list_subjects_with, pick_codes};
pub use text::TextLine;
pub use tuning::{TunedSteps, Tuning, TuningOptions};

/// The examples of the repository's README are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
