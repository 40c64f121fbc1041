//! What can go wrong when a model is loaded or used.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No model where one was expected.
    #[error("{} is not a model: {problem}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// The reason, with the way out.
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
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A `config.json` of another version.
    #[error("{} has format version {got}, this program reads {supported}", path.display())]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u32,
        /// What is read.
        supported: u32,
    },
    /// Weights or networks do not fit.
    #[error("cannot load {}", path.display())]
    Weights {
        /// The model.
        path: PathBuf,
        /// Why.
        #[source]
        source: diffae_nets::Error,
    },
    /// A network could not be built from weights.
    #[error("cannot build the {part} of {}", path.display())]
    Build {
        /// Which network.
        part: &'static str,
        /// The model.
        path: PathBuf,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
    /// The model lacks a part.
    #[error("the model has no {part}: {hint}")]
    MissingPart {
        /// What is missing.
        part: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Something that was given does not fit the model.
    #[error("{what} is {got}, the model expects {expected}")]
    Mismatch {
        /// What was given.
        what: String,
        /// Its size.
        got: String,
        /// What the model expects.
        expected: String,
    },
    /// An attribute that the model does not know.
    #[error("the model has no attribute {name:?}; it has {known}")]
    UnknownAttribute {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A new attribute whose name the model has already.
    #[error("the model has an attribute {name:?} already")]
    AttributeExists {
        /// The name.
        name: String,
    },
    /// Names of attributes that differ in case, spaces, underscores and hyphens alone.
    #[error("{name:?} may be {first:?} or {second:?}; spell it exactly")]
    AmbiguousAttribute {
        /// What was asked for.
        name: String,
        /// One attribute.
        first: String,
        /// Another.
        second: String,
    },
    /// An attribute that is edited twice at once.
    #[error("attribute {name} is given twice")]
    AttributeTwice {
        /// The attribute.
        name: String,
    },
    /// Codes that another model made.
    #[error("{} was made by model {got}, not by the one given, which is {expected}", path.display())]
    ForeignCodes {
        /// The file.
        path: PathBuf,
        /// Fingerprint of the model that made them.
        got: String,
        /// Fingerprint of the model given.
        expected: String,
    },
    /// Another run writes there.
    #[error("another run is writing {}; wait until it has ended, or write elsewhere", path.display())]
    Locked {
        /// Where both want to write.
        path: PathBuf,
    },
    /// What an interrupted run has kept was made with other settings.
    #[error("{} was begun with other settings: {differences}; begin anew without --resume, or repeat the command of then",
        path.display())]
    OtherSettings {
        /// Where results go.
        path: PathBuf,
        /// What differs, in words.
        differences: String,
    },
    /// A picture could not be encoded.
    #[error("cannot write the picture {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A safetensors file lacks a tensor or holds one of another kind.
    #[error("{}: {problem}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A value that must be finite is not.
    #[error("{what} holds a value that is not finite")]
    NotFinite {
        /// What holds it.
        what: String,
    },
    /// A number outside its range.
    #[error("{what} is {got}, expected {expected}")]
    OutOfRange {
        /// What it is.
        what: &'static str,
        /// Its value.
        got: String,
        /// The range.
        expected: &'static str,
    },
    /// Pictures or files.
    #[error(transparent)]
    Data(#[from] diffae_data::Error),
    /// A noise schedule or a chain.
    #[error("the diffusion chain failed")]
    Schedule(#[source] diffae_schedule::Error),
    /// The caller's observer or callback asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A tensor operation failed.
    #[error("{part} failed")]
    Tensor {
        /// What was computed.
        part: &'static str,
        /// Why.
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

/// Adds what was computed to a tensor error.
pub(crate) fn computing<T>(part: &'static str, result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Tensor { part, source })
}
