//! Pictures and volumes of any number of channels, as numbers: decoded from array files, stacks of pages and medical formats,
//! brought to `[-1, 1]`, and resampled.
//!
//! | Kind | Axes |
//! |---|---|
//! | `.npy`, `.npz` | as the shape says, channels first or last |
//! | TIFF of several pages | pages are slices of volumes, and channels of pictures |
//! | `NIfTI` | x, y and z are width, height and depth; the fourth axis are channels |
//! | DICOM | files of a series, or frames of a file, are slices |
//! | other pictures | as they are |

#[cfg(feature = "dicom")]
mod dicom;
mod nifti;
mod pages;
mod resampled;

use std::path::Path;

use candle_core::{Device, Tensor};
use image::DynamicImage;

use crate::error::{Error, Result, computing};
use crate::format::{MAX_CHANNELS, PictureFormat};
use crate::geometry::Geometry;
use crate::image_io::{CropBox, on_white};
use crate::notices::counted;
use crate::npy::{self, Number};
use crate::picture_file::decode;

/// Maximum number of values of a picture or a volume: 1 GiB of f32.
pub(crate) const MAX_VALUES: usize = 1 << 28;
/// Tolerance of floats beyond `[-1, 1]`, for rounding.
const ROUNDING: f64 = 1e-3;

/// Numbers of a picture or a volume as stored, `[C, D, H, W]`; D is 1 for pictures.
#[derive(Debug)]
pub(crate) struct Raster {
    values: Vec<f32>,
    channels: usize,
    /// Depth, height and width.
    sides: [usize; 3],
    scale: Scale,
    geometry: Option<Geometry>,
}

/// Values that the stored numbers fill.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scale {
    /// From 0 to a maximum: integers without sign of 8 and 16 bits.
    UpTo(f32),
    /// Floats that should lie in `[-1, 1]`.
    Unit,
    /// Unknown, for the reason that the text gives.
    Unknown(&'static str),
}

impl Scale {
    /// Scale of numbers of a type of `NumPy`.
    fn of(number: Number) -> Self {
        match number {
            Number::UINT8 => Self::UpTo(255.),
            Number::UINT16 => Self::UpTo(65535.),
            number if number.is_float() => Self::Unit,
            _ => Self::Unknown("integers with a sign, or of more than 16 bits"),
        }
    }
}

/// First bytes of the files of a DICOM series in one.
const SERIES_MAGIC: &[u8] = b"diffae: the files of a DICOM series, each after its length\n";

/// Puts the files of a DICOM series together to the bytes of one picture.
pub(crate) fn series_bytes(files: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = SERIES_MAGIC.to_vec();
    for file in files {
        bytes.extend((file.len() as u64).to_le_bytes());
        bytes.extend(file);
    }
    bytes
}

/// Splits what [`series_bytes`] has put together.
fn series_files(bytes: &[u8]) -> std::result::Result<Vec<&[u8]>, String> {
    let mut rest = bytes.get(SERIES_MAGIC.len()..).unwrap_or_default();
    let mut files = vec![];
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (file, after) = after.split_at_checked(length).ok_or("it is cut off")?;
        files.push(file);
        rest = after;
    }
    Ok(files)
}

/// Kind of a file that holds numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Npy,
    Npz,
    Nifti,
    Dicom,
    Series,
    Tiff,
}

impl Kind {
    /// Detects the kind by the first bytes, and that of compressed files by the ending of the name.
    fn of(bytes: &[u8], path: &Path) -> Option<Self> {
        let ends_with = |ending: &str| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            name.ends_with(ending)
        };
        if bytes.starts_with(SERIES_MAGIC) {
            Some(Self::Series)
        } else if bytes.starts_with(npy::MAGIC) {
            Some(Self::Npy)
        } else if bytes.starts_with(b"PK") && ends_with(".npz") {
            Some(Self::Npz)
        } else if nifti::is_nifti(bytes)
            || (nifti::has_length_of_header(bytes) && ends_with(".nii"))
            || (bytes.starts_with(b"\x1f\x8b") && ends_with(".nii.gz"))
        {
            Some(Self::Nifti)
        } else if bytes.get(128..132) == Some(b"DICM") {
            Some(Self::Dicom)
        } else if [&b"II*\0"[..], b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|start| bytes.starts_with(start)) {
            Some(Self::Tiff)
        } else {
            None
        }
    }
}

/// Returns whether a file holds numbers rather than a picture in a format for the eye.
pub(crate) fn is_raster(bytes: &[u8], path: &Path) -> bool {
    Kind::of(bytes, path).is_some_and(|kind| kind != Kind::Tiff)
}

impl Raster {
    /// Decodes a file, as far as `format` decides the meaning of its axes.
    ///
    /// # Errors
    /// [`Error::UnreadPicture`] or [`Error::DamagedPicture`].
    pub(crate) fn decode(bytes: &[u8], path: &Path, format: PictureFormat) -> Result<Self> {
        let unread = |problem: String| Error::UnreadPicture { path: path.to_owned(), problem };
        let raster = match Kind::of(bytes, path) {
            Some(Kind::Npy) => Self::of_array(npy::read_array(&mut &bytes[..]).map_err(unread)?, format),
            Some(Kind::Npz) => npy::only_array(bytes).and_then(|array| Self::of_array(array, format)),
            Some(Kind::Nifti) => nifti::decode(bytes),
            Some(Kind::Dicom) => decode_dicom(&[bytes]),
            Some(Kind::Series) => series_files(bytes).and_then(|files| decode_dicom(&files)),
            Some(Kind::Tiff) => match pages::decode(bytes, format) {
                Ok(Some(stack)) => Ok(stack),
                Ok(None) => return Ok(Self::of_picture(decode(bytes, path)?, format.shape.channels)),
                Err(problem) => Err(problem),
            },
            None => return Ok(Self::of_picture(decode(bytes, path)?, format.shape.channels)),
        };
        raster.map_err(unread)
    }

    /// Fails if a file of numbers cannot be decoded; whether they are those of a picture, a format decides. `None` if it is none.
    pub(crate) fn check_file(bytes: &[u8], path: &Path) -> Option<Result<()>> {
        let checked = match Kind::of(bytes, path)? {
            Kind::Npy => npy::read_array(&mut &bytes[..]).map(drop),
            Kind::Npz => npy::only_array(bytes).map(drop),
            Kind::Nifti => nifti::decode(bytes).map(drop),
            Kind::Dicom => decode_dicom(&[bytes]).map(drop),
            Kind::Series => series_files(bytes).and_then(|files| decode_dicom(&files)).map(drop),
            Kind::Tiff => match pages::decode(bytes, PictureFormat::new(MAX_CHANNELS, 1)) {
                Ok(None) => return None,
                decoded => decoded.map(drop),
            },
        };
        Some(checked.map_err(|problem| Error::UnreadPicture { path: path.to_owned(), problem }))
    }

    /// Takes the samples of a picture: gray for one channel, otherwise in color.
    pub(crate) fn of_picture(picture: DynamicImage, channels: usize) -> Self {
        let has_bytes = picture.color().bytes_per_pixel() == picture.color().channel_count();
        let picture = on_white(picture);
        let sides = [1, picture.height() as usize, picture.width() as usize];
        let is_deep = picture.color().bytes_per_pixel() > picture.color().channel_count();
        let is_gray = channels == 1 || !picture.color().has_color();
        let (samples, channels): (Vec<f32>, _) = match (is_gray, is_deep) {
            (true, false) => (picture.to_luma8().into_raw().into_iter().map(f32::from).collect(), 1),
            (true, true) => (picture.to_luma16().into_raw().into_iter().map(f32::from).collect(), 1),
            (false, false) => (picture.to_rgb8().into_raw().into_iter().map(f32::from).collect(), 3),
            (false, true) => (picture.to_rgb16().into_raw().into_iter().map(f32::from).collect(), 3),
        };
        let mut values = planes(&samples, channels);
        if has_bytes && is_deep {
            // What was blended with white has 16 bits for 8.
            for value in &mut values {
                *value /= 257.;
            }
        }
        let scale = Scale::UpTo(if is_deep && !has_bytes { 65535. } else { 255. });
        Self { values, channels, sides, scale, geometry: None }
    }

    /// Takes an array whose axes are those of the format: height and width, or depth, height and width, and channels before or
    /// behind them, which may be missing if there is one.
    fn of_array(array: npy::Array, format: PictureFormat) -> std::result::Result<Self, String> {
        let (channels, axes) = (format.shape.channels, format.shape.size.axes());
        let npy::Array { shape, values, number } = array;
        if values.is_empty() {
            return Err(format!("it is an array of shape {shape:?}, which is empty"));
        }
        #[expect(clippy::cast_possible_truncation, reason = "networks compute in f32")]
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        let (values, sides) = match *shape.as_slice() {
            ref sides if sides.len() == axes && channels == 1 => (values, sides.to_vec()),
            [first, ref sides @ ..] if sides.len() == axes && first == channels => (values, sides.to_vec()),
            [ref sides @ .., last] if sides.len() == axes && last == channels => {
                (planes(&values, channels), sides.to_vec())
            }
            _ => {
                let axes = if axes == 3 { "D, H, W" } else { "H, W" };
                let without = if channels == 1 { format!("[{axes}], ") } else { String::new() };
                return Err(format!(
                    "it is an array of shape {shape:?}, the model expects {without}[{channels}, {axes}] or [{axes}, {channels}]"
                ));
            }
        };
        let sides = match *sides.as_slice() {
            [height, width] => [1, height, width],
            [depth, height, width] => [depth, height, width],
            _ => return Err(format!("it is an array of shape {shape:?}")),
        };
        Ok(Self { values, channels, sides, scale: Scale::of(number), geometry: None })
    }

    /// Cuts out a part of every slice.
    ///
    /// # Errors
    /// A sentence if it reaches over the edge.
    fn cut_out(self, crop: CropBox) -> std::result::Result<Self, String> {
        let [depth, height, width] = self.sides;
        let [left, top, columns, rows] = [crop.left, crop.top, crop.width, crop.height].map(|side| side as usize);
        let (right, bottom) = (left.saturating_add(columns), top.saturating_add(rows));
        if right > width || bottom > height {
            return Err(format!("it has {width} by {height} pixels, the crop needs {right} by {bottom}"));
        }
        let lines = self.values.chunks(width.max(1)).enumerate();
        let inside = lines.filter(|(line, _)| (top..bottom).contains(&(line % height.max(1))));
        let values = inside.flat_map(|(_, line)| line[left..right].iter().copied()).collect();
        let geometry = self.geometry.map(|geometry| geometry.moved([0., top as f64, left as f64]));
        Ok(Self { values, sides: [depth, rows, columns], geometry, ..self })
    }

    /// Brings the numbers to `[-1, 1]`.
    ///
    /// # Errors
    /// A sentence if their scale is not known, or they are not finite.
    fn scale_to_unit(&mut self, format: PictureFormat) -> std::result::Result<(), String> {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for &value in &self.values {
            if !value.is_finite() {
                return Err("it holds a value that is not finite".to_owned());
            }
            (low, high) = (low.min(value), high.max(value));
        }
        let needs_window = |kind: &str| {
            format!(
                "its values are {kind}, from {low} to {high}, whose scale is not known; set the values that become -1 and 1, as \
                 data.window = [{low}, {}]",
                if low < high { high } else { low + 1. }
            )
        };
        let unit: Box<dyn Fn(f32) -> f32> = match (format.window, &self.scale) {
            (Some(window), _) => Box::new(move |value| window.to_unit(value.into())),
            (None, &Scale::UpTo(most)) => Box::new(move |value| value / (most / 2.) - 1.),
            (None, Scale::Unit) if f64::from(low) >= -1. - ROUNDING && f64::from(high) <= 1. + ROUNDING => {
                Box::new(|value| value.clamp(-1., 1.))
            }
            (None, Scale::Unit) => return Err(needs_window("floats")),
            (None, &Scale::Unknown(kind)) => return Err(needs_window(kind)),
        };
        self.values.iter_mut().for_each(|value| *value = unit(*value));
        Ok(())
    }

    /// Checks that it is what the format asks for.
    fn check(&self, format: PictureFormat) -> std::result::Result<(), String> {
        let (channels, depth) = (format.shape.channels, self.sides[0]);
        if self.channels != channels {
            return Err(format!("it has {}, the model expects {channels}", counted(self.channels, "channel")));
        }
        match format.shape.size.is_volume() {
            true if depth == 1 => Err("it is a single slice, and the model is for volumes".to_owned()),
            false if depth > 1 => Err(format!(
                "it is a volume of {depth} slices, and the model is for pictures; name a single file of a series, or save its \
                 slices one by one"
            )),
            _ if self.values.is_empty() => Err("it is empty".to_owned()),
            _ => Ok(()),
        }
    }

    /// Brings the numbers to `[-1, 1]` and to the size of a format; returns also the place of the voxels in space.
    ///
    /// # Shapes
    /// - result: `[C, H, W]` or `[C, D, H, W]`, f32 in `[-1, 1]`, on the CPU.
    /// # Errors
    /// [`Error::UnreadPicture`] if it is no such picture, or its scale is not known.
    pub(crate) fn into_tensor(
        mut self,
        path: &Path,
        format: PictureFormat,
        crop: Option<CropBox>,
    ) -> Result<(Tensor, Option<Geometry>)> {
        let unread = |problem: String| Error::UnreadPicture { path: path.to_owned(), problem };
        self.check(format).map_err(unread)?;
        if let Some(crop) = crop {
            self = self.cut_out(crop).map_err(unread)?;
            self.check(format).map_err(unread)?;
        }
        self.scale_to_unit(format).map_err(unread)?;
        let fitted = resampled::fit(self, format.shape.size)
            .map_err(|source| Error::Resize { path: path.to_owned(), source })?;
        let tensor = Tensor::from_vec(fitted.values, format.shape.dims(), &Device::Cpu);
        Ok((computing("making a tensor of a picture", tensor)?, fitted.geometry))
    }
}

/// Returns the identifier of the DICOM series that a file belongs to; `None` if it is no DICOM file, or this build cannot read it.
pub(crate) fn dicom_series(path: &Path) -> Option<String> {
    #[cfg(feature = "dicom")]
    return dicom::series(path);
    #[cfg(not(feature = "dicom"))]
    {
        let _ = path;
        None
    }
}

/// Orders interleaved samples by channel.
fn planes(samples: &[f32], channels: usize) -> Vec<f32> {
    (0..channels).flat_map(|channel| samples.iter().skip(channel).step_by(channels).copied()).collect()
}

#[cfg(feature = "dicom")]
fn decode_dicom(files: &[&[u8]]) -> std::result::Result<Raster, String> {
    dicom::decode(files)
}

#[cfg(not(feature = "dicom"))]
fn decode_dicom(_: &[&[u8]]) -> std::result::Result<Raster, String> {
    Err("it is a DICOM file, which this build cannot read; build with `--features dicom`".to_owned())
}

impl Raster {
    /// Orders the voxels of a volume whose place in space is known as a radiologist sees them: columns towards the patient's left,
    /// rows towards the back, slices towards the head, as far as axes of the volume run along those. Volumes of other orders and of
    /// other formats become alike.
    fn oriented(self) -> Self {
        // A single slice is a picture, in the plane that it was taken in.
        let Some(geometry) = self.geometry.filter(|_| self.sides[0] > 1) else { return self };
        // Axes of the volume: 0 columns, 1 rows, 2 slices.
        let order = geometry.axes_along();
        let sides_by_axis = [self.sides[2], self.sides[1], self.sides[0]];
        let lengths = [1, self.sides[2], self.sides[2] * self.sides[1]];
        let of_channel = self.sides.iter().product::<usize>();
        let [columns, rows, slices] = order.map(|(axis, _)| sides_by_axis[axis]);
        let place = |(axis, is_turned): (usize, bool), idx: usize, side: usize| {
            lengths[axis] * if is_turned { side - 1 - idx } else { idx }
        };
        let mut values = Vec::with_capacity(self.values.len());
        for channel in self.values.chunks(of_channel.max(1)) {
            for (slice, row) in (0..slices).flat_map(|slice| (0..rows).map(move |row| (slice, row))) {
                let start = place(order[2], slice, slices) + place(order[1], row, rows);
                values.extend((0..columns).map(|column| channel[start + place(order[0], column, columns)]));
            }
        }
        let geometry = Some(geometry.with_axes(order, [columns, rows, slices]));
        Self { values, sides: [slices, rows, columns], geometry, ..self }
    }
}
