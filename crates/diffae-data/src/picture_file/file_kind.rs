//! Detection of picture formats, and of other files, by their first bytes.

use std::path::Path;

use image::ImageFormat;

use super::Problem;
use crate::file_kind::{Foreign, foreign_by_content};

/// Endings of unsupported formats, with their names.
const UNREAD_ENDINGS: [(&str, &str); 41] = [
    ("avif", "AVIF"),
    ("avifs", "AVIF"),
    ("heic", "HEIC"),
    ("heics", "HEIC"),
    ("heif", "HEIF"),
    ("heifs", "HEIF"),
    ("hif", "HEIF"),
    ("jxl", "JPEG XL"),
    ("jxr", "JPEG XR"),
    ("wdp", "JPEG XR"),
    ("jp2", "JPEG 2000"),
    ("j2k", "JPEG 2000"),
    ("jpf", "JPEG 2000"),
    ("jpx", "JPEG 2000"),
    ("psd", "Photoshop"),
    ("psb", "Photoshop"),
    ("xcf", "GIMP"),
    ("svg", "SVG"),
    ("svgz", "SVG"),
    ("eps", "PostScript"),
    ("exr", "OpenEXR"),
    ("hdr", "Radiance HDR"),
    ("dds", "DDS"),
    ("ico", "icon"),
    ("pcx", "PCX"),
    ("dcm", "DICOM"),
    ("nii", "NIfTI"),
    ("fits", "FITS"),
    ("dng", "camera raw"),
    ("cr2", "camera raw"),
    ("cr3", "camera raw"),
    ("crw", "camera raw"),
    ("nef", "camera raw"),
    ("nrw", "camera raw"),
    ("arw", "camera raw"),
    ("raf", "camera raw"),
    ("rw2", "camera raw"),
    ("orf", "camera raw"),
    ("pef", "camera raw"),
    ("srw", "camera raw"),
    ("raw", "camera raw"),
];

/// Magic bytes of unsupported picture formats.
const UNREAD_PICTURES: [(&[u8], &str); 19] = [
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"II\xbc", "a JPEG XR picture"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"#?RGBE", "a Radiance HDR picture"),
    (b"DDS ", "a DDS texture"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"farbfeld", "a farbfeld picture"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"IIU\x00", "a camera's raw file"),
    (b"IIRO", "a camera's raw file"),
    (b"IIRS", "a camera's raw file"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file"),
];

/// Magic bytes of files that are not pictures, besides those of [`foreign_by_content`].
const OTHER_FILES: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "a gzip archive; unpack it first: gunzip --keep FILE"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first: zstd -d FILE"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"OggS", "a video"),
];

/// Advice for a picture of an unsupported format.
const CONVERT: &str = "save it as PNG or JPEG";

/// Returns the name of an unsupported format, by the ending of a file's name.
pub(crate) fn unread_format(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    UNREAD_ENDINGS.iter().find(|(known, _)| *known == ending).map(|&(_, name)| name)
}

/// Returns whether a file without an ending begins like a picture: by magic bytes that text cannot have.
pub(crate) fn begins_like_a_picture(bytes: &[u8]) -> bool {
    let format = image::guess_format(bytes).ok();
    let certain = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Tiff];
    format.is_some_and(|format| certain.contains(&format))
}

/// Detects the format of a picture file, or describes what it is instead.
pub(super) fn format(bytes: &[u8], path: &Path) -> Result<ImageFormat, Problem> {
    if bytes.is_empty() {
        return Err(Problem::Unread("it is empty".to_owned()));
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return Err(Problem::Damaged("it holds zeros alone".to_owned()));
    }
    let is_raw = unread_format(path) == Some("camera raw");
    // BigTIFFs have a number of their own.
    let is_big_tiff = bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+");
    let guessed = image::guess_format(bytes).ok().filter(ImageFormat::reading_enabled);
    match is_big_tiff.then_some(ImageFormat::Tiff).or(guessed) {
        // Raw files are TIFFs by their first bytes, whose first page is a small preview.
        Some(ImageFormat::Tiff) if is_raw || bytes.get(8..10) == Some(b"CR") => {
            Err(Problem::Unread(format!("it is a camera's raw file, which is not read; develop it, and {CONVERT}")))
        }
        Some(format) => Ok(format),
        None => instead(bytes, path),
    }
}

/// Detects a format that only the name reveals, or describes what the file is instead of a picture.
fn instead(bytes: &[u8], path: &Path) -> Result<ImageFormat, Problem> {
    if let Some(kind) = unread_picture(bytes) {
        return Err(Problem::Unread(format!("it is {kind}, which is not read; {CONVERT}")));
    }
    if let Some(kind) = other_file(bytes) {
        return Err(Problem::Unread(format!("it is {kind}")));
    }
    if let Some(Foreign { kind, advice }) = foreign_by_content(bytes) {
        return Err(Problem::Unread(format!("it is {kind}; {advice}")));
    }
    // TGA files begin with nothing that tells them.
    let by_name = ImageFormat::from_path(path).ok().filter(|format| *format == ImageFormat::Tga);
    let unknown = || {
        let text = if is_text(bytes) { "it is text" } else { "its content is of no format that is read" };
        let volumes = if cfg!(feature = "dicom") { "NumPy, NIfTI and DICOM" } else { "NumPy and NIfTI" };
        Problem::Unread(format!("{text}; PNG, JPEG, WebP, TIFF, GIF, BMP, QOI, TGA, PNM, {volumes} are read"))
    };
    by_name.ok_or_else(unknown)
}

fn beginning(bytes: &[u8], known: &[(&[u8], &'static str)]) -> Option<&'static str> {
    known.iter().find(|(beginning, _)| bytes.starts_with(beginning)).map(|&(_, kind)| kind)
}

fn unread_picture(bytes: &[u8]) -> Option<&'static str> {
    match bytes.get(4..12) {
        Some(b"ftypavif" | b"ftypavis") => Some("an AVIF picture"),
        Some(b"ftypheic" | b"ftypheix" | b"ftyphevc" | b"ftyphevx" | b"ftypheim" | b"ftypheis") => {
            Some("a HEIC picture")
        }
        Some(b"ftypmif1" | b"ftypmsf1") => Some("a HEIF picture"),
        Some(b"ftypcrx ") => Some("a camera's raw file"),
        _ => {
            let is_svg = markup(bytes).is_some_and(|text| text.contains("<svg"));
            beginning(bytes, &UNREAD_PICTURES).or(is_svg.then_some("an SVG picture"))
        }
    }
}

fn other_file(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return Some("a video");
    }
    let is_page = |text: &String| text.starts_with("<!doctype html") || text.contains("<html");
    let page = markup(bytes).filter(is_page).map(|_| "a web page, as downloads that failed leave");
    beginning(bytes, &OTHER_FILES).or(page)
}

/// Returns the start of a text that begins with a tag, in lower case.
fn markup(bytes: &[u8]) -> Option<String> {
    let start = String::from_utf8_lossy(bytes.get(..1024).unwrap_or(bytes)).to_ascii_lowercase();
    let start = start.trim_start_matches('\u{feff}').trim_start();
    start.starts_with('<').then(|| start.to_owned())
}

fn is_text(bytes: &[u8]) -> bool {
    let start = bytes.get(..512).unwrap_or(bytes);
    start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace() || *byte >= 0x80)
        && std::str::from_utf8(start).map_or_else(|error| error.error_len().is_none(), |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(bytes: &[u8], name: &str) -> String {
        match format(bytes, Path::new(name)) {
            Err(Problem::Damaged(problem) | Problem::Unread(problem)) => problem,
            Ok(format) => format!("{format:?}"),
        }
    }

    #[test]
    fn files_are_named_for_what_they_are() {
        for (bytes, name, expected) in [
            (&b"\x00\x00\x00\x1cftypavif\0\0\0\0mif1"[..], "a.avif", "an AVIF picture"),
            (b"\x00\x00\x00\x1cftypheic\0\0\0\0mif1", "a.jpg", "a HEIC picture"),
            (b"\x00\x00\x00\x1cftypmp42\0\0\0\0", "a.png", "a video"),
            (b"\xff\x0a\x00\x11", "a.jxl", "a JPEG XL picture"),
            (b"8BPS\0\x01", "a.psd", "a Photoshop file"),
            (b"<?xml version=\"1.0\"?>\n<svg xmlns=\"\">", "a.png", "an SVG picture"),
            (b"<!DOCTYPE html><html>404", "a.jpg", "a web page"),
            (b"version https://git-lfs.github.com/spec/v1", "a.png", "Git LFS"),
            (b"hello", "a.png", "it is text"),
            (b"\x01\x02\x03\x04", "a.png", "no format that is read"),
            (b"\x01\x02\x03\x04", "a.png", "PNM, NumPy"),
            (b"", "a.png", "it is empty"),
            (&[0; 64], "a.png", "zeros alone"),
            (b"II*\0\x10\0\0\0CR\x02\0", "a.cr2", "a camera's raw file"),
            (b"II*\0\x10\0\0\0", "a.NEF", "a camera's raw file"),
        ] {
            let problem = problem(bytes, name);
            assert!(problem.contains(expected), "{name}: {problem}");
        }
    }

    #[test]
    fn content_decides_and_only_tga_needs_its_ending() {
        assert_eq!(problem(b"\x89PNG\r\n\x1a\n", "a.jpg"), "Png");
        assert_eq!(problem(b"\xff\xd8\xff\xe0", "a"), "Jpeg");
        assert_eq!(problem(b"\x00\x00\x02\x00\x00", "a.tga"), "Tga");
        assert!(problem(b"\x00\x00\x02\x00\x00", "a.png").contains("no format"));
    }

    #[test]
    fn text_is_not_taken_for_a_picture_without_an_ending() {
        for text in [&b"BM is a bitmap"[..], b"P1 is a bitmap", b"MIT License", b""] {
            assert!(!begins_like_a_picture(text));
        }
        assert!(begins_like_a_picture(b"\x89PNG\r\n\x1a\n"));
    }
}
