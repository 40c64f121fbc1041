//! The command line.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

mod align;
mod chain;
mod codes;
mod eval;
mod help;
mod pictures;
mod training;

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use diffae_data::Overwrite;
use diffae_infer::PipelineSettings;
use diffae_schedule::Sampler;

pub(crate) use crate::commands::dataset::DatasetArgs;
pub(crate) use align::{AlignArgs, FacePlaceArgs};
pub(crate) use chain::{DecodingArgs, InversionArgs, LatentArgs, chain_settings};
pub(crate) use codes::{CodesCommand, CodesFilesArgs, CodesInfoArgs, CodesJoinArgs};
pub(crate) use eval::{
    AllArgs, AttributesArgs, CompareArgs, DisentanglementArgs, EditsArgs, EvalArgs, EvalDataArgs, EvalInversionArgs,
    EvalRunArgs, Evaluated, FewShotArgs, FidArgs, LpipsArgs, LpipsPairsArgs, MeasureArgs, PictureCrop, PplArgs,
    ReconArgs, ZUsageArgs,
};
pub(crate) use help::command;

pub(crate) use pictures::{
    DecodeArgs, EditArgs, EncodeArgs, InterpolateArgs, JsonArgs, LevelsArgs, ReconstructArgs, ReconstructionNoise,
    SampleArgs, VariationsArgs, XTerminalChoice,
};
pub(crate) use training::{
    ConnectionChoice, DecoderArgs, DecoderRunArgs, DirectionChoice, DistillArgs, FitAttributesArgs, FitEditsArgs,
    GroupArgs, PolishArgs, PresetsArgs, ReductionChoice, StageChoice, TrainArgs, TuneStepsArgs,
};

/// Heading of the options that every command has.
const GLOBAL_HEADING: &str = "Global options";
/// Heading of the options that only some checkpoints need.
const HINT_HEADING: &str = "For files of weights that do not tell all of themselves";

/// Name of [`HintArgs::weights`], by which commands that have a `--weights` of their own rename it.
const MODEL_WEIGHTS: &str = "model_weights";

/// Encode, edit, interpolate and sample images with Diffusion Autoencoders.
#[derive(Debug, Parser)]
#[command(name = "diffae", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command, shown after its own.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Device: auto, cpu, cuda, cuda:N or metal; auto uses the GPU if this program has a backend for it, else the CPU
    #[arg(long, global = true, help_heading = GLOBAL_HEADING, default_value = "auto", value_name = "DEVICE")]
    pub(crate) device: String,
    /// Number type of the weights, and on a GPU of the arithmetic; tf32 rounds the factors of products on CUDA cards
    #[arg(long, global = true, help_heading = GLOBAL_HEADING, value_enum, default_value_t = NumberType::F32)]
    pub(crate) dtype: NumberType,
    /// CPU threads [default: one per core]
    #[arg(long, global = true, help_heading = GLOBAL_HEADING, value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,
    /// CPU only: no Winograd convolutions, which round differently from plain sums of products; slower
    #[arg(long, global = true, help_heading = GLOBAL_HEADING)]
    pub(crate) exact: bool,
    /// Log errors only
    #[arg(long, short, global = true, help_heading = GLOBAL_HEADING, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log more; twice for debugging
    #[arg(long, short, global = true, help_heading = GLOBAL_HEADING, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// A number type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NumberType {
    F32,
    Tf32,
    Bf16,
    F16,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate a web page of examples from the built-in model, in half a minute to a few minutes
    Demo(DemoArgs),
    /// Serve a page with sliders, and a JSON API, to browsers on this machine
    Serve(ServeArgs),
    /// Describe a model: architecture, sizes, and which commands it supports
    Info(InfoArgs),
    /// Convert released weights into a model folder
    Import(ImportArgs),
    /// Export a model as ONNX files, for other runtimes and browsers
    Export(ExportArgs),
    /// Crop and align faces in photographs as in FFHQ
    Align(AlignArgs),
    /// Create a data set from a published source, or from your own images
    Dataset(DatasetArgs),
    /// Encode images: semantic code z_sem and stochastic code x_T
    Encode(EncodeArgs),
    /// Decode codes into images
    Decode(DecodeArgs),
    /// Join and describe files of codes
    Codes(CodesFilesArgs),
    /// Encode and decode images, and measure the reconstructions: PSNR, SSIM, MSE
    Reconstruct(ReconstructArgs),
    /// Interpolate between images
    Interpolate(InterpolateArgs),
    /// Edit an attribute of images, such as Smiling
    Edit(EditArgs),
    /// Sample new images
    Sample(SampleArgs),
    /// Decode the z_sem of an image with several random x_T
    Variations(VariationsArgs),
    /// Train a model on your own images
    Train(TrainArgs),
    /// Distill a model's decoder into one of a few steps
    Distill(DistillArgs),
    /// Train a model's decoder for better images of z_sem alone
    Polish(PolishArgs),
    /// Find the timesteps that suit a model, for decoding in few steps
    TuneSteps(TuneStepsArgs),
    /// Add attributes of your own to a model, from labeled images
    FitAttributes(FitAttributesArgs),
    /// Learn edit directions from pairs of images that differ in one attribute
    FitEdits(FitEditsArgs),
    /// Evaluate a model: reconstruction, FID, linear probes, edits and more
    Eval(EvalArgs),
    /// List the training presets, or print one
    Presets(PresetsArgs),
    /// Print a shell completion script
    Completions(CompletionsArgs),
    /// Write man pages
    Man(ManArgs),
}

/// A model on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Model folder, file or folder of released weights (.ckpt, .pt, .safetensors), or `toonheads` (built in)
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
}

/// Parameter sets of a training checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsChoice {
    /// The moving average if there is one, else the parameters
    #[default]
    Auto,
    /// The moving average: ema_model.*, or the average that Lightning's WeightAveraging stores in place of the
    /// parameters
    Ema,
    /// The parameters under training: model.*
    Model,
}

/// Facts that a file of weights may leave open.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HintArgs {
    /// Parameters to read from a training checkpoint
    #[arg(
        id = MODEL_WEIGHTS,
        long = "weights",
        visible_alias = "model-weights",
        value_enum,
        default_value_t,
        hide_possible_values = false,
        help_heading = HINT_HEADING,
        value_name = "SET"
    )]
    pub(crate) weights: WeightsChoice,
    /// Height and width of the images, if the file holds no x_T
    #[arg(long, help_heading = HINT_HEADING, value_name = "PIXELS", value_parser = positive)]
    pub(crate) image_size: Option<usize>,
    /// Attention heads [default: 1]
    #[arg(long, help_heading = HINT_HEADING, value_name = "N", value_parser = positive)]
    pub(crate) num_heads: Option<usize>,
    /// Residual blocks per level of the encoder, if several numbers fit
    #[arg(long, help_heading = HINT_HEADING, value_name = "N", value_parser = positive)]
    pub(crate) encoder_res_blocks: Option<usize>,
    /// Length of the noise schedule [default: 1000]
    #[arg(long, help_heading = HINT_HEADING, value_name = "T", value_parser = positive)]
    pub(crate) train_timesteps: Option<usize>,
    /// Noise schedule of the images [default: linear]
    #[arg(long, help_heading = HINT_HEADING, value_name = "NAME")]
    pub(crate) beta_schedule: Option<String>,
    /// Noise schedule of the latent diffusion [default: const0.008]
    #[arg(long, help_heading = HINT_HEADING, value_name = "NAME")]
    pub(crate) latent_beta_schedule: Option<String>,
}

/// Destination of results.
#[derive(Debug, Args)]
pub(crate) struct OutArgs {
    /// File or folder to write
    #[arg(long, short, value_name = "PATH")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
}

/// Policy for existing files, on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct ForceArgs {
    /// Replace existing files
    #[arg(long)]
    force: bool,
}

impl ForceArgs {
    /// Returns the policy for existing files.
    pub(crate) fn overwrite(&self) -> Overwrite {
        if self.force { Overwrite::Replace } else { Overwrite::Refuse }
    }
}

/// Images on the command line.
#[derive(Debug, Args)]
pub(crate) struct PictureArgs {
    /// Image files, folders, archives (tar, LMDB, Parquet), or .safetensors files with x [N, C, H, W] in [-1, 1]
    #[arg(required = true)]
    pub(crate) input: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
}

/// Choice of the pictures in archives and tables, and policy for those that cannot be read.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ReadingArgs {
    /// Skip images that cannot be read, and report each with the reason
    #[arg(long)]
    pub(crate) skip_broken: bool,
    /// Image of each sample of an archive or a table that holds several: a key such as jpg or seg.png, or a column
    /// [default: the obvious one]
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    pub(crate) picture_key: String,
}

/// Options of the sampler.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplerArgs {
    /// Decoding sampler; dpm++2m needs fewer steps, and the ddpm samplers add noise at each step
    #[arg(
        long,
        default_value_t = Sampler::DDIM,
        value_name = "NAME",
        value_parser = one_of::<Sampler>(Sampler::names())
    )]
    sampler: Sampler,
    /// Noise that ddim adds at each step: from 0 for none to 1 for as much as ddpm-small
    #[arg(long, default_value_t = 0.)]
    eta: f64,
}

impl SamplerArgs {
    /// Returns the sampler with its stochasticity.
    pub(crate) fn get(&self) -> anyhow::Result<Sampler> {
        self.sampler.with_eta(self.eta).context("--eta")
    }
}

/// Options of randomness.
#[derive(Debug, Clone, Args)]
pub(crate) struct RandomArgs {
    /// Random seed
    #[arg(long, default_value_t = PipelineSettings::DEFAULT.seed)]
    pub(crate) seed: u64,
}

/// Options of batching.
#[derive(Debug, Clone, Args)]
pub(crate) struct BatchArgs {
    /// Batch size [default: by the size of the model]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Folder to write the sheets and index.html into
    #[arg(long, short, value_name = "DIR", default_value = "diffae-demo")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Model folder, file or folder of released weights (.ckpt, .pt, .safetensors), or `toonheads` (built in)
    #[arg(long, short, value_name = "MODEL", default_value = "toonheads")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
    /// Address to listen on; others than this machine's need --token
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 7860)]
    pub(crate) port: u16,
    /// Token that every request must bring, of 12 characters or more; in the address of the page: `/?token=TOKEN`
    #[arg(long, value_name = "TOKEN", env = "DIFFAE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Model folder, file or folder of released weights (.ckpt, .pt, .safetensors), or `toonheads` (built in)
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Weights of an autoencoder, autoencoder with latent net, or plain DDPM under released names: last.ckpt, a .pt of its
    /// state dict, a .safetensors file, the index or the folder of several
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Statistics of z_sem: the latent.pkl that belongs to the checkpoint, or a file with conds_mean and conds_std
    #[arg(long, value_name = "FILE")]
    pub(crate) latent: Option<PathBuf>,
    /// An attribute classifier: its last.ckpt, or a file with classifier.weight and classifier.bias
    #[arg(long, value_name = "FILE")]
    pub(crate) classifier: Option<PathBuf>,
    /// Attribute names of the classifier: one per line, or a CelebA label file [default: CelebA's if there are 40]
    #[arg(long, value_name = "FILE", requires = "classifier")]
    pub(crate) attributes: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Model folder, file or folder of released weights (.ckpt, .pt, .safetensors), or `toonheads` (built in)
    pub(crate) model: PathBuf,
    /// Folder to write the ONNX files and manifest.json into
    #[arg(long, value_name = "DIR")]
    pub(crate) onnx: PathBuf,
    /// Weights and arithmetic in half precision; inputs and outputs stay f32
    #[arg(long)]
    pub(crate) half: bool,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder to write the pages into
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// Returns a parser of the values of a type that have names, for help and completions.
fn one_of<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = diffae_schedule::Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("expected a whole number of at least 1".to_owned()),
    }
}
