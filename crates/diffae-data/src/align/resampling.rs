//! Resizing of pictures, and sampling of rotated squares.

use std::path::Path;

use fast_image_resize as fir;
use image::RgbImage;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::resample::{self, BoxedError};

const CHANNELS: usize = 3;

/// Resizes with an antialiased Lanczos filter of three lobes.
pub(super) fn resized(picture: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let failed = |source: BoxedError| Error::Resize { path: Path::new("a picture in memory").to_owned(), source };
    let mut resized = fir::images::Image::new(width, height, fir::PixelType::U8x3);
    resample::resize_rgb8(picture, &mut resized, fir::FilterType::Lanczos3).map_err(failed)?;
    RgbImage::from_raw(width, height, resized.into_vec()).ok_or_else(|| failed("the buffer is too short".into()))
}

/// Samples a quadrilateral at `size` x `size` places, bilinearly; black beyond the picture.
///
/// `corners` are upper left, lower left, lower right, upper right in pixel indices. With `u` and `v` in `[0, 1]` across and
/// down, a place is the bilinear mean of the corners. Samples are rounded down to bytes, as Pillow does.
pub(super) fn sampled(picture: &RgbImage, corners: [[f64; 2]; 4], size: u32) -> RgbImage {
    let mut samples = RgbImage::new(size, size);
    let row_length = size as usize * CHANNELS;
    let [upper_left, lower_left, lower_right, upper_right] = corners;
    let step = 1. / f64::from(size);
    samples.as_flat_samples_mut().samples.par_chunks_mut(row_length.max(1)).enumerate().for_each(|(row_idx, row)| {
        let v = (row_idx as f64 + 0.5) * step;
        for (column_idx, pixel) in row.chunks_exact_mut(CHANNELS).enumerate() {
            let u = (column_idx as f64 + 0.5) * step;
            let place = [0, 1].map(|axis| {
                let across = upper_right[axis] - upper_left[axis];
                let down = lower_left[axis] - upper_left[axis];
                let skew = lower_right[axis] - lower_left[axis] - across;
                upper_left[axis] + across * u + down * v + skew * u * v
            });
            pixel.copy_from_slice(&bilinear(picture, place));
        }
    });
    samples
}

/// Interpolates the color at a place, in pixel indices; the outer half of the edge pixels has their color.
fn bilinear(picture: &RgbImage, [x, y]: [f64; 2]) -> [u8; CHANNELS] {
    let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
    let inside = x >= -0.5 && x < width - 0.5 && y >= -0.5 && y < height - 0.5;
    if !inside {
        return [0; CHANNELS];
    }
    let neighbors = |at: f64, length: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the picture")]
        let index = |at: f64| at.clamp(0., length - 1.) as u32;
        (index(at.floor()), index(at.floor() + 1.), at - at.floor())
    };
    let (left, right, across) = neighbors(x, width);
    let (top, bottom, down) = neighbors(y, height);
    let mix = |a: f64, b: f64, part: f64| a + (b - a) * part;
    let rows = [top, bottom].map(|row| [left, right].map(|column| picture.get_pixel(column, row).0));
    [0, 1, 2].map(|channel| {
        let [upper, lower] = rows.map(|[a, b]| mix(f64::from(a[channel]), f64::from(b[channel]), across));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a mean of bytes")]
        let byte = mix(upper, lower, down) as u8;
        byte
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn ramp() -> RgbImage {
        let byte = |value: u32| u8::try_from(value).unwrap();
        RgbImage::from_fn(8, 8, |x, y| Rgb([byte(16 * x), byte(16 * y), 7]))
    }

    #[test]
    fn the_whole_picture_is_sampled_to_itself() {
        let corners = [[-0.5, -0.5], [-0.5, 7.5], [7.5, 7.5], [7.5, -0.5]];
        assert_eq!(sampled(&ramp(), corners, 8), ramp());
    }

    #[test]
    fn corners_decide_the_direction() {
        let quarter_turn = [[7.5, -0.5], [-0.5, -0.5], [-0.5, 7.5], [7.5, 7.5]];
        let turned = sampled(&ramp(), quarter_turn, 8);
        assert!((0..8).all(|i| turned.get_pixel(i, 2) == ramp().get_pixel(5, i)));
    }

    #[test]
    fn beyond_the_picture_all_is_black() {
        assert_eq!(bilinear(&ramp(), [-0.6, 3.]), [0; 3]);
        assert_eq!(bilinear(&ramp(), [7.4, 7.4]), [112, 112, 7]);
        assert_eq!(bilinear(&ramp(), [f64::NAN, 0.]), [0; 3]);
    }

    #[test]
    fn a_picture_of_one_color_keeps_it() {
        let even = RgbImage::from_pixel(31, 17, Rgb([9, 90, 250]));
        assert_eq!(resized(&even, 5, 9).unwrap(), RgbImage::from_pixel(5, 9, Rgb([9, 90, 250])));
    }
}
