//! Checkpoints in the format that PyTorch wrote before 1.6.
//!
//! Such a file is a sequence of five pickles: a magic number, the version 1001, facts of the machine that wrote it, the
//! saved object, and the keys of its storages. Then come the storages in the order of the keys: a number of elements as
//! i64, and the elements. Most weights of old that are still downloaded (torchvision's, Inception's of pytorch-fid, the
//! heads of LPIPS) have this form.
//!
//! # Source
//! PyTorch's `torch/serialization.py`, `_legacy_save` and `_legacy_load`.

use std::collections::BTreeMap;
use std::ops::Range;

use super::excerpt::excerpt;
use super::pickle::Pickle;
use super::pickle_opcode as op;
use super::pickle_value::{Node, ValueArena};
use super::torch_dtype::TorchDtype;
use super::torch_error::LegacyError;
use super::torch_tensor::StorageId;

/// Magic number of every file in the format before PyTorch 1.6, `0x1950a86a20f9469cfc6c`, as the protocols from 2 on
/// write it.
/// # Source
/// PyTorch's `torch/serialization.py`, `MAGIC_NUMBER`.
const MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Magic number as the protocols 0 and 1 write it, otherwise [`MAGIC`].
const MAGIC_IN_TEXT: &[u8] = b"L119547037146038801333356L\n.";
/// Length of the frame header that the protocols from 4 on may put before the number.
const FRAME_LEN: usize = 9;
/// Version of all of these files.
const VERSION: i64 = 1001;

/// Ranges of the storages in a file, by key.
#[derive(Debug)]
pub(super) struct LegacyStorages(BTreeMap<String, Range<usize>>);

impl LegacyStorages {
    /// Returns whether a file starts as such a checkpoint does, in any protocol.
    pub(super) fn is_legacy(file: &[u8]) -> bool {
        let number = match file {
            [op::PROTO, 4..=u8::MAX, op::FRAME, ..] => file.get(2 + FRAME_LEN..),
            [op::PROTO, 2..=u8::MAX, ..] => file.get(2..),
            _ => return file.starts_with(MAGIC_IN_TEXT),
        };
        number.is_some_and(|number| number.starts_with(&MAGIC))
    }

    /// Reads the saved object, and the ranges of its storages.
    /// # Errors
    /// [`LegacyError`], with one variant for each way to be broken.
    pub(super) fn read(file: &[u8]) -> Result<(Pickle, Self), LegacyError> {
        let mut at = 0;
        let mut next = |part: &'static str| {
            let rest = file.get(at..).unwrap_or_default();
            let (pickle, len) = Pickle::parse_first(rest).map_err(|source| LegacyError::Pickle { part, source })?;
            at += len;
            Ok(pickle)
        };
        let _magic = next("the magic number")?;
        let version = next("the version")?;
        if version.arena.node(version.root) != Node::Int(VERSION) {
            return Err(LegacyError::Version { expected: VERSION });
        }
        let facts = next("the facts of the machine")?;
        if !is_little_endian(&facts) {
            return Err(LegacyError::ByteOrder);
        }
        let object = next("the saved object")?;
        let keys = next("the keys of storages")?;
        let storages = storages(file, at, &keys, &declared(&object.arena)?)?;
        Ok((object, Self(storages)))
    }

    /// Returns the bytes of a storage.
    pub(super) fn get<'a>(&self, file: &'a [u8], key: &str) -> Option<&'a [u8]> {
        file.get(self.0.get(key)?.clone())
    }
}

/// Collects the sizes that the saved object declares for its storages: bytes per number, and numbers.
fn declared(arena: &ValueArena) -> Result<BTreeMap<&str, (usize, usize)>, LegacyError> {
    let mut declared = BTreeMap::new();
    for id in arena.ids() {
        let Some(StorageId { class: (module, class), key, numel }) = StorageId::from_value(arena, id) else { continue };
        let Some(dtype) = TorchDtype::from_storage_class(module, class) else {
            return Err(LegacyError::StorageClass { key: excerpt(key), class: excerpt(format!("{module}.{class}")) });
        };
        declared.insert(key, (dtype.num_bytes(), numel));
    }
    Ok(declared)
}

/// Finds the range of each storage, and checks its length.
fn storages(
    file: &[u8],
    mut at: usize,
    keys: &Pickle,
    declared: &BTreeMap<&str, (usize, usize)>,
) -> Result<BTreeMap<String, Range<usize>>, LegacyError> {
    let Node::List(items) = keys.arena.node(keys.root) else { return Err(LegacyError::NoKeys) };
    let mut storages = BTreeMap::new();
    for item in keys.arena.items(items) {
        let key = keys.arena.text(item).ok_or(LegacyError::NoKeys)?;
        let Some(&(num_bytes, expected)) = declared.get(key) else {
            return Err(LegacyError::UnknownStorage { key: excerpt(key) });
        };
        let truncated = || LegacyError::Truncated { key: excerpt(key), len: file.len() };
        let header = file.get(at..).and_then(<[u8]>::first_chunk).ok_or_else(truncated)?;
        let numel = i64::from_le_bytes(*header);
        if usize::try_from(numel) != Ok(expected) {
            return Err(LegacyError::StorageNumel { key: excerpt(key), got: numel, expected });
        }
        let start = at + header.len();
        let end = expected.checked_mul(num_bytes).and_then(|len| start.checked_add(len));
        at = end.filter(|&end| end <= file.len()).ok_or_else(truncated)?;
        storages.insert(key.to_owned(), start..at);
    }
    Ok(storages)
}

fn is_little_endian(facts: &Pickle) -> bool {
    let arena = &facts.arena;
    let mut entries = arena.dict_entries(facts.root).into_iter().flatten();
    entries.any(|(key, value)| arena.text(key) == Some("little_endian") && arena.node(value) == Node::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_magic_number_is_known_in_all_protocols() {
        let number = &MAGIC[..];
        for start in [
            MAGIC_IN_TEXT.to_vec(),
            [b"\x80\x02", number].concat(),
            [b"\x80\x03", number].concat(),
            [b"\x80\x04\x95\x0d\0\0\0\0\0\0\0", number].concat(),
            [b"\x80\x05", number].concat(),
        ] {
            assert!(LegacyStorages::is_legacy(&start), "{}", start.escape_ascii());
            assert!(!LegacyStorages::is_legacy(&start[..start.len() - 2]), "{}", start.escape_ascii());
        }
        for other in [&b""[..], b"\x80", b"\x80\x04\x95", b"\x80\x02N.", b"L1L\n."] {
            assert!(!LegacyStorages::is_legacy(other), "{}", other.escape_ascii());
        }
    }
}
