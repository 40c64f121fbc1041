//! Errors of measures and feature networks.

use candle_core::DType;

/// The result of measuring image quality.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of measures and feature networks.
///
/// `batch` is the name of the parameter at fault, `x` or `y`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A batch has neither the axes N, C, H and W nor, for measures that take volumes, N, C, D, H and W.
    #[error("image batch {batch} has shape {got:?}, expected four axes [N, C, H, W], or of volumes five")]
    Rank {
        /// The parameter at fault.
        batch: &'static str,
        /// Shape of the batch.
        got: Vec<usize>,
    },

    /// There is no pixel to measure: an axis has length zero.
    #[error("image batches are empty: their shape is {shape:?}")]
    Empty {
        /// The shape of both batches.
        shape: Vec<usize>,
    },

    /// The batches cannot be compared pixel by pixel.
    #[error("image batches differ in shape: x has {x:?}, y has {y:?}")]
    ShapeMismatch {
        /// The shape of `x`.
        x: Vec<usize>,
        /// The shape of `y`.
        y: Vec<usize>,
    },

    /// A batch is not f32.
    #[error("image batch {batch} has dtype {got:?}, expected F32")]
    DType {
        /// The parameter at fault.
        batch: &'static str,
        /// Dtype of the batch.
        got: DType,
    },

    /// A batch holds a NaN or an infinity.
    #[error("image {image_idx} of batch {batch} holds {value}, expected finite values")]
    NonFinite {
        /// The parameter at fault.
        batch: &'static str,
        /// Index of the image in the batch, from 0.
        image_idx: usize,
        /// The first such value of that image.
        value: f32,
    },

    /// A batch leaves the value range the measures are defined on.
    #[error("image {image_idx} of batch {batch} holds {value}, expected values in [0, 1]")]
    ValueOutOfRange {
        /// The parameter at fault.
        batch: &'static str,
        /// Index of the image in the batch, from 0.
        image_idx: usize,
        /// The first such value of that image.
        value: f32,
    },

    /// The values of a batch could not be read from its device.
    #[error("image batch {batch} could not be read from its device")]
    Tensor {
        /// The parameter at fault.
        batch: &'static str,
        /// Candle's error.
        #[source]
        source: candle_core::Error,
    },
    /// Pictures have neither one channel nor three.
    #[error("pictures have shape {got:?}, expected one or three channels [N, C, H, W]")]
    Channels {
        /// Shape of the pictures.
        got: Vec<usize>,
    },
    /// A file of statistics cannot be read or written.
    #[error("{path}: {problem}", path = path.display())]
    StatisticsFile {
        /// The file.
        path: std::path::PathBuf,
        /// Description of the problem.
        problem: String,
    },
    /// The weights of a feature network cannot be read, or are of another one.
    #[error("the weights of a feature network cannot be used")]
    Weights(#[from] diffae_nets::Error),
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Computation(#[from] candle_core::Error),
    /// An error of a model, its codes or its chains.
    #[error(transparent)]
    Infer(#[from] diffae_infer::Error),
    /// An error of reading pictures, labels or files.
    #[error(transparent)]
    Data(#[from] diffae_data::Error),
    /// A file of results could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// `"read"`, `"write"` or `"remove"`.
        action: &'static str,
        /// The file or folder.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A number outside its range.
    #[error("{what} is {got}, expected {expected}")]
    OutOfRange {
        /// Name of the number.
        what: &'static str,
        /// The number as text.
        got: String,
        /// The allowed range.
        expected: &'static str,
    },
    /// Model or data do not allow the measure.
    #[error("{problem}")]
    Unsuitable {
        /// Description of the problem.
        problem: String,
    },
    /// The folder holds results of other settings.
    #[error("{} is of another evaluation{}", path.display(), in_parentheses(difference))]
    OtherEvaluation {
        /// The file.
        path: std::path::PathBuf,
        /// The first setting that differs; empty if it is not known.
        difference: String,
    },
    /// Values that were kept cannot be read.
    #[error("line {line} of {} is damaged", path.display())]
    DamagedJournal {
        /// The file.
        path: std::path::PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A file is not a report.
    #[error("{} is not a report of an evaluation", path.display())]
    Report {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A measured value is NaN or infinite.
    #[error("{name} of {item} is {value}: {cause}")]
    NonFiniteValue {
        /// Name of the value.
        name: String,
        /// Item that it was measured on.
        item: String,
        /// The value.
        value: f64,
        /// The likely cause.
        cause: &'static str,
    },
    /// A report could not be encoded.
    #[error("a report could not be encoded")]
    Encoding(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Images are too small for a measure over several scales.
    #[error("images have a side of {got} pixels, expected at least {least}")]
    TooSmall {
        /// Length of the shorter side.
        got: usize,
        /// Smallest side allowed.
        least: usize,
    },
    /// Features do not have the two axes N and D.
    #[error("features have shape {got:?}, expected [N, D]")]
    FeatureRank {
        /// Shape of the features.
        got: Vec<usize>,
    },
    /// Features differ in width.
    #[error("features have width {got}, expected {expected}")]
    WidthMismatch {
        /// Width of the features at fault.
        got: usize,
        /// Width of the other features.
        expected: usize,
    },
    /// There are too few items for a statistic.
    #[error("got {got} {what}, expected at least {least}")]
    TooFew {
        /// Name of the items.
        what: &'static str,
        /// Number of items.
        got: usize,
        /// Smallest number of items.
        least: usize,
    },
    /// A batch holds a NaN or an infinity.
    #[error("{batch} hold NaN or infinity")]
    NotFinite {
        /// Name of the batch.
        batch: &'static str,
    },
    /// Eigenvalues did not converge.
    #[error("cannot compute the eigenvalues of a covariance: {problem}")]
    Eigen {
        /// The solver's error.
        problem: String,
    },
    /// All labels are of one class, where a measure needs both.
    #[error("all labels are the same, expected both classes")]
    OneClass,
    /// The numbers of scores and labels differ.
    #[error("there are {scores} scores for {labels} labels")]
    Lengths {
        /// Number of scores.
        scores: usize,
        /// Number of labels.
        labels: usize,
    },
}

fn in_parentheses(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// Adds the action and the path to an I/O error.
pub(crate) fn cannot(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Fails if a number is below its least value.
pub(crate) fn check_at_least(what: &'static str, got: usize, least: usize) -> Result<()> {
    if got >= least {
        return Ok(());
    }
    let expected = if least > 1 { "two or more" } else { "one or more" };
    Err(Error::OutOfRange { what, got: got.to_string(), expected })
}

/// Returns the error for a model or data that do not allow the measure.
pub(crate) fn unsuitable(problem: impl Into<String>) -> Error {
    Error::Unsuitable { problem: problem.into() }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Encoding(Box::new(error))
    }
}

impl From<csv::Error> for Error {
    fn from(error: csv::Error) -> Self {
        Self::Encoding(Box::new(error))
    }
}
