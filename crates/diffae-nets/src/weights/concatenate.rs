//! Concatenation of safetensors files along the first axis, in constant memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::weights::SafetensorsFile;

/// Alignment of the data of a safetensors file, in bytes.
const ALIGNMENT: usize = 8;

/// Safetensors files that hold consecutive rows of the same tensors, to be written as one.
///
/// Tensors are of one number type, and the result has the bytes that [`safetensors_bytes`](crate::weights::safetensors_bytes)
/// gives for the whole tensors. Only headers are held in memory; the data are copied from file to file.
#[derive(Debug)]
pub struct Concatenation<'a> {
    parts: &'a [PathBuf],
    /// Sizes of the whole tensors, by name.
    tensors: BTreeMap<String, Whole>,
}

/// A tensor over all parts.
#[derive(Debug)]
struct Whole {
    dtype: Dtype,
    /// Shape, `[N, ..]`, of all rows.
    shape: Vec<usize>,
    /// First byte and number of bytes in each part.
    places: Vec<[u64; 2]>,
}

impl<'a> Concatenation<'a> {
    /// Reads the headers of the parts.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Safetensors`] if a part cannot be read; [`Error::PartMismatch`] if parts hold other tensors,
    /// number types or sizes of rows than the first, or the first holds several number types.
    pub fn open(parts: &'a [PathBuf]) -> Result<Self> {
        let mut tensors: BTreeMap<String, Whole> = BTreeMap::new();
        for (idx, path) in parts.iter().enumerate() {
            let infos = SafetensorsFile::open(path)?.tensor_infos();
            let mismatch = |name: &str, got: String, expected: String| {
                Err(Error::PartMismatch { path: path.clone(), name: name.to_owned(), got, expected })
            };
            if let Some(name) = tensors.keys().find(|name| !infos.contains_key(*name)) {
                return mismatch(name, "no such tensor".to_owned(), format!("one as in {}", parts[0].display()));
            }
            let of = |dtype: Dtype, shape: &[usize]| format!("{dtype:?} of rows {:?}", shape.get(1..));
            for (name, (TensorInfo { dtype, shape, .. }, place)) in infos {
                // Data are ordered by number type in a file, which matters as soon as there are two.
                if let Some(other) = tensors.values().next().filter(|other| other.dtype != dtype) {
                    return mismatch(&name, format!("{dtype:?}"), format!("{:?}", other.dtype));
                }
                match tensors.get_mut(&name) {
                    None if idx == 0 && !shape.is_empty() => {
                        tensors.insert(name, Whole { dtype, shape, places: vec![place] });
                    }
                    Some(whole) if whole.fits(&shape) => {
                        whole.shape[0] += shape[0];
                        whole.places.push(place);
                    }
                    Some(whole) => return mismatch(&name, of(dtype, &shape), of(whole.dtype, &whole.shape)),
                    None => return mismatch(&name, "a tensor".to_owned(), "none, or one with rows".to_owned()),
                }
            }
        }
        Ok(Self { parts, tensors })
    }

    /// Returns the shape of a whole tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|whole| whole.shape.as_slice())
    }

    /// Writes the whole tensors with text entries in the header.
    ///
    /// # Errors
    /// [`Error::Io`] if a part cannot be read or `file` not be written; `target` is its name in messages.
    pub fn write(&self, file: &mut File, target: &Path, text: &BTreeMap<String, String>) -> Result<()> {
        let to = |source| Error::Io { path: target.to_owned(), source };
        self.write_header(file, text).map_err(to)?;
        // Each tensor is one run of bytes: all its rows of the first part, then those of the second.
        for whole in self.tensors.values() {
            for (path, &[start, len]) in self.parts.iter().zip(&whole.places) {
                copy(path, [start, len], (file, target))?;
            }
        }
        Ok(())
    }

    /// Writes the length of the header and the header, with sorted keys, padded with spaces. It may hold the names of
    /// millions of rows, so it goes to the file as it is encoded: once to be counted, once to be written.
    fn write_header(&self, file: &mut File, text: &BTreeMap<String, String>) -> io::Result<()> {
        let mut header: BTreeMap<&str, Entry<'_>> = BTreeMap::new();
        if !text.is_empty() {
            header.insert("__metadata__", Entry::Text(text));
        }
        let mut start = 0;
        for (name, Whole { dtype, shape, places }) in &self.tensors {
            let end = start + places.iter().map(|[_, len]| len).sum::<u64>();
            header.insert(name, Entry::Tensor { data_offsets: [start, end], dtype: *dtype, shape });
            start = end;
        }
        let mut count = ByteCount(0);
        serde_json::to_writer(&mut count, &header)?;
        let length = count.0.next_multiple_of(ALIGNMENT);
        let mut file = BufWriter::new(file);
        file.write_all(&(length as u64).to_le_bytes())?;
        serde_json::to_writer(&mut file, &header)?;
        file.write_all(&b" ".repeat(length - count.0))?;
        file.flush()
    }
}

/// An entry of the header; keys in the order of the alphabet.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Text(&'a BTreeMap<String, String>),
    Tensor { data_offsets: [u64; 2], dtype: Dtype, shape: &'a [usize] },
}

/// A writer that counts the bytes and drops them.
struct ByteCount(usize);

impl Write for ByteCount {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies a range of bytes of a part to the end of a file.
fn copy(path: &Path, [start, len]: [u64; 2], (file, target): (&mut File, &Path)) -> Result<()> {
    let from = |source| Error::Io { path: path.to_owned(), source };
    let mut part = File::open(path).map_err(from)?;
    // A part that has changed since its header was read would shift all that follows.
    if part.metadata().map_err(from)?.len() < start + len {
        return Err(from(io::ErrorKind::UnexpectedEof.into()));
    }
    part.seek(SeekFrom::Start(start)).map_err(from)?;
    let copied = io::copy(&mut io::Read::take(part, len), file);
    let copied = copied.map_err(|source| Error::Io { path: target.to_owned(), source })?;
    if copied == len { Ok(()) } else { Err(from(io::ErrorKind::UnexpectedEof.into())) }
}

impl Whole {
    /// Returns whether a part has rows of the same sizes.
    fn fits(&self, shape: &[usize]) -> bool {
        shape.len() == self.shape.len() && shape[1..] == self.shape[1..]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::weights::safetensors_bytes;

    fn tensors(rows: std::ops::Range<usize>) -> BTreeMap<String, Tensor> {
        let tensor = |width: usize| {
            let values = (rows.start * width..rows.end * width).map(|idx| idx as f32).collect::<Vec<_>>();
            Tensor::from_vec(values, (rows.len(), width), &Device::Cpu).unwrap()
        };
        BTreeMap::from([("z_sem".to_owned(), tensor(5)), ("x_T".to_owned(), tensor(3))])
    }

    fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) {
        std::fs::write(path, safetensors_bytes(tensors, &BTreeMap::new()).unwrap()).unwrap();
    }

    #[test]
    fn parts_become_the_bytes_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let parts: Vec<PathBuf> = ["a", "b", "c"].map(|name| folder.path().join(name)).to_vec();
        for (path, rows) in parts.iter().zip([0..4, 4..4, 4..9]) {
            write(path, &tensors(rows));
        }
        for text in [BTreeMap::new(), BTreeMap::from([("names".to_owned(), "[\"ä\"]".to_owned())])] {
            let path = folder.path().join("whole");
            let concatenation = Concatenation::open(&parts).unwrap();
            assert_eq!(concatenation.shape("z_sem"), Some(&[9, 5][..]));
            concatenation.write(&mut File::create(&path).unwrap(), &path, &text).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), safetensors_bytes(&tensors(0..9), &text).unwrap());
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let parts: Vec<PathBuf> = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
        write(&parts[0], &tensors(0..2));
        let mut lacking = tensors(2..3);
        lacking.remove("x_T");
        let mut wide = tensors(2..3);
        wide.insert("x_T".to_owned(), Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap());
        let mut more = tensors(2..3);
        more.insert("w".to_owned(), Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap());
        let mut half = tensors(2..3);
        half.insert("x_T".to_owned(), Tensor::zeros((1, 3), candle_core::DType::F16, &Device::Cpu).unwrap());
        for (other, name) in [(lacking, "x_T"), (wide, "x_T"), (more, "w"), (half, "x_T")] {
            write(&parts[1], &other);
            let error = Concatenation::open(&parts).unwrap_err();
            assert!(matches!(&error, Error::PartMismatch { name: got, .. } if got == name), "{error}");
        }
    }

    #[test]
    fn a_part_that_was_cut_meanwhile_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let parts: Vec<PathBuf> = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
        write(&parts[0], &tensors(0..2));
        write(&parts[1], &tensors(2..4));
        let concatenation = Concatenation::open(&parts).unwrap();
        std::fs::write(&parts[1], b"cut").unwrap();
        let path = folder.path().join("whole");
        let error = concatenation.write(&mut File::create(&path).unwrap(), &path, &BTreeMap::new()).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == parts[1]), "{error}");
    }
}
