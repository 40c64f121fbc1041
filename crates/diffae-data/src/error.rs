//! Errors of pictures, labels and files.

use std::path::PathBuf;

use crate::notices::counted;

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
    /// A file exists already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A shard that does not exist.
    #[error("{got:?} is no shard, expected NUMBER/COUNT with a number from 1 to the count, such as 3/8")]
    Shard {
        /// The text.
        got: String,
    },
    /// The environment does not tell which shard of a Slurm job array a process is.
    #[error(
        "the environment has {got}, expected a task of a whole Slurm array, 1-N or 0-(N-1); for some tasks of one write the \
             shard as NUMBER/N, with numbers from 1"
    )]
    NoSlurmArray {
        /// The task.
        got: String,
    },
    /// No pictures in the given paths.
    #[error("there are no pictures in {}", path.display())]
    NoPictures {
        /// The folder or file.
        path: PathBuf,
    },
    /// A folder or an archive whose pictures are all of unsupported formats, or in files that are not read.
    #[error("there are no pictures in {} that are read, only {found}", path.display())]
    OnlyUnreadPictures {
        /// The folder or archive.
        path: PathBuf,
        /// The number of files of each kind, with a remedy for each.
        found: String,
    },
    /// A picture could not be decoded.
    #[error("cannot read {} as a picture", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: image::ImageError,
    },
    /// A file that is not a picture, or is one of an unsupported kind.
    #[error("cannot read {} as a picture: {problem}", path.display())]
    UnreadPicture {
        /// The file.
        path: PathBuf,
        /// The kind of the file, with a way to convert it.
        problem: String,
    },
    /// An incomplete picture file.
    #[error("{} is damaged: {problem}", path.display())]
    DamagedPicture {
        /// The file.
        path: PathBuf,
        /// The missing or damaged part.
        problem: String,
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
    /// A picture could not be resized.
    #[error("cannot resize {}", path.display())]
    Resize {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Pictures that a kind of file cannot hold.
    #[error("pictures of {channels} channels cannot be {action}; use .npy or .safetensors files")]
    Channels {
        /// The channel count.
        channels: usize,
        /// `"read from image files"` or `"written as image files"`.
        action: &'static str,
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
    /// A safetensors file lacks a tensor or holds one of another kind.
    #[error("{}: {problem}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// A description of the problem.
        problem: String,
    },
    /// A file that should hold arrays of `NumPy`.
    #[error("{}: {problem}", path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// A description of the problem.
        problem: String,
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
    /// A value that must be finite is not.
    #[error("{what} holds a value that is not finite")]
    NotFinite {
        /// The name of the value.
        what: String,
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
    /// A data set has too few pictures, or is otherwise unusable.
    #[error("{}: {problem}", path.display())]
    Data {
        /// The data.
        path: PathBuf,
        /// A description of the problem.
        problem: String,
    },
    /// Too many pictures could not be read.
    #[error(
        "{broken} of {} could not be read, more than the share {limit} that data.max_broken_share allows; the last: {last}",
        counted(*seen, "picture")
    )]
    TooManyBroken {
        /// The number of unreadable pictures.
        broken: usize,
        /// The number of pictures in the data.
        seen: usize,
        /// The allowed share.
        limit: f64,
        /// The last unreadable picture, with the reason.
        last: String,
    },
    /// A landmark model file is damaged or of another kind.
    #[error("{} is not a landmark model of dlib: byte {offset}: {problem}", path.display())]
    LandmarkModel {
        /// The file.
        path: PathBuf,
        /// The position in the file, in bytes.
        offset: usize,
        /// A description of the problem.
        problem: String,
    },
    /// A file of face boxes is damaged.
    #[error("{path}: {problem}", path = path.display())]
    FaceBoxes {
        /// The file.
        path: PathBuf,
        /// A description of the problem.
        problem: String,
    },
    /// A photograph without a box.
    #[error("there is no box for {name} in the file of boxes")]
    NoFaceBox {
        /// The photograph.
        name: String,
    },
    /// Landmarks from which no crop can be computed.
    #[error("the landmarks do not show a face: {problem}")]
    Landmarks {
        /// A description of the problem.
        problem: String,
    },
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

/// Adds a path to an I/O error.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { path, source }
}

/// Adds the name of the computation to a tensor error.
pub(crate) fn computing<T>(part: &'static str, result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Tensor { part, source })
}
