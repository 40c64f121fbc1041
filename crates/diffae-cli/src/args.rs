//! What can be written on the command line.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

mod align;
mod eval;
mod training;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use diffae_infer::Overwrite;

pub(crate) use align::{AlignArgs, FacePlaceArgs};
pub(crate) use eval::{
    AllArgs, AttributesArgs, BackboneName, CompareArgs, DisentanglementArgs, EditDirection, EditsArgs, EvalArgs,
    EvalDataArgs, EvalRunArgs, FewShotArgs, FidArgs, FidProtocol, FidSource, Judged, LabelledArgs, LpipsArgs,
    LpipsPairsArgs, Measure, PictureCrop, PplArgs, ReconArgs, XTerminalKind, ZUsageArgs,
};

pub(crate) use training::{DirectionChoice, FitAttributesArgs, FitEditsArgs, PresetsArgs, StageChoice, TrainArgs};

/// Heading of the options that only some checkpoints need.
const HINT_HEADING: &str = "For checkpoints without hyper-parameters";

/// Encode, edit, blend and invent pictures with Diffusion Autoencoders.
#[derive(Debug, Parser)]
#[command(name = "diffae", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N or metal. auto takes a GPU if this program has a backend for it
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub(crate) device: String,
    /// Number type of the weights, and on a GPU of the network's arithmetic
    #[arg(long, global = true, value_enum, default_value_t = NumberType::F32)]
    pub(crate) dtype: NumberType,
    /// Threads of the work on the CPU [default: one a core]
    #[arg(long, global = true, value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,
    /// On the CPU, switch off what rounds differently from plain sums of products (Winograd's convolution); slower
    #[arg(long, global = true)]
    pub(crate) exact: bool,
    /// Say less: errors only
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more; twice for debugging
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
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
    /// Show what a Diffusion Autoencoder does, with the built-in model and pictures: needs nothing, takes a minute
    Demo(DemoArgs),
    /// Show what a model is and what it can do
    Info(InfoArgs),
    /// Turn released PyTorch files into one model directory
    Import(ImportArgs),
    /// Cut faces out of photographs as models of faces want them
    Align(AlignArgs),
    /// Turn pictures into codes: z_sem and x_T
    Encode(EncodeArgs),
    /// Turn codes into pictures
    Decode(DecodeArgs),
    /// Encode and decode pictures, and measure what was lost
    Reconstruct(ReconstructArgs),
    /// Blend one picture into another
    Interpolate(InterpolateArgs),
    /// Change an attribute of pictures
    Edit(EditArgs),
    /// Invent pictures
    Sample(SampleArgs),
    /// Show pictures that mean the same: one z_sem, new x_T
    Variations(VariationsArgs),
    /// Train a model on a folder of pictures
    Train(TrainArgs),
    /// Teach a model attributes of your own, from labelled pictures
    FitAttributes(FitAttributesArgs),
    /// Learn edits from pairs of pictures that differ in one attribute
    FitEdits(FitEditsArgs),
    /// Measure a model
    Eval(EvalArgs),
    /// List the presets of training, or print one
    Presets(PresetsArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write man pages
    Man(ManArgs),
}

/// A model on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A model directory, a .safetensors file in one, a released .ckpt, or `toonheads`, which is built in
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
}

/// What a checkpoint without hyper-parameters does not tell.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HintArgs {
    /// Height and width of the pictures, if the checkpoint holds no x_T
    #[arg(long, help_heading = HINT_HEADING, value_name = "PIXELS")]
    pub(crate) image_size: Option<usize>,
    /// Attention heads [default: 1]
    #[arg(long, help_heading = HINT_HEADING, value_name = "N")]
    pub(crate) num_heads: Option<usize>,
    /// Residual blocks a level of the encoder, if several numbers fit
    #[arg(long, help_heading = HINT_HEADING, value_name = "N")]
    pub(crate) encoder_res_blocks: Option<usize>,
    /// Length of the noise schedule [default: 1000]
    #[arg(long, help_heading = HINT_HEADING, value_name = "T")]
    pub(crate) train_timesteps: Option<usize>,
    /// Noise schedule of pictures [default: linear]
    #[arg(long, help_heading = HINT_HEADING, value_name = "NAME")]
    pub(crate) beta_schedule: Option<String>,
    /// Noise schedule of the latent diffusion [default: const0.008]
    #[arg(long, help_heading = HINT_HEADING, value_name = "NAME")]
    pub(crate) latent_beta_schedule: Option<String>,
}

/// Where results go.
#[derive(Debug, Args)]
pub(crate) struct OutArgs {
    /// Where to write
    #[arg(long, short, value_name = "PATH")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
}

/// Whether results may replace files.
#[derive(Debug, Clone, Args)]
pub(crate) struct ForceArgs {
    /// Replace files that exist already
    #[arg(long)]
    force: bool,
}

impl ForceArgs {
    /// What to do about files that exist already.
    pub(crate) fn overwrite(&self) -> Overwrite {
        if self.force { Overwrite::Replace } else { Overwrite::Refuse }
    }
}

/// Pictures on the command line.
#[derive(Debug, Args)]
pub(crate) struct PictureArgs {
    /// Picture files, folders, or .safetensors files that hold x [N, C, H, W] in [-1, 1]
    #[arg(required = true)]
    pub(crate) input: Vec<PathBuf>,
}

/// How pictures are decoded.
#[derive(Debug, Args)]
pub(crate) struct DecodingArgs {
    /// Decoding steps
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
}

/// How pictures are turned into noise maps.
#[derive(Debug, Args)]
pub(crate) struct InversionArgs {
    /// Steps of the inversion
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = positive)]
    pub(crate) invert_steps: usize,
}

/// Where random numbers come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct RandomArgs {
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// How many pictures are worked on at once.
#[derive(Debug, Clone, Args)]
pub(crate) struct BatchArgs {
    /// Pictures at once [default: by the size of the model]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Folder of the sheets and of index.html, which shows them all
    #[arg(long, short, value_name = "DIR", default_value = "diffae-demo")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    /// Steps of decoding and of the inversion
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// A model directory, a .safetensors file in one, a released .ckpt, or `toonheads`, which is built in
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) hints: HintArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The checkpoint: last.ckpt of an autoencoder, autoencoder with latent net, or plain DDPM
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Statistics of z_sem: the latent.pkl that belongs to the checkpoint
    #[arg(long, value_name = "FILE")]
    pub(crate) latent: Option<PathBuf>,
    /// An attribute classifier: its last.ckpt
    #[arg(long, value_name = "FILE")]
    pub(crate) classifier: Option<PathBuf>,
    /// Names of the classifier's attributes: one a line, or a CelebA label file [default: CelebA's, if there are 40]
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
    /// Steps of the inversion
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Leave x_T out: much faster
    #[arg(long)]
    pub(crate) semantic_only: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

/// Where the x_T of decoded pictures comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum XTerminalChoice {
    /// From the codes
    Stored,
    /// Fresh noise
    Random,
    /// All zero
    Zero,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What `diffae encode` wrote
    pub(crate) codes: PathBuf,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Where x_T comes from
    #[arg(long = "x-t", value_enum, default_value_t = XTerminalChoice::Stored)]
    pub(crate) x_t: XTerminalChoice,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Noise added at each step: 0 none, 1 as much as DDPM
    #[arg(long, default_value_t = 0.)]
    pub(crate) eta: f64,
    /// Decode codes that another model made
    #[arg(long)]
    pub(crate) any_model: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

/// Where the x_T of a reconstruction comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReconstructionNoise {
    /// From the picture: near-exact
    Inverted,
    /// Fresh noise: shows what z_sem holds
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
    /// Where x_T comes from
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
    /// The picture to start from
    pub(crate) from: PathBuf,
    /// The picture to end at
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
    /// Where to write
    #[arg(long, short, value_name = "PATH", required_unless_present = "list")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    /// Print the names of the model's attributes, and the strengths that go the whole way where the model knows them
    #[arg(long, conflicts_with_all = ["input", "out", "attribute", "strength", "strengths"])]
    pub(crate) list: bool,
    /// Print the names as JSON
    #[arg(long, requires = "list")]
    pub(crate) json: bool,
    /// Name or number of the attribute
    #[arg(long, short, required_unless_present = "list")]
    pub(crate) attribute: Option<String>,
    /// How far to go; negative takes the attribute away [default: the whole way if the model knows it, as --list shows, or 0.3]
    #[arg(long, short, allow_negative_numbers = true)]
    pub(crate) strength: Option<f64>,
    /// Several strengths, such as -0.3,0,0.3: adds a strip for each picture
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, conflicts_with = "strength")]
    pub(crate) strengths: Vec<f64>,
    /// Decoding steps
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Give back what decoding loses, so that what the edit leaves alone stays as it is; decodes once more
    #[arg(long)]
    pub(crate) keep_residual: bool,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Number of pictures
    #[arg(short = 'n', long = "count", default_value_t = 16, value_name = "N", value_parser = positive)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Steps of the latent diffusion
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = positive)]
    pub(crate) latent_steps: usize,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Noise added at each decoding step: 0 none, 1 as much as DDPM
    #[arg(long, default_value_t = 0.)]
    pub(crate) eta: f64,
    /// Take z_T [N, D] and x_T [N, C, H, W] from this .safetensors file; what it lacks is drawn
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
    /// Variations of each picture
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
    /// The shell
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
