//! Sharded checkpoints: folders of `torch.distributed.checkpoint`, which FSDP and other strategies write.
//!
//! `.metadata` is a pickle that says of every tensor its shape and its pieces, and of every piece where it lies: a range of
//! one of the `.distcp` files, which is a file of `torch.save` in itself. What is no tensor has a range of its own.
//!
//! # Source
//! PyTorch's `torch/distributed/checkpoint/metadata.py` and `filesystem.py`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::excerpt::excerpt;
use super::file_kind::is_safetensors;
use super::mapped_file::{FilePart, MappedFile};
use super::pickle::Pickle;
use super::pickle_value::{Node, NodeId, ValueArena};
use super::torch_dtype::TorchDtype;
use super::torch_error::{ShardedError, TorchError};
use super::torch_file::TorchFile;
use super::torch_tensor::lengths;

/// Name of the file that describes all tensors and pieces.
const METADATA: &str = ".metadata";
/// Prefix of the names of tensors that were saved as part of a checkpoint.
const STATE_DICT: &str = "state_dict.";
/// Prefix of the names of hyper-parameters.
const HYPER_PARAMETERS: &str = "hyper_parameters.";
/// Number of attributes of an object that are looked at; the classes have up to six.
const MAX_ATTRIBUTES: usize = 16;
/// Maximum number of files: one per process and thread.
const MAX_FILES: usize = 4096;
/// Maximum number of pieces of a tensor.
const MAX_PIECES: usize = 4096;
/// Maximum number of hyper-parameters that are read.
const MAX_HYPER_PARAMETERS: usize = 4096;
/// Maximum nesting of hyper-parameters that are read.
const MAX_DEPTH: usize = 16;
/// Maximum size of all pieces together, in sizes of all files.
const MAX_COPIES: usize = 4;

/// An open folder of a sharded checkpoint.
#[derive(Debug)]
pub(in crate::weights) struct ShardedCheckpoint {
    path: PathBuf,
    files: Vec<Arc<MappedFile>>,
    tensors: BTreeMap<String, PiecedTensor>,
    hyper_parameters: BTreeMap<String, Piece>,
}

/// A tensor and its pieces.
#[derive(Debug)]
struct PiecedTensor {
    shape: Vec<usize>,
    pieces: Vec<Piece>,
}

/// A piece of a tensor in a range of a file.
#[derive(Debug)]
struct Piece {
    file: usize,
    start: usize,
    len: usize,
    /// Start of a piece in its tensor, along each axis.
    offsets: Vec<usize>,
}

/// A piece that was read, and its place in the tensor.
struct ReadPiece {
    dtype: TorchDtype,
    offsets: Vec<usize>,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A whole tensor, joined from its pieces.
#[derive(Debug)]
pub(in crate::weights) struct JoinedTensor {
    pub(in crate::weights) dtype: TorchDtype,
    pub(in crate::weights) bytes: Vec<u8>,
}

/// One range in the metadata.
struct Storage<'a> {
    name: &'a str,
    offsets: Option<Vec<usize>>,
    file: &'a str,
    start: usize,
    len: usize,
}

impl ShardedCheckpoint {
    /// Reads the metadata, and maps the files that they name.
    /// # Errors
    /// [`TorchError::Open`] if a file is not there, [`TorchError::Sharded`] if the metadata are broken.
    pub(in crate::weights) fn open(path: &Path) -> Result<Self, TorchError> {
        let broken = |source| TorchError::Sharded { path: path.to_path_buf(), source };
        let metadata = MappedFile::open(&path.join(METADATA))?;
        let Pickle { arena, root } =
            Pickle::parse_with_attributes(&metadata).map_err(|source| broken(ShardedError::Pickle(source)))?;
        let part = |name: &'static str| {
            attribute(&arena, root, name).ok_or_else(|| broken(ShardedError::Missing { what: name }))
        };
        let mut tensors = shapes(&arena, part("state_dict_metadata")?);
        let mut checkpoint = Self {
            path: path.to_path_buf(),
            files: vec![],
            tensors: BTreeMap::new(),
            hyper_parameters: BTreeMap::new(),
        };
        let mut numbers = BTreeMap::new();
        let mut num_bytes = 0_usize;
        for (key, value) in arena.dict_entries(part("storage_data")?).into_iter().flatten() {
            let storage =
                Storage::read(&arena, key, value).ok_or_else(|| broken(ShardedError::Missing { what: "storage" }))?;
            let file = checkpoint.file_number(&mut numbers, storage.file)?;
            num_bytes = num_bytes.saturating_add(storage.len);
            let Storage { name, offsets, start, len, .. } = storage;
            let piece = Piece { file, start, len, offsets: offsets.unwrap_or_default() };
            if let Some(tensor) = tensors.get_mut(name) {
                if tensor.pieces.len() == MAX_PIECES {
                    return Err(broken(ShardedError::TooMany { what: "pieces of a tensor", limit: MAX_PIECES }));
                }
                tensor.pieces.push(piece);
            } else if let Some(name) = name.strip_prefix(HYPER_PARAMETERS)
                && checkpoint.hyper_parameters.len() < MAX_HYPER_PARAMETERS
                && name.split('.').count() <= MAX_DEPTH
            {
                checkpoint.hyper_parameters.insert(name.to_owned(), piece);
            }
        }
        let limit = checkpoint.files.iter().map(|file| file.len()).sum::<usize>().saturating_mul(MAX_COPIES);
        if num_bytes > limit {
            return Err(broken(ShardedError::TooMany { what: "bytes in all pieces", limit }));
        }
        let named = |(name, tensor): (&str, _)| (name.strip_prefix(STATE_DICT).unwrap_or(name).to_owned(), tensor);
        checkpoint.tensors = tensors.into_iter().map(named).collect();
        Ok(checkpoint)
    }

    /// Returns the names of all tensors, sorted.
    pub(in crate::weights) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the shape of a tensor, if it is there.
    pub(in crate::weights) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// Joins the pieces of a tensor; `None` if there is none of this name.
    /// # Errors
    /// [`TorchError`] if a piece is broken; [`TorchError::Sharded`] if they do not make the whole.
    pub(in crate::weights) fn read(&self, name: &str) -> Result<Option<JoinedTensor>, TorchError> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let broken = || self.broken(ShardedError::Pieces { tensor: excerpt(name) });
        let mut pieces = vec![];
        for piece in &tensor.pieces {
            let file = self.part(piece)?;
            let stored = file.root_tensor(name)?.ok_or_else(broken)?;
            let read = file.read(&stored)?;
            let (dtype, shape, bytes) = (read.dtype, read.shape, read.bytes.into_owned());
            pieces.push(ReadPiece { dtype, offsets: piece.offsets.clone(), shape, bytes });
        }
        join(&tensor.shape, pieces).map(Some).ok_or_else(broken)
    }

    /// Returns the hyper-parameters that were saved with the tensors.
    /// # Errors
    /// [`TorchError`] if one is broken.
    pub(in crate::weights) fn hyper_parameters(&self) -> Result<Option<Value>, TorchError> {
        let mut root = Map::new();
        for (name, piece) in &self.hyper_parameters {
            let value = self.part(piece)?.root_json()?;
            insert(&mut root, name, value);
        }
        Ok((!root.is_empty()).then_some(Value::Object(root)))
    }

    /// Returns the number of a file, which is opened at its first use.
    fn file_number<'a>(&mut self, numbers: &mut BTreeMap<&'a str, usize>, name: &'a str) -> Result<usize, TorchError> {
        let number = self.files.len();
        let vacant = match numbers.entry(name) {
            Entry::Occupied(entry) => return Ok(*entry.get()),
            Entry::Vacant(entry) => entry,
        };
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) || name.contains(['/', '\\']) {
            return Err(self.broken(ShardedError::FileName { name: excerpt(name) }));
        }
        if number == MAX_FILES {
            return Err(self.broken(ShardedError::TooMany { what: "files", limit: MAX_FILES }));
        }
        vacant.insert(number);
        self.files.push(Arc::new(MappedFile::open(&self.path.join(name))?));
        Ok(number)
    }

    /// Opens a range as the `torch.save` file in it.
    fn part(&self, piece: &Piece) -> Result<TorchFile, TorchError> {
        let end = piece.start.saturating_add(piece.len);
        let part = self.files.get(piece.file).and_then(|file| FilePart::of(file, piece.start..end));
        let part = part.ok_or_else(|| self.broken(ShardedError::BeyondFile { start: piece.start, len: piece.len }))?;
        if is_safetensors(&part) {
            return Err(self.broken(ShardedError::Safetensors));
        }
        TorchFile::of_any(&self.path, part)
    }

    fn broken(&self, source: ShardedError) -> TorchError {
        TorchError::Sharded { path: self.path.clone(), source }
    }
}

impl<'a> Storage<'a> {
    /// Reads a `MetadataIndex` and its `_StorageInfo`.
    fn read(arena: &'a ValueArena, key: NodeId, value: NodeId) -> Option<Self> {
        let number = |name: &str| match arena.node(attribute(arena, value, name)?) {
            Node::Int(number) => usize::try_from(number).ok(),
            _ => None,
        };
        let offsets = match attribute(arena, key, "offset") {
            None | Some(NodeId::NONE) => None,
            Some(offsets) => Some(lengths(arena, offsets)?),
        };
        Some(Self {
            name: arena.text(attribute(arena, key, "fqn")?)?,
            offsets,
            file: arena.text(attribute(arena, value, "relative_path")?)?,
            start: number("offset")?,
            len: number("length")?,
        })
    }
}

/// Collects the tensors of the metadata, without their pieces.
fn shapes(arena: &ValueArena, metadata: NodeId) -> BTreeMap<&str, PiecedTensor> {
    let entries = arena.dict_entries(metadata).into_iter().flatten();
    let tensor = |(key, value)| {
        let shape = lengths(arena, attribute(arena, value, "size")?)?;
        Some((arena.text(key)?, PiecedTensor { shape, pieces: vec![] }))
    };
    entries.filter_map(tensor).collect()
}

/// Returns an attribute of an object.
fn attribute(arena: &ValueArena, object: NodeId, name: &str) -> Option<NodeId> {
    let mut attributes = arena.dict_entries(object)?.take(MAX_ATTRIBUTES);
    attributes.find(|&(key, _)| arena.text(key) == Some(name)).map(|(_, value)| value)
}

/// Joins pieces; `None` if they do not fill the tensor exactly.
fn join(shape: &[usize], pieces: Vec<ReadPiece>) -> Option<JoinedTensor> {
    let numel = |shape: &[usize]| shape.iter().try_fold(1_usize, |all, &size| all.checked_mul(size));
    let dtype = pieces.first()?.dtype;
    let width = dtype.num_bytes();
    let mut filled = 0_usize;
    for (idx, piece) in pieces.iter().enumerate() {
        let fits =
            |axis: usize| Some(piece.offsets.get(axis)?.checked_add(*piece.shape.get(axis)?)? <= *shape.get(axis)?);
        let has_rank = piece.shape.len() == shape.len() && piece.offsets.len() == shape.len();
        let is_within = has_rank && (0..shape.len()).all(|axis| fits(axis) == Some(true));
        let overlaps = pieces.get(..idx)?.iter().any(|before| overlap(before, piece));
        if piece.dtype != dtype || !is_within || overlaps {
            return None;
        }
        filled = filled.checked_add(numel(&piece.shape)?)?;
    }
    if filled != numel(shape)? {
        return None;
    }
    let mut pieces = pieces;
    if let [_] = pieces.as_slice() {
        return pieces.pop().map(|piece| JoinedTensor { dtype, bytes: piece.bytes });
    }
    let mut bytes = vec![0; filled.checked_mul(width)?];
    for piece in &pieces {
        copy(piece, shape, &mut bytes)?;
    }
    Some(JoinedTensor { dtype, bytes })
}

fn overlap(one: &ReadPiece, other: &ReadPiece) -> bool {
    let starts = one.offsets.iter().zip(&other.offsets);
    let lens = one.shape.iter().zip(&other.shape);
    starts.zip(lens).all(|((a, b), (a_len, b_len))| *a < b.saturating_add(*b_len) && *b < a.saturating_add(*a_len))
}

/// Copies a piece, row by row, to its place in a tensor of this shape.
fn copy(piece: &ReadPiece, shape: &[usize], to: &mut [u8]) -> Option<()> {
    let width = piece.dtype.num_bytes();
    let row = piece.shape.last().copied().unwrap_or(1).checked_mul(width)?;
    if row == 0 {
        return Some(());
    }
    for (number, bytes) in piece.bytes.chunks_exact(row).enumerate() {
        // The place of the row's first number, from the last axis to the first.
        let (mut rest, mut start, mut stride) = (number, 0, 1);
        for (axis, (&size, &full)) in piece.shape.iter().zip(shape).enumerate().rev() {
            let within = if axis + 1 == shape.len() {
                0
            } else {
                let within = rest.checked_rem(size)?;
                rest = rest.checked_div(size)?;
                within
            };
            start += (piece.offsets.get(axis)? + within) * stride;
            stride *= full;
        }
        to.get_mut(start * width..start * width + row)?.copy_from_slice(bytes);
    }
    Some(())
}

/// Inserts a value at `a.b.c` into nested objects.
fn insert(root: &mut Map<String, Value>, name: &str, value: Value) {
    match name.split_once('.') {
        None => drop(root.insert(name.to_owned(), value)),
        Some((first, rest)) => {
            let inner = root.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offsets: &[usize], shape: &[usize], bytes: &[u8]) -> ReadPiece {
        let [offsets, shape] = [offsets, shape].map(<[usize]>::to_vec);
        ReadPiece { dtype: TorchDtype::U8, offsets, shape, bytes: bytes.to_vec() }
    }

    #[test]
    fn pieces_make_the_whole() {
        let rows = vec![piece(&[0, 0], &[1, 3], &[1, 2, 3]), piece(&[1, 0], &[1, 3], &[4, 5, 6])];
        assert_eq!(join(&[2, 3], rows).unwrap().bytes, [1, 2, 3, 4, 5, 6]);
        let columns = vec![piece(&[0, 1], &[2, 2], &[2, 3, 5, 6]), piece(&[0, 0], &[2, 1], &[1, 4])];
        assert_eq!(join(&[2, 3], columns).unwrap().bytes, [1, 2, 3, 4, 5, 6]);
        let cubes = vec![piece(&[1, 0, 0], &[1, 2, 1], &[3, 4]), piece(&[0, 0, 0], &[1, 2, 1], &[1, 2])];
        assert_eq!(join(&[2, 2, 1], cubes).unwrap().bytes, [1, 2, 3, 4]);
        assert_eq!(join(&[], vec![piece(&[], &[], &[9])]).unwrap().bytes, [9]);
    }

    #[test]
    fn pieces_must_fit() {
        for pieces in [
            vec![],
            vec![piece(&[0, 0], &[1, 3], &[1, 2, 3])],
            vec![piece(&[0, 0], &[1, 3], &[1, 2, 3]), piece(&[0, 0], &[1, 3], &[1, 2, 3])],
            vec![piece(&[1, 0], &[2, 3], &[0; 6])],
            vec![piece(&[0], &[6], &[0; 6])],
            vec![piece(&[usize::MAX, 0], &[2, 3], &[0; 6])],
        ] {
            assert!(join(&[2, 3], pieces).is_none());
        }
    }

    #[test]
    fn nested_keys_become_objects() {
        let mut root = Map::new();
        insert(&mut root, "model_conf.image_size", 16.into());
        insert(&mut root, "model_conf.dims", 2.into());
        insert(&mut root, "T", 1000.into());
        assert_eq!(Value::Object(root), serde_json::json!({"T": 1000, "model_conf": {"dims": 2, "image_size": 16}}));
    }
}
