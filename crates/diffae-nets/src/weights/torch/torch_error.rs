//! Errors of PyTorch checkpoints.

use std::path::{Path, PathBuf};

use super::file_kind::{FileKind, sentence};
use super::pickle_error::PickleError;
use super::zip_kind::ZipKind;
use crate::counted::counted;

/// Clause about a file of another kind.
const NO_WEIGHTS: &str = ", not a file of weights";

/// Reason for which a checkpoint, or a tensor in one, cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The file cannot be opened or mapped.
    #[error("cannot open {path}", path = path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is of another kind.
    #[error("{} is {}", path.display(), sentence(&kind.noun(), NO_WEIGHTS, kind.remedy()))]
    NotTorch {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the file.
        kind: FileKind,
    },
    /// The file has the format before PyTorch 1.6, but is broken.
    #[error("cannot read {path}, which is in the format before PyTorch 1.6", path = path.display())]
    Legacy {
        /// Path of the file.
        path: PathBuf,
        /// Damage to the file.
        source: LegacyError,
    },
    /// A folder of `torch.distributed.checkpoint` cannot be read.
    #[error(
        "cannot read the checkpoint in pieces {path}; join them with \
         `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt`",
        path = path.display()
    )]
    Sharded {
        /// Path of the folder.
        path: PathBuf,
        /// Damage to the folder.
        source: ShardedError,
    },
    /// The file is a zip archive, but a broken one.
    #[error("cannot read the archive {path}", path = path.display())]
    Archive {
        /// Path of the file.
        path: PathBuf,
        /// Damage to the archive.
        source: ArchiveError,
    },
    /// The file is a zip archive of something else.
    #[error("{} is {}", path.display(), sentence(&kind.noun(), NO_WEIGHTS, Some(&kind.remedy())))]
    OtherArchive {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the archive.
        kind: ZipKind,
    },
    /// The archive holds more than one checkpoint.
    #[error("{path} holds several checkpoints: {first:?} and {second:?}", path = path.display())]
    SeveralPickles {
        /// Path of the file.
        path: PathBuf,
        /// Name of one checkpoint.
        first: String,
        /// Name of another one.
        second: String,
    },
    /// The checkpoint was written on a machine with another byte order.
    #[error(
        "{path} has the byte order {found:?}, expected \"little\"; load it in Python on a machine of this kind and save it again",
        path = path.display()
    )]
    ByteOrder {
        /// Path of the file.
        path: PathBuf,
        /// Content of the entry `byteorder`.
        found: String,
    },
    /// The checkpoint's pickle is broken.
    #[error("cannot read the pickle {entry:?} of {path}", path = path.display())]
    Pickle {
        /// Path of the file.
        path: PathBuf,
        /// Name of the entry.
        entry: String,
        /// Damage to the pickle.
        source: PickleError,
    },
    /// The checkpoint is not a dict that holds tensors.
    #[error(
        "{path} holds {found}, expected a dict; load it in Python and save its tensors with \
         `torch.save(network.state_dict(), \"weights.pt\")`",
        path = path.display()
    )]
    RootNotDict {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the saved object.
        found: String,
    },
    /// The checkpoint has no such entry.
    #[error("the checkpoint has no entry {key:?}, only {available:?}")]
    MissingKey {
        /// Key that was looked for.
        key: String,
        /// Some of the keys that exist.
        available: Vec<String>,
    },
    /// An entry of the checkpoint is not a dict.
    #[error("the entry {key:?} is {found}, expected a dict")]
    NotDict {
        /// Key of the entry.
        key: String,
        /// Kind of the value.
        found: String,
    },
    /// A dict has a key twice.
    #[error("the key {key:?} appears twice in {within}")]
    DuplicateKey {
        /// Name of the dict.
        within: String,
        /// Key that appears twice.
        key: String,
    },
    /// A dict holds more tensors than any checkpoint needs.
    #[error("{within} holds more than {limit} tensors")]
    TooManyTensors {
        /// Name of the dict.
        within: String,
        /// Limit on the number of tensors.
        limit: usize,
    },
    /// The tensors of a dict are far larger together than the storages that they share.
    #[error("the tensors of {within} would take more than {limit} bytes, far more than their storages have")]
    TooManyBytes {
        /// Name of the dict.
        within: String,
        /// Limit on the number of bytes.
        limit: u64,
    },
    /// A tensor's description is not what PyTorch writes.
    #[error("the description of tensor {tensor:?} is broken: {problem}")]
    MalformedTensor {
        /// Name of the tensor.
        tensor: String,
        /// Damage to the description.
        problem: &'static str,
    },
    /// A tensor is of a kind that is not supported: sparse, quantized, complex and so on.
    #[error("tensor {tensor:?} is stored as {class:?}, which is not supported")]
    UnsupportedTensor {
        /// Name of the tensor.
        tensor: String,
        /// Storage class of the tensor, or the function that would rebuild it.
        class: String,
    },
    /// A tensor lies in a storage that the checkpoint does not have.
    #[error("tensor {tensor:?} lies in {entry:?}, which the checkpoint does not have")]
    MissingStorage {
        /// Name of the tensor.
        tensor: String,
        /// Name of the entry.
        entry: String,
    },
    /// A storage cannot be read.
    #[error("cannot read tensor {tensor:?}")]
    Storage {
        /// Name of the tensor.
        tensor: String,
        /// Damage to the storage.
        source: ArchiveError,
    },
    /// A storage does not have the length that the pickle declares.
    #[error("tensor {tensor:?} lies in {entry:?}, which has {}, expected {expected}", counted(*got, "byte"))]
    StorageLen {
        /// Name of the tensor.
        tensor: String,
        /// Name of the entry.
        entry: String,
        /// Length of the entry.
        got: u64,
        /// Expected length, numbers times bytes per number; saturates.
        expected: u64,
    },
    /// A tensor has more elements than its storage.
    #[error("tensor {tensor:?} has shape {shape:?}, more elements than the {storage_numel} of its storage")]
    LargerThanStorage {
        /// Name of the tensor.
        tensor: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Number of elements of the storage.
        storage_numel: usize,
    },
    /// A tensor reaches beyond its storage.
    #[error(
        "tensor {tensor:?} with shape {shape:?}, strides {strides:?} and offset {offset} reaches beyond its storage of {}",
        counted(*storage_numel, "element")
    )]
    OutOfStorage {
        /// Name of the tensor.
        tensor: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Strides of the tensor, in elements.
        strides: Vec<usize>,
        /// Index of the first element.
        offset: usize,
        /// Number of elements of the storage.
        storage_numel: usize,
    },
    /// An entry cannot be written as JSON.
    #[error("cannot read the entry {key:?} as plain data")]
    Json {
        /// Key of the entry.
        key: String,
        /// Cause of the failure.
        source: JsonError,
    },
}

impl TorchError {
    /// Returns the file or folder that the message names.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Open { path, .. }
            | Self::NotTorch { path, .. }
            | Self::Legacy { path, .. }
            | Self::Sharded { path, .. }
            | Self::Archive { path, .. }
            | Self::OtherArchive { path, .. }
            | Self::SeveralPickles { path, .. }
            | Self::ByteOrder { path, .. }
            | Self::Pickle { path, .. }
            | Self::RootNotDict { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// Damage to an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The archive ends before its directory.
    #[error(
        "the archive ends after {} without a directory: it was not written or downloaded to the end",
        counted(*file_len, "byte")
    )]
    NoDirectoryEnd {
        /// Length of the file.
        file_len: usize,
    },
    /// The record at the end contradicts itself or the file.
    #[error("the directory of the archive does not fit to the file of {}", counted(*file_len, "byte"))]
    BadDirectoryEnd {
        /// Length of the file.
        file_len: usize,
    },
    /// An entry of the directory is truncated or invalid.
    #[error("entry {entry_idx} of {num_entries} in the directory of the archive is broken")]
    BadDirectoryEntry {
        /// Index of the entry.
        entry_idx: u64,
        /// Number of entries.
        num_entries: u64,
    },
    /// Two entries have one name.
    #[error("the archive has two entries {entry:?}")]
    DuplicateEntry {
        /// Name of both entries.
        entry: String,
    },
    /// An entry is compressed.
    #[error(
        "the entry {entry:?} is compressed with method {method}; PyTorch never compresses, so the archive was packed \
         again: unpack and pack it without compression, or save it again with torch.save"
    )]
    Compressed {
        /// Name of the entry.
        entry: String,
        /// Compression method by the zip specification; 8 is deflate.
        method: u16,
    },
    /// An entry is encrypted.
    #[error("the entry {entry:?} is encrypted")]
    Encrypted {
        /// Name of the entry.
        entry: String,
    },
    /// An entry that is not compressed has two sizes.
    #[error("the entry {entry:?} has {} in the file, but {len} when unpacked", counted(*stored_len, "byte"))]
    TwoSizes {
        /// Name of the entry.
        entry: String,
        /// Unpacked size of the entry.
        len: u64,
        /// Size of the entry in the file.
        stored_len: u64,
    },
    /// An entry is not where the directory says.
    #[error("the file is damaged: the entry {entry:?} is not where the directory of the archive says")]
    Misplaced {
        /// Name of the entry.
        entry: String,
    },
    /// An entry does not match its checksum.
    #[error("the file is damaged: the entry {entry:?} has the CRC-32 {got:08x}, expected {expected:08x}")]
    Damaged {
        /// Name of the entry.
        entry: String,
        /// Checksum of the data.
        got: u32,
        /// Checksum by the directory.
        expected: u32,
    },
}

/// Reason for which plain data have no JSON form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The data is nested too deeply, or recursively.
    #[error("the data are nested more than {limit} levels deep, or contain themselves")]
    TooDeep {
        /// Limit on the nesting.
        limit: usize,
    },
    /// The data has too many values.
    #[error("the data have more than {limit} values, with shared ones counted at each use")]
    TooManyValues {
        /// Limit on the number of values.
        limit: usize,
    },
    /// The data has too much text.
    #[error("the data have more than {limit} bytes of text, with shared ones counted at each use")]
    TooMuchText {
        /// Limit on the bytes of text.
        limit: usize,
    },
    /// A dict has a key twice, or two keys with the same text.
    #[error("the key {key:?} appears twice in a dict")]
    DuplicateKey {
        /// Key that appears twice.
        key: String,
    },
}

/// Damage to a folder of `torch.distributed.checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardedError {
    /// The pickle of the metadata is broken.
    #[error("the pickle of .metadata is broken")]
    Pickle(#[source] PickleError),
    /// The metadata lacks a part, or has it in another form.
    #[error(".metadata lacks {what} in the form that PyTorch writes")]
    Missing {
        /// Name of the part.
        what: &'static str,
    },
    /// A folder has more files, pieces or values than any checkpoint needs.
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// Kind of items that are too many.
        what: &'static str,
        /// Limit on their number.
        limit: usize,
    },
    /// The metadata names a file outside the folder.
    #[error(".metadata names {name:?}, which is no file of the folder")]
    FileName {
        /// Name of the file.
        name: String,
    },
    /// A range reaches beyond its file.
    #[error(
        "a piece of {} at byte {start} reaches beyond the end of its file; copy the folder again",
        counted(*len, "byte")
    )]
    BeyondFile {
        /// Start of the range.
        start: usize,
        /// Length of the range.
        len: usize,
    },
    /// The pieces of a tensor do not make the whole.
    #[error("the pieces of tensor {tensor:?} do not make the whole")]
    Pieces {
        /// Name of the tensor.
        tensor: String,
    },
    /// The pieces are in safetensors, another format.
    #[error("its pieces are safetensors")]
    Safetensors,
}

/// Damage to a checkpoint of the format before PyTorch 1.6.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LegacyError {
    /// One of the pickles at the start of the file is broken.
    #[error("the pickle of {part} is broken")]
    Pickle {
        /// Name of the pickle.
        part: &'static str,
        /// Damage to the pickle.
        source: PickleError,
    },
    /// The version is unknown.
    #[error("its version is not {expected}")]
    Version {
        /// Version that is known.
        expected: i64,
    },
    /// The numbers have the opposite byte order.
    #[error("its numbers are not little-endian")]
    ByteOrder,
    /// A storage has an unknown type of numbers, so that what is behind them cannot be found.
    #[error("storage {key} is of class {class}, which this reader does not know")]
    StorageClass {
        /// Key of the storage.
        key: String,
        /// Class of the storage.
        class: String,
    },
    /// The keys are not a list of strings.
    #[error("the keys of its storages are missing")]
    NoKeys,
    /// No tensor uses a storage.
    #[error("storage {key} belongs to no tensor")]
    UnknownStorage {
        /// Key of the storage.
        key: String,
    },
    /// A storage has another size than its tensors expect.
    #[error("storage {key} holds {}, its tensors expect {expected}", counted(*got, "number"))]
    StorageNumel {
        /// Key of the storage.
        key: String,
        /// Number of elements by the file.
        got: i64,
        /// Number of elements by the pickle.
        expected: usize,
    },
    /// The file ends too early.
    #[error("the file ends after {}, within storage {key}", counted(*len, "byte"))]
    Truncated {
        /// Length of the file.
        len: usize,
        /// Key of the storage.
        key: String,
    },
}
