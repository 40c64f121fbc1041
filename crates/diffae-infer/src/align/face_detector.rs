//! Faces in photographs, by the detector of `SeetaFace`.

use std::fmt;
use std::fs;
use std::path::Path;

use image::{RgbImage, imageops};

use super::face_box::FaceBox;
use super::resampling::resized;
use crate::error::{Error, Result};

/// BLAKE3 of `seeta_fd_frontal_v1.0.bin`, the one model there is. The crate that reads it trusts what it reads.
const MODEL_HASH: &str = "b3e9594edb5f2e23ea8bda9e090beb7bc57ae6b2e205761346d3ee3000fb654e";
/// Larger photographs are shrunk to this longer side for the search.
const MOST_SEARCHED_SIDE: u32 = 1024;
/// The crate reads beyond its memory where a candidate moves past an edge; with so much black around the photograph,
/// by its shorter side, candidates have room.
const MARGIN_BY_SHORTER_SIDE: f64 = 0.5;
/// Settings of `SeetaFace`'s own example.
const LEAST_FACE: u32 = 40;
const LEAST_SCORE: f64 = 2.;
const PYRAMID_SCALE: f32 = 0.8;
const WINDOW_STEP: u32 = 4;
/// Its boxes lie higher than those of dlib, which landmark models were trained with; by a side of the box.
const LOWER_BY_SIDE: f64 = 0.06;

/// Finds upright frontal faces of 40 pixels and more.
///
/// # Source
/// Wu et al. 2016, "Funnel-structured cascade for multi-view face detection with alignment-awareness", in the Rust port
/// `rustface` 0.1.7 and with its model (both BSD-2-Clause).
pub struct FaceDetector {
    model: rustface::Model,
}

impl fmt::Debug for FaceDetector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FaceDetector").finish_non_exhaustive()
    }
}

impl FaceDetector {
    /// Reads the model `seeta_fd_frontal_v1.0.bin`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::FaceDetector`] if it is another one.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(path).map_err(failed)?).map_err(failed)?;
        let got = hasher.finalize().to_hex().to_string();
        if got != MODEL_HASH {
            return Err(Error::FaceDetector { path: path.to_owned(), got, expected: MODEL_HASH });
        }
        let bytes = fs::read(path).map_err(failed)?;
        Ok(Self { model: rustface::read_model(&bytes[..]).map_err(failed)? })
    }

    /// The boxes of all faces, the largest first, as dlib would draw them: moved down by 0.06 of their side.
    ///
    /// # Errors
    /// [`Error::Resize`] if the photograph is empty.
    pub fn faces(&self, photograph: &RgbImage) -> Result<Vec<FaceBox>> {
        let (width, height) = photograph.dimensions();
        let times = (f64::from(width.max(height)) / f64::from(MOST_SEARCHED_SIDE)).max(1.);
        let shorter = |length: u32| whole(f64::from(length) / times).clamp(1, MOST_SEARCHED_SIDE);
        let searched = resized(photograph, shorter(width), shorter(height))?;
        let margin = whole(f64::from(searched.width().min(searched.height())) * MARGIN_BY_SHORTER_SIDE);
        let (gray, width, height) = gray_with_margin(&searched, margin);
        let mut detector = rustface::create_detector_with_model(self.model.clone());
        detector.set_min_face_size(LEAST_FACE);
        detector.set_score_thresh(LEAST_SCORE);
        detector.set_pyramid_scale_factor(PYRAMID_SCALE);
        detector.set_slide_window_step(WINDOW_STEP, WINDOW_STEP);
        let found = detector.detect(&rustface::ImageData::new(&gray, width, height));
        let squares = found.iter().map(|face| {
            let place = |at: i32| (f64::from(at) - f64::from(margin)) * times;
            let square = face.bbox();
            (place(square.x()), place(square.y()), f64::from(square.width()) * times)
        });
        let mut boxes: Vec<FaceBox> = squares.filter_map(|(left, top, side)| dlib_box(left, top, side)).collect();
        boxes.retain(|face_box| face_box.check_overlap(photograph).is_ok());
        boxes.sort_by_key(|face_box| std::cmp::Reverse(face_box.numbers()[2]));
        Ok(boxes)
    }
}

/// The box of dlib for one of `SeetaFace`; none if it is degenerate.
fn dlib_box(left: f64, top: f64, side: f64) -> Option<FaceBox> {
    let place = |at: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "`FaceBox::new` refuses what is far away")]
        let place = at.round() as i32;
        place
    };
    FaceBox::new(place(left), place(top + LOWER_BY_SIDE * side), whole(side), whole(side)).ok()
}

/// The photograph in gray, on black: its samples, width and height.
fn gray_with_margin(photograph: &RgbImage, margin: u32) -> (Vec<u8>, u32, u32) {
    let (width, height) = photograph.dimensions();
    let mut ground = image::GrayImage::new(width + 2 * margin, height + 2 * margin);
    imageops::replace(&mut ground, &imageops::grayscale(photograph), margin.into(), margin.into());
    let (width, height) = ground.dimensions();
    (ground.into_raw(), width, height)
}

fn whole(value: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length of a picture")]
    let whole = value.round() as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        assert!(matches!(FaceDetector::open(&path), Err(Error::Io { .. })));
        fs::write(&path, [2, 0, 0, 0]).unwrap();
        let error = FaceDetector::open(&path).unwrap_err();
        assert!(error.to_string().contains("a.bin is not seeta_fd_frontal_v1.0.bin"), "{error}");
    }

    #[test]
    fn boxes_move_down() {
        assert_eq!(dlib_box(-3.4, 10., 100.).unwrap().numbers(), [-3, 16, 100, 100]);
        assert_eq!(dlib_box(0., 0., 0.), None);
        assert_eq!(dlib_box(1e9, 0., 50.), None);
    }

    #[test]
    fn the_photograph_lies_in_the_middle() {
        let white = RgbImage::from_pixel(4, 2, image::Rgb([255; 3]));
        let (samples, width, height) = gray_with_margin(&white, 3);
        assert_eq!((width, height), (10, 8));
        let sum: u32 = samples.iter().map(|&sample| u32::from(sample)).sum();
        assert_eq!((samples[3 * 10 + 3], samples[4 * 10 + 6], samples[5 * 10 + 3], sum), (255, 255, 0, 8 * 255));
    }
}
