//! Pictures of what has no picture: volumes, and pictures of any number of channels.

use candle_core::{DType, Tensor};
use image::{Rgb, RgbImage};

use crate::error::{Error, Result};

/// Brightness of the gaps between views of a volume.
const GAP: [f32; 3] = [0.; 3];

/// Values of a picture or a volume, `[C, D, H, W]`, brought to `[0, 1]`.
struct Stack {
    values: Vec<f32>,
    channels: usize,
    /// Depth, height and width.
    sides: [usize; 3],
}

/// Converts a tensor to a picture. Gray and color are shown as they are; of other channel counts, each channel has a hue of its own
/// and is as bright as its values are large. Of a volume, four views stand side by side: the middle slice, the brightest voxel
/// along the slices (maximum intensity projection), and the middle planes along rows and along columns, their last slices on top.
///
/// # Shapes
/// - `x`: `[C, H, W]` or `[C, D, H, W]`, f32 in `[-1, 1]`; result: `W x H` pixels, of a volume `2 max(W, H) x (H + D)`.
/// # Errors
/// [`Error::NotFinite`] if it holds NaN; [`Error::Tensor`] if it has other axes.
pub fn rgb_from_tensor(x: &Tensor) -> Result<RgbImage> {
    let stack = Stack::of(x)?;
    let [depth, height, width] = stack.sides;
    if x.rank() == 3 {
        return drawn(width, height, |row, column| stack.color(|channel| stack.at(channel, [0, row, column])));
    }
    let [middle_slice, middle_row, middle_column] = [depth, height, width].map(|side| side >> 1);
    let half = width.max(height);
    drawn(2 * half, height + depth, |row, column| {
        let (is_right, column) = (column >= half, column % half.max(1));
        let from_top = row.checked_sub(height).map(|row| depth - 1 - row);
        let place = match (from_top, is_right) {
            (None, _) if column < width => [middle_slice, row, column],
            (Some(slice), false) if column < width => [slice, middle_row, column],
            (Some(slice), true) if column < height => [slice, column, middle_column],
            _ => return GAP,
        };
        let projected = |channel: usize| {
            (0..depth).map(|slice| stack.at(channel, [slice, place[1], place[2]])).fold(0f32, f32::max)
        };
        match (from_top, is_right) {
            (None, true) => stack.color(projected),
            _ => stack.color(|channel| stack.at(channel, place)),
        }
    })
}

impl Stack {
    fn of(x: &Tensor) -> Result<Self> {
        let failed = |source| Error::Tensor { part: "reading a picture from a tensor", source };
        let (channels, sides) = if let [channels, depth, height, width] = *x.dims() {
            (channels, [depth, height, width])
        } else {
            let (channels, height, width) = x.dims3().map_err(failed)?;
            (channels, [1, height, width])
        };
        let values = x.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1::<f32>()).map_err(failed)?;
        if values.iter().any(|value| value.is_nan()) {
            return Err(Error::NotFinite { what: "a decoded picture".to_owned() });
        }
        let values = values.into_iter().map(|value| ((value + 1.) * 0.5).clamp(0., 1.)).collect();
        Ok(Self { values, channels, sides })
    }

    fn at(&self, channel: usize, [slice, row, column]: [usize; 3]) -> f32 {
        let [depth, height, width] = self.sides;
        let place = ((channel * depth + slice) * height + row) * width + column;
        self.values.get(place).copied().unwrap_or(0.)
    }

    /// Returns the color of the values of all channels at a place.
    fn color(&self, value: impl Fn(usize) -> f32) -> [f32; 3] {
        match self.channels {
            1 => [value(0); 3],
            3 => [value(0), value(1), value(2)],
            count => (0..count).fold([0.; 3], |sum, channel| {
                let (hue, value) = (hue(channel as f32 / count as f32), value(channel));
                [0, 1, 2].map(|part| sum[part] + value * hue[part])
            }),
        }
    }
}

/// Returns the pure color at a place of the circle of hues, from 0 (red) to 1.
fn hue(place: f32) -> [f32; 3] {
    [0., 4., 2.].map(|start| {
        let distance = ((place * 6. + start) % 6. - 3.).abs();
        (distance - 1.).clamp(0., 1.)
    })
}

fn drawn(width: usize, height: usize, color: impl Fn(usize, usize) -> [f32; 3]) -> Result<RgbImage> {
    let (Ok(columns), Ok(rows)) = (u32::try_from(width), u32::try_from(height)) else {
        let got = format!("{width}x{height}");
        return Err(Error::OutOfRange { what: "the size of a picture", got, expected: "sides below 2^32" });
    };
    let pixel = |column: u32, row: u32| Rgb(color(row as usize, column as usize).map(byte));
    Ok(RgbImage::from_fn(columns, rows, pixel))
}

fn byte(value: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
    let byte = (value * 255.).round().clamp(0., 255.) as u8;
    byte
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(dims: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_slice(values, dims, &Device::Cpu).unwrap()
    }

    #[test]
    fn channels_have_hues_and_their_sum_is_shown() {
        let picture = rgb_from_tensor(&tensor(&[2, 1, 2], &[1., -1., -1., 0.])).unwrap();
        // Red and cyan, half as bright.
        assert_eq!((picture.get_pixel(0, 0).0, picture.get_pixel(1, 0).0), ([255, 0, 0], [0, 128, 128]));
        assert_eq!([hue(0.), hue(1. / 3.), hue(2. / 3.)], [[1., 0., 0.], [0., 1., 0.], [0., 0., 1.]]);
        let gray = rgb_from_tensor(&tensor(&[1, 1, 1], &[0.5])).unwrap();
        assert_eq!(gray.get_pixel(0, 0).0, [191; 3]);
        assert!(rgb_from_tensor(&tensor(&[1, 1, 1], &[f32::NAN])).is_err());
        assert!(rgb_from_tensor(&tensor(&[1, 1], &[0.])).is_err());
    }

    #[test]
    fn a_volume_is_shown_from_four_sides() {
        // Three slices of two rows and four columns; one voxel shines in the last slice, first row, last column.
        let mut values = vec![-1.; 24];
        values[2 * 8 + 3] = 1.;
        values[8 + 4 + 2] = 0.; // the middle slice, second row, third column: in all middle planes
        let picture = rgb_from_tensor(&tensor(&[1, 3, 2, 4], &values)).unwrap();
        assert_eq!(picture.dimensions(), (8, 5));
        let bright: Vec<(u32, u32, u8)> =
            picture.enumerate_pixels().filter(|(.., p)| p.0[0] > 0).map(|(x, y, p)| (x, y, p.0[0])).collect();
        let of_slice = [(2, 1, 128)];
        let projected = [(7, 0, 255), (6, 1, 128)];
        // Of the middle row, and of the middle column, from the last slice to the first.
        let across = [(2, 3, 128), (5, 3, 128)];
        let mut expected: Vec<(u32, u32, u8)> = of_slice.into_iter().chain(projected).chain(across).collect();
        expected.sort_by_key(|&(x, y, _)| (y, x));
        assert_eq!(bright, expected);
    }
}
