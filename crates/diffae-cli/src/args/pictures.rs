//! Arguments of the commands that generate pictures and codes.

use std::ops::Range;
use std::path::PathBuf;

use candle_core::Tensor;
use clap::{Args, ValueEnum};
use diffae_data::Shard;
use diffae_infer::{GivenSettings, Inversion, Model, ModelConfig, PipelineSettings, Resume, XTerminalSource};
use diffae_schedule::Spacing;

use super::chain::InversionName;
use super::codes::shard;
use super::{
    BatchArgs, DecodingArgs, ForceArgs, InversionArgs, LatentArgs, ModelArgs, OutArgs, PictureArgs, RandomArgs,
    ReadingArgs, one_of, positive,
};

/// Pictures and codes on the command line.
#[derive(Debug, Args)]
pub(crate) struct CodesArgs {
    /// Image files, folders, archives (tar, LMDB, Parquet), .safetensors files with x [N, C, H, W] in [-1, 1], or codes that `encode` wrote:
    /// FILE.safetensors, or FILE.safetensors:CHOICE for a part, by names, numbers or ranges such as 3..7
    #[arg(required = true)]
    pub(crate) input: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
}

/// Policy for the partial results of an interrupted run.
#[derive(Debug, Clone, Args)]
pub(crate) struct ResumeArgs {
    /// Continue an interrupted run of the same command; refused if settings differ. Without it, partial results are used only
    /// if all settings agree, and never with --force
    #[arg(long)]
    resume: bool,
}

impl ResumeArgs {
    /// Returns the policy for partial results.
    pub(crate) fn mode(&self, force: &ForceArgs) -> Resume {
        match (self.resume, force.force) {
            (true, _) => Resume::Demanded,
            (false, true) => Resume::Never,
            (false, false) => Resume::IfSame,
        }
    }
}

/// Option of machine-readable output.
#[derive(Debug, Clone, Args)]
pub(crate) struct JsonArgs {
    /// Print the files written and the settings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A range of picture indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexRange(pub(crate) Range<u64>);

#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Inversion steps [default: 10, or what the model was distilled or polished to; of ddim 250]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) steps: Option<usize>,
    /// Inversion of images to x_T [default: exact]
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "reference")]
    pub(crate) inversion: Option<InversionName>,
    /// Spacing of the timesteps of --inversion exact and fixed-point [default: log-snr]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = one_of::<Spacing>(Spacing::names())
    )]
    pub(crate) spacing: Option<Spacing>,
    /// Use the inversion of the paper: ddim in 250 steps
    #[arg(long, conflicts_with = "spacing")]
    pub(crate) reference: bool,
    /// Encode z_sem only, without x_T: much faster
    #[arg(long)]
    pub(crate) semantic_only: bool,
    /// Encode the I-th of N equal parts of the images, into OUT-0000I-of-0000N.safetensors, for `diffae codes merge`; `slurm` is
    /// the task of a job array
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub(crate) shard: Option<Shard>,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

impl EncodeArgs {
    /// Returns the settings of the inversion with a model.
    pub(crate) fn settings(&self, model: &ModelConfig) -> anyhow::Result<PipelineSettings> {
        let given = GivenSettings {
            num_steps: self.steps,
            spacing: self.spacing,
            reference: self.reference,
            inversion: self.inversion.map(Inversion::from),
            batch_size: self.batch.batch_size,
            ..GivenSettings::default()
        };
        Ok(given.encoding(model)?)
    }
}

/// Sources of x_T of decoded images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum XTerminalChoice {
    /// From the codes
    Stored,
    /// Random noise
    Random,
    /// Computed from z_sem by the model's endpoint network, which `diffae polish` trains
    Endpoint,
    /// All zero
    Zero,
}

/// Sources of x_T of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SampleNoise {
    /// Random noise
    Random,
    /// Computed from z_sem by the model's endpoint network, which `diffae polish` trains
    Endpoint,
}

impl From<SampleNoise> for XTerminalSource {
    fn from(noise: SampleNoise) -> Self {
        match noise {
            SampleNoise::Random => Self::Random,
            SampleNoise::Endpoint => Self::Endpoint,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Codes: a file that `diffae encode` wrote, or FILE.safetensors:CHOICE for a part, by names, numbers or ranges such as
    /// 3..7
    pub(crate) codes: PathBuf,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Source of x_T
    #[arg(long = "x-t", value_enum, default_value_t = XTerminalChoice::Stored)]
    pub(crate) x_t: XTerminalChoice,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Accept codes of another model
    #[arg(long)]
    pub(crate) any_model: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// Sources of x_T of a reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReconstructionNoise {
    /// Inverted from the image: near-exact
    Inverted,
    /// Random noise: shows what z_sem holds
    Random,
    /// Computed from z_sem by the model's endpoint network, which `diffae polish` trains
    Endpoint,
}

impl ReconstructionNoise {
    /// Returns the name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Inverted => "inverted",
            Self::Random => "random",
            Self::Endpoint => "endpoint",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ReconstructArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    /// Source of x_T
    #[arg(long = "x-t", value_enum, default_value_t = ReconstructionNoise::Inverted)]
    pub(crate) x_t: ReconstructionNoise,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Print the measures as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
}

/// Levels of a hierarchical `z_sem`.
#[derive(Debug, Args)]
pub(crate) struct LevelsArgs {
    /// Levels of a hierarchical z_sem to change, from 0, the finest resolution: comma-separated; all else stays that of the (first)
    /// image [default: all]
    #[arg(long, value_name = "LEVELS", value_delimiter = ',')]
    pub(crate) levels: Vec<usize>,
}

impl LevelsArgs {
    /// Fails if the model lacks a level that was given.
    pub(crate) fn check(&self, model: &Model) -> diffae_infer::Result<()> {
        if self.levels.is_empty() { Ok(()) } else { model.check_levels(&self.levels) }
    }

    /// Takes from changed codes what was asked for: the parts at the levels, or all if none were given.
    pub(crate) fn of_changed(&self, model: &Model, z_sem: &Tensor, changed: Tensor) -> diffae_infer::Result<Tensor> {
        if self.levels.is_empty() { Ok(changed) } else { model.with_levels_of(z_sem, &changed, &self.levels) }
    }

    /// Adds the levels to the settings of a result, if some were given.
    pub(crate) fn settings(&self) -> Option<(String, serde_json::Value)> {
        let joined = || self.levels.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        (!self.levels.is_empty()).then(|| ("levels".to_owned(), joined().into()))
    }
}

#[derive(Debug, Args)]
pub(crate) struct InterpolateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) input: CodesArgs,
    /// FILE.png for a strip, FILE.gif for an animation, or a folder for single frames
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Frames from each image to the next, both ends included
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = positive)]
    pub(crate) frames: usize,
    /// Frames per second of a .gif, up to 50 [default: 10]
    #[arg(long, value_name = "F")]
    pub(crate) fps: Option<f64>,
    #[command(flatten)]
    pub(crate) levels: LevelsArgs,
    /// Return to the first image without repeating its frame; two images give a path there and back
    #[arg(long = "loop")]
    pub(crate) is_loop: bool,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Image files, folders, archives (tar, LMDB, Parquet), .safetensors files with x [N, C, H, W] in [-1, 1], or codes that `encode` wrote:
    /// FILE.safetensors, or FILE.safetensors:CHOICE for a part, by names, numbers or ranges such as 3..7
    #[arg(required_unless_present = "list")]
    pub(crate) input: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// Folder or .safetensors file to write
    #[arg(long, short, value_name = "PATH", required_unless_present = "list")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    /// List the attributes of the model, with calibrated full-edit strengths where available
    #[arg(long, conflicts_with_all = ["input", "out", "attribute", "strength", "strengths", "levels"])]
    pub(crate) list: bool,
    /// Print the list, or the files written and the settings, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Attribute by name or number, or NAME=STRENGTH; repeat it to edit several at once. Case, spaces, underscores and
    /// hyphens do not matter
    #[arg(long, short, required_unless_present = "list", value_name = "NAME[=STRENGTH]")]
    pub(crate) attribute: Vec<String>,
    /// Strength of the edit; negative removes the attribute [default: the calibrated strength that --list shows, else 0.3].
    /// With several attributes, or one that has its own strength, a factor of their strengths
    #[arg(long, short, allow_negative_numbers = true)]
    pub(crate) strength: Option<f64>,
    /// Several values of --strength, such as -0.3,0,0.3: also writes a strip for each image
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, conflicts_with = "strength")]
    pub(crate) strengths: Vec<f64>,
    #[command(flatten)]
    pub(crate) levels: LevelsArgs,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Add back what decoding loses, so that unedited parts stay as they are; decodes once more. Exact codes of
    /// models without a spatial autoencoder lose nothing
    #[arg(long)]
    pub(crate) keep_residual: bool,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Number of images [default: 16, or all of --noise]
    #[arg(short = 'n', long = "count", value_name = "N", value_parser = positive)]
    pub(crate) count: Option<usize>,
    /// Only the images with these indices, from 0: comma-separated numbers or ranges such as 30..40 (40
    /// excluded)
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = index_range, conflicts_with = "count")]
    pub(crate) index: Vec<IndexRange>,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Latent diffusion steps [default: 20; with --reference 200]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) latent_steps: Option<usize>,
    #[command(flatten)]
    pub(crate) latent: LatentArgs,
    /// Source of x_T [default: random; of a polished model without --reference endpoint]
    #[arg(long = "x-t", value_enum, value_name = "SOURCE", conflicts_with = "noise")]
    pub(crate) x_t: Option<SampleNoise>,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// .safetensors file with z_T [N, D] and x_T [N, C, H, W]; missing ones are those that there would be without the file
    #[arg(long, value_name = "FILE")]
    pub(crate) noise: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VariationsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) input: CodesArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Variations per image
    #[arg(short = 'n', long = "count", default_value_t = 8, value_name = "N", value_parser = positive)]
    pub(crate) count: usize,
    /// Only the variations with these indices, from 0: comma-separated numbers or ranges such as 3..5 (5
    /// excluded)
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = index_range)]
    pub(crate) index: Vec<IndexRange>,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// Maximum length of a range: a longer one is a typing error.
const MAX_RANGE_LENGTH: u64 = 1 << 24;

fn index_range(text: &str) -> Result<IndexRange, String> {
    let whole = "expected whole numbers from 0, or ranges such as 30..40";
    let number = |text: &str| text.trim().parse::<u64>().ok().ok_or(whole);
    let range = match text.split_once("..") {
        Some((start, end)) => number(start)?..number(end)?,
        None => number(text).and_then(|start| Ok(start..start.checked_add(1).ok_or("too large")?))?,
    };
    match range.end.checked_sub(range.start) {
        Some(1..=MAX_RANGE_LENGTH) => Ok(IndexRange(range)),
        Some(0) | None => Err("the range is empty".to_owned()),
        Some(_) => Err("the range is too long".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read() {
        assert_eq!(index_range("37"), Ok(IndexRange(37..38)));
        assert_eq!(index_range("30..40"), Ok(IndexRange(30..40)));
        for bad in ["", "x", "-1", "4..4", "5..4", "1..", "0..99999999999", "18446744073709551615"] {
            assert!(index_range(bad).is_err(), "{bad}");
        }
    }
}
