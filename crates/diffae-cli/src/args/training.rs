//! Arguments of `train`, `fit-attributes`, `fit-edits` and `presets`.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use diffae_schedule::{Sampler, Spacing};

use super::{
    BatchArgs, JsonArgs, ModelArgs, OutArgs, PictureArgs, PictureCrop, RandomArgs, ReadingArgs, eval::two_or_more,
    one_of, positive,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Each attribute of the labels becomes one of the model, beside those that it has; everything else of it stays what it is. \
Codes of the images are kept in OUT, so that the same command resumes where it was stopped.")]
pub(crate) struct FitAttributesArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Images: a folder (with subfolders), a tar archive, an LMDB, Parquet, .safetensors; those without labels are ignored
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Labels of the attributes: a CelebA attribute file, a CSV file, or `folders` for one class per folder
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: PathBuf,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Replace the model's attributes of the same names
    #[arg(long)]
    pub(crate) replace: bool,
    /// Method of computing edit directions from the labels
    #[arg(long, value_enum, default_value_t = DirectionChoice::ClassMeans)]
    pub(crate) directions: DirectionChoice,
    /// Share of the images held out for evaluation
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub(crate) held_out: f64,
    /// Length of the training in codes, 32 per step [default: 300000]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) images: Option<usize>,
    /// Learning rate [default: 0.001]
    #[arg(long)]
    pub(crate) lr: Option<f64>,
    /// Random seed of the training
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Crop of each image before it is resized
    #[arg(long, value_enum, default_value_t = PictureCrop::Center)]
    pub(crate) crop: PictureCrop,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Methods of computing edit directions from labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionChoice {
    /// From the mean code without the attribute to the mean code with it; calibrates the full-edit strength
    ClassMeans,
    /// Along the weights of the classifier, as in the paper
    Weights,
}

#[derive(Debug, Args)]
#[command(after_help = "\
An attribute that the model does not have yet is added to it: Round, say, from the images pairs/Round/without/NAME and \
pairs/Round/with/NAME.")]
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
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// Hidden units of image-dependent directions; 0 for one fixed direction per attribute
    #[arg(long, default_value_t = 16, value_name = "H")]
    pub(crate) units: usize,
    /// Random seed of the initialization
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
OUT is a run like those of `diffae train`: it has previews and a log, and `diffae train --out OUT --resume` continues it. \
The encoder, and with it the latent diffusion and the classifier, stay those of the model.")]
pub(crate) struct DistillArgs {
    #[command(flatten)]
    pub(crate) subject: DecoderArgs,
    /// Decoding steps of the new model, and its default
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Spacing of the timesteps of these steps
    #[arg(
        long,
        value_name = "NAME",
        default_value_t = Spacing::Trailing,
        value_parser = one_of::<Spacing>(Spacing::names())
    )]
    pub(crate) spacing: Spacing,
    /// Timesteps of these steps, increasing, in place of number and spacing: they become the tuned ones of the new model
    #[arg(long, value_delimiter = ',', value_name = "T,T,..", conflicts_with_all = ["steps", "spacing"])]
    pub(crate) timesteps: Option<Vec<usize>>,
    /// Decoding steps of the model that is distilled: dpm++2m, log-snr
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = positive)]
    pub(crate) teacher_steps: usize,
    /// Weight of a perceptual term beside the pixels: the distance of pictures in the model's own z_sem
    #[arg(long, default_value_t = 0.0, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub(crate) semantic_weight: f64,
    #[command(flatten)]
    pub(crate) run: DecoderRunArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
    #[command(flatten)]
    pub(crate) group: GroupArgs,
}

/// The model whose decoder is trained, and the images.
#[derive(Debug, Args)]
pub(crate) struct DecoderArgs {
    /// Model folder, `toonheads`, or a released checkpoint that needs no further options (`diffae import` makes a folder of
    /// any other)
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Images like those that the model was trained on: a folder (with subfolders), a tar archive, an LMDB, Parquet,
    /// .safetensors
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Image of each sample of an archive or a table that holds several: a key such as jpg or seg.png, or a column
    /// [default: the obvious one]
    #[arg(long, value_name = "KEY")]
    pub(crate) picture_key: Option<String>,
    /// Folder of the run, which becomes a model folder
    #[arg(long, short, value_name = "RUN")]
    pub(crate) out: PathBuf,
}

/// Options of a run that trains a decoder.
#[derive(Debug, Args)]
pub(crate) struct DecoderRunArgs {
    /// Length of the training in images [default: 50000]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) images: Option<usize>,
    /// Images per step [default: 16]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,
    /// Learning rate [default: 0.0001]
    #[arg(long)]
    pub(crate) lr: Option<f64>,
    /// Random seed [default: 0]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Override another setting of the run, such as autoencoder.ema_decay=0.99; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Continue from the latest checkpoint; the other options must agree with those of the first call
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Decoder and endpoint network learn to give images of z_sem alone that look like the originals; `--x-t endpoint` then decodes \
them. OUT is a run like those of `diffae train`: it has previews and a log, and `diffae train --out OUT --resume` continues \
it. The encoder, and with it the latent diffusion and the classifier, stay those of the model.")]
pub(crate) struct PolishArgs {
    #[command(flatten)]
    pub(crate) subject: DecoderArgs,
    /// Weights of VGG-16, for the perceptual loss LPIPS: torchvision's .pth, or .safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) lpips_weights: PathBuf,
    /// Decoding steps of the new model, and its default
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Spacing of the timesteps of these steps
    #[arg(
        long,
        value_name = "NAME",
        default_value_t = Spacing::LogSnr,
        value_parser = one_of::<Spacing>(Spacing::names().filter(|&name| name != "tuned"))
    )]
    pub(crate) spacing: Spacing,
    /// Weight of the mean square difference of pixels, in [-1, 1], beside LPIPS
    #[arg(long, default_value_t = 3.0, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub(crate) pixel_weight: f64,
    /// Channels of the endpoint network's largest maps
    #[arg(long, default_value_t = 32, value_name = "M", value_parser = positive)]
    pub(crate) endpoint_channels: usize,
    /// Validations in a row without a lower loss on held-out images after which training ends; 0 for none
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) patience: usize,
    #[command(flatten)]
    pub(crate) run: DecoderRunArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
    #[command(flatten)]
    pub(crate) group: GroupArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Half of the images choose the timesteps, the other half measures them. --spacing tuned --steps N then decodes along \
them.")]
pub(crate) struct TuneStepsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    /// Number of steps; a model keeps one list of timesteps for each number
    #[arg(long, value_name = "N", value_parser = two_or_more)]
    pub(crate) steps: usize,
    /// Sampler that takes the steps, stored beside them; ddim for the steps of a student [default: dpm++2m]
    #[arg(long, value_name = "NAME", value_parser = one_of::<Sampler>(Sampler::names()))]
    pub(crate) sampler: Option<Sampler>,
    /// Number of images, spread over all that are given
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = two_or_more)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// A stage of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StageChoice {
    /// The spatial autoencoder of a model on latents
    Spatial,
    /// Encoder and UNet, or a plain DDPM
    Autoencoder,
    /// The latent diffusion, which samples z_sem
    Latent,
    /// The attribute classifier, which gives edit directions
    Classifier,
}

#[derive(Debug, Args)]
#[command(after_help = "\
With --resume, options of the first call may be repeated. Values that differ are refused by name, except:
  --set STAGE.images=N     makes a stage longer, a finished one too; later stages are trained again
  --set STAGE.lr=X         for the steps to come
  --set run.*, data.workers, data.prefetch, data.max_broken_share, and settings of later stages
  --labels FILE            trains the classifier anew

Exit codes: 0 when all stages are done, 130 after Ctrl-C (the run is saved), 2 after an error and after a dry run of \
what would be refused.")]
pub(crate) struct TrainArgs {
    /// Preset; `diffae presets` lists them
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) preset: Option<String>,
    /// Config file, in the form that --dry-run prints
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Override a setting, such as autoencoder.lr=2e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Images: a folder (with subfolders), a tar archive, an LMDB, Parquet, .safetensors
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Image of each sample of an archive or a table that holds several: a key such as jpg or seg.png, or a column
    /// [default: the obvious one]; the setting data.picture_key
    #[arg(long, value_name = "KEY")]
    pub(crate) picture_key: Option<String>,
    /// Labels of the attributes: a CelebA attribute file, a CSV file, or `folders` for one class per folder
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
    #[arg(long, value_name = "MODEL")]
    pub(crate) init_from: Option<PathBuf>,
    /// Spatial autoencoder of a model on latents, in place of the stage that trains one: of another run or model, or that of a
    /// latent diffusion model (vae/diffusion_pytorch_model.safetensors, or a whole checkpoint)
    #[arg(long, value_name = "FILE")]
    pub(crate) spatial_weights: Option<PathBuf>,
    /// Weights of the pretrained network that is the encoder, where model.encoder names one, such as dinov2_vits14_pretrain.pth
    #[arg(long, value_name = "FILE")]
    pub(crate) encoder_weights: Option<PathBuf>,
    /// Weights of VGG-16 for LPIPS, where spatial_net.perceptual_weight is above 0
    #[arg(long, value_name = "FILE")]
    pub(crate) lpips_weights: Option<PathBuf>,
    /// Freeze a part: encoder or unet; may be repeated
    #[arg(long, value_name = "PART")]
    pub(crate) freeze: Vec<String>,
    /// Dry run, without training: print the resolved config, check images and labels, report what would be refused, and
    /// measure how long each stage takes
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
    /// Print the folder of the model and the number of steps of each stage as JSON
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) group: GroupArgs,
}

/// Heading of the options of several processes.
const GROUP_HEADING: &str = "For several processes (srun, torchrun and mpirun give rank and size by themselves)";

/// The place of this process in a group that trains one model.
#[derive(Debug, Args)]
#[command(next_help_heading = GROUP_HEADING)]
pub(crate) struct GroupArgs {
    /// Number of this process, from 0; process 0 alone writes and reports
    #[arg(long, value_name = "N", requires = "world_size")]
    pub(crate) rank: Option<usize>,
    /// Number of processes; autoencoder.accumulate (and spatial.accumulate) is at least as large
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) world_size: Option<usize>,
    /// Address where process 0 waits for the others; the port is 29500 by default
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) master: Option<String>,
    /// Order in which gradients are added
    #[arg(long, value_enum, default_value_t)]
    pub(crate) reduce: ReductionChoice,
    /// Connection among the processes
    #[arg(long, value_enum, default_value_t)]
    pub(crate) connect: ConnectionChoice,
    /// Divide the optimizer state among the processes: less memory, the same bits
    #[arg(long)]
    pub(crate) shard_optimizer: bool,
}

/// The connection among the processes of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConnectionChoice {
    /// TCP, or MPI where mpirun has started a program that is built with it
    #[default]
    Auto,
    /// TCP
    Tcp,
    /// NCCL, on a graphics card of NVIDIA for each process; they meet by TCP
    Nccl,
}

/// The order in which gradients of several processes are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReductionChoice {
    /// By micro-batches: the same bits with any number of processes
    #[default]
    Ordered,
    /// First within each process: less to send where it has several micro-batches
    Fast,
}

#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// Print this one as TOML
    pub(crate) name: Option<String>,
}
