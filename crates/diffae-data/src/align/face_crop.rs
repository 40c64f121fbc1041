//! The crop square of a face: from landmarks to corners, from corners to a picture.

use image::{RgbImage, imageops};

use super::border::{Room, with_border};
use super::resampling::{resized, sampled};
use crate::error::{Error, Result};

/// Number of landmarks in the scheme of iBUG 300-W.
const NUM_LANDMARKS: usize = 68;
const LEFT_EYE: std::ops::Range<usize> = 36..42;
const RIGHT_EYE: std::ops::Range<usize> = 42..48;
const MOUTH_CORNERS: [usize; 2] = [48, 54];
/// Half the side of the square, over the distance between the eyes, and over that from the eyes to the mouth.
const HALF_SIDE_BY_EYES: f64 = 2.;
const HALF_SIDE_BY_MOUTH: f64 = 1.8;
/// Offset of the square's center from the eyes, as a share of the distance from the eyes to the mouth.
const CENTER_TO_MOUTH: f64 = 0.1;
/// Border that is kept around the square for interpolation at its edge, as a share of its side; the minimum is in
/// pixels.
const BORDER_BY_SIDE: f64 = 0.1;
const MIN_BORDER: i64 = 3;
/// Minimum distance between the square and the end of the border, in pixels; below it the picture is continued.
const BORDER_SLACK: i64 = 4;
/// Minimum continuation of the picture, as a share of the side of the square.
const ROOM_BY_SIDE: f64 = 0.3;
/// Samples of the square for each pixel of the result, along a side.
const OVERSAMPLING: u32 = 4;
/// Maximum side of a result, in pixels.
const MAX_SIZE: u32 = 2048;
/// Maximum coordinate of a corner, in pixels; a square beyond it is no face of the picture.
const MAX_COORDINATE: f64 = 1e6;

/// The oriented square around a face, as the pictures of CelebA-HQ and FFHQ were cropped.
///
/// With the means of the points of either eye `e_0`, `e_1`, their mean `e`, the mean of the corners of the mouth `m`,
/// `a = e_1 - e_0`, `d = m - e`, and `rotate(x, y) = (-y, x)`:
///
/// - center `c = e + 0.1 d`,
/// - half a side `x = max(2 |a|, 1.8 |d|) * (a - rotate(d)) / |a - rotate(d)|`, and `y = rotate(x)`;
/// - corners `c - x - y`, `c - x + y`, `c + x + y`, `c + x - y`: upper left, lower left, lower right, upper right.
///
/// Coordinates are pixel indices: the middle of the first pixel is 0.
///
/// # Source
/// Karras et al. 2017 (arXiv:1710.10196), appendix C, and for FFHQ Karras et al. 2018 (arXiv:1812.04948), appendix A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaceCrop {
    corners: [[f64; 2]; 4],
}

impl FaceCrop {
    /// Computes the crop square from 68 landmarks, x and y in pixels.
    ///
    /// # Errors
    /// [`Error::Landmarks`] if there are not 68, or they are not those of a face: all in one place, not finite, far away.
    pub fn from_landmarks(landmarks: &[[f64; 2]]) -> Result<Self> {
        if landmarks.len() != NUM_LANDMARKS {
            return Err(Error::Landmarks { problem: format!("there are {}, expected 68", landmarks.len()) });
        }
        let left_eye = mean(&landmarks[LEFT_EYE]);
        let right_eye = mean(&landmarks[RIGHT_EYE]);
        let eyes = mean(&[left_eye, right_eye]);
        let mouth = mean(&MOUTH_CORNERS.map(|idx| landmarks[idx]));
        let across = [right_eye[0] - left_eye[0], right_eye[1] - left_eye[1]];
        let down = [mouth[0] - eyes[0], mouth[1] - eyes[1]];
        let direction = [across[0] + down[1], across[1] - down[0]];
        let half_side = (HALF_SIDE_BY_EYES * length(across)).max(HALF_SIDE_BY_MOUTH * length(down));
        let scale = half_side / length(direction);
        let x = direction.map(|value| value * scale);
        let y = [-x[1], x[0]];
        let center = [eyes[0] + CENTER_TO_MOUTH * down[0], eyes[1] + CENTER_TO_MOUTH * down[1]];
        let corner = |along: f64, below: f64| [0, 1].map(|axis| center[axis] + along * x[axis] + below * y[axis]);
        let corners = [corner(-1., -1.), corner(-1., 1.), corner(1., 1.), corner(1., -1.)];
        if !corners.as_flattened().iter().all(|value| value.abs() <= MAX_COORDINATE) || half_side < 1. {
            let problem = "eyes and mouth are in one place or far away, expected a face".to_owned();
            return Err(Error::Landmarks { problem });
        }
        Ok(Self { corners })
    }

    /// Returns the upper left, lower left, lower right and upper right corners, in the orientation of the face; x and y
    /// in pixels.
    #[must_use]
    pub fn corners(&self) -> [[f64; 2]; 4] {
        self.corners
    }

    /// Returns the length of a side, in pixels.
    #[must_use]
    pub fn side(&self) -> f64 {
        length([self.corners[3][0] - self.corners[0][0], self.corners[3][1] - self.corners[0][1]])
    }

    /// Cuts the square out of `picture` and resizes it to `size` pixels, without aliasing.
    ///
    /// What lies beyond the picture is its reflection, which blurs and fades into the median color with the distance.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `size` is not in 1..=2048, or the square has no pixel in the picture.
    pub fn cut(&self, picture: &RgbImage, size: u32) -> Result<RgbImage> {
        if !(1..=MAX_SIZE).contains(&size) {
            let expected = "1 to 2048 pixels";
            return Err(Error::OutOfRange { what: "the size of an aligned face", got: size.to_string(), expected });
        }
        let (smaller, crop) = self.shrunk(picture, size)?;
        let picture = smaller.as_ref().unwrap_or(picture);
        let border = rounded(crop.side() * BORDER_BY_SIDE).max(MIN_BORDER);
        let (near, crop) = crop.surroundings(picture, border)?;
        let (near, crop) = crop.continued(near, border);
        let samples = sampled(&near, crop.corners, size * OVERSAMPLING);
        resized(&samples, size, size)
    }

    /// Shrinks a picture that is far larger than needed, by a whole factor.
    fn shrunk(self, picture: &RgbImage, size: u32) -> Result<(Option<RgbImage>, Self)> {
        let times = (self.side() / f64::from(size) * 0.5).floor();
        if times <= 1. {
            return Ok((None, self));
        }
        let shorter = |length: u32| to_u32(rounded(f64::from(length) / times).max(1));
        let smaller = resized(picture, shorter(picture.width()), shorter(picture.height()))?;
        Ok((Some(smaller), self.map(|[x, y]| [x / times, y / times])))
    }

    /// Cuts out the part of the picture around the square.
    fn surroundings(self, picture: &RgbImage, border: i64) -> Result<(RgbImage, Self)> {
        let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
        let [left, top, right, bottom] = self.bounds();
        let (left, top) = ((left - border).max(0), (top - border).max(0));
        let (right, bottom) = ((right + border).min(width), (bottom + border).min(height));
        if right <= left || bottom <= top {
            let got = format!("{:.0?} in a picture of {width}x{height}", self.corners);
            let expected = "a part of the picture in it";
            return Err(Error::OutOfRange { what: "the square of a face", got, expected });
        }
        let sides = (to_u32(right - left), to_u32(bottom - top));
        let part = imageops::crop_imm(picture, to_u32(left), to_u32(top), sides.0, sides.1).to_image();
        Ok((part, self.moved(-left, -top)))
    }

    /// Continues the picture where the square reaches beyond it.
    fn continued(self, picture: RgbImage, border: i64) -> (RgbImage, Self) {
        let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
        let [left, top, right, bottom] = self.bounds();
        let missing = [-left, -top, right - width, bottom - height].map(|length| (length + border).max(0));
        if missing.iter().all(|&length| length <= border - BORDER_SLACK) {
            return (picture, self);
        }
        let least = rounded(self.side() * ROOM_BY_SIDE);
        let [left, top, right, bottom] = missing.map(|length| to_u32(length.max(least).max(1)));
        let continued = with_border(&picture, Room { left, top, right, bottom }, self.side());
        (continued, self.moved(i64::from(left), i64::from(top)))
    }

    /// Returns the smallest box of whole pixels around the square: left, top, right, bottom.
    fn bounds(&self) -> [i64; 4] {
        let [x, y] = [0, 1].map(|axis| self.corners.map(|corner| corner[axis]));
        let least = |values: [f64; 4]| whole(values.into_iter().fold(f64::INFINITY, f64::min).floor());
        let most = |values: [f64; 4]| whole(values.into_iter().fold(f64::NEG_INFINITY, f64::max).ceil());
        [least(x), least(y), most(x), most(y)]
    }

    fn moved(self, right: i64, down: i64) -> Self {
        self.map(|[x, y]| [x + right as f64, y + down as f64])
    }

    fn map(self, change: impl FnMut([f64; 2]) -> [f64; 2]) -> Self {
        Self { corners: self.corners.map(change) }
    }
}

fn mean(points: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|axis| points.iter().map(|point| point[axis]).sum::<f64>() / points.len() as f64)
}

fn length([x, y]: [f64; 2]) -> f64 {
    x.hypot(y)
}

/// Rounds to the nearest whole number, ties to even.
fn rounded(value: f64) -> i64 {
    whole(value.round_ties_even())
}

fn whole(value: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "coordinates stay below 10^6, which was checked")]
    let whole = value as i64;
    whole
}

fn to_u32(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::align::fixtures::{json, photograph, picture};

    /// Tolerance of corners, which follow from a few sums in f64.
    const CORNER_TOLERANCE: f64 = 1e-9;
    /// Tolerances of pixels, in bytes: rounding differs from Pillow and `SciPy`, most where an overshoot is clamped
    /// between two passes.
    const MEAN_TOLERANCE: f64 = 0.5;
    const MAX_TOLERANCE: u8 = 6;

    #[test]
    fn corners_are_those_of_the_recipe() {
        for case in &json().aligned {
            let crop = FaceCrop::from_landmarks(&case.landmarks).unwrap();
            for (corner, expected) in crop.corners().as_flattened().iter().zip(case.corners.as_flattened()) {
                assert!((corner - expected).abs() < CORNER_TOLERANCE, "{}: {corner} {expected}", case.name);
            }
        }
    }

    #[test]
    fn pictures_are_those_of_the_recipe() {
        let photograph = photograph();
        let cases = json().aligned;
        assert!(cases.len() >= 6);
        for case in cases {
            let aligned = FaceCrop::from_landmarks(&case.landmarks).unwrap().cut(&photograph, case.size).unwrap();
            let expected = picture(&format!("{}.png", case.name));
            assert_eq!(aligned.dimensions(), expected.dimensions());
            let differences = || aligned.as_raw().iter().zip(expected.as_raw()).map(|(&a, &b)| a.abs_diff(b));
            let mean = differences().map(f64::from).sum::<f64>() / aligned.as_raw().len() as f64;
            let most = differences().max().unwrap();
            assert!(mean <= MEAN_TOLERANCE && most <= MAX_TOLERANCE, "{}: mean {mean}, most {most}", case.name);
        }
    }

    #[test]
    fn the_square_of_an_upright_face_is_upright() {
        let mut landmarks = vec![[50., 60.]; 68];
        landmarks[LEFT_EYE].fill([40., 50.]);
        landmarks[RIGHT_EYE].fill([60., 50.]);
        for idx in MOUTH_CORNERS {
            landmarks[idx] = [50., 70.];
        }
        let crop = FaceCrop::from_landmarks(&landmarks).unwrap();
        assert!((crop.side() - 80.).abs() < CORNER_TOLERANCE);
        let expected = [[10., 12.], [10., 92.], [90., 92.], [90., 12.]];
        for (corner, expected) in crop.corners().as_flattened().iter().zip(expected.as_flattened()) {
            assert!((corner - expected).abs() < CORNER_TOLERANCE, "{corner} {expected}");
        }
    }

    #[test]
    fn landmarks_of_no_face_are_refused() {
        for landmarks in [vec![[1., 1.]; 5], vec![[1., 1.]; 68], vec![[f64::NAN; 2]; 68]] {
            let error = FaceCrop::from_landmarks(&landmarks).unwrap_err();
            assert!(matches!(error, Error::Landmarks { .. }), "{error}");
        }
    }

    #[test]
    fn a_square_beside_the_picture_and_a_size_of_nothing_are_refused() {
        let crop = FaceCrop::from_landmarks(&json().aligned[0].landmarks).unwrap();
        for (crop, size) in [(crop, 0), (crop, 4096), (crop.moved(5000, 0), 64), (crop.moved(0, -5000), 64)] {
            let error = crop.cut(&photograph(), size).unwrap_err();
            assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
        }
    }

    #[test]
    fn pictures_smaller_than_their_border_are_continued_over_and_over() {
        let crop = FaceCrop::from_landmarks(&json().aligned[0].landmarks).unwrap();
        for (width, height) in [(200, 1), (1, 200), (90, 110)] {
            let gray = RgbImage::from_pixel(width, height, image::Rgb([90, 120, 200]));
            let crop = if width > height { crop.moved(0, -100) } else { crop };
            let crop = if width == 1 { crop.moved(-100, 0) } else { crop };
            let cut = crop.cut(&gray, 16).unwrap();
            assert!(cut.pixels().all(|pixel| pixel.0.iter().zip([90, 120, 200]).all(|(a, b)| a.abs_diff(b) <= 1)));
        }
    }
}
