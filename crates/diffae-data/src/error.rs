//! What can go wrong with pictures, labels and files.

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
    /// A file exists already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// No pictures in the given paths.
    #[error("there are no pictures in {}", path.display())]
    NoPictures {
        /// The folder or file.
        path: PathBuf,
    },
    /// A folder whose pictures are all of formats that are not read.
    #[error("{} holds {found}, which are not read; convert them to PNG or JPEG", path.display())]
    OnlyUnreadPictures {
        /// The folder.
        path: PathBuf,
        /// How many of which formats.
        found: String,
    },
    /// A picture could not be decoded.
    #[error("cannot read {} as a picture", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: image::ImageError,
    },
    /// A file that is no picture, or a picture of a kind that is not read.
    #[error("cannot read {} as a picture: {problem}", path.display())]
    UnreadPicture {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do about it.
        problem: String,
    },
    /// A picture file that is not whole.
    #[error("{} is damaged: {problem}", path.display())]
    DamagedPicture {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        problem: String,
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
    /// A picture could not be resized.
    #[error("cannot resize {}", path.display())]
    Resize {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Pictures of a channel count that files cannot hold.
    #[error("pictures of {channels} channels cannot be {action}; use .safetensors files")]
    Channels {
        /// The channel count.
        channels: usize,
        /// `"read from image files"` or `"written as image files"`.
        action: &'static str,
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
    /// A safetensors file lacks a tensor or holds one of another kind.
    #[error("{}: {problem}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
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
    /// A file of landmarks is damaged or something else.
    #[error("{} is not a landmark model of dlib: byte {offset}: {problem}", path.display())]
    LandmarkModel {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: usize,
        /// What is wrong.
        problem: String,
    },
    /// A file of boxes of faces.
    #[error("{path}: {problem}", path = path.display())]
    FaceBoxes {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A photograph without a box.
    #[error("there is no box for {name} in the file of boxes")]
    NoFaceBox {
        /// The photograph.
        name: String,
    },
    /// Landmarks that a face cannot be cut out by.
    #[error("the landmarks do not show a face: {problem}")]
    Landmarks {
        /// What is wrong.
        problem: String,
    },
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

/// Adds a path to an I/O error.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { path, source }
}

/// Adds what was computed to a tensor error.
pub(crate) fn computing<T>(part: &'static str, result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Tensor { part, source })
}
