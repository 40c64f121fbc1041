//! Boxes around faces.

use image::RgbImage;

use crate::error::{Error, Result};

/// Maximum size and position of a box, in pixels.
const MAX_PIXELS: u32 = 1 << 16;
/// Side of a face relative to the shorter side of a picture that shows head and shoulders.
const PART_OF_PORTRAIT: f64 = 0.6;

/// A box around a face, from the brows to the chin and from ear to ear, as dlib's frontal detector draws it. It may reach
/// beyond the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaceBox {
    left: i32,
    top: i32,
    width: u32,
    height: u32,
}

impl FaceBox {
    /// Creates a box from its first column, first row, and size, in pixels.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if a side is under 2 pixels, or a number beyond 65536.
    pub fn new(left: i32, top: i32, width: u32, height: u32) -> Result<Self> {
        let sides = 2..=MAX_PIXELS;
        let is_usable = sides.contains(&width)
            && sides.contains(&height)
            && left.unsigned_abs() <= MAX_PIXELS
            && top.unsigned_abs() <= MAX_PIXELS;
        if !is_usable {
            let got = format!("{left},{top},{width},{height}");
            return Err(Error::OutOfRange { what: "the box of a face", got, expected: "sides from 2 to 65536 pixels" });
        }
        Ok(Self { left, top, width, height })
    }

    /// Returns the box of a face that fills the middle of a picture: the central square of 0.6 of the shorter side.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the picture is smaller than 4 pixels.
    pub fn middle_of(picture: &RgbImage) -> Result<Self> {
        let (width, height) = picture.dimensions();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a u32")]
        let side = (f64::from(width.min(height)) * PART_OF_PORTRAIT) as u32;
        let first = |length: u32| i32::try_from((length - side) >> 1).unwrap_or(i32::MAX);
        Self::new(first(width), first(height), side, side)
    }

    /// Returns first column, first row, width and height.
    #[must_use]
    pub fn numbers(self) -> [i64; 4] {
        [self.left.into(), self.top.into(), self.width.into(), self.height.into()]
    }

    /// Returns the nearest pixel to a point in box coordinates, where the box is the unit square between the middles of
    /// its corner pixels.
    pub(super) fn pixel_of(self, [x, y]: [f32; 2]) -> [f64; 2] {
        let along = |first: i32, length: u32, t: f32| f64::from(first) + f64::from(length - 1) * f64::from(t);
        [along(self.left, self.width, x), along(self.top, self.height, y)].map(|place| (place + 0.5).floor())
    }

    pub(super) fn check_overlap(self, picture: &RgbImage) -> Result<()> {
        let overlaps = |first: i32, length: u32, limit: u32| {
            i64::from(first) < i64::from(limit) && i64::from(first) + i64::from(length) > 0
        };
        let (width, height) = picture.dimensions();
        if overlaps(self.left, self.width, width) && overlaps(self.top, self.height, height) {
            return Ok(());
        }
        let [left, top, box_width, box_height] = self.numbers();
        let got = format!("{left},{top},{box_width},{box_height} in a picture of {width}x{height}");
        Err(Error::OutOfRange { what: "the box of a face", got, expected: "a part of the picture in it" })
    }
}

/// Reads `LEFT,TOP,WIDTH,HEIGHT`.
impl std::str::FromStr for FaceBox {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            let expected = "four whole numbers LEFT,TOP,WIDTH,HEIGHT";
            Error::OutOfRange { what: "the box of a face", got: text.to_owned(), expected }
        };
        let numbers: Vec<&str> = text.split(',').map(str::trim).collect();
        let [left, top, width, height] = numbers[..] else {
            return Err(refused());
        };
        let (place, side) = (|text: &str| text.parse::<i32>().ok(), |text: &str| text.parse::<u32>().ok());
        match (place(left), place(top), side(width), side(height)) {
            (Some(left), Some(top), Some(width), Some(height)) => Self::new(left, top, width, height),
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_read_from_text() {
        assert_eq!("-3, 4,50,60".parse::<FaceBox>().unwrap().numbers(), [-3, 4, 50, 60]);
        for text in
            ["", "1,2,3", "1,2,3,4,5", "a,2,3,4", "1,2,-3,4", "1.5,2,3,4", "1,2,1,4", "1,2,3,99999", "99999,2,3,4"]
        {
            let error = text.parse::<FaceBox>().unwrap_err();
            assert!(error.to_string().starts_with("the box of a face is "), "{error}");
        }
    }

    #[test]
    fn the_middle_is_a_square() {
        assert_eq!(FaceBox::middle_of(&RgbImage::new(100, 200)).unwrap().numbers(), [20, 70, 60, 60]);
        assert!(FaceBox::middle_of(&RgbImage::new(1, 200)).is_err());
        assert!(FaceBox::middle_of(&RgbImage::new(0, 0)).is_err());
    }

    #[test]
    fn corners_of_the_unit_square_are_corner_pixels() {
        let face_box = FaceBox::new(10, -20, 30, 40).unwrap();
        for (place, expected) in [([0., 0.], [10., -20.]), ([1., 1.], [39., 19.]), ([0.5, 0.], [25., -20.])] {
            assert_eq!(face_box.pixel_of(place).map(f64::to_bits), expected.map(f64::to_bits), "{place:?}");
        }
    }
}
