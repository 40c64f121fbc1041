//! Errors of this crate.

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Every failure of this crate, with the facts that explain it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model cannot be loaded.
    #[error(transparent)]
    Infer(#[from] diffae_infer::Error),
    /// A file cannot be written.
    #[error(transparent)]
    Data(#[from] diffae_data::Error),
    /// The chain of the model does not exist.
    #[error(transparent)]
    Schedule(#[from] diffae_schedule::Error),
    /// A weight is missing, left over, or has no value in the number type.
    #[error("the weights cannot be exported")]
    Nets(#[from] diffae_nets::Error),
    /// A tensor does not have the shape that the networks give it.
    #[error("{part} failed")]
    Tensor {
        /// The part of the export.
        part: &'static str,
        /// The cause.
        #[source]
        source: candle_core::Error,
    },
    /// A graph is larger than a file of its format can be.
    #[error(
        "the ONNX graph of {part} would have {bytes} bytes, more than the {max} that the format allows; --half needs half of that"
    )]
    TooLarge {
        /// The part of the model.
        part: &'static str,
        /// The size that its file would have.
        bytes: usize,
        /// The maximum size.
        max: usize,
    },
    /// The manifest holds a number that JSON has not.
    #[error("the manifest cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}
