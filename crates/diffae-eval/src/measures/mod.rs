//! Evaluation protocols: the images compared, the metrics, and the numbers of steps.
//!
//! A [`Measure`] is a value: a model or generated pictures, data, and options with defaults. It runs within an
//! [`Evaluation`], which says where results go, keeps what was measured if it is interrupted, and reports progress.
//!
//! | measure | evaluates |
//! |---|---|
//! | [`Recon`] | reconstructions, by number of steps |
//! | [`Inversion`] | round trips through stochastic codes, and the quality of these codes |
//! | [`ZUsage`] | the shares of a picture that `z_sem` and `x_T` decide |
//! | [`Attributes`] | linear probes of attributes on `z_sem` |
//! | [`Disentanglement`] | whether single dimensions of `z_sem` stand for single attributes |
//! | [`FewShot`] | classifiers of few labels, and samples chosen by them |
//! | [`Edits`] | edits, on pairs of pictures that differ in one attribute |
//! | [`LpipsPairs`] | the perceptual distance of pictures of the same names |
//! | [`Ppl`] | the smoothness of interpolations |
//! | [`Fid`] | generated pictures as a set, against real ones |
//!
//! [`AllMeasures`] selects those that given files allow.

mod all;
mod attributes;
mod edits;
mod few_shot;
mod fid;
mod inversion;
mod labeled;
mod lpips_pairs;
mod ppl;
mod recon;
mod z_usage;

pub use all::{AllMeasures, AllOptions};
pub use attributes::{Attributes, AttributesOptions, Disentanglement, DisentanglementOptions};
pub use edits::{DirectionSource, Edits, EditsOptions};
pub use few_shot::{FewShot, FewShotOptions};
pub use fid::{FeatureExtractor, Fid, FidOptions, FidProtocol, FidSource, FidSubject};
pub use inversion::{DdimSteps, Inversion, InversionOptions};
pub use labeled::LabeledPictures;
pub use lpips_pairs::{LpipsPairs, PerceptualNetwork};
pub use ppl::{Ppl, PplOptions};
pub use recon::{Recon, ReconOptions, ReconProtocol, ReconSubject, XTerminalKind};
pub use z_usage::{ZUsage, ZUsageOptions};

use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::report::Report;

/// A protocol that evaluates a model or generated pictures.
pub trait Measure {
    /// Returns the name of the measure, which also names its reports and files.
    fn name(&self) -> &'static str;

    /// Measures, and writes the report into the folder of the evaluation. What an interrupted evaluation of the same
    /// settings has measured there is not measured again.
    ///
    /// # Errors
    /// [`Error::Unsuitable`](crate::Error::Unsuitable) if model or data do not allow it;
    /// [`Error::OtherEvaluation`](crate::Error::OtherEvaluation) if the folder has results of other settings;
    /// [`Error::Infer`](crate::Error::Infer) with [`Cancelled`](diffae_infer::Error::Cancelled) if the observer breaks.
    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report>;
}
