//! What can be written after `diffae eval`.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use diffae_eval::{FeatureKind, LpipsBackbone};
use diffae_train::Crop;

use super::{BatchArgs, BrokenArgs, ForceArgs, HintArgs, ModelArgs, RandomArgs, positive};

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
    Disentanglement(DisentanglementArgs),
    /// How near edits come to the truth, on pairs of pictures that differ in one attribute
    Edits(EditsArgs),
    /// How much of a picture z_sem decides, and how much x_T
    ZUsage(ZUsageArgs),
    /// How far pictures of the same names in two folders are apart to a network's eyes
    Lpips(LpipsPairsArgs),
    /// How smoothly interpolations go: perceptual path length
    Ppl(PplArgs),
    /// What classifiers learn from a few labelled pictures, and pictures invented by their choice
    FewShot(FewShotArgs),
    /// How far invented or decoded pictures are from real ones: FID, KID, precision, recall, density, coverage
    Fid(FidArgs),
    /// All measures that the given files allow, each in a folder of its own
    All(AllArgs),
    /// Lay reports side by side
    Compare(CompareArgs),
}

/// A model, or what some program has made.
#[derive(Debug, Clone, Args)]
pub(crate) struct JudgedArgs {
    /// A model directory, a .safetensors file in one, a released .ckpt, or `toonheads`, which is built in
    #[arg(long, short, value_name = "MODEL", required_unless_present = "pictures")]
    model: Option<PathBuf>,
    #[command(flatten)]
    hints: HintArgs,
    /// Measure these pictures, which some program has made, instead of a model
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    pictures: Option<PathBuf>,
}

/// Either of the two.
#[derive(Debug)]
pub(crate) enum Judged {
    Model(ModelArgs),
    Pictures(PathBuf),
}

impl JudgedArgs {
    /// What was given.
    pub(crate) fn get(&self) -> anyhow::Result<Judged> {
        match (&self.model, &self.pictures) {
            (Some(model), _) => Ok(Judged::Model(ModelArgs { model: model.clone(), hints: self.hints.clone() })),
            (None, Some(folder)) => Ok(Judged::Pictures(folder.clone())),
            (None, None) => anyhow::bail!("name a model with --model, or a folder of pictures with --pictures"),
        }
    }
}

impl FidArgs {
    /// Whether a model makes the pictures that are judged.
    pub(crate) fn model_is_given(&self) -> bool {
        self.judged.model.is_some()
    }
}

impl From<ModelArgs> for JudgedArgs {
    fn from(ModelArgs { model, hints }: ModelArgs) -> Self {
        Self { model: Some(model), hints, pictures: None }
    }
}

/// What every measure takes.
#[derive(Debug, Clone, Args)]
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
#[derive(Debug, Clone, Args)]
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
    #[command(flatten)]
    pub(crate) broken: BrokenArgs,
}

/// What is cut out of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PictureCrop {
    /// The largest square in the middle
    Center,
    /// The box that the paper takes of aligned CelebA
    Celeba,
}

/// The network of LPIPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackboneName {
    /// AlexNet, which papers report
    Alex,
    /// VGG-16
    Vgg,
    /// SqueezeNet 1.1
    Squeeze,
}

/// LPIPS beside other measures.
#[derive(Debug, Clone, Args)]
pub(crate) struct LpipsArgs {
    /// The network of LPIPS
    #[arg(long, value_enum, default_value_t = BackboneName::Alex)]
    pub(crate) lpips_backbone: BackboneName,
    /// Its weights, torchvision's .pth or .safetensors: LPIPS is measured too
    #[arg(long, value_name = "FILE")]
    pub(crate) lpips_weights: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct LpipsPairsArgs {
    #[command(flatten)]
    pub(crate) data: EvalDataArgs,
    /// Pictures of the same names, squares; endings may differ
    #[arg(long, value_name = "DIR")]
    pub(crate) pictures: PathBuf,
    /// The network
    #[arg(long, value_enum, default_value_t = BackboneName::Alex)]
    pub(crate) backbone: BackboneName,
    /// Its weights, torchvision's: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PplArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) data: EvalDataArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
    /// Pairs of pictures [default: half as many as there are pictures]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) pairs: Option<usize>,
    /// Length of a step on the way between two pictures
    #[arg(long, default_value_t = 1e-4, value_name = "E")]
    pub(crate) epsilon: f64,
    /// Decoding steps
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Steps of the inversion
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) invert_steps: usize,
    /// The network of LPIPS
    #[arg(long, value_enum, default_value_t = BackboneName::Vgg)]
    pub(crate) backbone: BackboneName,
    /// Its weights, torchvision's: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct FewShotArgs {
    #[command(flatten)]
    pub(crate) labelled: LabelledArgs,
    /// Labelled pictures: so many of which half have the attribute; or so many that have it, and unlabelled ones
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100], value_name = "K,K,..", value_parser = two_or_more)]
    pub(crate) shots: Vec<usize>,
    /// How often the pictures are drawn
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = positive)]
    pub(crate) draws: usize,
    /// Vectors that the latent net invents for the classifiers to choose from; 0 does not invent
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(crate) invented: usize,
    /// Chosen vectors of each attribute and classifier that are decoded to pictures
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) decoded: usize,
    /// Decoding steps
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Steps of the latent net
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) latent_steps: usize,
}

#[derive(Debug, Args)]
pub(crate) struct AllArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) data: EvalDataArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
    /// Attributes: attributes, disentanglement and few-shot are measured too
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// Folder of pairs: edits are measured too
    #[arg(long, value_name = "DIR")]
    pub(crate) pairs: Option<PathBuf>,
    /// Weights of a feature network: the distance of invented pictures is measured too
    #[arg(long, value_name = "FILE")]
    pub(crate) feature_weights: Option<PathBuf>,
    /// Which feature network
    #[arg(long, value_enum, default_value_t = FeatureName::Inception)]
    pub(crate) features: FeatureName,
    #[command(flatten)]
    pub(crate) lpips: LpipsArgs,
    /// Resamples for the intervals of the Frechet distance and of disentanglement; each takes as long as the figures
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) resamples: usize,
    /// Numbers of decoding steps of recon; the other measures take the middle one
    #[arg(long, value_delimiter = ',', default_values_t = [10, 20, 50], value_name = "N,N,..", value_parser = positive)]
    pub(crate) steps: Vec<usize>,
}

impl From<BackboneName> for LpipsBackbone {
    fn from(name: BackboneName) -> Self {
        match name {
            BackboneName::Alex => Self::Alex,
            BackboneName::Vgg => Self::Vgg,
            BackboneName::Squeeze => Self::Squeeze,
        }
    }
}

/// Where the x_T of another program's pictures came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum XTerminalKind {
    /// From the picture
    Inverted,
    /// From chance
    Random,
}

#[derive(Debug, Args)]
pub(crate) struct ReconArgs {
    #[command(flatten)]
    pub(crate) judged: JudgedArgs,
    /// Where the x_T of --pictures came from, for comparisons; their number of steps is the first of --steps
    #[arg(long, value_enum, default_value_t = XTerminalKind::Inverted, requires = "pictures")]
    pub(crate) made_with: XTerminalKind,
    #[command(flatten)]
    pub(crate) data: EvalDataArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
    #[command(flatten)]
    pub(crate) lpips: LpipsArgs,
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
    /// Fit the probes to all of these pictures, cropped alike, and score those of --data, instead of cross-validating
    #[arg(long, value_name = "DIR", requires = "train_labels", conflicts_with = "folds")]
    pub(crate) train_data: Option<PathBuf>,
    /// Attributes of --train-data, those of --labels among them in any order; or `folders`
    #[arg(long, value_name = "FILE", requires = "train_data")]
    pub(crate) train_labels: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DisentanglementArgs {
    #[command(flatten)]
    pub(crate) labelled: LabelledArgs,
    /// Resamples of the pictures for 95% intervals; each takes as long as the figures
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) resamples: usize,
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
    /// How loosely the probe is held: scikit-learn's C [default: attributes chooses it for each probe, by pictures that it
    /// is neither fitted to nor scored on; the other measures take 1]
    #[arg(long, value_name = "C")]
    pub(crate) inverse_penalty: Option<f64>,
}

impl LabelledArgs {
    /// The penalty of measures that do not choose one.
    pub(crate) fn fixed_inverse_penalty(&self) -> f64 {
        self.inverse_penalty.unwrap_or(1.)
    }
}

/// Which way an edit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EditDirection {
    /// Along the model's own directions, as `diffae edit` does
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
    /// Edit as `diffae edit --keep-residual` does
    #[arg(long)]
    pub(crate) keep_residual: bool,
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

/// Whose features are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FeatureName {
    /// Inception-v3 of pytorch-fid: the distance is the FID
    Inception,
    /// EfficientNet-Lite0, whose weights are in a Python package
    #[value(name = "efficientnet-lite0")]
    EfficientNetLite0,
    /// DINOv2: small, base or large
    #[value(name = "dinov2")]
    DinoV2,
}

/// Which pictures are compared with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FidProtocol {
    /// The pictures as they are
    Plain,
    /// As the paper: 50,000 pictures of the model, and the first 50,000 real ones, half of them flipped
    Reference,
}

/// What a model makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FidSource {
    /// Sampled if the model can, else decoded
    Auto,
    /// Invented pictures
    Sampled,
    /// The z_sem of the real pictures, decoded from random x_T
    Decoded,
}

#[derive(Debug, Args)]
pub(crate) struct FidArgs {
    #[command(flatten)]
    pub(crate) judged: JudgedArgs,
    /// The real pictures: a folder, a .tar archive or an LMDB
    #[arg(long, value_name = "DIR", required_unless_present = "reference_statistics")]
    pub(crate) data: Option<PathBuf>,
    /// What is cut out of a real picture before it is resized to the size of the model, or to --size
    #[arg(long, value_enum, default_value_t = PictureCrop::Center)]
    pub(crate) crop: PictureCrop,
    /// With --pictures: cut real pictures, and resize them to so many pixels [default: leave them as they are]
    #[arg(long, value_name = "PIXELS", value_parser = positive, requires = "pictures")]
    pub(crate) size: Option<usize>,
    /// Take the first real pictures only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) broken: BrokenArgs,
    /// Whose features are compared
    #[arg(long, value_enum, default_value_t = FeatureName::Inception)]
    pub(crate) features: FeatureName,
    /// Weights of that network: .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
    /// Which pictures are compared
    #[arg(long, value_enum, default_value_t = FidProtocol::Plain)]
    pub(crate) protocol: FidProtocol,
    /// What the model makes
    #[arg(long, value_enum, default_value_t = FidSource::Auto)]
    pub(crate) source: FidSource,
    /// How many pictures the model makes [default: as many as there are real ones]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) count: Option<usize>,
    /// Decoding steps
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Steps of the latent net
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(crate) latent_steps: usize,
    /// Statistics of the real pictures, as pytorch-fid writes them (.npz), instead of --data or beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) reference_statistics: Option<PathBuf>,
    /// Keep the statistics of the real pictures in this .npz file
    #[arg(long, value_name = "FILE", conflicts_with = "reference_statistics")]
    pub(crate) save_statistics: Option<PathBuf>,
    /// Resamples of the judged pictures for a 95% interval of the Frechet distance; each takes as long as the distance.
    /// Since a resample repeats pictures, the interval lies a little above the distance where pictures are few
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) resamples: usize,
    /// Pictures of a subset for KID
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = two_or_more)]
    pub(crate) kid_subset: usize,
    /// Number of subsets for KID
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = positive)]
    pub(crate) kid_subsets: usize,
    /// Neighbors that span a neighborhood, for precision, recall, density and coverage
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = positive)]
    pub(crate) neighbors: usize,
    /// Pictures of each set that these four look at
    #[arg(long, default_value_t = 5000, value_name = "N", value_parser = positive)]
    pub(crate) manifold_limit: usize,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
}

impl XTerminalKind {
    /// As in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Inverted => "inverted",
            Self::Random => "random",
        }
    }
}

impl From<FeatureName> for FeatureKind {
    fn from(name: FeatureName) -> Self {
        match name {
            FeatureName::Inception => Self::Inception,
            FeatureName::EfficientNetLite0 => Self::EfficientNetLite0,
            FeatureName::DinoV2 => Self::DinoV2,
        }
    }
}

impl From<PictureCrop> for Crop {
    fn from(crop: PictureCrop) -> Self {
        match crop {
            PictureCrop::Center => Self::Center,
            PictureCrop::Celeba => Self::Celeba,
        }
    }
}

impl FidProtocol {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Reference => "reference",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Reports: the JSON files that other measures have written
    #[arg(required = true, value_name = "REPORT.json")]
    pub(crate) reports: Vec<PathBuf>,
    /// Write the comparison there too: compare.json, curves over the steps, and the sheets of the reports below each
    /// other
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn two_or_more(text: &str) -> Result<usize, String> {
    let number = positive(text)?;
    if number < 2 { Err("must be at least 2".to_owned()) } else { Ok(number) }
}
