//! DICOM files, alone or as the slices of a series.

use dicom_object::{DefaultDicomObject, OpenFileOptions, Tag};
use dicom_pixeldata::{PhotometricInterpretation, PixelDecoder, PixelRepresentation};

use super::{MAX_VALUES, Raster, Scale, planes};
use crate::geometry::Geometry;

/// Number of bytes before the first four letters.
const PREAMBLE: usize = 128;
/// Maximum deviation of the distance of two slices from the mean distance, as a share.
const MAX_UNEVENNESS: f64 = 0.1;

const SERIES: Tag = Tag(0x0020, 0x000E);
const POSITION: Tag = Tag(0x0020, 0x0032);
const ORIENTATION: Tag = Tag(0x0020, 0x0037);
const NUMBER: Tag = Tag(0x0020, 0x0013);
const PIXEL_SPACING: Tag = Tag(0x0028, 0x0030);
const THICKNESS: Tag = Tag(0x0018, 0x0050);
const SLICE_SPACING: Tag = Tag(0x0018, 0x0088);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const SAMPLES: Tag = Tag(0x0028, 0x0002);
const FRAMES: Tag = Tag(0x0028, 0x0008);
const BITS_ALLOCATED: Tag = Tag(0x0028, 0x0100);
const BITS_STORED: Tag = Tag(0x0028, 0x0101);
const PIXELS: Tag = Tag(0x7FE0, 0x0010);

/// Pixels of one file, and its place.
struct Slice {
    /// Frames, samples of a pixel side by side.
    values: Vec<f32>,
    num_samples: usize,
    /// Frames, rows and columns.
    sides: [usize; 3],
    scale: Scale,
    number: f64,
    place: Option<Place>,
}

/// Place of a slice, in the axes of DICOM: x to the left, y to the back, z to the head.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Center of the first pixel.
    position: [f64; 3],
    /// Direction of growing columns, then of growing rows.
    along: [[f64; 3]; 2],
    /// Distance of rows, of columns, and of slices, as the file tells them.
    spacing: [f64; 3],
}

impl Place {
    fn of(object: &DefaultDicomObject) -> Option<Self> {
        let position = numbers(object, POSITION).try_into().ok()?;
        let [a, b, c, d, e, f]: [f64; 6] = numbers(object, ORIENTATION).try_into().ok()?;
        let [rows, columns]: [f64; 2] = numbers(object, PIXEL_SPACING).try_into().ok()?;
        let of = |tag: Tag| numbers(object, tag).first().copied();
        let slices = of(SLICE_SPACING).or_else(|| of(THICKNESS)).filter(|&length| length > 0.).unwrap_or(1.);
        Some(Self { position, along: [[a, b, c], [d, e, f]], spacing: [rows, columns, slices] })
    }

    /// Direction of slices: across columns and rows.
    fn across(&self) -> [f64; 3] {
        let [[a, b, c], [d, e, f]] = self.along;
        [b * f - c * e, c * d - a * f, a * e - b * d]
    }

    fn depth(&self) -> f64 {
        self.across().iter().zip(self.position).map(|(direction, place)| direction * place).sum()
    }
}

fn numbers(object: &DefaultDicomObject, tag: Tag) -> Vec<f64> {
    object.get(tag).and_then(|element| element.to_multi_float64().ok()).unwrap_or_default()
}

/// Reads the number of the series that a file belongs to, without its pixels; `None` if it is no DICOM file.
pub(super) fn series(path: &std::path::Path) -> Option<String> {
    let object = OpenFileOptions::new().read_until(PIXELS).open_file(path).ok()?;
    let text = object.get(SERIES)?.to_str().ok()?;
    Some(text.trim_end_matches(['\0', ' ']).to_owned())
}

/// Decodes files that are slices of one volume, in the order of their places, turned to the view of a radiologist.
///
/// # Errors
/// A sentence.
pub(super) fn decode(files: &[&[u8]]) -> Result<Raster, String> {
    let mut slices = files.iter().map(|bytes| decode_file(bytes)).collect::<Result<Vec<_>, _>>()?;
    let num_values: usize = slices.iter().map(|slice| slice.values.len()).sum();
    if num_values > MAX_VALUES {
        return Err("it has too many voxels".to_owned());
    }
    let Some(first) = slices.first() else { return Err("it holds no slices".to_owned()) };
    let (num_samples, sides, scale) = (first.num_samples, first.sides, first.scale.clone());
    if slices.iter().any(|slice| slice.sides != sides || slice.num_samples != num_samples || slice.scale != scale) {
        return Err("its slices differ in their sizes or in the scale of their pixels".to_owned());
    }
    let is_placed = slices.iter().all(|slice| slice.place.is_some());
    let key = |slice: &Slice| slice.place.filter(|_| is_placed).map_or(slice.number, |place| place.depth());
    slices.sort_by(|a, b| key(a).total_cmp(&key(b)));
    let geometry = if is_placed { geometry(&slices)? } else { None };
    let [frames, rows, columns] = sides;
    let depth = slices.len() * frames;
    let samples: Vec<f32> = slices.into_iter().flat_map(|slice| slice.values).collect();
    let raster = Raster {
        values: planes(&samples, num_samples),
        channels: num_samples,
        sides: [depth, rows, columns],
        scale,
        geometry: geometry.filter(|geometry| frames == 1 && geometry.is_regular()),
    };
    Ok(raster.oriented())
}

/// Returns the place of the voxels of ordered slices.
fn geometry(slices: &[Slice]) -> Result<Option<Geometry>, String> {
    let places: Vec<Place> = slices.iter().filter_map(|slice| slice.place).collect();
    let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(None) };
    let [rows, columns, alone] = first.spacing;
    let across = if places.len() == 1 {
        first.across().map(|direction| direction * alone)
    } else {
        let steps = (places.len() - 1) as f64;
        let mean = (last.depth() - first.depth()) / steps;
        let turned = |place: &Place| {
            let pairs = place.along.iter().flatten().zip(first.along.iter().flatten());
            pairs.into_iter().any(|(a, b)| (a - b).abs() > 1e-3)
        };
        if places.iter().any(turned) || mean <= 0. {
            return Err("its slices are not parallel, or lie at one place: it is no volume".to_owned());
        }
        for pair in places.windows(2) {
            let step = pair[1].depth() - pair[0].depth();
            if (step - mean).abs() > MAX_UNEVENNESS * mean.abs() {
                return Err(format!(
                    "two of its slices are {step:.3} mm apart and all {mean:.3} mm in the mean: some are missing, or of another volume"
                ));
            }
        }
        [0, 1, 2].map(|axis| (last.position[axis] - first.position[axis]) / steps)
    };
    // x and y are turned around from the axes of DICOM to those of NIfTI.
    let line = |axis: usize| {
        let sign = if axis == 2 { 1. } else { -1. };
        [first.along[0][axis] * columns, first.along[1][axis] * rows, across[axis], first.position[axis]]
            .map(|value| sign * value)
    };
    Ok(Some(Geometry { affine: [line(0), line(1), line(2)] }))
}

/// Fails if a file claims more pixels than it may have, or bits that its decoders do not take.
fn check_sizes(object: &DefaultDicomObject) -> Result<(), String> {
    let number = |tag: Tag, usual: f64| numbers(object, tag).first().copied().unwrap_or(usual);
    let sizes = [number(ROWS, 0.), number(COLUMNS, 0.), number(SAMPLES, 1.), number(FRAMES, 1.)];
    let count: f64 = sizes.iter().product();
    if !(1. ..=MAX_VALUES as f64).contains(&count) || sizes.iter().any(|&size| size < 1.) {
        return Err(format!("it has {sizes:?} rows, columns, samples and frames, too many or none"));
    }
    let [stored, allocated] = [number(BITS_STORED, 0.), number(BITS_ALLOCATED, 0.)];
    if !(1. ..=16.).contains(&stored)
        || ![8., 16.].iter().any(|bits| (allocated - bits).abs() < 0.5)
        || stored > allocated
    {
        return Err(format!("its pixels have {stored} of {allocated} bits, expected 8 or 16"));
    }
    Ok(())
}

fn decode_file(bytes: &[u8]) -> Result<Slice, String> {
    let failed = |error: &dyn std::error::Error| format!("it is no DICOM file that is read: {error}");
    let object = OpenFileOptions::new().from_reader(bytes.get(PREAMBLE..).unwrap_or_default());
    let object = object.map_err(|error| failed(&error))?;
    check_sizes(&object)?;
    // The decoders trust what compressed pixels say of themselves.
    let decode = || -> Result<_, String> {
        let pixels = object.decode_pixel_data().map_err(|error| failed(&error))?;
        let values: Vec<f32> = pixels.to_vec().map_err(|error| failed(&error))?;
        Ok((pixels, values))
    };
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode));
    let (pixels, values) = decoded.map_err(|_panic| "its pixels are damaged".to_owned())??;
    let is_rescaled = pixels
        .rescale()
        .map_err(|error| failed(&error))?
        .iter()
        .any(|rescale| (rescale.slope - 1.).abs() + rescale.intercept.abs() > 0.);
    let most = (1_u32 << u32::from(pixels.bits_stored()).min(16)) - 1;
    let values = match pixels.photometric_interpretation() {
        PhotometricInterpretation::Monochrome2 | PhotometricInterpretation::Rgb => values,
        // White is zero.
        PhotometricInterpretation::Monochrome1
            if !is_rescaled && pixels.pixel_representation() == PixelRepresentation::Unsigned =>
        {
            values.into_iter().map(|value| most as f32 - value).collect()
        }
        other => return Err(format!("its pixels are {other}, expected gray or RGB")),
    };
    let is_signed = pixels.pixel_representation() == PixelRepresentation::Signed;
    let is_full = pixels.bits_stored() == 8 && !is_rescaled && !is_signed;
    Ok(Slice {
        values,
        num_samples: pixels.samples_per_pixel().into(),
        sides: [pixels.number_of_frames(), pixels.rows(), pixels.columns()].map(|side| side as usize),
        scale: if is_full { Scale::UpTo(255.) } else { Scale::Unknown("numbers of a DICOM file") },
        number: numbers(&object, NUMBER).first().copied().unwrap_or(0.),
        place: Place::of(&object),
    })
}
