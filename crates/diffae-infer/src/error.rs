//! Errors of loading and using a model.

use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Every failure of this crate, with the facts that explain it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A path holds no model.
    #[error("{} is not a model: {problem}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// The problem, with a way to solve it.
        problem: String,
    },
    /// A training run whose first stage is not finished.
    #[error(
        "the training run in {path} has not reached its first model: go on with `diffae train --out {path} --resume`",
        path = path.display()
    )]
    UntrainedRun {
        /// The folder of the run.
        path: PathBuf,
    },
    /// A `config.json` is damaged.
    #[error("{} is not a valid model config", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A `config.json` of another version.
    #[error("{} has format version {got}, this program reads {supported}", path.display())]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        got: u32,
        /// The version that this program reads.
        supported: u32,
    },
    /// Weights or networks do not fit.
    #[error("{}", source.cannot_load(path))]
    Weights {
        /// The model.
        path: PathBuf,
        /// The cause.
        #[source]
        source: diffae_nets::Error,
    },
    /// A network could not be built from weights.
    #[error("cannot build the {part} of {}", path.display())]
    Build {
        /// The name of the network.
        part: &'static str,
        /// The model.
        path: PathBuf,
        /// The cause.
        #[source]
        source: candle_core::Error,
    },
    /// The model lacks a part.
    #[error("the model has no {part}: {hint}")]
    MissingPart {
        /// The missing part.
        part: &'static str,
        /// A way to add the part.
        hint: &'static str,
    },
    /// An input does not fit the model.
    #[error("{what} is {got}, the model expects {expected}")]
    Mismatch {
        /// A description of the input.
        what: String,
        /// The size of the input.
        got: String,
        /// The size that the model expects.
        expected: String,
    },
    /// An attribute that the model does not know.
    #[error("the model has no attribute {name:?}; it has {known}")]
    UnknownAttribute {
        /// The requested name.
        name: String,
        /// The names of the model's attributes.
        known: String,
    },
    /// A new attribute has the name of an existing one.
    #[error("the model has an attribute {name:?} already")]
    AttributeExists {
        /// The name.
        name: String,
    },
    /// Names of attributes that differ in case, spaces, underscores and hyphens alone.
    #[error("{name:?} may be {first:?} or {second:?}; spell it exactly")]
    AmbiguousAttribute {
        /// The requested name.
        name: String,
        /// One matching attribute.
        first: String,
        /// Another matching attribute.
        second: String,
    },
    /// An attribute that is edited twice at once.
    #[error("attribute {name} is given twice")]
    AttributeTwice {
        /// The attribute.
        name: String,
    },
    /// A file of codes cannot be read.
    #[error("cannot read the codes")]
    Codes {
        /// The cause, which names the file.
        #[source]
        source: diffae_nets::Error,
    },
    /// Files that are to be joined cannot be read or do not fit.
    #[error("the files cannot be joined")]
    Parts {
        /// The cause.
        #[source]
        source: diffae_nets::Error,
    },
    /// Shards of a listing are not among the files to join.
    #[error("of {count} shards {got} are missing")]
    MissingShards {
        /// Numbers of the missing shards.
        got: String,
        /// Number of all shards.
        count: usize,
    },
    /// A device that there is not.
    #[error("{problem}")]
    Device {
        /// The problem, with a way to solve it.
        problem: String,
    },
    /// Settings that do not go together.
    #[error("{problem}")]
    Conflict {
        /// The settings, and why.
        problem: String,
    },
    /// A setting that cannot be followed.
    #[error("{name}")]
    Option {
        /// The option of the program that sets it.
        name: &'static str,
        /// The cause.
        #[source]
        source: Box<Error>,
    },
    /// Codes of another model.
    #[error("{} was made by model {got}, not by the one given, which is {expected}", path.display())]
    ForeignCodes {
        /// The file.
        path: PathBuf,
        /// Fingerprint of the model of the codes.
        got: String,
        /// Fingerprint of the model in use.
        expected: String,
    },
    /// Stochastic codes of several chains are to be combined.
    #[error(
        "stochastic codes of {first} and of {second} do not go together; encode all pictures alike, and take samples of several chains one by one"
    )]
    MixedChains {
        /// One chain.
        first: String,
        /// Another chain.
        second: String,
    },
    /// Another run writes to the same place.
    #[error("another run is writing {}; wait until it has ended, or write elsewhere", path.display())]
    Locked {
        /// The target of both runs.
        path: PathBuf,
    },
    /// The partial results of an interrupted run have other settings.
    #[error("{} was begun with other settings: {differences}; begin anew without --resume, or repeat the command of then",
        path.display())]
    OtherSettings {
        /// The target of the results.
        path: PathBuf,
        /// A description of the differences.
        differences: String,
    },
    /// A picture could not be encoded.
    #[error("cannot write the picture {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A safetensors file lacks a tensor or holds one of another kind.
    #[error("{}: {problem}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// A description of the problem.
        problem: String,
    },
    /// A value that must be finite is not.
    #[error("{what} holds a value that is not finite")]
    NotFinite {
        /// The name of the value.
        what: String,
    },
    /// Levels of `z_sem`, of a model that has one code for all resolutions.
    #[error(
        "z_sem of this model has no levels: it is one code for all resolutions. A model is trained with levels by model.z_levels"
    )]
    NoLevels,
    /// A level of `z_sem` that the model does not have.
    #[error("there is no level {got} of z_sem: the model has {num_levels}, from 0, the finest resolution")]
    UnknownLevel {
        /// The level.
        got: usize,
        /// Number of levels of the model.
        num_levels: usize,
    },
    /// A number outside its range.
    #[error("{what} is {got}, expected {expected}")]
    OutOfRange {
        /// The name of the number.
        what: &'static str,
        /// The number as text.
        got: String,
        /// The allowed range.
        expected: &'static str,
    },
    /// An error of reading pictures, labels or files.
    #[error(transparent)]
    Data(#[from] diffae_data::Error),
    /// An error of a noise schedule or a chain.
    #[error(transparent)]
    Schedule(diffae_schedule::Error),
    /// The caller's observer or callback asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A tensor operation failed.
    #[error("{part} failed")]
    Tensor {
        /// The name of the computation.
        part: &'static str,
        /// The cause.
        #[source]
        source: candle_core::Error,
    },
}

impl From<diffae_schedule::Error> for Error {
    fn from(source: diffae_schedule::Error) -> Self {
        match source {
            diffae_schedule::Error::Cancelled { .. } => Self::Cancelled,
            other => Self::Schedule(other),
        }
    }
}

/// Adds the name of the computation to a tensor error.
pub(crate) fn computing<T>(part: &'static str, result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Tensor { part, source })
}
