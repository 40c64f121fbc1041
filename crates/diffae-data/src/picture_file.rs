//! Decoding of picture files that refuses to lose a part of them silently.

mod file_kind;
mod jpeg;
mod jpeg_scan;
mod tiff_file;
mod tiff_pages;
mod tiff_tiles;

use std::io::{BufReader, Cursor};
use std::path::Path;

use image::error::{LimitError, LimitErrorKind};
use image::metadata::Orientation;
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::{Error, Result};
use crate::notices::warn_once;

pub(crate) use file_kind::{begins_like_a_picture, unread_format};
pub(crate) use tiff_file::TiffDecoder;

/// Opens a TIFF, with the limits of pictures.
///
/// # Errors
/// A sentence.
pub(crate) fn open_tiff(bytes: &[u8]) -> std::result::Result<TiffDecoder<'_>, String> {
    tiff_file::open(bytes).map_err(|problem| match problem {
        Problem::Damaged(problem) | Problem::Unread(problem) => problem,
    })
}

/// Maximum width or height of a picture.
const MAX_PIXELS_PER_SIDE: u32 = 1 << 15;
/// Maximum memory for decoding one picture, in bytes.
pub(crate) const MAX_DECODED_BYTES: u64 = 1 << 30;

/// A reason not to read a file as a picture.
#[derive(Debug)]
enum Problem {
    /// A part of the file is missing or wrong.
    Damaged(String),
    /// The file is something else, or of an unsupported kind.
    Unread(String),
}

impl Problem {
    fn of(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Damaged(problem) => Error::DamagedPicture { path, problem },
            Self::Unread(problem) => Error::UnreadPicture { path, problem },
        }
    }
}

/// Decodes a picture by its content, not its name, and turns it upright. Only the first frame of an animation is
/// decoded, which is logged once per file.
///
/// # Errors
/// [`Error::UnreadPicture`] if it is no picture of a kind that is read, [`Error::DamagedPicture`] if a part of it is
/// missing, [`Error::Image`] for what else its decoder says.
pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    let format = file_kind::format(bytes, path).map_err(|problem| problem.of(path))?;
    if format == ImageFormat::Tiff {
        let tiff = tiff_file::read(bytes).map_err(|problem| problem.of(path))?;
        if let Some(unused) = tiff.unused {
            warn_once(&format!("{} {unused}", path.display()));
        }
        if let Some((mut picture, orientation)) = tiff.picture {
            picture.apply_orientation(Orientation::from_exif(orientation).unwrap_or(Orientation::NoTransforms));
            return Ok(picture);
        }
    }
    let failed = |source| Error::Image { path: path.to_owned(), source };
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_PIXELS_PER_SIDE);
    limits.max_image_height = Some(MAX_PIXELS_PER_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(failed)?;
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(failed(ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory))));
    }
    if format == ImageFormat::Jpeg
        && let Some(missing) = jpeg::missing(bytes)
    {
        return Err(Problem::Damaged(missing).of(path));
    }
    if has_more_frames(bytes, format, limits) {
        warn_once(&format!("{} is an animation; only its first frame is used", path.display()));
    }
    let orientation = decoder.orientation().map_err(failed)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(failed)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Returns whether a picture is an animation.
fn has_more_frames(bytes: &[u8], format: ImageFormat, limits: Limits) -> bool {
    let source = || BufReader::new(Cursor::new(bytes));
    match format {
        ImageFormat::Gif => image::codecs::gif::GifDecoder::new(source())
            .and_then(|mut decoder| decoder.set_limits(limits).map(|()| decoder))
            .is_ok_and(|decoder| decoder.into_frames().take(2).filter_map(std::result::Result::ok).count() > 1),
        ImageFormat::WebP => {
            image::codecs::webp::WebPDecoder::new(source()).is_ok_and(|decoder| decoder.has_animation())
        }
        ImageFormat::Png => {
            image::codecs::png::PngDecoder::new(source()).is_ok_and(|decoder| decoder.is_apng().unwrap_or(false))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn faults(folder: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/faults").join(folder)
    }

    /// Reads one small file of each kind, 24 by 16 pixels, of Pillow 13.
    fn whole_files() -> Vec<(PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(faults("whole")).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(paths.len() > 24, "{}", paths.len());
        paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    #[test]
    fn every_kind_is_read() {
        for (path, bytes) in whole_files() {
            let picture = decode(&bytes, &path).unwrap();
            let expected = if path.ends_with("ascii.ppm") { (4, 3) } else { (24, 16) };
            assert_eq!((picture.width(), picture.height()), expected, "{}", path.display());
        }
    }

    #[test]
    fn the_beginning_of_a_file_is_refused_or_has_the_whole_picture() {
        for (path, bytes) in whole_files() {
            let whole = decode(&bytes, &path).unwrap();
            // Every few bytes, and every one near the end.
            for length in (0..bytes.len()).filter(|length| length % 7 == 0 || bytes.len() - length < 40) {
                if let Ok(picture) = decode(&bytes[..length], &path) {
                    // Nothing tells the end of a number in a text.
                    let in_number = path.ends_with("ascii.ppm") && bytes.len() - length < 4;
                    let is_same = in_number || picture.as_bytes() == whole.as_bytes();
                    assert!(is_same, "{} cut to {length} of {} bytes", path.display(), bytes.len());
                }
            }
        }
    }

    #[test]
    fn cut_jpegs_are_damaged_and_multi_picture_files_are_read() {
        for name in ["truncated.jpg", "truncated_small.jpg"] {
            let path = faults(name);
            let error = decode(&std::fs::read(&path).unwrap(), &path).unwrap_err();
            assert!(matches!(error, Error::DamagedPicture { .. }), "{error}");
            assert!(error.to_string().contains("it is cut off after"), "{error}");
        }
        let path = faults("two.mpo");
        let picture = decode(&std::fs::read(&path).unwrap(), &path).unwrap();
        assert_eq!((picture.width(), picture.height()), (40, 30));
    }
}
