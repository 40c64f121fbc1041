//! What can go wrong in a training run.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Weights to begin with that are not of these networks.
    #[error("the weights to begin with are of another architecture: {problem}")]
    OtherNetworks {
        /// The first tensor that does not fit.
        problem: String,
    },
    /// Codes that are no pairs, or to which no direction can be fitted.
    #[error("no direction can be fitted to the pairs: {problem}")]
    Pairs {
        /// Why.
        problem: String,
    },
    /// A file or folder could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no preset of that name.
    #[error("there is no preset {name:?}; there are {known}")]
    UnknownPreset {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// A config is not TOML, or has keys that do not exist, or lacks some.
    #[error("the training config cannot be read")]
    Config(#[source] Box<toml::de::Error>),
    /// `--set` names a key that does not exist.
    #[error("there is no setting {key:?}; {hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Keys that there are.
        hint: String,
    },
    /// `--set` is not of the form key=value.
    #[error("{text:?} is not of the form key=value")]
    NotAnAssignment {
        /// What was given.
        text: String,
    },
    /// A setting is out of its range.
    #[error("{key} is {got}, expected {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// Its value.
        got: String,
        /// Its range.
        expected: &'static str,
    },
    /// Networks, weights or model files.
    #[error(transparent)]
    Infer(#[from] diffae_infer::Error),
    /// Sizes of networks that do not fit.
    #[error("the networks cannot be built")]
    Nets(#[from] diffae_nets::Error),
    /// The schedule has no such number of steps as previews are to take.
    #[error("run.preview_steps does not fit")]
    PreviewSteps(#[source] diffae_schedule::Error),
    /// A schedule or a chain.
    #[error("the diffusion failed")]
    Schedule(#[from] diffae_schedule::Error),
    /// A tensor operation failed.
    #[error("training failed in the tensor arithmetic")]
    Tensor(#[from] candle_core::Error),
    /// No pictures, or too few.
    #[error("{}: {problem}", path.display())]
    Data {
        /// The data.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Too many pictures could not be read.
    #[error(
        "{broken} of {seen} pictures could not be read, more than the share {limit} that data.max_broken_share allows; the last: {last}"
    )]
    TooManyBroken {
        /// How many.
        broken: usize,
        /// Pictures of the data.
        seen: usize,
        /// What is allowed.
        limit: f64,
        /// The last one, with the reason.
        last: String,
    },
    /// Another process works in the run folder.
    #[error("another run is at work in {}", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds a run that has been begun.
    #[error(
        "a run was already started in {path}{how}; go on with it by `diffae train --out {path} --resume`, or choose \
         another folder",
        path = path.display()
    )]
    Started {
        /// The folder.
        path: PathBuf,
        /// In what it differs from the one that was asked for, after a space; empty if in nothing.
        how: String,
    },
    /// The run folder holds something else than this run.
    #[error("{}: {problem}", path.display())]
    Run {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The loss or the gradient of a training step is NaN or infinite.
    #[error("the {quantity} is {value} at step {step}, on {batch}; the last good checkpoint is kept")]
    Diverged {
        /// `loss`, or `norm of the gradient`.
        quantity: &'static str,
        /// Its value.
        value: f64,
        /// Number of steps made before.
        step: usize,
        /// Samples of the step's batch.
        batch: String,
    },
}

impl Error {
    /// Says which samples a step diverged on; other errors stay as they are.
    pub(crate) fn on_batch(self, samples: impl FnOnce() -> String) -> Self {
        match self {
            Self::Diverged { quantity, value, step, .. } => Self::Diverged { quantity, value, step, batch: samples() },
            other => other,
        }
    }
}

/// Adds a path to an I/O error.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { path, source }
}
