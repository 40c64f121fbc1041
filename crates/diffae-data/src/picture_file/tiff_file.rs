//! TIFF files of kinds that `image` does not read: floats, palettes, 2 and 4 bits, and gray with alpha.

use std::io::Cursor;

use image::{DynamicImage, ImageBuffer};
use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::{CompressionMethod, Tag};
use tiff::{ColorType, TiffError, TiffUnsupportedError};

use super::tiff_pages::{Page, find_picture, refuse_volumes, with_gray_indices};
use super::tiff_tiles::{is_planar_tiled, read_planar_tiles};
use super::{MAX_DECODED_BYTES, MAX_PIXELS_PER_SIDE, Problem, jpeg};

/// Tolerance of values beyond the range, for rounding.
const ROUNDING: f32 = 1e-3;

/// Least maximum of floats from 0 on that are taken for bytes: a picture of bytes below it is all but black.
const MIN_OF_BYTES: f32 = 32.;

/// A TIFF in memory.
pub(crate) type TiffDecoder<'a> = Decoder<Cursor<&'a [u8]>>;

/// A TIFF, decoded if `image` does not read it.
#[derive(Debug)]
pub(super) struct TiffPicture {
    /// The picture as stored in the file, and its orientation in EXIF's numbers; `None` if `image` reads it.
    pub(super) picture: Option<(DynamicImage, u8)>,
    /// A description of the part of the file that is not used.
    pub(super) unused: Option<&'static str>,
}

/// Reads a TIFF, unless `image` can.
///
/// Floats are to lie in `[0, 1]` and are kept to 16 bits, colors of palettes to 8.
pub(super) fn read(bytes: &[u8]) -> Result<TiffPicture, Problem> {
    refuse_volumes(bytes)?;
    let page = find_picture(open(bytes)?)?;
    let patched = page.palette.as_ref().and_then(|_| with_gray_indices(bytes, page.offset));
    let mut decoder = open(patched.as_deref().unwrap_or(bytes))?;
    if page.number > 0 {
        decoder.seek_to_image(page.number).map_err(in_words)?;
    }
    check_compression(&mut decoder, bytes)?;
    let color = decoder.colortype().map_err(in_words)?;
    let is_float = is_float(&mut decoder, color)?;
    let has_alpha = page.extra_samples.iter().any(|kind| matches!(kind, 1 | 2));
    let unused = (page.extra_samples.len() > usize::from(has_alpha))
        .then_some("has channels beside its colors, which are not used");
    let by_image = !is_float
        && page.number == 0
        && page.palette.is_none()
        && !is_planar_tiled(&mut decoder)?
        && match color {
            ColorType::Gray(bits) => matches!(bits, 1 | 8 | 16),
            ColorType::RGB(bits) | ColorType::RGBA(bits) | ColorType::CMYK(bits) => matches!(bits, 8 | 16),
            _ => false,
        };
    if by_image {
        return Ok(TiffPicture { picture: None, unused });
    }
    let orientation = decoder.find_tag_unsigned(Tag::Orientation).ok().flatten().unwrap_or(1);
    let picture = match &page.palette {
        Some(palette) => colors_of(indices(&mut decoder)?, palette, decoder.dimensions().map_err(in_words)?)?,
        None => samples(&mut decoder, color, &page)?,
    };
    Ok(TiffPicture { picture: Some((picture, orientation)), unused })
}

pub(super) fn open(bytes: &[u8]) -> Result<TiffDecoder<'_>, Problem> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = usize::try_from(MAX_DECODED_BYTES).unwrap_or(usize::MAX);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    Ok(Decoder::new(Cursor::new(bytes)).map_err(in_words)?.with_limits(limits))
}

/// Returns whether samples are floats; refuses integers without a scale.
fn is_float(decoder: &mut TiffDecoder<'_>, color: ColorType) -> Result<bool, Problem> {
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(in_words)?;
    let bits = color.bit_depth();
    match formats.and_then(|formats| formats.first().copied()).unwrap_or(1) {
        3 => Ok(true),
        1 if bits <= 16 => Ok(false),
        1 => Err(Problem::Unread(format!(
            "its samples are {bits}-bit integers, whose scale is not known; save it in 8 or 16 bits"
        ))),
        2 => Err(Problem::Unread(format!(
            "its samples are signed {bits}-bit integers, whose scale is not known; save it in 8 or 16 bits, without sign"
        ))),
        other => {
            Err(Problem::Unread(format!("its sample format is {other}, expected integers without sign or floats")))
        }
    }
}

/// Refuses unsupported compressions, and incomplete JPEGs.
fn check_compression(decoder: &mut TiffDecoder<'_>, bytes: &[u8]) -> Result<(), Problem> {
    let compression = decoder.find_tag_unsigned::<u16>(Tag::Compression).map_err(in_words)?;
    match compression.map_or(CompressionMethod::None, CompressionMethod::from_u16_exhaustive) {
        CompressionMethod::None
        | CompressionMethod::LZW
        | CompressionMethod::Deflate
        | CompressionMethod::OldDeflate
        | CompressionMethod::PackBits
        | CompressionMethod::Fax4 => Ok(()),
        CompressionMethod::ModernJPEG => check_jpegs(decoder, bytes),
        method => {
            let name = match method {
                CompressionMethod::Unknown(number) => format!("number {number}"),
                known => format!("{known:?}"),
            };
            Err(Problem::Unread(format!(
                "its compression, {name}, is not read; save it with LZW or Deflate, or without"
            )))
        }
    }
}

/// Fails if strips or tiles are incomplete JPEGs: the decoder would fill the missing parts with gray.
fn check_jpegs(decoder: &mut TiffDecoder<'_>, bytes: &[u8]) -> Result<(), Problem> {
    let tables = decoder.find_tag(Tag::JPEGTables).map_err(in_words)?;
    let tables = tables.map(Value::into_u8_vec).transpose().map_err(in_words)?;
    let mut numbers = |strips, tiles| -> Result<Vec<u64>, Problem> {
        let of_strips = decoder.find_tag_unsigned_vec(strips).map_err(in_words)?;
        let of_tiles = decoder.find_tag_unsigned_vec(tiles).map_err(in_words)?;
        Ok(of_strips.or(of_tiles).unwrap_or_default())
    };
    let offsets = numbers(Tag::StripOffsets, Tag::TileOffsets)?;
    let lengths = numbers(Tag::StripByteCounts, Tag::TileByteCounts)?;
    for (offset, length) in offsets.into_iter().zip(lengths) {
        let range =
            usize::try_from(offset).ok().zip(offset.checked_add(length).and_then(|end| usize::try_from(end).ok()));
        let chunk = range.and_then(|(start, end)| bytes.get(start..end));
        let chunk = chunk.ok_or_else(|| Problem::Damaged("it is cut off".to_owned()))?;
        let whole = match &tables {
            Some(tables) => {
                [tables.get(..tables.len().saturating_sub(2)), chunk.get(2..)].map(Option::unwrap_or_default).concat()
            }
            None => chunk.to_vec(),
        };
        if let Some(missing) = jpeg::missing(&whole) {
            return Err(Problem::Damaged(missing));
        }
    }
    Ok(())
}

/// Decodes the samples of the first channels, interleaved, and returns them with the bytes of a row.
fn decode(decoder: &mut TiffDecoder<'_>, channels: usize) -> Result<(DecodingResult, usize), Problem> {
    let (width, height) = decoder.dimensions().map_err(in_words)?;
    let layout = decoder.image_buffer_layout().map_err(in_words)?;
    if width.max(height) > MAX_PIXELS_PER_SIDE || layout.complete_len as u64 > MAX_DECODED_BYTES {
        return Err(Problem::Unread(format!("its {width}x{height} pixels take too much memory")));
    }
    let mut result = DecodingResult::U8(vec![]);
    if is_planar_tiled(decoder)? {
        result = read_planar_tiles(decoder, layout.planes)?;
    } else {
        decoder.read_image_to_buffer(&mut result).map_err(in_words)?;
    }
    let row_bytes = layout.row_stride.map_or(1, usize::from);
    if layout.planes > 1 {
        let planes = Planes { planes: layout.planes, channels };
        result = match result {
            DecodingResult::U8(samples) => DecodingResult::U8(planes.interleaved(&samples)),
            DecodingResult::U16(samples) => DecodingResult::U16(planes.interleaved(&samples)),
            DecodingResult::F16(samples) => DecodingResult::F16(planes.interleaved(&samples)),
            DecodingResult::F32(samples) => DecodingResult::F32(planes.interleaved(&samples)),
            DecodingResult::F64(samples) => DecodingResult::F64(planes.interleaved(&samples)),
            other => other,
        };
    }
    Ok((result, row_bytes))
}

/// Channels one after the other, of which the first are used.
struct Planes {
    planes: usize,
    channels: usize,
}

impl Planes {
    fn interleaved<T: Copy>(&self, samples: &[T]) -> Vec<T> {
        let plane = samples.len().checked_div(self.planes).unwrap_or(0);
        let channels = self.channels.min(self.planes);
        (0..plane).flat_map(|at| (0..channels).map(move |channel| samples[channel * plane + at])).collect()
    }
}

/// Converts samples without a palette to a picture of 16 bits.
fn samples(decoder: &mut TiffDecoder<'_>, color: ColorType, page: &Page) -> Result<DynamicImage, Problem> {
    let (width, height) = decoder.dimensions().map_err(in_words)?;
    let channels = match (color, page.extra_samples.as_slice()) {
        (ColorType::Gray(_), _) => 1,
        (ColorType::Multiband { num_samples: 2, .. }, [1 | 2]) => 2,
        (ColorType::RGB(_), _) | (ColorType::YCbCr(8), []) => 3,
        (ColorType::RGBA(_), _) => 4,
        (ColorType::Multiband { num_samples, .. }, _) => {
            return Err(Problem::Unread(format!(
                "it has {num_samples} channels that are no colors; save it as gray or as RGB, or as x of a .safetensors file"
            )));
        }
        _ => return Err(Problem::Unread("its colors are not read; save it as RGB".to_owned())),
    };
    let (result, row_bytes) = decode(decoder, channels)?;
    let words = match result {
        DecodingResult::U8(samples) if color.bit_depth() < 8 => {
            let bits = color.bit_depth();
            let scale = u16::MAX.checked_div((1 << bits) - 1).unwrap_or(1);
            unpacked(&samples, bits, (width as usize, row_bytes)).into_iter().map(|sample| sample * scale).collect()
        }
        DecodingResult::U8(mut samples) => {
            if matches!(color, ColorType::YCbCr(_)) {
                samples.chunks_exact_mut(3).for_each(rgb_from_ycbcr);
            }
            samples.into_iter().map(|sample| u16::from(sample) * 257).collect()
        }
        DecodingResult::U16(samples) => samples,
        DecodingResult::F16(samples) => words(samples.into_iter().map(f32::from).collect())?,
        DecodingResult::F32(samples) => words(samples)?,
        #[expect(clippy::cast_possible_truncation, reason = "only 16 bits are kept")]
        DecodingResult::F64(samples) => words(samples.into_iter().map(|sample| sample as f32).collect())?,
        _ => return Err(Problem::Unread("its samples are not read; save it in 8 or 16 bits".to_owned())),
    };
    let picture = match channels {
        1 => ImageBuffer::from_raw(width, height, words).map(DynamicImage::ImageLuma16),
        2 => ImageBuffer::from_raw(width, height, words).map(DynamicImage::ImageLumaA16),
        3 => ImageBuffer::from_raw(width, height, words).map(DynamicImage::ImageRgb16),
        _ => ImageBuffer::from_raw(width, height, words).map(DynamicImage::ImageRgba16),
    };
    picture.ok_or_else(|| Problem::Damaged("its sizes contradict each other".to_owned()))
}

/// Converts a pixel from the colors of JPEGs to RGB, in place.
///
/// # Source
/// JFIF 1.02 (ITU-T T.871), section 7.
fn rgb_from_ycbcr(pixel: &mut [u8]) {
    let &mut [y, cb, cr] = pixel else { return };
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128., f32::from(cr) - 128.);
    let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
    let bytes = rgb.map(|value| value.round().clamp(0., 255.) as u8);
    pixel.copy_from_slice(&bytes);
}

/// Converts floats in `[0, 1]` to 16 bits.
fn words(samples: Vec<f32>) -> Result<Vec<u16>, Problem> {
    if samples.iter().any(|sample| !sample.is_finite()) {
        return Err(Problem::Unread("it holds values that are not finite numbers".to_owned()));
    }
    let range = samples.iter().fold((f32::MAX, f32::MIN), |(least, most), &value| (value.min(least), value.max(most)));
    let (least, most) = range;
    if least < -ROUNDING || most > 1. + ROUNDING {
        return Err(Problem::Unread(format!(
            "its floats go from {least} to {most}, expected values from 0 to 1; {}",
            if least >= 0. && (MIN_OF_BYTES..=255.).contains(&most) {
                "divide them by 255"
            } else {
                "scale them to that range"
            }
        )));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=65535")]
    let word = |sample: f32| (sample.clamp(0., 1.) * 65_535.).round() as u16;
    Ok(samples.into_iter().map(word).collect())
}

/// Unpacks samples of less than a byte, rows of which begin with a byte.
fn unpacked(bytes: &[u8], bits: u8, (width, row_bytes): (usize, usize)) -> Vec<u16> {
    let bits = usize::from(bits);
    let sample = |row: &[u8], at: usize| {
        let first = at * bits;
        let byte = row.get(first >> 3).copied().unwrap_or(0);
        u16::from(byte << (first & 7) >> (8 - bits))
    };
    bytes.chunks(row_bytes.max(1)).flat_map(|row| (0..width).map(move |at| sample(row, at))).collect()
}

/// Reads the palette index of each pixel.
fn indices(decoder: &mut TiffDecoder<'_>) -> Result<Vec<u16>, Problem> {
    let bits = decoder.colortype().map_err(in_words)?.bit_depth();
    let (width, _) = decoder.dimensions().map_err(in_words)?;
    match decode(decoder, 1)? {
        (DecodingResult::U8(samples), row_bytes) if bits < 8 => {
            Ok(unpacked(&samples, bits, (width as usize, row_bytes)))
        }
        (DecodingResult::U8(samples), _) => Ok(samples.into_iter().map(u16::from).collect()),
        (DecodingResult::U16(samples), _) => Ok(samples),
        _ => Err(Problem::Unread("its palette is not read; save it as RGB".to_owned())),
    }
}

/// Looks up colors by their palette indices. A palette has all its reds first, then greens, then blues, of 16 bits;
/// some writers put 8 bits there.
fn colors_of(indices: Vec<u16>, palette: &[u16], (width, height): (u32, u32)) -> Result<DynamicImage, Problem> {
    let count = palette.len().checked_div(3).unwrap_or(0);
    let shift = if palette.iter().all(|&value| value < 256) { 0 } else { 8 };
    let color = |index: u16| {
        let index = usize::from(index);
        [0, 1, 2].map(|channel| (index < count).then(|| (palette[channel * count + index] >> shift).to_le_bytes()[0]))
    };
    let bytes: Option<Vec<u8>> = indices.into_iter().flat_map(color).collect();
    let bytes = bytes.ok_or_else(|| Problem::Damaged("its palette lacks colors".to_owned()))?;
    let picture = ImageBuffer::from_raw(width, height, bytes).map(DynamicImage::ImageRgb8);
    picture.ok_or_else(|| Problem::Damaged("its sizes contradict each other".to_owned()))
}

/// Converts a decoder's error to a message with a remedy.
pub(super) fn in_words(error: TiffError) -> Problem {
    match error {
        TiffError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Problem::Damaged("it is cut off".to_owned())
        }
        TiffError::UnsupportedError(
            TiffUnsupportedError::UnknownInterpretation | TiffUnsupportedError::InterpretationWithBits(..),
        ) => Problem::Unread("its kind of colors is not read; save it as gray or RGB of 8 or 16 bits".to_owned()),
        TiffError::UnsupportedError(problem) => Problem::Unread(format!(
            "it is of a kind that is not read ({problem}); save it as gray or RGB of 8 or 16 bits"
        )),
        TiffError::LimitsExceeded => Problem::Unread("it takes too much memory".to_owned()),
        other => Problem::Damaged(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// Lists files of tifffile 2026.3 and Pillow 13, 8 by 6 pixels.
    fn files() -> Vec<(String, PathBuf)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/faults/tiff");
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect();
        files.sort();
        assert!(files.len() > 50, "{}", files.len());
        files
    }

    fn decoded(path: &Path) -> crate::Result<DynamicImage> {
        crate::picture_file::decode(&std::fs::read(path).unwrap(), path)
    }

    /// Returns the color of a pixel in the files, in `[0, 1]`.
    fn expected(name: &str, (x, y): (u32, u32)) -> [f64; 3] {
        let place = x + 8 * y;
        if let Some(palette) = name.strip_prefix("palette-") {
            let count = match palette.split('-').next().unwrap() {
                "1" => 2,
                "2" => 4,
                "4" => 16,
                _ => 256,
            };
            let first = ((place % count) * 255).checked_div(count - 1).unwrap();
            return [first, 255 - first, 77].map(|value| f64::from(value) / 255.);
        }
        let is_rgb = name.starts_with("rgb");
        [0, 10, 20].map(|shift| f64::from((place + if is_rgb { shift } else { 0 }) % 48) / 47.)
    }

    #[test]
    fn floats_palettes_few_bits_and_single_pages_are_read() {
        let mut count = 0;
        for (name, path) in files() {
            if name.starts_with("refused") || name.starts_with("jpeg") {
                continue;
            }
            let picture = decoded(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((picture.width(), picture.height()), (8, 6), "{name}");
            let tolerance = match name.split("-bits").next().unwrap() {
                "gray-2" => 0.17, // 4 levels
                "gray-4" => 0.034,
                _ if name.contains("f16") => 5e-4,
                _ if name.contains("f32") || name.contains("f64") => 1e-5,
                _ => 0.002, // bytes
            };
            for (x, y, pixel) in picture.into_rgb16().enumerate_pixels() {
                for (got, expected) in pixel.0.into_iter().zip(expected(&name, (x, y))) {
                    let got = f64::from(got) / 65_535.;
                    assert!((got - expected).abs() < tolerance, "{name} at {x}, {y}: {got}, expected {expected}");
                }
            }
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn what_would_be_lost_is_refused_with_a_reason() {
        for (name, reason) in [
            ("pages", "it holds 2 pages"),
            ("pages-of-a-document", "it holds 3 pages"),
            ("rgb-as-pages", "it holds 3 pages"),
            ("imagej-stack", "it holds 3 pages"),
            ("shape-without-pages", "it holds 3 pages"),
            ("volume", "a volume of 3 slices"),
            ("copies-only", "reduced copies"),
            ("u32", "32-bit integers"),
            ("i16", "signed 16-bit integers"),
            ("i32", "signed 32-bit integers"),
            ("nan", "not finite"),
            ("float-0-255", "from 0 to 255, expected values from 0 to 1; divide them by 255"),
            ("float-signed", "from -1 to 1, expected values from 0 to 1"),
            ("f16-0-255-planar", "from 0 to 255"),
            ("5-channels", "5 channels"),
            ("zstd", "its compression, ZSTD, is not read"),
            ("dng", "raw file (DNG)"),
            ("cielab", "its kind of colors is not read"),
            ("logluv", "its kind of colors is not read"),
        ] {
            let (_, path) = files().into_iter().find(|(file, _)| *file == format!("refused-{name}")).unwrap();
            let error = decoded(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(path.to_str().unwrap()), "{name}: {error}");
        }
        let refused = files().iter().filter(|(name, _)| name.starts_with("refused")).count();
        assert_eq!(refused, 19);
    }

    #[test]
    fn pictures_stored_as_jpegs_are_read_if_they_are_whole() {
        for name in ["jpeg", "jpeg-ycbcr"] {
            let (_, path) = files().into_iter().find(|(file, _)| file == name).unwrap();
            let picture = decoded(&path).unwrap().into_rgb8();
            assert_eq!(picture.dimensions(), (32, 24));
            // The pattern repeats; a block of 8 by 6 shows it on average.
            let mean = |channel: usize| picture.pixels().map(|pixel| f64::from(pixel[channel])).sum::<f64>() / 768.;
            (0..3)
                .for_each(|channel| assert!((mean(channel) - 127.5).abs() < 8., "{name} {channel}: {}", mean(channel)));
            let mut bytes = std::fs::read(&path).unwrap();
            let scan = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap();
            let end = scan + bytes[scan..].windows(2).position(|pair| pair == [0xFF, 0xD9]).unwrap();
            bytes[end - 40..end + 2].fill(0);
            let error = crate::picture_file::decode(&bytes, &path).unwrap_err();
            assert!(matches!(error, crate::Error::DamagedPicture { .. }), "{error}");
        }
    }

    #[test]
    fn only_what_may_be_bytes_is_to_be_divided_by_255() {
        for (most, remedy) in [(1.44, "scale"), (12., "scale"), (200., "divide"), (255., "divide"), (982., "scale")] {
            let Err(Problem::Unread(problem)) = words(vec![0., most]) else { panic!("{most} is in the range") };
            assert!(problem.contains(&format!("; {remedy} them")), "{problem}");
        }
    }

    #[test]
    fn rounding_is_no_reason_to_refuse() {
        assert_eq!(words(vec![-0.0005, 0.5, 1.0005]).unwrap(), [0, 32_768, 65_535]);
        assert!(words(vec![1.01]).is_err() && words(vec![-0.01]).is_err() && words(vec![f32::INFINITY]).is_err());
    }
}
