//! Errors of configs, weight files and tensors.

use std::path::{Path, PathBuf};

use crate::counted::counted;
use crate::image_size::ImageSize;
use crate::weights::{FileKind, TorchError};

/// Result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error type of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Files that hold parts of the same tensors do not fit together.
    #[error("{}: {name} is {got}, expected {expected}", path.display())]
    PartMismatch {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Number type and sizes in this file.
        got: String,
        /// Number type and sizes in the first file.
        expected: String,
    },
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Computation(#[from] candle_core::Error),
    /// A size that must be positive is zero.
    #[error("{network}: {field} must be positive")]
    ZeroField {
        /// Name of the network.
        network: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// A size is larger than any model needs.
    #[error("{network}: {field} is {got}, at most {most} is supported")]
    FieldTooLarge {
        /// Name of the network.
        network: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        got: usize,
        /// Largest supported value.
        most: usize,
    },
    /// Pictures cannot be halved as often as the levels need.
    #[error("{network}: image_size {image_size} is not divisible by {factor}, as its levels need")]
    ImageNotDivisible {
        /// Name of the network.
        network: &'static str,
        /// Image size of the config.
        image_size: ImageSize,
        /// Two to the power of the number of halvings.
        factor: usize,
    },
    /// Pictures cannot be halved down to 4 pixels.
    #[error("{network}: image_size is {image_size}, expected a power of two, 8 at least")]
    ImageNotPowerOfTwo {
        /// Name of the network.
        network: &'static str,
        /// Image size of the config.
        image_size: usize,
    },
    /// A config has parts of two kinds of models, or of none.
    #[error("a model is a unet with its diffusion (and an encoder), or a compact autoencoder; these parts are neither")]
    NotOneModel,
    /// The timesteps of a chain that belongs to a model do not fit its schedule.
    #[error(
        "the timesteps of its chains are not strictly increasing below {num_train_timesteps}, the number of its training timesteps"
    )]
    NotAChain {
        /// Number of training timesteps.
        num_train_timesteps: usize,
    },
    /// An attention resolution is not the resolution of any level.
    #[error("{network}: attention resolution {resolution} never occurs; the levels have {occurring:?}")]
    AttentionNeverOccurs {
        /// Name of the network.
        network: &'static str,
        /// Resolution that does not occur.
        resolution: usize,
        /// Resolutions of the levels.
        occurring: Vec<usize>,
    },
    /// A norm cannot split its channels evenly.
    #[error("{network}: {block} has {}, which {} cannot divide evenly", counted(*channels, "channel"), counted(*groups, "group"))]
    GroupsDoNotDivide {
        /// Name of the network.
        network: &'static str,
        /// Name of the block.
        block: String,
        /// Channels of the block.
        channels: usize,
        /// Groups of the norm.
        groups: usize,
    },
    /// Weights of a pretrained network are of one of another size.
    #[error("the weights are of a network of {} features and {} blocks, {network} has {} and {}", got.0, got.1, expected.0, expected.1)]
    OtherFeatures {
        /// Name of the network that was asked for.
        network: &'static str,
        /// Numbers of features and of blocks in the weights.
        got: (usize, usize),
        /// Numbers of both in the network.
        expected: (usize, usize),
    },
    /// A network of color pictures cannot take pictures of so many channels.
    #[error("{network}: pictures have {got} channels; it takes 3, or 1 for gray ones")]
    NoColor {
        /// Name of the network.
        network: &'static str,
        /// Channels of pictures.
        got: usize,
    },
    /// A spatial autoencoder with a shortcut has no room in its latents for the channels of pictures.
    #[error("spatial autoencoder: latent_channels is {got}, but a shortcut needs those of pictures, {least}")]
    TooFewLatents {
        /// Channels of latents.
        got: usize,
        /// Channels of pictures.
        least: usize,
    },
    /// Attention cannot split its channels evenly.
    #[error("{network}: {block} has {}, which {} cannot divide evenly", counted(*channels, "channel"), counted(*num_heads, "head"))]
    HeadsDoNotDivide {
        /// Name of the network.
        network: &'static str,
        /// Name of the block.
        block: String,
        /// Channels of the block.
        channels: usize,
        /// Number of attention heads.
        num_heads: usize,
    },
    /// A dropout probability outside `[0, 1)`.
    #[error("{network}: dropout is {got}, expected a number in [0, 1)")]
    DropoutOutOfRange {
        /// Name of the network.
        network: &'static str,
        /// Configured probability.
        got: f64,
    },
    /// Two sizes that must agree differ.
    #[error("{what} is {got}, {of} is {expected}")]
    WidthMismatch {
        /// Name of the first size.
        what: &'static str,
        /// Value of the first size.
        got: usize,
        /// Name of the second size.
        of: &'static str,
        /// Value of the second size.
        expected: usize,
    },
    /// The sizes of the pictures of two parts that must agree differ.
    #[error("{what} is {got}, {of} is {expected}")]
    SizeMismatch {
        /// Name of the first size.
        what: &'static str,
        /// Value of the first size.
        got: ImageSize,
        /// Name of the second size.
        of: &'static str,
        /// Value of the second size.
        expected: ImageSize,
    },
    /// A part that knows pictures only, in a model of volumes.
    #[error("{part} is for pictures, not for volumes; the image size is {got}")]
    NotForVolumes {
        /// Name of the part.
        part: &'static str,
        /// Image size of the model.
        got: ImageSize,
    },
    /// Parts of a hierarchical `z_sem` that the levels of a network, or the width of the whole code, do not allow.
    #[error(
        "{network}: z_levels is {got:?}, expected one width for each of {num_levels} levels, and {width} together, the width of \
         z_sem"
    )]
    ZLevelsDoNotFit {
        /// Name of the network.
        network: &'static str,
        /// Widths of the config.
        got: Vec<usize>,
        /// Number of levels of the network.
        num_levels: usize,
        /// Width of `z_sem`.
        width: usize,
    },
    /// An encoder that does not reach the resolutions of the parts of `z_sem`.
    #[error("the encoder has {got} levels, and needs {needed}, one for each resolution that has a part of z_sem")]
    ZLevelWithoutResolution {
        /// Number of levels that are needed.
        needed: usize,
        /// Number of levels of the encoder.
        got: usize,
    },
    /// Parts of `z_sem` that are not computed where they are used.
    #[error(
        "z_levels of the encoder are [{encoder}], which are not those of the unet, [{unet}], at the same resolutions"
    )]
    ZLevelsDiffer {
        /// Widths of the encoder, one for each of its levels.
        encoder: String,
        /// Widths of the `UNet`.
        unet: String,
    },
    /// An encoder is joined with a `UNet` without semantic code.
    #[error("the unet is conditioned on time alone, so it cannot be joined with an encoder")]
    NoZSem,
    /// A part that needs semantic codes, in a model that has none.
    #[error("a plain DDPM has no semantic code, so it cannot have a {part}")]
    NeedsZSem {
        /// Name of the part.
        part: &'static str,
    },
    /// A `UNet` with a semantic code but no encoder.
    #[error("the unet has a semantic code, but the model has no encoder")]
    NoEncoder,
    /// A skip layer of the latent net that does not exist.
    #[error("skip layer {layer} is outside 1..{num_layers}")]
    SkipLayerOutOfRange {
        /// Index of the layer.
        layer: usize,
        /// Number of layers.
        num_layers: usize,
    },
    /// Two attributes of the same name.
    #[error("attribute {name:?} occurs twice")]
    DuplicateAttribute {
        /// Name of both attributes.
        name: String,
    },
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: std::io::Error,
    },
    /// A safetensors file is damaged.
    #[error("{} is not a valid safetensors file", path.display())]
    Safetensors {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A safetensors file ends too early.
    #[error(
        "{} is a safetensors file that was cut off: it has {got} of at least {}; download or copy it again",
        path.display(),
        counted(*needed, "byte")
    )]
    SafetensorsCut {
        /// Path of the file.
        path: PathBuf,
        /// Length of the file.
        got: u64,
        /// Length according to the header; that of the header, if it is itself truncated.
        needed: u64,
    },
    /// A file is of another kind where tensors in safetensors were expected.
    #[error("{} is not a safetensors file but {kind}", path.display())]
    NotSafetensors {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the file.
        kind: FileKind,
    },
    /// An index of several safetensors files does not fit them.
    #[error("the index {} does not fit: {problem}", path.display())]
    Shards {
        /// Path of the index.
        path: PathBuf,
        /// The mismatch.
        problem: String,
    },
    /// One of several files of a model, without the others.
    #[error("{} is shard {number} of {count} of a model; {remedy}", path.display())]
    LoneShard {
        /// Path of the file.
        path: PathBuf,
        /// Number of the shard, from 1.
        number: usize,
        /// Number of shards.
        count: usize,
        /// Advice that leads to the whole model.
        remedy: String,
    },
    /// A file of hyper-parameters beside the weights cannot be used.
    #[error("{} holds no hyper-parameters: {problem}; correct or remove it", path.display())]
    HyperParameterFile {
        /// Path of the file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// A `PyTorch` file cannot be used.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// A tensor that the model needs is missing.
    #[error("tensor {name} is missing")]
    TensorMissing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has an unexpected shape.
    #[error("tensor {name} has shape {got:?}, expected {expected:?}")]
    ShapeMismatch {
        /// Name of the tensor.
        name: String,
        /// Shape of the tensor.
        got: Vec<usize>,
        /// Shape according to the config.
        expected: Vec<usize>,
    },
    /// A tensor has a number type that cannot hold weights.
    #[error("tensor {name} holds {dtype}, expected f64, f32, f16 or bf16")]
    UnsupportedDtype {
        /// Name of the tensor.
        name: String,
        /// Number type of the tensor.
        dtype: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("tensor {name} holds a value that is not finite")]
    NotFinite {
        /// Name of the tensor.
        name: String,
    },
    /// Tensors of the file that no network uses.
    #[error(
        "the model that the config describes does not use {}{}",
        counted(*count, "tensor"),
        if *count == 1 { format!(": {name}") } else { format!(", the first of which is {name}") }
    )]
    UnusedTensors {
        /// Number of unused tensors.
        count: usize,
        /// Name of the first one.
        name: String,
    },
    /// A tensor that two layers read.
    #[error("tensor {name} is used more than once")]
    TensorUsedTwice {
        /// Name of the tensor.
        name: String,
    },
    /// Two copies of one parameter differ.
    #[error("tensors {first} and {second} name one parameter but differ: keep the right one alone")]
    CopiesDiffer {
        /// Name of one copy.
        first: String,
        /// Name of the other copy.
        second: String,
    },
    /// A checkpoint requires an option that the released models do not use.
    #[error("hyper-parameter {key} is {got}, only {supported} is supported")]
    UnsupportedHyperParameter {
        /// Key of the hyper-parameter.
        key: String,
        /// Value of the hyper-parameter.
        got: String,
        /// Supported values.
        supported: String,
    },
    /// A hyper-parameter is missing or has the wrong type.
    #[error("hyper-parameter {key} is {got}, expected {expected}")]
    BadHyperParameter {
        /// Key of the hyper-parameter.
        key: String,
        /// Value of the hyper-parameter.
        got: String,
        /// Expected type or value.
        expected: &'static str,
    },
    /// The shapes of a checkpoint do not determine the architecture.
    #[error("the architecture cannot be worked out from the tensors: {problem}")]
    CannotInfer {
        /// Reason, and the option that resolves it.
        problem: String,
    },
    /// A file has no spatial autoencoder, or one of other layers.
    #[error("{} cannot be used as a spatial autoencoder: {problem}", path.display())]
    NoSpatialAutoencoder {
        /// Path of the file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// A checkpoint lacks the requested part.
    #[error("{} holds no {expected}", path.display())]
    NotThere {
        /// Path of the file.
        path: PathBuf,
        /// Part that was looked for.
        expected: &'static str,
    },
    /// A file has no parameters of a model.
    #[error("{} holds no Diffusion Autoencoder (input_blocks.0.0.weight below ema_model., model. or no prefix): {found}", path.display())]
    NoNetwork {
        /// Path of the file.
        path: PathBuf,
        /// Contents of the file, and their use.
        found: String,
    },
    /// A file has only another set of parameters.
    #[error("{} holds no {asked}, only {there}: read it with --weights {instead}", path.display())]
    NoSuchSet {
        /// Path of the file.
        path: PathBuf,
        /// Set that was requested.
        asked: &'static str,
        /// Set that the file has.
        there: String,
        /// Choice that reads the set that is there.
        instead: &'static str,
    },
    /// A file has several sets of parameters of one kind.
    #[error("{} holds two models, {first}* and {second}*: save the right one alone", path.display())]
    TwoSets {
        /// Path of the file.
        path: PathBuf,
        /// Prefix of the names of one.
        first: String,
        /// Prefix of the names of the other.
        second: String,
    },
    /// Two sources contradict each other.
    #[error("{first}, but {second}: {remedy}")]
    Contradiction {
        /// Statement of the first source.
        first: String,
        /// Statement of the second source.
        second: String,
        /// Advice that resolves the contradiction.
        remedy: &'static str,
    },
    /// A component of `z_sem` that does not vary cannot be normalized.
    #[error("the standard deviation of component {component} of z_sem is not positive")]
    StdNotPositive {
        /// Index of the component.
        component: usize,
    },
    /// A tensor operation failed.
    #[error("{part} failed")]
    Tensor {
        /// Part of the model that failed.
        part: &'static str,
        /// Cause of the failure.
        #[source]
        source: candle_core::Error,
    },
}

impl Error {
    /// Returns the file or folder that the message names, if it is about one of weights.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::Safetensors { path, .. }
            | Self::SafetensorsCut { path, .. }
            | Self::NotSafetensors { path, .. }
            | Self::Shards { path, .. }
            | Self::LoneShard { path, .. }
            | Self::HyperParameterFile { path, .. }
            | Self::NotThere { path, .. }
            | Self::NoSpatialAutoencoder { path, .. }
            | Self::NoNetwork { path, .. }
            | Self::NoSuchSet { path, .. }
            | Self::TwoSets { path, .. } => Some(path),
            Self::Torch(error) => error.path(),
            _ => None,
        }
    }

    /// Returns the sentence that the file at `path` cannot be loaded, for an error whose cause is this one: it names the
    /// file, unless this error does.
    #[must_use]
    pub fn cannot_load(&self, path: &Path) -> String {
        if self.path() == Some(path) {
            "cannot load the weights".to_owned()
        } else {
            format!("cannot load {}", path.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_once() {
        let path = || PathBuf::from("a.pt");
        let error = Error::from(TorchError::NotTorch { path: path(), kind: FileKind::Npy });
        assert!(
            error.to_string().starts_with("a.pt is a NumPy array, not a file of weights; save all arrays"),
            "{error}"
        );
        assert_eq!(error.cannot_load(&path()), "cannot load the weights");
        assert_eq!(error.cannot_load(Path::new("b")), "cannot load b");
        assert_eq!(Error::NoEncoder.cannot_load(&path()), "cannot load a.pt");
    }

    #[test]
    fn counts_and_nouns_agree() {
        let unused = |count| Error::UnusedTensors { count, name: "a".to_owned() }.to_string();
        assert!(unused(1).ends_with("does not use 1 tensor: a"), "{}", unused(1));
        assert!(unused(2).ends_with("does not use 2 tensors, the first of which is a"), "{}", unused(2));
    }
}
