//! The command line.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

mod align;
mod eval;
mod help;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use diffae_infer::Overwrite;

pub(crate) use align::{AlignArgs, FacePlaceArgs};
pub(crate) use eval::{
    AllArgs, AttributesArgs, BackboneName, CompareArgs, DisentanglementArgs, EditDirection, EditsArgs, EvalArgs,
    EvalDataArgs, EvalRunArgs, FewShotArgs, FidArgs, FidProtocol, FidSource, Judged, LabelledArgs, LpipsArgs,
    LpipsPairsArgs, Measure, PictureCrop, PplArgs, ReconArgs, ResizeName, XTerminalKind, ZUsageArgs,
};
pub(crate) use help::command;

/// Heading of the options of every command.
const GLOBAL_HEADING: &str = "Global options";
/// Heading of the options that only some checkpoints need.
const HINT_HEADING: &str = "For checkpoints without hyper-parameters";

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
    /// Device: auto, cpu, cuda, cuda:N or metal; auto is the GPU if this program has a backend for it, else the CPU
    #[arg(long, global = true, help_heading = GLOBAL_HEADING, default_value = "auto", value_name = "DEVICE")]
    pub(crate) device: String,
    /// Number type of the weights, and on a GPU of the arithmetic
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
    Bf16,
    F16,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what a Diffusion Autoencoder does, as a web page: built-in model and images, half a minute to a few minutes
    Demo(DemoArgs),
    /// Describe a model: architecture, sizes, and which commands it supports
    Info(InfoArgs),
    /// Convert released PyTorch checkpoints into a model folder
    Import(ImportArgs),
    /// Crop and align faces in photographs as in FFHQ
    Align(AlignArgs),
    /// Encode images: semantic code z_sem and stochastic code x_T
    Encode(EncodeArgs),
    /// Decode codes into images
    Decode(DecodeArgs),
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
    /// Model folder, .safetensors file, released .ckpt, or `toonheads` (built in)
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
}

/// Hyper-parameters that a bare checkpoint lacks.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HintArgs {
    /// Height and width of the images, if the checkpoint holds no x_T
    #[arg(long, help_heading = HINT_HEADING, value_name = "PIXELS")]
    pub(crate) image_size: Option<usize>,
    /// Attention heads [default: 1]
    #[arg(long, help_heading = HINT_HEADING, value_name = "N")]
    pub(crate) num_heads: Option<usize>,
    /// Residual blocks per level of the encoder, if several numbers fit
    #[arg(long, help_heading = HINT_HEADING, value_name = "N")]
    pub(crate) encoder_res_blocks: Option<usize>,
    /// Length of the noise schedule [default: 1000]
    #[arg(long, help_heading = HINT_HEADING, value_name = "T")]
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

/// Whether results may replace files.
#[derive(Debug, Clone, Args)]
pub(crate) struct ForceArgs {
    /// Replace existing files
    #[arg(long)]
    force: bool,
}

impl ForceArgs {
    /// Policy for existing files.
    pub(crate) fn overwrite(&self) -> Overwrite {
        if self.force { Overwrite::Replace } else { Overwrite::Refuse }
    }
}

/// Images on the command line.
#[derive(Debug, Args)]
pub(crate) struct PictureArgs {
    /// Image files, folders, or .safetensors files with x [N, C, H, W] in [-1, 1]
    #[arg(required = true)]
    pub(crate) input: Vec<PathBuf>,
}

/// Options of decoding.
#[derive(Debug, Args)]
pub(crate) struct DecodingArgs {
    /// Decoding steps
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
}

/// Options of the inversion.
#[derive(Debug, Args)]
pub(crate) struct InversionArgs {
    /// Inversion steps
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = positive)]
    pub(crate) invert_steps: usize,
}

/// Options of randomness.
#[derive(Debug, Clone, Args)]
pub(crate) struct RandomArgs {
    /// Random seed
    #[arg(long, default_value_t = 0)]
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
    /// Decoding steps, and inversion steps
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Model folder, .safetensors file, released .ckpt, or `toonheads` (built in)
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The checkpoint: last.ckpt of an autoencoder, an autoencoder with latent net, or a plain DDPM
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Mean and deviation of z_sem: the latent.pkl of the checkpoint
    #[arg(long, value_name = "FILE")]
    pub(crate) latent: Option<PathBuf>,
    /// Attribute classifier: its last.ckpt
    #[arg(long, value_name = "FILE")]
    pub(crate) classifier: Option<PathBuf>,
    /// Attribute names of the classifier: one per line, or a CelebA label file [default: CelebA's if there are 40]
    #[arg(long, value_name = "FILE", requires = "classifier")]
    pub(crate) attributes: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Inversion steps
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Encode z_sem only, without x_T: much faster
    #[arg(long)]
    pub(crate) semantic_only: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

/// Sources of x_T of decoded images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum XTerminalChoice {
    /// From the codes
    Stored,
    /// Random noise
    Random,
    /// All zero
    Zero,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Codes: a file that `diffae encode` wrote
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
    /// Noise added at each step: 0 for DDIM, 1 for DDPM
    #[arg(long, default_value_t = 0.)]
    pub(crate) eta: f64,
    /// Accept codes of another model
    #[arg(long)]
    pub(crate) any_model: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

/// Sources of x_T of a reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReconstructionNoise {
    /// Inverted from the image: near-exact
    Inverted,
    /// Random noise: shows what z_sem holds
    Random,
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
}

#[derive(Debug, Args)]
pub(crate) struct InterpolateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The image to start from
    pub(crate) from: PathBuf,
    /// The image to end at
    pub(crate) to: PathBuf,
    /// FILE.png for a strip, FILE.gif for an animation, or a folder for single frames
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Number of frames, both ends included
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = positive)]
    pub(crate) frames: usize,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Picture files, folders, or .safetensors files that hold x [N, C, H, W] in [-1, 1]
    #[arg(required_unless_present = "list")]
    pub(crate) input: Vec<PathBuf>,
    /// Folder or .safetensors file to write
    #[arg(long, short, value_name = "PATH", required_unless_present = "list")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    /// List the attributes of the model, with calibrated full-edit strengths where available
    #[arg(long, conflicts_with_all = ["input", "out", "attribute", "strength", "strengths"])]
    pub(crate) list: bool,
    /// Print the list as JSON
    #[arg(long, requires = "list")]
    pub(crate) json: bool,
    /// Attribute, by name or number
    #[arg(long, short, required_unless_present = "list")]
    pub(crate) attribute: Option<String>,
    /// Strength of the edit; negative removes the attribute [default: the calibrated strength that --list shows, else 0.3]
    #[arg(long, short, allow_negative_numbers = true)]
    pub(crate) strength: Option<f64>,
    /// Several strengths, such as -0.3,0,0.3: also writes a strip for each image
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, conflicts_with = "strength")]
    pub(crate) strengths: Vec<f64>,
    /// Decoding steps
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Add back what decoding loses, so that unedited parts stay as they are; decodes once more
    #[arg(long)]
    pub(crate) keep_residual: bool,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FitEditsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder of pairs: ATTRIBUTE/without and ATTRIBUTE/with hold images of the same names; ATTRIBUTE/others may hold
    /// further images without it, named as their partners in `with`
    #[arg(long, value_name = "DIR")]
    pub(crate) pairs: PathBuf,
    /// Use the first N pairs of each attribute only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Hidden units that let a direction depend on the image; 0 for one direction for all images
    #[arg(long, default_value_t = 16, value_name = "H")]
    pub(crate) units: usize,
    /// Random seed of the initialization
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

/// A stage of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StageChoice {
    /// Encoder and UNet, or a plain DDPM
    Autoencoder,
    /// The latent diffusion, which samples z_sem
    Latent,
    /// The attribute classifier, which gives edit directions
    Classifier,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Preset; `diffae presets` lists them
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "resume"])]
    pub(crate) preset: Option<String>,
    /// Config file, in the form that --dry-run prints
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub(crate) config: Option<PathBuf>,
    /// Override a setting, such as autoencoder.lr=2e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "resume")]
    pub(crate) set: Vec<String>,
    /// Images: a folder (with subfolders), a .tar archive, an LMDB
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub(crate) data: Option<PathBuf>,
    /// Attributes: a CelebA attribute file, a CSV file, or `folders` for one class a folder
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// Folder of the run, which becomes a model folder
    #[arg(long, short, value_name = "RUN", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    /// Run this stage only
    #[arg(long, value_enum)]
    pub(crate) stage: Option<StageChoice>,
    /// Continue from the latest checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
    /// Initialize from the weights of a model folder, a released checkpoint or `toonheads`
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    pub(crate) init_from: Option<PathBuf>,
    /// Freeze a part: encoder or unet; may be repeated
    #[arg(long, value_name = "PART", conflicts_with = "resume")]
    pub(crate) freeze: Vec<String>,
    /// Print the resolved config, sizes, steps and estimated time, and stop
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// Print this preset as TOML
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Number of images
    #[arg(short = 'n', long = "count", default_value_t = 16, value_name = "N", value_parser = positive)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Latent diffusion steps
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = positive)]
    pub(crate) latent_steps: usize,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Noise added at each decoding step: 0 for DDIM, 1 for DDPM
    #[arg(long, default_value_t = 0.)]
    pub(crate) eta: f64,
    /// .safetensors file with z_T [N, D] and x_T [N, C, H, W]; what it lacks is random
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    pub(crate) noise: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VariationsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Variations per image
    #[arg(short = 'n', long = "count", default_value_t = 8, value_name = "N", value_parser = positive)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
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
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}
