//! What can be wrong with a config, a weight file or a tensor.

use std::path::PathBuf;

use crate::weights::{FileKind, TorchError};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be positive is zero.
    #[error("{network}: {field} must be positive")]
    ZeroField {
        /// Which network.
        network: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// A size is beyond what any model has.
    #[error("{network}: {field} is {got}, at most {most} is supported")]
    FieldTooLarge {
        /// Which network.
        network: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        got: usize,
        /// The limit.
        most: usize,
    },
    /// Pictures cannot be halved as often as the levels need.
    #[error("{network}: image_size {image_size} is not divisible by {factor}, as its levels need")]
    ImageNotDivisible {
        /// Which network.
        network: &'static str,
        /// The size.
        image_size: usize,
        /// Two to the power of the number of halvings.
        factor: usize,
    },
    /// Pictures cannot be halved down to 4 pixels.
    #[error("{network}: image_size is {image_size}, expected a power of two, 8 at least")]
    ImageNotPowerOfTwo {
        /// Which network.
        network: &'static str,
        /// The size.
        image_size: usize,
    },
    /// A config has parts of two kinds of models, or of none.
    #[error("a model is a unet with its diffusion (and an encoder), or a compact autoencoder; these parts are neither")]
    NotOneModel,
    /// An attention resolution is not the resolution of any level.
    #[error("{network}: attention resolution {resolution} never occurs; the levels have {occurring:?}")]
    AttentionNeverOccurs {
        /// Which network.
        network: &'static str,
        /// The resolution.
        resolution: usize,
        /// Resolutions of the levels.
        occurring: Vec<usize>,
    },
    /// A norm cannot split its channels evenly.
    #[error("{network}: {block} has {channels} channels, which {groups} groups do not divide")]
    GroupsDoNotDivide {
        /// Which network.
        network: &'static str,
        /// Which block.
        block: String,
        /// Its channels.
        channels: usize,
        /// The groups of its norm.
        groups: usize,
    },
    /// Attention cannot split its channels evenly.
    #[error("{network}: {block} has {channels} channels, which {num_heads} heads do not divide")]
    HeadsDoNotDivide {
        /// Which network.
        network: &'static str,
        /// Which block.
        block: String,
        /// Its channels.
        channels: usize,
        /// The heads.
        num_heads: usize,
    },
    /// A dropout probability outside `[0, 1)`.
    #[error("{network}: dropout is {got}, expected a number in [0, 1)")]
    DropoutOutOfRange {
        /// Which network.
        network: &'static str,
        /// The value.
        got: f64,
    },
    /// Two sizes that must agree do not.
    #[error("{what} is {got}, {of} is {expected}")]
    WidthMismatch {
        /// The first size.
        what: &'static str,
        /// Its value.
        got: usize,
        /// The second size.
        of: &'static str,
        /// Its value.
        expected: usize,
    },
    /// An encoder was given to a `UNet` without semantic code.
    #[error("the unet is conditioned on time alone, so it cannot be joined with an encoder")]
    NoZSem,
    /// A `UNet` with a semantic code but no encoder.
    #[error("the unet has a semantic code, but the model has no encoder")]
    NoEncoder,
    /// A skip layer of the latent net that does not exist.
    #[error("skip layer {layer} is outside 1..{num_layers}")]
    SkipLayerOutOfRange {
        /// The layer.
        layer: usize,
        /// Number of layers.
        num_layers: usize,
    },
    /// Two attributes of the same name.
    #[error("attribute {name:?} occurs twice")]
    DuplicateAttribute {
        /// The name.
        name: String,
    },
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A safetensors file is damaged.
    #[error("{} is not a valid safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A safetensors file that ends too early.
    #[error("{} is a safetensors file that was cut off: it has {got} of at least {needed} bytes; download or copy it again", path.display())]
    SafetensorsCut {
        /// The file.
        path: PathBuf,
        /// Its length.
        got: u64,
        /// The length by its header; that of the header if this is cut off itself.
        needed: u64,
    },
    /// Another kind of file where tensors in safetensors were expected.
    #[error("{} is not a safetensors file but {kind}", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// Its kind.
        kind: FileKind,
    },
    /// An index of several safetensors files that does not fit them.
    #[error("the index {} does not fit: {problem}", path.display())]
    Shards {
        /// The index.
        path: PathBuf,
        /// The mismatch.
        problem: String,
    },
    /// A file of hyper-parameters beside the weights cannot be used.
    #[error("{} holds no hyper-parameters: {problem}; correct or remove it", path.display())]
    HyperParameterFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// A `PyTorch` file cannot be used.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// A tensor that the model needs is not there.
    #[error("tensor {name} is missing")]
    TensorMissing {
        /// Its name.
        name: String,
    },
    /// A tensor has an unexpected shape.
    #[error("tensor {name} has shape {got:?}, expected {expected:?}")]
    ShapeMismatch {
        /// Its name.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// What the config says.
        expected: Vec<usize>,
    },
    /// A tensor has a number type that cannot hold weights.
    #[error("tensor {name} holds {dtype}, expected f64, f32, f16 or bf16")]
    UnsupportedDtype {
        /// Its name.
        name: String,
        /// Its number type.
        dtype: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("tensor {name} holds a value that is not finite")]
    NotFinite {
        /// Its name.
        name: String,
    },
    /// Tensors of the file that no network uses.
    #[error("{count} tensors are not used by the model that the config describes, first {name}")]
    UnusedTensors {
        /// How many.
        count: usize,
        /// The first.
        name: String,
    },
    /// A tensor that two layers read.
    #[error("tensor {name} is used more than once")]
    TensorUsedTwice {
        /// Its name.
        name: String,
    },
    /// Two copies of one parameter differ.
    #[error("tensors {first} and {second} name one parameter but differ: keep the right one alone")]
    CopiesDiffer {
        /// One name.
        first: String,
        /// The other name.
        second: String,
    },
    /// A checkpoint asks for something that the released models do not use.
    #[error("hyper-parameter {key} is {got}, only {supported} is supported")]
    UnsupportedHyperParameter {
        /// The key.
        key: String,
        /// Its value.
        got: String,
        /// What is supported.
        supported: String,
    },
    /// A hyper-parameter is missing or has the wrong type.
    #[error("hyper-parameter {key} is {got}, expected {expected}")]
    BadHyperParameter {
        /// The key.
        key: String,
        /// Its value.
        got: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The shapes of a checkpoint do not tell the architecture.
    #[error("the architecture cannot be worked out from the tensors: {problem}")]
    CannotInfer {
        /// Why, and what to give.
        problem: String,
    },
    /// A checkpoint does not hold what is asked of it.
    #[error("{} holds no {expected}", path.display())]
    NotThere {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// A file without the parameters of a model.
    #[error("{} holds no Diffusion Autoencoder (input_blocks.0.0.weight below ema_model., model. or no prefix): {found}", path.display())]
    NoNetwork {
        /// The file.
        path: PathBuf,
        /// Its contents, and their use.
        found: String,
    },
    /// A file that has only another set of parameters.
    #[error("{} holds no {asked}, only {there}: read it with --weights {instead}", path.display())]
    NoSuchSet {
        /// The file.
        path: PathBuf,
        /// The set that was asked for.
        asked: &'static str,
        /// The set that the file has.
        there: String,
        /// The choice that reads what there is.
        instead: &'static str,
    },
    /// A file with several sets of parameters of one kind.
    #[error("{} holds two models, {first}* and {second}*: save the right one alone", path.display())]
    TwoSets {
        /// The file.
        path: PathBuf,
        /// Prefix of the names of one.
        first: String,
        /// Prefix of the names of the other.
        second: String,
    },
    /// Two sources tell different things of one fact.
    #[error("{first}, but {second}: {remedy}")]
    Contradiction {
        /// One statement.
        first: String,
        /// The other statement.
        second: String,
        /// The way out.
        remedy: &'static str,
    },
    /// A component of `z_sem` that does not vary cannot be normalized.
    #[error("the standard deviation of component {component} of z_sem is not positive")]
    StdNotPositive {
        /// Which component.
        component: usize,
    },
    /// A tensor operation failed.
    #[error("{part} failed")]
    Tensor {
        /// Which part of the model.
        part: &'static str,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
}
