//! `NIfTI` files, version 1: volumes of medical scanners with their place in space.

use std::io::Read;

use flate2::read::MultiGzDecoder;
use nifti::{InMemNiftiVolume, IntoNdArray, NiftiHeader, NiftiType};

use super::{MAX_VALUES, Raster, Scale};
use crate::geometry::Geometry;

/// Number of bytes of a header, which its first four bytes say.
const HEADER_BYTES: usize = 348;
/// Number of bytes of a header of version 2.
const HEADER_BYTES_2: usize = 540;
/// Maximum size of an unpacked file.
const MAX_BYTES: u64 = 1 << 31;

/// Returns whether a file begins as one of version 1 or 2.
pub(super) fn is_nifti(bytes: &[u8]) -> bool {
    let is_second = begins_with(bytes, HEADER_BYTES_2) && bytes.get(4..8) == Some(b"n+2\0");
    is_second || has_length_of_header(bytes) && matches!(bytes.get(344..348), Some(b"n+1\0" | b"ni1\0"))
}

/// Returns whether a file begins with the length of a header of version 1, as one does that is cut off within the header.
pub(super) fn has_length_of_header(bytes: &[u8]) -> bool {
    begins_with(bytes, HEADER_BYTES)
}

/// Returns whether a file begins with a number of 32 bits, in any order of bytes.
fn begins_with(bytes: &[u8], number: usize) -> bool {
    let Some(&first) = bytes.first_chunk() else { return false };
    [u32::from_le_bytes(first), u32::from_be_bytes(first)].iter().any(|&found| found as usize == number)
}

/// Decodes a file, `.nii` or `.nii.gz`, its slices turned to the view of a radiologist ([`Raster::oriented`]).
///
/// # Errors
/// A sentence.
pub(super) fn decode(bytes: &[u8]) -> Result<Raster, String> {
    if bytes.starts_with(b"\x1f\x8b") {
        let mut unpacked = vec![];
        let read = MultiGzDecoder::new(bytes).take(MAX_BYTES).read_to_end(&mut unpacked);
        read.map_err(|error| format!("it cannot be unpacked: {error}"))?;
        return decode_unpacked(&unpacked);
    }
    decode_unpacked(bytes)
}

fn decode_unpacked(bytes: &[u8]) -> Result<Raster, String> {
    if !is_nifti(bytes) {
        let is_cut = has_length_of_header(bytes) && bytes.len() < HEADER_BYTES;
        let problem =
            if is_cut { "it is a NIfTI file that is cut off within its header" } else { "it is no NIfTI file" };
        return Err(problem.to_owned());
    }
    if bytes.get(344..348) != Some(b"n+1\0") {
        return Err("it is a NIfTI file of version 2, or a header without its volume; save it as .nii or .nii.gz of \
                    version 1"
            .to_owned());
    }
    let mut header = NiftiHeader::from_reader(bytes).map_err(|error| format!("its header is damaged: {error}"))?;
    if !header.scl_slope.is_finite() || !header.scl_inter.is_finite() {
        // As other readers have it: no scale.
        (header.scl_slope, header.scl_inter) = (0., 0.);
    }
    let dims = header.dim().map_err(|error| format!("its header is damaged: {error}"))?;
    let dims: Vec<usize> = dims.iter().map(|&side| usize::from(side)).collect();
    let count =
        dims.iter().try_fold(1_usize, |count, &side| count.checked_mul(side)).filter(|&count| count <= MAX_VALUES);
    let Some(count) = count.filter(|&count| count > 0) else {
        return Err(format!("it has {dims:?} voxels, too many or none"));
    };
    let stored = header.data_type().map_err(|error| format!("its header is damaged: {error}"))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an offset below 2^24, checked against the file"
    )]
    let start = (header.vox_offset.max(0.) as usize).max(HEADER_BYTES);
    let len = count * stored.size_of();
    let volume = bytes.get(start..).and_then(|rest| rest.get(..len));
    let volume =
        volume.ok_or_else(|| format!("it is cut off: {dims:?} voxels of {} bytes each are more", stored.size_of()))?;
    let volume = InMemNiftiVolume::from_raw_data(&header, volume.to_vec()).and_then(IntoNdArray::into_ndarray::<f32>);
    let volume = volume.map_err(|error| format!("its values are no real numbers: {error}"))?;
    // The first axis is the innermost in the file: [channels, z, y, x].
    let values = volume.t().iter().copied().collect();
    let side = |axis: usize| dims.get(axis).copied().unwrap_or(1);
    let channels = dims.iter().skip(3).product();
    let is_scaled = header.scl_slope != 0. && (header.scl_slope - 1.).abs() + header.scl_inter.abs() > 0.;
    let scale = match stored {
        NiftiType::Float32 | NiftiType::Float64 => Scale::Unit,
        _ if is_scaled => Scale::Unknown("scaled integers"),
        NiftiType::Uint8 => Scale::UpTo(255.),
        _ => Scale::Unknown("integers"),
    };
    let raster = Raster {
        values,
        channels,
        sides: [side(2), side(1), side(0)],
        scale,
        geometry: geometry(&header).map(|place| in_millimeters(place, &header)),
    };
    Ok(raster.oriented())
}

/// Returns the place in space that a header tells: that of its affine map, or of its rotation.
fn geometry(header: &NiftiHeader) -> Option<Geometry> {
    if header.sform_code > 0 {
        let affine = [header.srow_x, header.srow_y, header.srow_z].map(|line| line.map(f64::from));
        let told = Geometry { affine };
        if told.is_regular() {
            return Some(told);
        }
    }
    (header.qform_code > 0).then(|| rotated(header)).filter(Geometry::is_regular)
}

/// Converts a geometry in the unit of a header, meters or microns; without one, in millimeters.
fn in_millimeters(geometry: Geometry, header: &NiftiHeader) -> Geometry {
    let factor = match header.xyzt_units & 7 {
        1 => 1e3,
        3 => 1e-3,
        _ => return geometry,
    };
    Geometry { affine: geometry.affine.map(|line| line.map(|value| value * factor)) }
}

/// Computes the affine map of a unit quaternion `(a, b, c, d)`, of which b, c and d are stored, and of the sizes of voxels.
fn rotated(header: &NiftiHeader) -> Geometry {
    let [b, c, d] = [header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from);
    let a = (1. - b * b - c * c - d * d).max(0.).sqrt();
    let rotation = [
        [a * a + b * b - c * c - d * d, 2. * (b * c - a * d), 2. * (b * d + a * c)],
        [2. * (b * c + a * d), a * a + c * c - b * b - d * d, 2. * (c * d - a * b)],
        [2. * (b * d - a * c), 2. * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    let mirrored = if header.pixdim[0] < 0. { -1. } else { 1. };
    let sizes = [header.pixdim[1], header.pixdim[2], header.pixdim[3]].map(f64::from);
    let sizes = [sizes[0], sizes[1], sizes[2] * mirrored];
    let places = [header.quatern_x, header.quatern_y, header.quatern_z].map(f64::from);
    let line = |(line, place): ([f64; 3], f64)| [line[0] * sizes[0], line[1] * sizes[1], line[2] * sizes[2], place];
    let [x, y, z] = [0, 1, 2].map(|axis| line((rotation[axis], places[axis])));
    Geometry { affine: [x, y, z] }
}
