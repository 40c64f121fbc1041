//! Pictures and volumes in `.safetensors` files.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffae_nets::weights::{SafetensorsFile, StoredTensor, TensorSource};
use image::RgbImage;

use crate::error::{Error, Result, computing};
use crate::format::PictureFormat;
use crate::image_io::CropBox;
use crate::source::Source;
use crate::views::rgb_from_tensor;

/// Tolerance of values of `x` beyond `[-1, 1]`, for rounding.
const ROUNDING: f32 = 1e-3;

/// The pictures `x` `[N, C, H, W]`, or volumes `[N, C, D, H, W]`, of a safetensors file, floats in `[-1, 1]`, each read when it is asked for.
#[derive(Debug)]
pub(crate) struct Tensors {
    file: SafetensorsFile,
    dtype: DType,
    /// `[N, C, ..]`
    shape: Vec<usize>,
    /// Name of the file without its ending, and the number of the picture.
    names: Vec<String>,
}

/// Returns whether a file is taken for one of tensors, by the ending of its name.
pub(crate) fn is_tensors(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) && !path.is_dir()
}

impl Tensors {
    /// Opens a file, and checks all its values.
    ///
    /// # Errors
    /// [`Error::Tensors`] without usable `x`; [`Error::Weights`] if the file is damaged.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path).map_err(|source| Error::Weights { path: path.to_owned(), source })?;
        let (dtype, shape) = {
            let stored = stored(&file, "x", &[4, 5])?;
            (stored.dtype, stored.shape)
        };
        let Some(&count) = shape.first() else { return Err(no_pictures(path)) };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let names = (0..count).map(|idx| format!("{stem}_{idx:04}")).collect();
        let tensors = Self { file, dtype, shape, names };
        tensors.check_range()?;
        Ok(tensors)
    }

    /// Reads a picture as it is stored, `[C, ..]`.
    fn row(&self, idx: usize) -> Result<StoredTensor<'_>> {
        let failed = |source| Error::Weights { path: self.file.path().to_owned(), source };
        let all = self.file.read("x").map_err(failed)?;
        let length = self.shape[1..].iter().product::<usize>() * self.dtype.size_in_bytes();
        let range = idx * length..(idx + 1) * length;
        let bytes = match all.bytes {
            Cow::Borrowed(bytes) => bytes.get(range).map(Cow::Borrowed),
            Cow::Owned(bytes) => bytes.get(range).map(|bytes| Cow::Owned(bytes.to_vec())),
        };
        let bytes = bytes.ok_or_else(|| no_pictures(self.file.path()))?;
        Ok(StoredTensor { name: all.name, dtype: self.dtype, shape: self.shape[1..].to_vec(), bytes })
    }

    fn picture(&self, idx: usize) -> Result<Tensor> {
        let failed = |source| Error::Weights { path: self.file.path().to_owned(), source };
        self.row(idx)?.to_tensor(DType::F32, &Device::Cpu).map_err(failed)
    }

    /// Fails if there are values beyond `[-1, 1]`.
    fn check_range(&self) -> Result<()> {
        let extreme = |value: candle_core::Result<Tensor>| {
            computing("reading x", value.and_then(|value| value.to_scalar::<f32>()))
        };
        let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
        for idx in 0..self.len() {
            let x = self.picture(idx)?;
            (least, most) = (least.min(extreme(x.min_all())?), most.max(extreme(x.max_all())?));
        }
        if least >= -1. - ROUNDING && most <= 1. + ROUNDING {
            return Ok(());
        }
        let way_out = match most {
            most if least >= 0. && most > 2. => "; bytes become such values by x / 127.5 - 1",
            _ => "; scale them to that range",
        };
        let problem = format!("tensor x has values from {least} to {most}, expected -1 (black) to 1 (white){way_out}");
        Err(Error::Tensors { path: self.file.path().to_owned(), problem })
    }
}

fn no_pictures(path: &Path) -> Error {
    Error::Tensors { path: path.to_owned(), problem: "there are no such pictures in it".to_owned() }
}

impl Source for Tensors {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn name(&self, idx: usize) -> &str {
        self.names.get(idx).map_or("", String::as_str)
    }

    fn file(&self, _idx: usize) -> &Path {
        self.file.path()
    }

    fn path(&self, idx: usize) -> PathBuf {
        self.file.path().join(self.name(idx))
    }

    /// Reads the numbers as they are stored, `[C, ..]`.
    fn bytes(&self, idx: usize) -> Result<Vec<u8>> {
        Ok(self.row(idx)?.bytes.into_owned())
    }

    /// Reads a picture, which is neither resized nor cropped.
    fn read(&self, idx: usize, format: PictureFormat, crop: Option<CropBox>) -> Result<Tensor> {
        if crop.is_some() {
            let problem = "tensors are not cropped; leave the crop at `center`".to_owned();
            return Err(Error::Tensors { path: self.file.path().to_owned(), problem });
        }
        let expected = format.shape.dims();
        if self.shape[1..] != expected {
            return Err(Error::Mismatch {
                what: format!("the shape of {}", self.name(idx)),
                got: format!("{:?}", &self.shape[1..]),
                expected: format!("{expected:?}"),
            });
        }
        computing("reading x", self.picture(idx)?.clamp(-1f32, 1f32))
    }

    fn read_rgb(&self, idx: usize) -> Result<RgbImage> {
        rgb_from_tensor(&self.picture(idx)?)
    }

    /// Succeeds: all values were checked when the file was opened.
    fn check(&self, _idx: usize) -> Result<()> {
        Ok(())
    }
}

/// Reads one float tensor of a safetensors file as f32 on the CPU.
///
/// # Errors
/// [`Error::Tensors`] if it is missing or has another number of axes; [`Error::Weights`] if the file is damaged or holds
/// NaN.
pub fn read_tensor(file: &SafetensorsFile, name: &str, num_axes: &[usize]) -> Result<Tensor> {
    let failed = |source| Error::Weights { path: file.path().to_owned(), source };
    stored(file, name, num_axes)?.to_tensor(DType::F32, &Device::Cpu).map_err(failed)
}

/// Looks up a float tensor of a safetensors file.
fn stored<'a>(file: &'a SafetensorsFile, name: &str, num_axes: &[usize]) -> Result<StoredTensor<'a>> {
    let failed = |source| Error::Weights { path: file.path().to_owned(), source };
    let Some(shape) = file.shape(name) else {
        let names = file.names();
        let is_codes = name == "x" && ["z_sem", "x_T"].iter().any(|code| names.iter().any(|name| name == code));
        let remedy = if is_codes { "; it holds codes, of which `diffae decode` makes pictures" } else { "" };
        let problem = format!("there is no tensor {name} in it; it has {}{remedy}", names.join(", "));
        return Err(Error::Tensors { path: file.path().to_owned(), problem });
    };
    if !num_axes.contains(&shape.len()) || shape.contains(&0) {
        let expected = num_axes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        let problem = format!("tensor {name} has shape {shape:?}, expected {expected} axes, none empty");
        return Err(Error::Tensors { path: file.path().to_owned(), problem });
    }
    let stored = file.read(name).map_err(failed)?;
    if !stored.dtype.is_float() {
        let bytes = if stored.dtype == DType::U8 { " (of bytes: x / 127.5 - 1)" } else { "" };
        let problem = format!("tensor {name} holds {:?}, expected floats{bytes}", stored.dtype);
        return Err(Error::Tensors { path: file.path().to_owned(), problem });
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use diffae_nets::weights::safetensors_bytes;

    use super::*;
    use crate::{Crop, Pictures};

    fn written(path: &Path, values: &[f32]) {
        let x = Tensor::from_vec(values.to_vec(), (values.len().div_euclid(4), 1, 2, 2), &Device::Cpu).unwrap();
        std::fs::write(path, safetensors_bytes(&[("x".to_owned(), x)].into(), &BTreeMap::new()).unwrap()).unwrap();
    }

    #[test]
    fn each_row_is_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made.safetensors");
        written(&path, &[-1., -0.5, 0., 0.5, 1.0005, 0.25, 0.125, 0.]);
        let pictures = Pictures::all(&path, Crop::Center).unwrap();
        assert_eq!((pictures.len(), pictures.name(1)), (2, "made_0001".to_owned()));
        let read = |idx| {
            pictures.read(idx, PictureFormat::new(1, 2)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!([read(0), read(1)], [[-1., -0.5, 0., 0.5], [1., 0.25, 0.125, 0.]]);
        let other_size = pictures.read(0, PictureFormat::new(3, 2)).unwrap_err().to_string();
        assert!(other_size.contains("made_0000") && other_size.contains("[1, 2, 2]"), "{other_size}");
        let celeba = Pictures::all(&path, Crop::Celeba).unwrap();
        assert!(celeba.read(0, PictureFormat::new(1, 2)).unwrap_err().to_string().contains("not cropped"));
        let first = pictures.fingerprint(&[0]).unwrap();
        assert_ne!(first, pictures.fingerprint(&[1]).unwrap());
        assert_ne!(first, celeba.fingerprint(&[0]).unwrap());
        written(&path, &[-1., -0.5, 0., 0.5]);
        assert_ne!(first, Pictures::all(&path, Crop::Center).unwrap().fingerprint(&[0]).unwrap());
    }

    #[test]
    fn values_beyond_the_range_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        for (values, advice) in [([0., 255., 3., 4.], "x / 127.5 - 1"), ([-3., 0., 0., 1.], "scale them")] {
            written(&path, &values);
            let error = Tensors::open(&path).unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        }
    }
}
