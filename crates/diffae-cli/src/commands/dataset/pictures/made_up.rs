//! Synthetic originals in the structure of the real ones, and checks of the results.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Parser;
use diffae_data::{Crop, LmdbWriter, Pictures};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::Value;

/// Draws a picture whose red is its column and whose green is its row, so that a crop shows its position; blue is a
/// parameter.
pub(in crate::commands::dataset) fn gradient(width: u32, height: u32, blue: u8) -> RgbImage {
    let byte = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
    RgbImage::from_fn(width, height, |x, y| Rgb([byte(x), byte(y), blue]))
}

/// Draws a picture that is dark left of the center and bright right of it: only Lanczos makes it darker or brighter.
pub(in crate::commands::dataset) fn step(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, _| Rgb([if x < width.div_ceil(2) + 1 { 50 } else { 200 }; 3]))
}

/// Returns whether a file has colors that [`step`] has not.
pub(in crate::commands::dataset) fn overshoots(path: &Path) -> bool {
    let picture = image::open(path).unwrap().into_rgb8();
    picture.pixels().any(|pixel| !(47..=203).contains(&pixel[0]))
}

pub(in crate::commands::dataset) fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    if format == ImageFormat::Jpeg {
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 100);
        picture.write_with_encoder(encoder).unwrap();
    } else {
        DynamicImage::ImageRgb8(picture.clone()).write_to(&mut bytes, format).unwrap();
    }
    bytes.into_inner()
}

/// Writes files into a compressed zip.
pub(in crate::commands::dataset) fn zip(path: &Path, files: &[(String, Vec<u8>)]) {
    let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        writer.start_file(name.as_str(), options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes files below a folder.
pub(in crate::commands::dataset) fn folder(root: &Path, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

pub(in crate::commands::dataset) fn database(root: &Path, entries: &[(String, Vec<u8>)]) {
    LmdbWriter::open(root, 16 << 20).unwrap().write(entries, &[]).unwrap();
}

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    args: crate::commands::dataset::DatasetArgs,
}

/// Runs `diffae dataset` with these arguments; returns the message if it fails.
pub(in crate::commands::dataset) fn run(source: &str, from: &Path, out: &Path, more: &str) -> Result<(), String> {
    let mut words = vec!["dataset".to_owned(), source.to_owned()];
    words.extend(["--from", &from.display().to_string(), "--out", &out.display().to_string()].map(str::to_owned));
    words.extend(more.split_whitespace().map(str::to_owned));
    let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
    crate::commands::dataset::run(&command.args).map_err(|error| format!("{error:#}"))
}

/// Returns all files below a folder with their contents and times.
pub(in crate::commands::dataset) fn snapshot(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let time = path.metadata().unwrap().modified().unwrap();
                found.insert(path.clone(), (std::fs::read(path).unwrap(), time));
            }
        }
    }
    found
}

pub(in crate::commands::dataset) fn manifest(out: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("manifest.json")).unwrap()).unwrap()
}

/// Returns the names of the pictures as training sees them.
pub(in crate::commands::dataset) fn names(data: &Path) -> Vec<String> {
    let pictures = Pictures::all(data, Crop::Center).unwrap();
    (0..pictures.len()).map(|idx| pictures.name(idx)).collect()
}

/// Returns the colors of one picture at some pixels, 0 to 255, as training reads it.
pub(in crate::commands::dataset) fn colors(
    data: &Path,
    idx: usize,
    size: usize,
    pixels: &[(usize, usize)],
) -> Vec<[f32; 3]> {
    let pictures = Pictures::all(data, Crop::Center).unwrap();
    let bytes = pictures.bytes(idx).unwrap();
    let side = image::load_from_memory(&bytes).unwrap().width() as usize;
    assert_eq!(side, size, "the picture is stored in the size that was wanted");
    let planes = pictures.read(idx, diffae_data::PictureFormat::new(3, size)).unwrap().to_vec3::<f32>().unwrap();
    let at = |&(x, y): &(usize, usize)| [0, 1, 2].map(|channel: usize| (planes[channel][y][x] + 1.) * 127.5);
    pixels.iter().map(at).collect()
}

/// Fails unless all colors are within `tolerance`.
pub(in crate::commands::dataset) fn assert_near(got: &[[f32; 3]], expected: &[[f32; 3]], tolerance: f32) {
    let near = got.iter().flatten().zip(expected.iter().flatten()).all(|(a, b)| (a - b).abs() <= tolerance);
    assert!(near && got.len() == expected.len(), "{got:?}, expected {expected:?}");
}
