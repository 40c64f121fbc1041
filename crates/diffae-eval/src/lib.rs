//! Evaluation of Diffusion Autoencoders: image quality measures, protocols, reports.
//!
//! A measure of pairs compares a batch `x` with a batch `y` of the same shape, `[N, C, H, W]`, f32, in `[0, 1]`
//! (networks use `[-1, 1]`: convert with `(x + 1) / 2` first), and returns one f64 for each of the `N`
//! pairs, in order. Averages are left to the caller, who knows how many images the batch stands for.
//!
//! | measure | same pair | better | answers |
//! |---|---|---|---|
//! | [`mse`] | 0 | lower | how far are the values apart? |
//! | [`psnr`] | infinite | higher | the same, in decibels |
//! | [`ssim`] | 1 | higher | do luminance, contrast and structure agree, window by window? |
//! | [`ms_ssim`] | 1 | higher | the same over five scales |
//!
//! They are symmetric in `x` and `y` and agree with what the authors of Diffusion Autoencoders
//! (Preechakul et al., arXiv:2111.15640) report for reconstructions. Values outside `[0, 1]` are refused, not
//! clamped: a batch left in `[-1, 1]` would otherwise give plausible, wrong numbers.
//!
//! Some measures compare sets of pictures by their features, and others rate the scores of a classifier:
//!
//! | measure | best | answers |
//! |---|---|---|
//! | [`frechet_distance`] | 0 | how far are mean and covariance of the features apart? |
//! | [`kernel_distance`] | 0 | the same without assuming a normal distribution |
//! | [`manifold_overlap`] | 1 | precision, recall, density, coverage: are samples real, and as varied? |
//! | [`auroc`], [`average_precision`] | 1 | do positives score higher than negatives? |
//!
//! The features come from [`FeatureNetwork`]; [`Lpips`] compares pictures pair by pair by the activations of a network.
//! [`LinearProbe`] measures which attributes can be read linearly from codes, [`dci`] and [`total_auroc_difference`]
//! whether single dimensions stand for single attributes; [`bootstrap`] gives confidence intervals.
//!
//! Protocols fix what is compared, over how many steps and images: a [`Measure`] of [`measures`] runs within
//! an [`Evaluation`], which can be interrupted and resumed, and returns a [`Report`] of [`Figure`]s with intervals; a
//! [`Comparison`] lays reports side by side.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{ops::ControlFlow, path::Path};
//! use diffae_data::{Crop, PictureSet};
//! use diffae_eval::measures::{ZUsage, ZUsageOptions};
//! use diffae_eval::{EvaluatedModel, Evaluation, Measure};
//! use diffae_infer::LoadOptions;
//!
//! let model = &EvaluatedModel::open(Path::new("toonheads"), &LoadOptions::cpu(), None)?;
//! let pictures = &PictureSet::first(Path::new("held-out"), Crop::Center, Some(64))?;
//! let measure = ZUsage { model, pictures, options: ZUsageOptions::default() };
//! let report = measure.run(&Evaluation::new(Path::new("report"), |_| ControlFlow::Continue(())))?;
//! println!("{}", report.table());
//! # Ok(())
//! # }
//! ```
//!
//! The formulas need no model:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use diffae_eval::{mse, psnr, ssim};
//!
//! let x = Tensor::full(0.5f32, (2, 3, 16, 16), &Device::Cpu)?;
//! let y = Tensor::full(0.6f32, (2, 3, 16, 16), &Device::Cpu)?;
//! assert!((mse(&x, &y)?[0] - 0.01).abs() < 1e-6);
//! assert!((psnr(&x, &y)?[1] - 20.).abs() < 1e-4); // -10 * log10(0.01)
//! assert_eq!(ssim(&x, &x)?, [1., 1.]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bootstrap;
mod caption;
mod classification;
mod codes;
mod comparison;
mod disentanglement;
mod error;
mod evaluated_model;
mod evaluation;
mod feature_file;
mod features;
mod frechet;
mod image_pairs;
mod journal;
mod linear_probe;
mod manifold;
pub mod measures;
mod moments;
mod pixel_error;
mod plot;
mod report;
mod ssim;

pub use bootstrap::{Interval, bootstrap, bootstrap_all, bootstrap_mean};
pub use classification::{auroc, average_precision};
pub use comparison::{Comparison, ComparisonRow};
pub use disentanglement::{AurocDifference, Dci, dci, total_auroc_difference};
pub use error::{Error, Result};
pub use evaluated_model::{EvaluatedModel, to_unit};
pub use evaluation::{Evaluation, EvaluationEvent, EvaluationObserver};
pub use features::{FeatureKind, FeatureNetwork, InceptionInput, Lpips, LpipsBackbone};
pub use frechet::{FeatureStatistics, frechet_distance, kernel_distance, kernel_distance_of_subsets};
pub use linear_probe::{InversePenalty, LinearProbe, cross_validated_logits, logits_of_others};
pub use manifold::{ManifoldMembers, ManifoldOverlap, manifold_members, manifold_overlap};
pub use measures::Measure;
pub use moments::Moments;
pub use pixel_error::{mse, psnr};
pub use plot::{Curve, Plot, Point};
pub use report::{ALL_REPORTS_FILE, Figure, REPORT_FORMAT_VERSION, Report};
pub use ssim::{ms_ssim, ssim};
