//! Checkpoints of `torch.save`: in its zip format, or in the one before PyTorch 1.6 (see [`super::legacy`]).
//!
//! A zip file is a zip archive of entries that are not compressed. `<name>/data.pkl` is a pickle of the saved
//! object, a dict in a checkpoint; `<name>/data/<key>` holds the numbers of one storage, and the pickle says which
//! tensors are views of it; `<name>/byteorder` exists since PyTorch 2.1. No code of the pickle is ever run.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::excerpt::excerpt;
use super::file_kind::FileKind;
use super::legacy::LegacyStorages;
use super::mapped_file::{FilePart, MappedFile};
use super::pickle::Pickle;
use super::pickle_json::json_from_value;
use super::pickle_value::{DictEntries, Node, NodeId, ValueArena};
use super::strided_view::StridedView;
use super::torch_dtype::TorchDtype;
use super::torch_error::TorchError;
use super::torch_tensor::TensorRef;
use super::zip_directory::ZipDirectory;
use super::zip_kind::ZipKind;

/// Maximum number of tensors in one dict.
const MAX_TENSORS: usize = 100_000;
/// Maximum size of the tensors of a dict together, in sizes of their storages: some share their numbers.
const MAX_COPIES: u64 = 4;
/// Number of keys that the error for a missing one lists.
const NUM_LISTED_KEYS: usize = 16;

/// An open checkpoint.
///
/// The file is mapped into memory, so that only the tensors that are read are loaded.
pub struct TorchFile {
    path: PathBuf,
    file: FilePart,
    storages: Storages,
    arena: ValueArena,
    /// Root dict of the checkpoint.
    root: NodeId,
    /// Entries of the root dict with string keys.
    root_entries: BTreeMap<String, NodeId>,
}

/// Storages of a file, by format.
enum Storages {
    Zip {
        directory: ZipDirectory,
        /// Start of the names of all entries.
        name: Vec<u8>,
    },
    Legacy(LegacyStorages),
}

/// Numbers of a tensor, with type and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorBytes<'a> {
    /// Type of the numbers.
    pub dtype: TorchDtype,
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// Numbers in row-major order, little-endian; a part of the file if they lie there in this order.
    pub bytes: Cow<'a, [u8]>,
}

impl TorchFile {
    /// Opens the checkpoint at `path` and reads its pickle.
    /// # Errors
    /// [`TorchError::Open`] if there is no such file; [`TorchError::NotTorch`], [`TorchError::OtherArchive`] or
    /// [`TorchError::SeveralPickles`] if it is something else; [`TorchError::Archive`], [`TorchError::Pickle`] or
    /// [`TorchError::Legacy`] if it is damaged; [`TorchError::ByteOrder`], [`TorchError::RootNotDict`] or
    /// [`TorchError::DuplicateKey`] if it is a checkpoint that this reader does not take.
    pub fn open(path: &Path) -> Result<Self, TorchError> {
        Self::from_part(path, FilePart::whole(MappedFile::open(path)?))
    }

    /// Reads the pickle of a file that is mapped already; `path` is its name in messages.
    /// # Errors
    /// Those of [`TorchFile::open`].
    pub(in crate::weights) fn from_part(path: &Path, file: FilePart) -> Result<Self, TorchError> {
        let file = Self::of_any(path, file)?;
        if file.arena.dict_entries(file.root).is_none() {
            let found = describe(&file.arena, file.root);
            return Err(TorchError::RootNotDict { path: path.to_path_buf(), found });
        }
        Ok(file)
    }

    /// Reads the pickle of a file that may hold something else than a dict.
    /// # Errors
    /// Those of [`TorchFile::open`], but [`TorchError::RootNotDict`].
    pub(super) fn of_any(path: &Path, file: FilePart) -> Result<Self, TorchError> {
        let (Pickle { arena, root }, storages) = if LegacyStorages::is_legacy(&file) {
            let broken = |source| TorchError::Legacy { path: path.to_path_buf(), source };
            let (pickle, storages) = LegacyStorages::read(&file).map_err(broken)?;
            (pickle, Storages::Legacy(storages))
        } else {
            open_zip(path, &file)?
        };
        let root_entries = match arena.dict_entries(root) {
            Some(entries) => by_key(&arena, entries)
                .map_err(|key| TorchError::DuplicateKey { within: format!("the dict of {}", path.display()), key })?,
            None => BTreeMap::new(),
        };
        Ok(Self { path: path.to_path_buf(), file, storages, root_entries, arena, root })
    }

    /// Returns the tensor that was saved by itself; `None` if it was something else.
    /// # Errors
    /// [`TorchError::MalformedTensor`] if its description is broken.
    pub(super) fn root_tensor(&self, name: &str) -> Result<Option<TensorRef>, TorchError> {
        TensorRef::from_value(&self.arena, name, self.root)
    }

    /// Returns the saved object as plain data; see [`TorchFile::json_under`].
    /// # Errors
    /// [`TorchError::Json`] for data that are nested too deep or too large.
    pub(super) fn root_json(&self) -> Result<serde_json::Value, TorchError> {
        json_from_value(&self.arena, self.root)
            .map_err(|source| TorchError::Json { key: "the root".to_owned(), source })
    }

    /// Returns the string keys of the dict that was saved, in order.
    pub fn root_keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.root_entries.keys().map(String::as_str)
    }

    /// Returns whether there is a dict under `key` of the dict that was saved.
    pub(in crate::weights) fn has_dict(&self, key: &str) -> bool {
        self.root_entries.get(key).is_some_and(|&value| self.arena.dict_entries(value).is_some())
    }

    /// Returns the tensors in the dict under `key`, by name. Other values and other keys are skipped, and so are dicts
    /// below.
    /// # Errors
    /// [`TorchError::MissingKey`], [`TorchError::NotDict`] if there is no such dict; [`TorchError::DuplicateKey`],
    /// [`TorchError::MalformedTensor`], [`TorchError::TooManyTensors`] or [`TorchError::TooManyBytes`] if it is broken. A tensor of a kind that is not
    /// supported is listed; [`TensorRef::view`] and [`TorchFile::read`] report it.
    pub fn tensors_under(&self, key: &str) -> Result<BTreeMap<String, TensorRef>, TorchError> {
        let Some(&dict) = self.root_entries.get(key) else {
            let available = self.root_keys().take(NUM_LISTED_KEYS).map(excerpt).collect();
            return Err(TorchError::MissingKey { key: key.to_owned(), available });
        };
        self.tensors_in(dict, key)
    }

    /// Returns the tensors in the dict that was saved, by name. Other values and other keys are skipped, and so are
    /// dicts below.
    /// # Errors
    /// As [`TorchFile::tensors_under`].
    pub fn root_tensors(&self) -> Result<BTreeMap<String, TensorRef>, TorchError> {
        self.tensors_in(self.root, "the root")
    }

    /// Returns the plain data under `key` of the dict that was saved; `None` if there is no such key.
    ///
    /// Sequences and sets become arrays, dicts objects; keys that are int, float or bool are written as text and
    /// others skip their entry. A call with one argument becomes the argument, as for members of an `Enum`.
    /// Everything else has no JSON form and becomes null: other objects, tensors, bytes, classes, integers beyond 64
    /// bits, NaN and infinity.
    /// # Errors
    /// [`TorchError::Json`] for a dict with one key twice, and for data that are nested too deep or too large.
    pub fn json_under(&self, key: &str) -> Result<Option<serde_json::Value>, TorchError> {
        let Some(&value) = self.root_entries.get(key) else {
            return Ok(None);
        };
        let json = json_from_value(&self.arena, value);
        json.map(Some).map_err(|source| TorchError::Json { key: excerpt(key), source })
    }

    /// Reads the numbers of a tensor of this checkpoint.
    ///
    /// The first read of a storage compares all of it with its checksum.
    /// # Errors
    /// [`TorchError::UnsupportedTensor`]; [`TorchError::MissingStorage`], [`TorchError::Storage`] or
    /// [`TorchError::StorageLen`] if the storage is damaged; [`TorchError::LargerThanStorage`] or
    /// [`TorchError::OutOfStorage`] if the tensor does not lie in it.
    pub fn read(&self, tensor: &TensorRef) -> Result<TensorBytes<'_>, TorchError> {
        let view = tensor.view()?;
        let storage = self.storage(tensor.name(), view)?;
        let bytes = view.gather(tensor.name(), storage)?;
        Ok(TensorBytes { dtype: view.dtype, shape: view.shape.clone(), bytes })
    }

    fn storage(&self, tensor: &str, view: &StridedView) -> Result<&[u8], TorchError> {
        let (entry, storage) = match &self.storages {
            Storages::Zip { directory, name } => {
                let entry = entry_name(name, &format!("data/{}", view.storage_key));
                let storage = directory.data(&self.file, &entry);
                (entry, storage)
            }
            Storages::Legacy(storages) => {
                (view.storage_key.clone().into_bytes(), Ok(storages.get(&self.file, &view.storage_key)))
            }
        };
        let storage = storage
            .map_err(|source| TorchError::Storage { tensor: excerpt(tensor), source })?
            .ok_or_else(|| TorchError::MissingStorage { tensor: excerpt(tensor), entry: excerpt(&entry) })?;
        let expected = (view.storage_numel as u64).saturating_mul(view.dtype.num_bytes() as u64);
        let got = storage.len() as u64;
        if got != expected {
            return Err(TorchError::StorageLen { tensor: excerpt(tensor), entry: excerpt(&entry), got, expected });
        }
        Ok(storage)
    }

    fn tensors_in(&self, dict: NodeId, key: &str) -> Result<BTreeMap<String, TensorRef>, TorchError> {
        let Some(entries) = self.arena.dict_entries(dict) else {
            return Err(TorchError::NotDict { key: excerpt(key), found: describe(&self.arena, dict) });
        };
        // Tensors may share their numbers, as the copies of a parameter do: each is read for itself, so that a small file of
        // many names for one tensor would fill the memory.
        let mut storages: BTreeSet<String> = BTreeSet::new();
        let (mut bytes, mut bytes_of_storages) = (0u64, 0u64);
        let mut tensors = BTreeMap::new();
        for (name, value) in entries {
            let Some(name) = self.arena.text(name) else {
                continue;
            };
            let Some(tensor) = TensorRef::from_value(&self.arena, name, value)? else {
                continue;
            };
            if tensors.len() == MAX_TENSORS {
                return Err(TorchError::TooManyTensors { within: excerpt(key), limit: MAX_TENSORS });
            }
            if let Ok(view) = tensor.view() {
                let sized = |numel: u64| numel.saturating_mul(view.dtype.num_bytes() as u64);
                let numel = view.shape.iter().fold(1u64, |numel, &size| numel.saturating_mul(size as u64));
                // One that is larger than its storage cannot be read.
                bytes = bytes.saturating_add(sized(numel.min(view.storage_numel as u64)));
                if storages.insert(view.storage_key.clone()) {
                    bytes_of_storages = bytes_of_storages.saturating_add(sized(view.storage_numel as u64));
                }
            }
            let limit = bytes_of_storages.saturating_mul(MAX_COPIES);
            if bytes > limit {
                return Err(TorchError::TooManyBytes { within: excerpt(key), limit });
            }
            if tensors.insert(name.to_owned(), tensor).is_some() {
                return Err(TorchError::DuplicateKey { within: excerpt(key), key: excerpt(name) });
            }
        }
        Ok(tensors)
    }
}

impl fmt::Debug for TorchFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TorchFile").field("path", &self.path).field("file", &self.file).finish_non_exhaustive()
    }
}

/// Reads the pickle of a zip archive.
fn open_zip(path: &Path, file: &[u8]) -> Result<(Pickle, Storages), TorchError> {
    if !ZipDirectory::is_zip(file) {
        return Err(TorchError::NotTorch { path: path.to_path_buf(), kind: FileKind::of(file) });
    }
    let broken = |source| TorchError::Archive { path: path.to_path_buf(), source };
    let directory = ZipDirectory::read(file).map_err(broken)?;
    if let Some(kind) = ZipKind::of_program(&directory.names().collect::<Vec<_>>()) {
        return Err(TorchError::OtherArchive { path: path.to_path_buf(), kind });
    }
    let name = checkpoint_name(path, &directory)?.to_vec();
    directory.check_stored().map_err(broken)?;
    if directory.lacks_checksums() {
        tracing::warn!("{} was saved without checksums, so damage to it cannot be noticed", path.display());
    }
    check_byte_order(path, directory.data(file, &entry_name(&name, "byteorder")).map_err(broken)?)?;
    let pickle_name = entry_name(&name, "data.pkl");
    let pickle = directory.data(file, &pickle_name).map_err(broken)?.unwrap_or_default();
    let pickle = Pickle::parse(pickle).map_err(|source| TorchError::Pickle {
        path: path.to_path_buf(),
        entry: excerpt(&pickle_name),
        source,
    })?;
    Ok((pickle, Storages::Zip { directory, name }))
}

/// Returns the name of the folder that all entries of the checkpoint are in.
fn checkpoint_name<'a>(path: &Path, directory: &'a ZipDirectory) -> Result<&'a [u8], TorchError> {
    let mut pickles = directory.names().filter_map(|entry| {
        let name = entry.strip_suffix(b"/data.pkl")?;
        (!name.contains(&b'/')).then_some(name)
    });
    match (pickles.next(), pickles.next()) {
        (Some(name), None) => Ok(name),
        (Some(first), Some(second)) => {
            Err(TorchError::SeveralPickles { path: path.to_path_buf(), first: excerpt(first), second: excerpt(second) })
        }
        (None, _) => {
            let kind = ZipKind::of(&directory.names().collect::<Vec<_>>());
            Err(TorchError::OtherArchive { path: path.to_path_buf(), kind })
        }
    }
}

fn entry_name(checkpoint_name: &[u8], entry: &str) -> Vec<u8> {
    [checkpoint_name, b"/", entry.as_bytes()].concat()
}

/// Checks the entry that names the byte order; files before PyTorch 2.1 have none and are little-endian.
fn check_byte_order(path: &Path, byte_order: Option<&[u8]>) -> Result<(), TorchError> {
    match byte_order {
        None | Some(b"little") => Ok(()),
        Some(found) => Err(TorchError::ByteOrder { path: path.to_path_buf(), found: excerpt(found) }),
    }
}

/// Collects the entries with string keys; a key that appears twice is the error.
fn by_key(arena: &ValueArena, entries: DictEntries<'_>) -> Result<BTreeMap<String, NodeId>, String> {
    let mut by_key = BTreeMap::new();
    for (key, value) in entries {
        let Some(key) = arena.text(key) else {
            continue;
        };
        match by_key.entry(key.to_owned()) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(_) => return Err(excerpt(key)),
        };
    }
    Ok(by_key)
}

/// Describes the kind of a value, with its class if it is an object.
fn describe(arena: &ValueArena, value: NodeId) -> String {
    match arena.node(value) {
        Node::Object { callable, .. } => match arena.global(callable) {
            Some((module, name)) => excerpt(format!("an object of {module}.{name}")),
            None => arena.kind(value).to_owned(),
        },
        _ => arena.kind(value).to_owned(),
    }
}
