//! Reading and writing safetensors files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};

use crate::error::{Error, Result};
use crate::weights::bytes::tensor_bytes;
use crate::weights::source::{StoredTensor, TensorSource};
use crate::weights::torch::{FileKind, MappedFile, is_safetensors};

/// A safetensors file with a checked header, memory-mapped or part of the program.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: FileBytes,
    metadata: Metadata,
    data_start: usize,
}

/// Storage of the bytes of a file.
#[derive(Debug)]
enum FileBytes {
    Mapped(MappedFile),
    Static(&'static [u8]),
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

impl SafetensorsFile {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Safetensors`] if the header is damaged or does not fit the file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_map(path, MappedFile::open(path)?)
    }

    /// Reads the header of a file that is mapped already.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub(super) fn from_map(path: &Path, map: MappedFile) -> Result<Self> {
        Self::new(path, FileBytes::Mapped(map))
    }

    /// Reads the header of a file that is in memory; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Safetensors`] if the header is damaged or does not fit the bytes.
    pub fn from_static(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        Self::new(path, FileBytes::Static(bytes))
    }

    fn new(path: &Path, bytes: FileBytes) -> Result<Self> {
        if !is_safetensors(&bytes) {
            return Err(Error::NotSafetensors { path: path.to_owned(), kind: FileKind::of(&bytes) });
        }
        let damaged = |source| match needed_len(&bytes) {
            Some(needed) if needed > bytes.len() as u64 => {
                Error::SafetensorsCut { path: path.to_owned(), got: bytes.len() as u64, needed }
            }
            _ => Error::Safetensors { path: path.to_owned(), source },
        };
        let (header_len, metadata) = safetensors::SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        // `deserialize` also checks that the tensors cover the file exactly.
        safetensors::SafeTensors::deserialize(&bytes).map_err(damaged)?;
        Ok(Self { path: path.to_owned(), bytes, metadata, data_start: header_len + 8 })
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns every tensor by name, with its first byte in the file and its number of bytes.
    pub(super) fn tensor_infos(&self) -> BTreeMap<String, (TensorInfo, [u64; 2])> {
        let place = |(start, end): (usize, usize)| [(self.data_start + start) as u64, (end - start) as u64];
        let tensors = self.metadata.tensors().into_iter();
        tensors.map(|(name, info)| (name, (info.clone(), place(info.data_offsets)))).collect()
    }

    /// Returns the text entries of the header.
    #[must_use]
    pub fn text(&self) -> BTreeMap<String, String> {
        self.metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

/// Returns the length of a safetensors file by its header, or the end of the header if that is cut off itself.
fn needed_len(bytes: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Place {
        data_offsets: Option<[u64; 2]>,
    }
    let (header_len, rest) = bytes.split_first_chunk()?;
    let data_start = u64::from_le_bytes(*header_len).checked_add(8)?;
    let Some(header) = rest.get(..usize::try_from(u64::from_le_bytes(*header_len)).ok()?) else {
        return Some(data_start);
    };
    let places: BTreeMap<String, Place> = serde_json::from_slice(header).ok()?;
    let end = places.values().filter_map(|place| place.data_offsets).map(|[_, end]| end).max()?;
    data_start.checked_add(end)
}

impl TensorSource for SafetensorsFile {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    fn read(&self, name: &str) -> Result<StoredTensor<'_>> {
        let Some(info) = self.metadata.info(name) else {
            return Err(Error::TensorMissing { name: name.to_owned() });
        };
        let dtype = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::I64 => DType::I64,
            Dtype::U32 => DType::U32,
            Dtype::U8 => DType::U8,
            other => return Err(Error::UnsupportedDtype { name: name.to_owned(), dtype: format!("{other:?}") }),
        };
        // A tensor without elements may have any other sizes, which must not overflow where they are multiplied.
        let product = info.shape.iter().filter(|size| **size > 0).try_fold(1usize, |all, size| all.checked_mul(*size));
        if product.is_none() {
            let source = safetensors::SafeTensorError::ValidationOverflow;
            return Err(Error::Safetensors { path: self.path.clone(), source });
        }
        let (start, end) = info.data_offsets;
        let bytes = Cow::Borrowed(&self.bytes[self.data_start + start..self.data_start + end]);
        Ok(StoredTensor { name: name.to_owned(), dtype, shape: info.shape.clone(), bytes })
    }
}

/// Encodes tensors as the bytes of a safetensors file: the same for the same tensors and text.
///
/// # Errors
/// [`Error::Tensor`] if a tensor cannot be brought to the CPU, [`Error::Safetensors`] if it cannot be encoded.
pub fn safetensors_bytes(tensors: &BTreeMap<String, Tensor>, text: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let view = OwnedView::new(tensor).map_err(|source| Error::Tensor { part: "reading a tensor", source })?;
        views.push((name.as_str(), view));
    }
    let text = (!text.is_empty()).then(|| text.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<HashMap<_, _>>());
    let mut bytes = safetensors::serialize(views, text)
        .map_err(|source| Error::Safetensors { path: PathBuf::from("the tensors"), source })?;
    sort_header(&mut bytes);
    Ok(bytes)
}

/// Sorts the keys of a header in place: the crate writes metadata in the random order of a hash map.
fn sort_header(bytes: &mut [u8]) {
    let Some((length, rest)) = bytes.split_first_chunk_mut() else { return };
    let length = usize::try_from(u64::from_le_bytes(*length)).ok();
    let Some(header) = length.and_then(|length| rest.get_mut(..length)) else { return };
    let Ok(mut keys) = serde_json::from_slice::<serde_json::Value>(header) else { return };
    keys.sort_all_objects();
    if let Ok(sorted) = serde_json::to_vec(&keys)
        && let Some((start, padding)) = header.split_at_mut_checked(sorted.len())
    {
        start.copy_from_slice(&sorted);
        padding.fill(b' ');
    }
}

/// Little-endian bytes of one tensor, with dtype and shape.
struct OwnedView {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl OwnedView {
    fn new(tensor: &Tensor) -> candle_core::Result<Self> {
        let dtype = match tensor.dtype() {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::U32 => Dtype::U32,
            DType::U8 => Dtype::U8,
            other => candle_core::bail!("tensors of {other:?} are not written"),
        };
        let bytes = tensor_bytes(tensor)?;
        Ok(Self { dtype, shape: tensor.dims().to_vec(), bytes })
    }
}

impl View for OwnedView {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_same_tensors_and_text_are_the_same_bytes() {
        let tensor = |i: u8| Tensor::new(&[f32::from(i), 0.5], &Device::Cpu).unwrap();
        let tensors: BTreeMap<String, Tensor> = (0..9).map(|i| (format!("layer.{i}"), tensor(i))).collect();
        let text: BTreeMap<String, String> = (0..9).map(|i| (format!("key {i}"), format!("\"{i}\" é\n"))).collect();
        let bytes = safetensors_bytes(&tensors, &text).unwrap();
        for _ in 0..20 {
            assert!(safetensors_bytes(&tensors, &text).unwrap() == bytes);
        }
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let read: BTreeMap<String, String> = metadata.metadata().clone().unwrap().into_iter().collect();
        assert_eq!(read, text);
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in &tensors {
            assert_eq!(read.tensor(name).unwrap().data(), tensor_bytes(tensor).unwrap(), "{name}");
        }
    }
}
