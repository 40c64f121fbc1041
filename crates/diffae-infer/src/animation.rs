//! Animated GIFs and their frame rates.

use std::path::Path;

use image::{DynamicImage, RgbImage};

use crate::error::{Error, Result};
use crate::sheet::enlarged_frames;

/// Frames per second of an animation, in `(0, 50]`. A GIF counts in hundredths of a second, and viewers slow down
/// frames that are shorter than 2 of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameRate(f64);

impl FrameRate {
    /// The lowest frame rate: a frame for more than ten minutes does not fit a GIF.
    const SLOWEST: f64 = 0.01;
    /// The highest frame rate.
    const FASTEST: f64 = 50.;

    /// Creates a rate from frames per second.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] outside of `[0.01, 50]`.
    pub fn new(frames_per_second: f64) -> Result<Self> {
        if (Self::SLOWEST..=Self::FASTEST).contains(&frames_per_second) {
            return Ok(Self(frames_per_second));
        }
        let (got, expected) = (frames_per_second.to_string(), "0.01 to 50: a GIF knows nothing faster");
        Err(Error::OutOfRange { what: "the number of frames a second", got, expected })
    }

    /// Returns the duration of frame `idx`, in hundredths of a second:
    /// `round((idx + 1) 100 / fps) - round(idx 100 / fps)`, so that rounding errors do not add up.
    #[must_use]
    pub fn centiseconds(self, idx: usize) -> u32 {
        let start = |idx: usize| (idx as f64 * 100. / self.0).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 to 10000")]
        let centiseconds = (start(idx + 1) - start(idx)) as u32;
        centiseconds
    }
}

/// Encodes frames as a looping GIF.
///
/// # Errors
/// [`diffae_data::Error::Encode`] with `path`, which is for the message.
pub fn animation_bytes(frames: &[RgbImage], rate: FrameRate, path: &Path) -> Result<Vec<u8>> {
    gif_with_delays(frames, (0..).map(|idx| 10 * rate.centiseconds(idx)), path)
}

/// Encodes a looping GIF animation of the given frames.
///
/// # Errors
/// [`diffae_data::Error::Encode`] with `path` if it cannot be encoded.
pub fn gif_bytes(frames: &[RgbImage], milliseconds_per_frame: u32, path: &Path) -> Result<Vec<u8>> {
    gif_with_delays(frames, std::iter::repeat(milliseconds_per_frame), path)
}

/// Encodes frames as an endless GIF, each shown for its number of milliseconds, which the format rounds down to
/// hundredths of a second.
fn gif_with_delays(frames: &[RgbImage], delays_ms: impl IntoIterator<Item = u32>, path: &Path) -> Result<Vec<u8>> {
    let encode = || -> image::ImageResult<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::gif::GifEncoder::new_with_speed(&mut bytes, 10);
        encoder.set_repeat(image::codecs::gif::Repeat::Infinite)?;
        for (frame, delay_ms) in enlarged_frames(frames).into_iter().zip(delays_ms) {
            let rgba = DynamicImage::ImageRgb8(frame).into_rgba8();
            let delay = image::Delay::from_numer_denom_ms(delay_ms, 1);
            encoder.encode_frame(image::Frame::from_parts(rgba, 0, 0, delay))?;
        }
        drop(encoder);
        Ok(bytes)
    };
    encode().map_err(|source| diffae_data::Error::Encode { path: path.to_owned(), source: source.into() }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_rounded_delays_is_the_rate() {
        for fps in [1., 7., 12., 24., 29.97, 30., 50.] {
            let rate = FrameRate::new(fps).unwrap();
            let total: u32 = (0..300).map(|idx| rate.centiseconds(idx)).sum();
            assert!((f64::from(total) - 30_000. / fps).abs() <= 0.5, "{fps}: {total}");
            assert!((0..300).all(|idx| rate.centiseconds(idx) >= 2));
        }
        for fps in [0., -1., 51., f64::NAN, f64::INFINITY] {
            assert!(matches!(FrameRate::new(fps), Err(Error::OutOfRange { .. })));
        }
    }
}
