//! Arguments of `diffae eval fid`.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use diffae_eval::measures::FidOptions;
use diffae_schedule::Spacing;

use super::super::{LatentArgs, MODEL_WEIGHTS, ReadingArgs, SamplerArgs, one_of, positive};
use super::{EvalRunArgs, EvaluatedArgs, PictureCrop, two_or_more};

/// Feature networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FeatureName {
    /// Inception-v3 of pytorch-fid: the Frechet distance is the FID
    Inception,
    /// EfficientNet-Lite0, whose weights are in a Python package
    #[value(name = "efficientnet-lite0")]
    EfficientNetLite0,
    /// DINOv2: small, base or large
    #[value(name = "dinov2")]
    DinoV2,
}

/// Preprocessing for Inception-v3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResizeName {
    /// pytorch-fid's: bilinear, without antialiasing
    PytorchFid,
    /// clean-fid's: Pillow's antialiased bicubic
    Clean,
}

/// Evaluation protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolName {
    /// The images as they are
    Plain,
    /// The paper's: 50,000 generated images against the first 50,000 real ones, half of them flipped
    Reference,
}

/// Sources of generated images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SourceName {
    /// Sampled if the model has a latent net, else decoded
    Auto,
    /// Samples of the latent diffusion, or of a plain DDPM
    Sampled,
    /// Reconstructions: z_sem of the real images, random x_T
    Decoded,
}

#[derive(Debug, Args)]
#[command(mut_arg(MODEL_WEIGHTS, |arg| arg.long("model-weights").visible_alias(None)))]
pub(crate) struct FidArgs {
    #[command(flatten)]
    pub(crate) evaluated: EvaluatedArgs,
    /// Real images: a folder (with subfolders), a tar archive, an LMDB, Parquet, .safetensors
    #[arg(long, value_name = "DIR", required_unless_present = "reference_statistics")]
    pub(crate) data: Option<PathBuf>,
    /// Crop of real images before they are resized to the size of the model, or to --size
    #[arg(long, value_enum, default_value_t = PictureCrop::Center)]
    pub(crate) crop: PictureCrop,
    /// With --pictures: crop and resize the real images to this size [default: leave them as they are]
    #[arg(long, value_name = "PIXELS", value_parser = positive, requires = "pictures")]
    pub(crate) size: Option<usize>,
    /// Use the first N real images only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// Feature network
    #[arg(long, value_enum, default_value_t = FeatureName::Inception)]
    pub(crate) features: FeatureName,
    /// Weights of the feature network: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
    /// Preprocessing for inception; distances with different preprocessing are not comparable
    #[arg(long, value_enum, default_value_t = ResizeName::PytorchFid)]
    pub(crate) resize: ResizeName,
    /// Evaluation protocol
    #[arg(long, value_enum, default_value_t = ProtocolName::Plain)]
    pub(crate) protocol: ProtocolName,
    /// Source of the generated images
    #[arg(long, value_enum, default_value_t = SourceName::Auto)]
    pub(crate) source: SourceName,
    /// Number of images to generate [default: as many as there are real ones]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) count: Option<usize>,
    /// Decoding steps
    #[arg(long, default_value_t = FidOptions::default().steps, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    #[command(flatten)]
    pub(crate) sampler: SamplerArgs,
    /// Spacing of the decoding steps [default: leading; of distilled models their own]
    #[arg(long, value_name = "NAME", value_parser = one_of::<Spacing>(Spacing::names()))]
    pub(crate) spacing: Option<Spacing>,
    /// Latent diffusion steps
    #[arg(long, default_value_t = FidOptions::default().latent_steps, value_name = "N", value_parser = positive)]
    pub(crate) latent_steps: usize,
    #[command(flatten)]
    pub(crate) latent: LatentArgs,
    /// Statistics of the real images (.npz with mu and sigma, as pytorch-fid writes them), instead of --data or beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) reference_statistics: Option<PathBuf>,
    /// Save the statistics of the real images as .npz
    #[arg(long, value_name = "FILE", conflicts_with = "reference_statistics")]
    pub(crate) save_statistics: Option<PathBuf>,
    /// Bootstrap resamples of the generated images for a 95% interval of the Frechet distance; each takes as long as the
    /// distance. A resample repeats images, so the interval lies a little above the distance when images are few
    #[arg(long, default_value_t = FidOptions::default().resamples, value_name = "N")]
    pub(crate) resamples: usize,
    /// Images per subset for KID
    #[arg(long, default_value_t = FidOptions::default().kid_subset, value_name = "N", value_parser = two_or_more)]
    pub(crate) kid_subset: usize,
    /// Number of subsets for KID
    #[arg(long, default_value_t = FidOptions::default().kid_subsets, value_name = "N", value_parser = positive)]
    pub(crate) kid_subsets: usize,
    /// Nearest neighbors, for precision, recall, density and coverage
    #[arg(long, default_value_t = FidOptions::default().neighbors, value_name = "K", value_parser = positive)]
    pub(crate) neighbors: usize,
    /// Images of each set that precision, recall, density and coverage use
    #[arg(long, default_value_t = FidOptions::default().manifold_limit, value_name = "N", value_parser = positive)]
    pub(crate) manifold_limit: usize,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
}
