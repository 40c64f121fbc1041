//! TIFF files of several pages, of many samples a pixel, and of numbers whose scale a window gives.

use tiff::decoder::DecodingResult;
use tiff::tags::Tag;
use tiff::{ColorType, TiffResult};

use super::{MAX_VALUES, Raster, Scale, planes};
use crate::format::PictureFormat;
use crate::picture_file::{TiffDecoder, open_tiff};

/// Bits of `NewSubfileType`: a reduced copy, a mask, a map of depths.
const ASIDE: u32 = 0b1101;
/// `PlanarConfiguration` of samples that lie in planes of their own.
const PLANAR: u16 = 2;

/// Numbers of one page.
struct Page {
    /// Samples, those of a pixel side by side.
    samples: Vec<f32>,
    num_samples: usize,
    size: [usize; 2],
    scale: Scale,
}

/// Decodes the pages of a file: slices of a volume, or channels of a picture, as `format` asks. `None` for a single page that is a
/// picture for the eye.
///
/// # Errors
/// A sentence.
pub(super) fn decode(bytes: &[u8], format: PictureFormat) -> Result<Option<Raster>, String> {
    let failed = |error: tiff::TiffError| format!("it is damaged: {error}");
    let mut decoder = open_tiff(bytes)?;
    let mut pages: Vec<Page> = vec![];
    let mut num_values = 0;
    let described = description(&mut decoder).and_then(|text| number_in(&text, "images"));
    loop {
        let kind = decoder.find_tag_unsigned::<u32>(Tag::NewSubfileType).ok().flatten().unwrap_or(0);
        if kind & ASIDE == 0 {
            let is_only = pages.is_empty() && !decoder.more_images();
            if is_only && is_for_the_eye(&mut decoder, format).map_err(failed)? {
                return Ok(None);
            }
            if let Some(description) = description(&mut decoder) {
                check_description(&description)?;
            }
            let page = read_page(&mut decoder)?;
            num_values += page.samples.len();
            if num_values > MAX_VALUES {
                return Err("it has too many pixels in all its pages".to_owned());
            }
            let differs = |first: &Page| {
                first.size != page.size || first.num_samples != page.num_samples || first.scale != page.scale
            };
            if pages.first().is_some_and(differs) {
                return Err(
                    "its pages differ in size or number type; save each picture as a file of its own".to_owned()
                );
            }
            pages.push(page);
        }
        if !decoder.more_images() {
            break;
        }
        decoder.next_image().map_err(failed)?;
    }
    if let Some(count) = described.filter(|&count| count != pages.len()) {
        return Err(format!(
            "it says that it holds {count} pictures, and has {} pages; save each as a page",
            pages.len()
        ));
    }
    stacked(&pages, format).map(Some)
}

fn description(decoder: &mut TiffDecoder<'_>) -> Option<String> {
    decoder.find_tag(Tag::ImageDescription).ok().flatten()?.into_string().ok()
}

/// Returns a number of a description by `ImageJ`: `images=10`.
fn number_in(description: &str, key: &str) -> Option<usize> {
    let lines = description.strip_prefix("ImageJ=")?.lines();
    lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).find_map(|number| number.trim().parse().ok())
}

/// Fails for stacks of `ImageJ` along several axes, whose pages are neither slices alone nor channels alone.
fn check_description(description: &str) -> Result<(), String> {
    let axes = ["channels", "slices", "frames"].map(|key| number_in(description, key).unwrap_or(1));
    if axes.iter().filter(|&&count| count > 1).count() > 1 {
        let [channels, slices, frames] = axes;
        return Err(format!(
            "its pages are {channels} channels, {slices} slices and {frames} frames; save it with one of these axes alone, or as \
             an array of NumPy"
        ));
    }
    Ok(())
}

/// Returns whether a page is gray or in color, in numbers that need no window.
fn is_for_the_eye(decoder: &mut TiffDecoder<'_>, format: PictureFormat) -> TiffResult<bool> {
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat)?;
    let is_unsigned = formats.is_none_or(|formats| formats.iter().all(|&format| format == 1));
    let color = decoder.colortype()?;
    let is_color = !matches!(color, ColorType::Multiband { .. });
    let is_one = description(decoder).and_then(|text| number_in(&text, "images")).is_none_or(|count| count == 1);
    let takes_colors = format.shape.is_visible();
    Ok(is_color && is_one && takes_colors && (format.window.is_none() || is_unsigned && color.bit_depth() <= 16))
}

fn read_page(decoder: &mut TiffDecoder<'_>) -> Result<Page, String> {
    let failed = |error: tiff::TiffError| format!("it cannot be read: {error}");
    let color = decoder.colortype().map_err(failed)?;
    let (width, height) = decoder.dimensions().map_err(failed)?;
    let is_planar = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration).ok().flatten() == Some(PLANAR);
    let num_samples = usize::from(color.num_samples());
    if is_planar && num_samples > 1 {
        return Err("its samples lie in planes of their own; save them as pages".to_owned());
    }
    if matches!(color, ColorType::Palette(_)) {
        return Err("its pages have palettes; save them in gray or in color".to_owned());
    }
    let (samples, scale) = numbers(decoder.read_image().map_err(failed)?);
    if samples.len() != num_samples * width as usize * height as usize {
        return Err(format!("its pages have {}-bit samples, expected 8 bits at least", color.bit_depth()));
    }
    Ok(Page { samples, num_samples, size: [height as usize, width as usize], scale })
}

/// Converts samples to f32.
fn numbers(samples: DecodingResult) -> (Vec<f32>, Scale) {
    const OTHER: Scale = Scale::Unknown("integers with a sign, or of more than 16 bits");
    #[expect(clippy::cast_possible_truncation, reason = "f32 is what networks compute in")]
    match samples {
        DecodingResult::U8(values) => (values.into_iter().map(f32::from).collect(), Scale::UpTo(255.)),
        DecodingResult::U16(values) => (values.into_iter().map(f32::from).collect(), Scale::UpTo(65535.)),
        DecodingResult::U32(values) => (values.into_iter().map(|value| value as f32).collect(), OTHER),
        DecodingResult::U64(values) => (values.into_iter().map(|value| value as f32).collect(), OTHER),
        DecodingResult::I8(values) => (values.into_iter().map(f32::from).collect(), OTHER),
        DecodingResult::I16(values) => (values.into_iter().map(f32::from).collect(), OTHER),
        DecodingResult::I32(values) => (values.into_iter().map(|value| value as f32).collect(), OTHER),
        DecodingResult::I64(values) => (values.into_iter().map(|value| value as f32).collect(), OTHER),
        DecodingResult::F16(values) => (values.into_iter().map(half::f16::to_f32).collect(), Scale::Unit),
        DecodingResult::F32(values) => (values, Scale::Unit),
        DecodingResult::F64(values) => (values.into_iter().map(|value| value as f32).collect(), Scale::Unit),
    }
}

/// Stacks pages to slices, or to channels.
fn stacked(pages: &[Page], format: PictureFormat) -> Result<Raster, String> {
    let Some(first) = pages.first() else { return Err("it holds no page that is a picture".to_owned()) };
    let (count, [height, width], num_samples, scale) =
        (pages.len(), first.size, first.num_samples, first.scale.clone());
    let by_page: Vec<Vec<f32>> = pages.iter().map(|page| planes(&page.samples, num_samples)).collect();
    if !format.shape.size.is_volume() {
        let sides = [1, height, width];
        return Ok(Raster { values: by_page.concat(), channels: count * num_samples, sides, scale, geometry: None });
    }
    let area = height * width;
    let of_channel = |channel: usize| by_page.iter().flat_map(move |page| &page[channel * area..(channel + 1) * area]);
    let values = (0..num_samples).flat_map(of_channel).copied().collect();
    Ok(Raster { values, channels: num_samples, sides: [count, height, width], scale, geometry: None })
}
