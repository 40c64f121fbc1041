//! What can be written after `diffae eval`.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{BatchArgs, ForceArgs, ModelArgs, RandomArgs, positive};

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) measure: Measure,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Measure {
    /// How near reconstructions are, over numbers of steps: PSNR, SSIM, MSE, MS-SSIM where pictures are large enough
    Recon(ReconArgs),
    /// What a linear probe reads out of z_sem: AUROC and average precision of each attribute
    Attributes(AttributesArgs),
    /// Whether single dimensions of z_sem stand for single attributes: DCI and total AUROC difference
    Disentanglement(LabelledArgs),
    /// How near edits come to the truth, on pairs of pictures that differ in one attribute
    Edits(EditsArgs),
    /// How much of a picture z_sem decides, and how much x_T
    ZUsage(ZUsageArgs),
    /// Lay reports side by side
    Compare(CompareArgs),
}

/// What every measure takes.
#[derive(Debug, Args)]
pub(crate) struct EvalRunArgs {
    /// Folder of the results: a report as JSON, values of single pictures, plots. Interrupted work goes on from here
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

/// The pictures that are measured on.
#[derive(Debug, Args)]
pub(crate) struct EvalDataArgs {
    /// A folder of pictures, a .tar archive or an LMDB
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// What is cut out of a picture before it is resized
    #[arg(long, value_enum, default_value_t = PictureCrop::Center)]
    pub(crate) crop: PictureCrop,
    /// Take the first pictures only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
}

/// What is cut out of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PictureCrop {
    /// The largest square in the middle
    Center,
    /// The box that the paper takes of aligned CelebA
    Celeba,
}

#[derive(Debug, Args)]
pub(crate) struct ReconArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) data: EvalDataArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
    /// Numbers of decoding steps
    #[arg(long, value_delimiter = ',', default_values_t = [10, 20, 50], value_name = "N,N,..", value_parser = positive)]
    pub(crate) steps: Vec<usize>,
    /// Steps of the inversion [default: as many as of decoding]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) invert_steps: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct AttributesArgs {
    #[command(flatten)]
    pub(crate) labelled: LabelledArgs,
    /// Parts of the cross-validation, two or more: each is scored by a probe that has seen the others only
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = two_or_more)]
    pub(crate) folds: usize,
}

/// Pictures whose attributes are known, and how probes are fitted to them.
#[derive(Debug, Args)]
pub(crate) struct LabelledArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) data: EvalDataArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
    /// Attributes: a CelebA attribute file, a CSV file, or `folders` for one class a folder
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: PathBuf,
    /// How loosely the probe is held: scikit-learn's C
    #[arg(long, default_value_t = 1., value_name = "C")]
    pub(crate) inverse_penalty: f64,
}

/// Which way an edit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EditDirection {
    /// Along the weights of the model's classifier, as `diffae edit` does
    Classifier,
    /// Along the mean difference of z_sem over the pairs that are not measured
    Pairs,
}

#[derive(Debug, Args)]
pub(crate) struct EditsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
    /// Folder of pairs: ATTRIBUTE/without and ATTRIBUTE/with hold pictures of the same names
    #[arg(long, value_name = "DIR")]
    pub(crate) pairs: PathBuf,
    /// Take the first pairs of each attribute only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Which way to go
    #[arg(long, value_enum, default_value_t = EditDirection::Classifier)]
    pub(crate) direction: EditDirection,
    /// How far to go [default: what brings z_sem nearest to the truth over the first fifth of the pairs, which is then
    /// not measured]
    #[arg(long, allow_negative_numbers = true, value_name = "S", conflicts_with = "direction")]
    pub(crate) strength: Option<f64>,
    /// Decoding steps
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Steps of the inversion
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = positive)]
    pub(crate) invert_steps: usize,
}

#[derive(Debug, Args)]
pub(crate) struct ZUsageArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) data: EvalDataArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
    /// Decoding steps
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Reports: the JSON files that other measures have written
    #[arg(required = true, value_name = "REPORT.json")]
    pub(crate) reports: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn two_or_more(text: &str) -> Result<usize, String> {
    let number = positive(text)?;
    if number < 2 { Err("must be at least 2".to_owned()) } else { Ok(number) }
}
