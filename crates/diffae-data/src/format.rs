//! The form in which a model takes pictures: their shape, and the window of values that it knows.

use std::fmt;

use diffae_nets::{ImageShape, ImageSize};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Maximum number of channels of pictures.
pub const MAX_CHANNELS: usize = 32;

/// A window of stored values, `low < high`: `x = 2 (value - low) / (high - low) - 1`, clamped to `[-1, 1]`. Written as `[low, high]`.
///
/// Values are those that a file means: Hounsfield units of a CT, for instance, whatever the numbers that it stores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "[f64; 2]", into = "[f64; 2]")]
pub struct Window {
    low: f64,
    high: f64,
}

impl Window {
    /// Makes a window from `low` to `high`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless both are finite and the first is the lesser.
    pub fn new(low: f64, high: f64) -> Result<Self> {
        if low.is_finite() && high.is_finite() && low < high {
            return Ok(Self { low, high });
        }
        let got = format!("[{low}, {high}]");
        Err(Error::OutOfRange { what: "the window of values", got, expected: "two numbers, the lesser first" })
    }

    /// Brings a value to `[-1, 1]`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "networks compute in f32")]
    pub fn to_unit(self, value: f64) -> f32 {
        let x = (2. * (value - self.low) / (self.high - self.low) - 1.) as f32;
        x.clamp(-1., 1.)
    }

    /// Brings a number in `[-1, 1]` back to the value that it stands for.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "as many digits as x has")]
    pub fn value_of(self, x: f32) -> f32 {
        (self.low + (f64::from(x) + 1.) * 0.5 * (self.high - self.low)) as f32
    }
}

impl TryFrom<[f64; 2]> for Window {
    type Error = Error;

    fn try_from([low, high]: [f64; 2]) -> Result<Self> {
        Self::new(low, high)
    }
}

impl From<Window> for [f64; 2] {
    fn from(Window { low, high }: Window) -> Self {
        [low, high]
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.low, self.high)
    }
}

/// The form in which pictures are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureFormat {
    /// Shape of a picture, or of a volume.
    pub shape: ImageShape,
    /// Window of stored values; without one, integers of 8 and 16 bits fill `[-1, 1]`, and floats lie there.
    pub window: Option<Window>,
}

impl PictureFormat {
    /// Returns the form of pictures of some channels and a size, without a window.
    #[must_use]
    pub fn new(channels: usize, size: impl Into<ImageSize>) -> Self {
        size.into().with_channels(channels).into()
    }

    /// Returns whether picture files hold all of such a picture: it has one or three channels, which fill their range.
    #[must_use]
    pub fn is_plain(self) -> bool {
        self.shape.is_visible() && self.window.is_none()
    }
}

impl From<ImageShape> for PictureFormat {
    fn from(shape: ImageShape) -> Self {
        Self { shape, window: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_maps_its_ends_to_the_ends_of_the_range() {
        let window: Window = serde_json::from_str("[-1000, 400]").unwrap();
        for (value, x) in [(-1000., -1.), (400., 1.), (-300., 0.), (9000., 1.), (-9000., -1.)] {
            assert!((window.to_unit(value) - x).abs() < 1e-6, "{value}");
        }
        assert!((window.value_of(0.5) - 50.).abs() < 1e-3);
        assert_eq!(
            (serde_json::to_string(&window).unwrap(), window.to_string()),
            ("[-1000.0,400.0]".into(), "[-1000, 400]".into())
        );
        for wrong in ["[1, 1]", "[2, 1]", "[0]", "[0, 1, 2]"] {
            assert!(serde_json::from_str::<Window>(wrong).is_err(), "{wrong}");
        }
        assert!(Window::new(f64::NAN, 1.).is_err() && Window::new(0., f64::INFINITY).is_err());
    }
}
