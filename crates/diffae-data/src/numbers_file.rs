//! Files that hold all numbers of a picture or a volume, beside the picture that shows it.

use candle_core::Tensor;
use ndarray::{Array, ShapeBuilder};
use nifti::NiftiHeader;
use nifti::writer::WriterOptions;

use crate::error::{Error, Result, computing};
use crate::format::PictureFormat;
use crate::geometry::Geometry;
use crate::npy::npy_bytes;

/// Ending of the names of volumes that are written.
pub const VOLUME_ENDING: &str = "nii.gz";
/// Ending of the names of arrays that are written.
pub const ARRAY_ENDING: &str = "npy";
/// Code of `NIfTI` for places in the space of the scanner, and that for millimeters.
const IN_SCANNER: i16 = 1;
const MILLIMETERS: u8 = 2;

impl PictureFormat {
    /// Returns the ending of files that hold the numbers of pictures which no picture file can: `.nii.gz` for volumes, `.npy` for
    /// other channel counts and for values in a window; `None` for gray and color.
    #[must_use]
    pub fn ending_of_numbers(self) -> Option<&'static str> {
        match self {
            _ if self.shape.size.is_volume() => Some(VOLUME_ENDING),
            _ if self.is_plain() => None,
            _ => Some(ARRAY_ENDING),
        }
    }

    /// Encodes the numbers of a picture or a volume in the file of [`ending_of_numbers`](Self::ending_of_numbers): f32, in the
    /// units of the window, without one in `[-1, 1]`; a volume with the place of its voxels in space, if it is known.
    ///
    /// # Shapes
    /// - `x`: `[C, H, W]` or `[C, D, H, W]` as the format says, in `[-1, 1]`.
    /// # Errors
    /// [`Error::Tensor`] if it has another shape; [`Error::Io`] if a temporary file cannot be written.
    pub fn encode_numbers(self, x: &Tensor, geometry: Option<Geometry>) -> Result<Vec<u8>> {
        let values = computing("reading a picture from a tensor", x.flatten_all().and_then(|x| x.to_vec1::<f32>()))?;
        let values: Vec<f32> = match self.window {
            Some(window) => values.into_iter().map(|value| window.value_of(value)).collect(),
            None => values,
        };
        match *x.dims() {
            [channels, depth, height, width] => volume_bytes(values, [channels, depth, height, width], geometry),
            ref dims => Ok(npy_bytes(dims, &values)),
        }
    }
}

/// Encodes a volume as a packed `NIfTI` file.
fn volume_bytes(
    values: Vec<f32>,
    [channels, depth, height, width]: [usize; 4],
    geometry: Option<Geometry>,
) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let path = folder.path().join("volume").with_extension(VOLUME_ENDING);
    let encode = || -> std::result::Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let header = header(geometry);
        let options = WriterOptions::new(&path).reference_header(&header);
        // The first axis of the format is the innermost.
        if channels == 1 {
            options.write_nifti(&Array::from_shape_vec((width, height, depth).f(), values)?)?;
        } else {
            options.write_nifti(&Array::from_shape_vec((width, height, depth, channels).f(), values)?)?;
        }
        Ok(std::fs::read(&path)?)
    };
    encode().map_err(|source| Error::Encode { path: path.clone(), source })
}

#[expect(clippy::cast_possible_truncation, reason = "the numbers of the format are f32")]
fn header(geometry: Option<Geometry>) -> NiftiHeader {
    // The default header claims a place in space, the first voxel at its origin.
    let nowhere = NiftiHeader { sform_code: 0, qform_code: 0, ..NiftiHeader::default() };
    let Some(geometry) = geometry else { return nowhere };
    let [srow_x, srow_y, srow_z] = geometry.affine.map(|line| line.map(|value| value as f32));
    let [z, y, x] = geometry.spacing().map(|length| length as f32);
    NiftiHeader {
        sform_code: IN_SCANNER,
        srow_x,
        srow_y,
        srow_z,
        pixdim: [1., x, y, z, 1., 1., 1., 1.],
        xyzt_units: MILLIMETERS,
        ..nowhere
    }
}
