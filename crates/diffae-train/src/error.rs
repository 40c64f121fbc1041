//! Errors of data, config, run folder and training.

use std::path::PathBuf;

/// Result with the [`Error`] of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Initial weights do not fit the networks.
    #[error("the weights to begin with are of another architecture: {problem}")]
    OtherNetworks {
        /// Name and fault of the first tensor that does not fit.
        problem: String,
    },
    /// Codes are not paired, or no direction can be fitted to them.
    #[error("no direction can be fitted to the pairs: {problem}")]
    Pairs {
        /// Cause of the error.
        problem: String,
    },
    /// A file or folder could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Cause of the error.
        #[source]
        source: std::io::Error,
    },
    /// There is no preset of that name.
    #[error("there is no preset {name:?}; there are {known}")]
    UnknownPreset {
        /// Requested name.
        name: String,
        /// Names of all presets.
        known: String,
    },
    /// A config is not TOML, or has keys that do not exist, or lacks some.
    #[error("the training config cannot be read")]
    Config(#[source] Box<toml::de::Error>),
    /// `--set` names a key that does not exist.
    #[error("there is no setting {key:?}; {hint}")]
    UnknownKey {
        /// Key of the setting.
        key: String,
        /// Keys that exist.
        hint: String,
    },
    /// `--set` is not of the form key=value.
    #[error("{text:?} is not of the form key=value")]
    NotAnAssignment {
        /// Text of the assignment.
        text: String,
    },
    /// A setting is out of its range.
    #[error("{key} is {got}, expected {expected}")]
    Setting {
        /// Key of the setting.
        key: &'static str,
        /// Value that was given.
        got: String,
        /// Range of valid values.
        expected: &'static str,
    },
    /// Pictures, labels or files.
    #[error(transparent)]
    Data(#[from] diffae_data::Error),
    /// An error of networks, weights or model files.
    #[error(transparent)]
    Infer(#[from] diffae_infer::Error),
    /// Sizes of the networks do not fit together.
    #[error("the networks cannot be built")]
    Nets(#[from] diffae_nets::Error),
    /// A number of steps or a spacing does not fit the schedule.
    #[error("{key} does not fit")]
    Chain {
        /// Key of the setting.
        key: &'static str,
        /// Cause of the error.
        #[source]
        source: diffae_schedule::Error,
    },
    /// A schedule or a chain of steps cannot be made.
    #[error("the diffusion failed")]
    Schedule(#[from] diffae_schedule::Error),
    /// A tensor operation failed.
    #[error("training failed in the tensor arithmetic")]
    Tensor(#[from] candle_core::Error),
    /// Another process is using the run folder.
    #[error("another run is at work in {}", path.display())]
    Locked {
        /// Run folder.
        path: PathBuf,
    },
    /// The folder already holds a run.
    #[error(
        "a run was already started in {path}{how}; go on with it by `diffae train --out {path} --resume`, or choose \
         another folder",
        path = path.display()
    )]
    Started {
        /// Run folder.
        path: PathBuf,
        /// First difference from the requested run, after a space; empty without a difference.
        how: String,
    },
    /// The run folder holds something other than this run.
    #[error("{}: {problem}", path.display())]
    Run {
        /// The folder or file.
        path: PathBuf,
        /// Fault and remedy.
        problem: String,
    },
    /// Another process of the group has ended, or cannot be reached any more.
    #[error(
        "process {rank} of {size} has ended or cannot be reached (its own message may say why); the last checkpoint is \
         kept, and --resume goes on from it with any number of processes"
    )]
    Lost {
        /// Rank of the other process.
        rank: usize,
        /// Number of processes.
        size: usize,
        /// Cause of the error.
        #[source]
        source: std::io::Error,
    },
    /// Another process of the group has failed, and this one ends with it.
    #[error("process {rank} of {size} has failed: {problem}")]
    Elsewhere {
        /// Rank of the other process.
        rank: usize,
        /// Number of processes.
        size: usize,
        /// Error of the other process.
        problem: String,
    },
    /// Processes cannot work as a group.
    #[error("the processes cannot train together: {problem}")]
    Group {
        /// Cause of the error, and remedy.
        problem: String,
    },
    /// The loss or the gradient of a training step is NaN or infinite.
    #[error("the {quantity} is {value} at step {step}, on {batch}; the last good checkpoint is kept")]
    Diverged {
        /// `loss`, or `norm of the gradient`.
        quantity: &'static str,
        /// Value that was given.
        value: f64,
        /// Number of steps made before.
        step: usize,
        /// Samples of the step's batch.
        batch: String,
    },
}

impl Error {
    /// Adds the samples of the batch to [`Error::Diverged`]; other errors stay as they are.
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
