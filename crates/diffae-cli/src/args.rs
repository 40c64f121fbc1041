//! What can be written on the command line.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

mod align;
mod eval;
mod pictures;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use diffae_infer::Overwrite;

pub(crate) use align::{AlignArgs, FacePlaceArgs};
pub(crate) use eval::{
    AllArgs, AttributesArgs, BackboneName, CompareArgs, DisentanglementArgs, EditDirection, EditsArgs, EvalArgs,
    EvalDataArgs, EvalRunArgs, FewShotArgs, FidArgs, FidProtocol, FidSource, Judged, LabelledArgs, LpipsArgs,
    LpipsPairsArgs, Measure, PictureCrop, PplArgs, ReconArgs, XTerminalKind, ZUsageArgs,
};

pub(crate) use pictures::{
    DecodeArgs, EditArgs, EncodeArgs, InterpolateArgs, ReconstructArgs, ReconstructionNoise, SampleArgs,
    VariationsArgs, XTerminalChoice,
};

/// Exit codes, for `--help`.
const EXIT_CODES: &str = "Exit codes: 0 done; 2 something is wrong, and one sentence says what; 130 interrupted by Ctrl-C. A \
                          training that Ctrl-C has stopped and saved ends with 0.";

/// Heading of the options that only some checkpoints need.
const HINT_HEADING: &str = "For checkpoints without hyper-parameters";

/// Encode, edit, blend and invent pictures with Diffusion Autoencoders.
#[derive(Debug, Parser)]
#[command(name = "diffae", version, max_term_width = 100, arg_required_else_help = true, after_help = EXIT_CODES)]
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
pub(crate) struct FitEditsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder of pairs: ATTRIBUTE/without and ATTRIBUTE/with hold pictures of the same names; ATTRIBUTE/others may hold more
    /// that lack the attribute, in other ways, by the names of the same pictures in `with`
    #[arg(long, value_name = "DIR")]
    pub(crate) pairs: PathBuf,
    /// Take the first pairs of each attribute only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Hidden units by which a direction depends on the picture; 0 for one direction for all
    #[arg(long, default_value_t = 16, value_name = "H")]
    pub(crate) units: usize,
    /// Seed of what the fit begins with
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
    /// The diffusion over z_sem, which invents codes
    Latent,
    /// The attribute classifier, which edits go along
    Classifier,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// A preset; `diffae presets` lists them
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "resume"])]
    pub(crate) preset: Option<String>,
    /// A config file, in the form that --dry-run prints
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub(crate) config: Option<PathBuf>,
    /// Change a setting, such as autoencoder.lr=2e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "resume")]
    pub(crate) set: Vec<String>,
    /// The folder of pictures, searched to the bottom
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub(crate) data: Option<PathBuf>,
    /// Attributes: a CelebA attribute file, a CSV file, or `folders` for one class a folder
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// The folder of the run; it ends as a model directory
    #[arg(long, short, value_name = "RUN", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    /// Run one stage only
    #[arg(long, value_enum)]
    pub(crate) stage: Option<StageChoice>,
    /// Go on from the newest whole checkpoint of the run
    #[arg(long)]
    pub(crate) resume: bool,
    /// Begin with the weights of a model directory or a released checkpoint
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    pub(crate) init_from: Option<PathBuf>,
    /// Leave a part as it is: encoder or unet; may be repeated
    #[arg(long, value_name = "PART", conflicts_with = "resume")]
    pub(crate) freeze: Vec<String>,
    /// Print the whole config, sizes, steps and the time it would take, and stop
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// Print this one as TOML
    pub(crate) name: Option<String>,
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
