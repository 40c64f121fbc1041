//! What can be written after `train`, `fit-attributes`, `fit-edits` and `presets`.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{BatchArgs, ModelArgs, OutArgs, PictureCrop, positive};

#[derive(Debug, Args)]
#[command(after_help = "\
Each attribute of the labels becomes one of the model, beside those that it has; everything else of it stays what it is.
Codes of the pictures are kept in OUT, so that the same command goes on where it was stopped.

Example:
  diffae fit-attributes --model toonheads --data faces --labels faces.csv --out taught
  diffae edit --model taught me.png -a Round --out edited")]
pub(crate) struct FitAttributesArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The folder of pictures, searched to the bottom; those without labels are left alone
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Attributes: a CelebA attribute file, a CSV file, or `folders` for one class a folder
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: PathBuf,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Replace attributes of the same names that the model has already
    #[arg(long)]
    pub(crate) replace: bool,
    /// Which way edits go
    #[arg(long, value_enum, default_value_t = DirectionChoice::ClassMeans)]
    pub(crate) directions: DirectionChoice,
    /// Share of the pictures that is kept from training and judges the result
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub(crate) held_out: f64,
    /// Codes that training sees, repeats counted, 32 a step [default: 300000]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) images: Option<usize>,
    /// Learning rate [default: 0.001]
    #[arg(long)]
    pub(crate) lr: Option<f64>,
    /// Seed of what training begins with
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// What is cut out of a picture before it is resized
    #[arg(long, value_enum, default_value_t = PictureCrop::Center)]
    pub(crate) crop: PictureCrop,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which way an edit moves z_sem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionChoice {
    /// From the mean code without the attribute to that with it: edits know how far to go
    ClassMeans,
    /// Along the weights of the classifier, as in the paper
    Weights,
}

#[derive(Debug, Args)]
#[command(after_help = "\
An attribute that the model does not have yet is added to it.

Example:
  diffae fit-edits --model toonheads --pairs pairs --out taught
with pictures pairs/Round/without/NAME and pairs/Round/with/NAME")]
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
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
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
#[command(after_help = "\
With --resume, options of the first call may be repeated. Values that differ are refused by name, except:
  --set STAGE.images=N     makes a stage longer, a finished one too; stages that depend on it are trained again
  --set STAGE.lr=X         for the steps to come
  --set run.*, data.workers, data.prefetch, data.max_broken_share, and all settings of stages to come
  --labels FILE            trains the classifier anew

Exit codes: 0 when all stages are done, 130 after Ctrl-C (the run is saved), 2 after an error and after a dry run of
what would be refused.

Examples:
  diffae train --preset small32 --data pictures --labels folders --out run
  diffae train --out run --resume
  diffae train --out run --resume --set autoencoder.images=400_000")]
pub(crate) struct TrainArgs {
    /// A preset; `diffae presets` lists them
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) preset: Option<String>,
    /// A config file, in the form that --dry-run prints
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Change a setting, such as autoencoder.lr=2e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The folder of pictures, searched to the bottom
    #[arg(long, value_name = "DIR")]
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
    #[arg(long, value_name = "MODEL")]
    pub(crate) init_from: Option<PathBuf>,
    /// Leave a part as it is: encoder or unet; may be repeated
    #[arg(long, value_name = "PART")]
    pub(crate) freeze: Vec<String>,
    /// Try everything and train nothing: print the whole config, look at pictures and labels, say what would be refused, and
    /// measure how long each stage takes
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// Print this one as TOML
    pub(crate) name: Option<String>,
}
