//! What can be wrong with a PyTorch checkpoint.

use std::path::PathBuf;

use super::file_kind::FileKind;
use super::pickle_error::PickleError;
use super::zip_kind::ZipKind;

/// Why a checkpoint, or a tensor in one, cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The file cannot be opened or mapped.
    #[error("cannot open {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{path} is no file of weights that can be read but {kind}", path = path.display())]
    NotTorch {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: FileKind,
    },
    /// The file has the format before PyTorch 1.6, but is broken.
    #[error("cannot read {path}, which is in the format before PyTorch 1.6", path = path.display())]
    Legacy {
        /// The file.
        path: PathBuf,
        /// What is broken.
        source: LegacyError,
    },
    /// A folder of `torch.distributed.checkpoint` that cannot be read.
    #[error(
        "cannot read the checkpoint in pieces {path}; join them with \
         `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt`",
        path = path.display()
    )]
    Sharded {
        /// The folder.
        path: PathBuf,
        /// The damage.
        source: ShardedError,
    },
    /// The file is a zip archive, but a broken one.
    #[error("cannot read the archive {path}", path = path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is broken.
        source: ArchiveError,
    },
    /// The file is a zip archive of something else.
    #[error("{path} is no file of weights that can be read but {kind}", path = path.display())]
    OtherArchive {
        /// The file.
        path: PathBuf,
        /// Its kind.
        kind: ZipKind,
    },
    /// The archive holds more than one checkpoint.
    #[error("{path} holds several checkpoints: {first:?} and {second:?}", path = path.display())]
    SeveralPickles {
        /// The file.
        path: PathBuf,
        /// One of them.
        first: String,
        /// Another one.
        second: String,
    },
    /// The checkpoint was written on a machine with another byte order.
    #[error(
        "{path} has the byte order {found:?}, expected \"little\"; load it in Python on a machine of this kind and save it again",
        path = path.display()
    )]
    ByteOrder {
        /// The file.
        path: PathBuf,
        /// What its entry `byteorder` says.
        found: String,
    },
    /// The checkpoint's pickle is broken.
    #[error("cannot read the pickle {entry:?} of {path}", path = path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Name of the entry.
        entry: String,
        /// What is broken.
        source: PickleError,
    },
    /// The checkpoint is no dict with tensors below.
    #[error(
        "{path} holds {found}, expected a dict; load it in Python and save its tensors with \
         `torch.save(network.state_dict(), \"weights.pt\")`",
        path = path.display()
    )]
    RootNotDict {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The checkpoint has no such entry.
    #[error("the checkpoint has no entry {key:?}, only {available:?}")]
    MissingKey {
        /// The key.
        key: String,
        /// Some of the keys that there are.
        available: Vec<String>,
    },
    /// An entry of the checkpoint is no dict.
    #[error("the entry {key:?} is {found}, expected a dict")]
    NotDict {
        /// The key.
        key: String,
        /// What it holds.
        found: String,
    },
    /// A dict has a key twice.
    #[error("the key {key:?} appears twice in {within}")]
    DuplicateKey {
        /// The dict.
        within: String,
        /// The key.
        key: String,
    },
    /// A dict holds more tensors than any checkpoint needs.
    #[error("{within} holds more than {limit} tensors")]
    TooManyTensors {
        /// The dict.
        within: String,
        /// The limit.
        limit: usize,
    },
    /// The tensors of a dict are far larger together than the storages that they share.
    #[error("the tensors of {within} would take more than {limit} bytes, far more than their storages have")]
    TooManyBytes {
        /// The dict.
        within: String,
        /// The limit.
        limit: u64,
    },
    /// A tensor's description is not what PyTorch writes.
    #[error("the description of tensor {tensor:?} is broken: {problem}")]
    MalformedTensor {
        /// Name of the tensor.
        tensor: String,
        /// What is broken.
        problem: &'static str,
    },
    /// A tensor is of a kind that is not supported: sparse, quantized, complex and so on.
    #[error("tensor {tensor:?} is stored as {class:?}, which is not supported")]
    UnsupportedTensor {
        /// Name of the tensor.
        tensor: String,
        /// Its storage class, or the function that would rebuild it.
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
        /// What is broken.
        source: ArchiveError,
    },
    /// A storage does not have the length that the pickle declares.
    #[error("tensor {tensor:?} lies in {entry:?}, which has {got} bytes, expected {expected}")]
    StorageLen {
        /// Name of the tensor.
        tensor: String,
        /// Name of the entry.
        entry: String,
        /// Its length.
        got: u64,
        /// Numbers times bytes per number; saturates.
        expected: u64,
    },
    /// A tensor has more elements than its storage.
    #[error("tensor {tensor:?} has shape {shape:?}, more elements than the {storage_numel} of its storage")]
    LargerThanStorage {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Elements of the storage.
        storage_numel: usize,
    },
    /// A tensor reaches beyond its storage.
    #[error(
        "tensor {tensor:?} with shape {shape:?}, strides {strides:?} and offset {offset} reaches beyond the \
         {storage_numel} elements of its storage"
    )]
    OutOfStorage {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
        /// Its first element.
        offset: usize,
        /// Elements of the storage.
        storage_numel: usize,
    },
    /// An entry cannot be written as JSON.
    #[error("cannot read the entry {key:?} as plain data")]
    Json {
        /// The key.
        key: String,
        /// Why not.
        source: JsonError,
    },
}

/// What is broken in an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The archive ends before its directory.
    #[error("the archive ends after {file_len} bytes without a directory: it was not written or downloaded to the end")]
    NoDirectoryEnd {
        /// Length of the file.
        file_len: usize,
    },
    /// The record at the end contradicts itself or the file.
    #[error("the directory of the archive does not fit to the file of {file_len} bytes")]
    BadDirectoryEnd {
        /// Length of the file.
        file_len: usize,
    },
    /// An entry of the directory is cut off or none.
    #[error("entry {entry_idx} of {num_entries} in the directory of the archive is broken")]
    BadDirectoryEntry {
        /// Its place.
        entry_idx: u64,
        /// How many there are.
        num_entries: u64,
    },
    /// Two entries have one name.
    #[error("the archive has two entries {entry:?}")]
    DuplicateEntry {
        /// The name.
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
        /// Its method by the zip specification; 8 is deflate.
        method: u16,
    },
    /// An entry is encrypted.
    #[error("the entry {entry:?} is encrypted")]
    Encrypted {
        /// Name of the entry.
        entry: String,
    },
    /// An entry that is not compressed has two sizes.
    #[error("the entry {entry:?} has {stored_len} bytes in the file, but {len} when unpacked")]
    TwoSizes {
        /// Name of the entry.
        entry: String,
        /// Its size.
        len: u64,
        /// Its size in the file.
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

/// Why plain data have no JSON form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Nested too deep, or endlessly.
    #[error("the data are nested more than {limit} levels deep, or contain themselves")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// Too many values.
    #[error("the data have more than {limit} values, with shared ones counted at each use")]
    TooManyValues {
        /// The limit.
        limit: usize,
    },
    /// Too much text.
    #[error("the data have more than {limit} bytes of text, with shared ones counted at each use")]
    TooMuchText {
        /// The limit.
        limit: usize,
    },
    /// A dict has a key twice, or two keys with the same text.
    #[error("the key {key:?} appears twice in a dict")]
    DuplicateKey {
        /// The key.
        key: String,
    },
}

/// Damage to a folder of `torch.distributed.checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardedError {
    /// The pickle of the metadata.
    #[error("the pickle of .metadata is broken")]
    Pickle(#[source] PickleError),
    /// The metadata lack something, or have it in another form.
    #[error(".metadata lacks {what} in the form that PyTorch writes")]
    Missing {
        /// Its name.
        what: &'static str,
    },
    /// More of something than any checkpoint needs.
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// Its name.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The metadata name a file outside of the folder.
    #[error(".metadata names {name:?}, which is no file of the folder")]
    FileName {
        /// The name.
        name: String,
    },
    /// A range that a file does not have.
    #[error("a piece of {len} bytes at byte {start} reaches beyond the end of its file; copy the folder again")]
    BeyondFile {
        /// Its start.
        start: usize,
        /// Its length.
        len: usize,
    },
    /// Pieces that do not make their tensor.
    #[error("the pieces of tensor {tensor:?} do not make the whole")]
    Pieces {
        /// Its name.
        tensor: String,
    },
    /// Pieces in another format.
    #[error("its pieces are safetensors")]
    Safetensors,
}

/// What is broken in a checkpoint of the format before PyTorch 1.6.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LegacyError {
    /// One of the pickles at its start.
    #[error("the pickle of {part} is broken")]
    Pickle {
        /// Which.
        part: &'static str,
        /// The cause.
        source: PickleError,
    },
    /// An unknown version.
    #[error("its version is not {expected}")]
    Version {
        /// The one that is known.
        expected: i64,
    },
    /// Numbers of the other byte order.
    #[error("its numbers are not little-endian")]
    ByteOrder,
    /// Numbers of an unknown type, so that what is behind them cannot be found.
    #[error("storage {key} is of class {class}, which this reader does not know")]
    StorageClass {
        /// Its key.
        key: String,
        /// Its class.
        class: String,
    },
    /// The keys are no list of texts.
    #[error("the keys of its storages are missing")]
    NoKeys,
    /// A storage that no tensor uses.
    #[error("storage {key} belongs to no tensor")]
    UnknownStorage {
        /// Its key.
        key: String,
    },
    /// A storage of another size.
    #[error("storage {key} holds {got} numbers, its tensors expect {expected}")]
    StorageNumel {
        /// Its key.
        key: String,
        /// What the file says.
        got: i64,
        /// What the pickle says.
        expected: usize,
    },
    /// The file ends too early.
    #[error("the file ends after {len} bytes, within storage {key}")]
    Truncated {
        /// Length of the file.
        len: usize,
        /// The storage.
        key: String,
    },
}
