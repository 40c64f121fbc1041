//! Continuation of a picture beyond its edges.

use image::RgbImage;
use rayon::prelude::*;

const CHANNELS: usize = 3;
/// Standard deviation of the blur, as a share of the side of the crop square.
const BLUR_BY_SIDE: f64 = 0.02;
/// Reach of the blur, in standard deviations.
const BLUR_DEVIATIONS: f64 = 4.;
/// Slope of the blur's weight over depth, relative to that of the median color.
const BLUR_SLOPE: f64 = 3.;

/// The number of pixels to add at each edge; none may be 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) right: u32,
    pub(super) bottom: u32,
}

/// Interleaved samples in `[0, 255]`.
struct Samples {
    width: usize,
    height: usize,
    values: Vec<f32>, // [H, W, C]
}

/// Reflects a picture outwards, blurs what is near the new edges, and fades it into the median color.
///
/// The depth of a pixel is 0 at the old edge and 1 at the new one, negative inside, the larger of both axes. With
/// `clip` to `[0, 1]`: `v <- v + (blurred - v) * clip(3 depth + 1)`, then `v <- v + (median - v) * clip(depth)`.
pub(super) fn with_border(picture: &RgbImage, room: Room, side: f64) -> RgbImage {
    let mut samples = reflected(picture, room);
    let blurred = samples.blurred(side * BLUR_BY_SIDE);
    let depth = |x: usize, y: usize| {
        let along = |at: usize, length: usize, before: u32, after: u32| {
            1. - (at as f64 / f64::from(before)).min((length - 1 - at) as f64 / f64::from(after))
        };
        along(x, samples.width, room.left, room.right).max(along(y, samples.height, room.top, room.bottom))
    };
    let (width, height) = (samples.width, samples.height);
    let depths: Vec<f64> =
        (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| depth(x, y)).collect();
    samples.blend(&depths, |depth| (BLUR_SLOPE * depth + 1.).clamp(0., 1.), |idx| blurred.values[idx]);
    let median = samples.median();
    samples.blend(&depths, |depth| depth.clamp(0., 1.), |idx| median[idx % CHANNELS]);
    samples.into_picture()
}

/// Returns the picture with its mirror images; an edge pixel is not repeated.
fn reflected(picture: &RgbImage, room: Room) -> Samples {
    let source = |first: u32, before: u32, after: u32| -> Vec<u32> {
        let places = -i64::from(before)..i64::from(first) + i64::from(after);
        places.map(|place| mirrored_about_pixels(place, first)).collect()
    };
    let columns = source(picture.width(), room.left, room.right);
    let rows = source(picture.height(), room.top, room.bottom);
    let (width, height) = (columns.len(), rows.len());
    let pixels = rows.iter().flat_map(|&y| columns.iter().map(move |&x| picture.get_pixel(x, y).0));
    let values = pixels.flat_map(|pixel| pixel.map(f32::from)).collect();
    Samples { width, height, values }
}

/// Mirrors an index about edge pixels: `.. 2 1 0 1 2 .. n-2 n-1 n-2 ..`
fn mirrored_about_pixels(place: i64, length: u32) -> u32 {
    let last = i64::from(length) - 1;
    if last <= 0 {
        return 0;
    }
    let folded = place.rem_euclid(2 * last);
    u32::try_from(folded.min(2 * last - folded)).unwrap_or(0)
}

/// Mirrors an index about edges: `.. 1 0 0 1 .. n-1 n-1 n-2 ..`
fn mirrored_about_edges(place: i64, length: usize) -> usize {
    let period = 2 * i64::try_from(length).unwrap_or(i64::MAX >> 1).max(1);
    let folded = place.rem_euclid(period);
    usize::try_from(folded.min(period - 1 - folded)).unwrap_or(0)
}

impl Samples {
    /// Applies a Gaussian blur, column by column and then row by row; the edge is mirrored.
    fn blurred(&self, deviation: f64) -> Self {
        let weights = gaussian(deviation);
        let reach = index(weights.len() >> 1);
        let offsets = || (-reach..=reach).zip(weights.iter().copied());
        let row_length = self.width * CHANNELS;
        let mut down = vec![0_f32; self.values.len()];
        down.par_chunks_mut(row_length).enumerate().for_each(|(y, row)| {
            let source = |offset: i64| {
                let first = mirrored_about_edges(index(y) + offset, self.height) * row_length;
                Source { row: &self.values[first..first + row_length], shift: 0 }
            };
            sum_into(row, offsets().map(|(offset, weight)| (source(offset), weight)));
        });
        let mut across = vec![0_f32; self.values.len()];
        across.par_chunks_mut(row_length).zip(down.par_chunks(row_length)).for_each(|(sums, row)| {
            sum_into(sums, offsets().map(|(shift, weight)| (Source { row, shift }, weight)));
        });
        Self { width: self.width, height: self.height, values: across }
    }

    /// Moves each value towards another by the weight of its depth.
    fn blend(&mut self, depths: &[f64], weight: impl Fn(f64) -> f64, target: impl Fn(usize) -> f32) {
        for (idx, value) in self.values.iter_mut().enumerate() {
            let weight = weight(depths[idx.div_euclid(CHANNELS)]);
            if weight > 0. {
                *value = to_f32(f64::from(*value) + f64::from(target(idx) - *value) * weight);
            }
        }
    }

    /// Returns the median of each channel.
    fn median(&self) -> [f32; CHANNELS] {
        [0, 1, 2].map(|channel| {
            let mut values: Vec<f32> = self.values.iter().copied().skip(channel).step_by(CHANNELS).collect();
            let middle = values.len() >> 1;
            let is_even = values.len().is_multiple_of(2);
            let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
            let lower = if is_even { below.iter().copied().max_by(f32::total_cmp) } else { None };
            f32::midpoint(lower.unwrap_or(upper), upper)
        })
    }

    fn into_picture(self) -> RgbImage {
        let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
        let byte = |value: f32| value.round_ties_even().clamp(0., 255.) as u8;
        let (width, height) = (side(self.width), side(self.height));
        let bytes: Vec<u8> = self.values.into_iter().map(byte).collect();
        RgbImage::from_raw(width, height, bytes).unwrap_or_default()
    }
}

/// A row of samples, moved along by whole pixels.
struct Source<'a> {
    row: &'a [f32],
    shift: i64,
}

impl Source<'_> {
    /// Adds a weighted row, `sums += weight * row`, with the ends of the row mirrored.
    fn add_to(&self, sums: &mut [f64], weight: f64) {
        let num_pixels = self.row.len().div_euclid(CHANNELS);
        let shift = usize::try_from(self.shift.unsigned_abs()).unwrap_or(usize::MAX).min(num_pixels);
        let (start, end) = if self.shift < 0 { (shift, num_pixels) } else { (0, num_pixels - shift) };
        let first = if self.shift < 0 { 0 } else { shift };
        let inside = &mut sums[start * CHANNELS..end * CHANNELS];
        for (sum, &value) in inside.iter_mut().zip(&self.row[first * CHANNELS..]) {
            *sum += weight * f64::from(value);
        }
        for pixel in (0..start).chain(end..num_pixels) {
            let source = mirrored_about_edges(index(pixel) + self.shift, num_pixels);
            for channel in 0..CHANNELS {
                sums[pixel * CHANNELS + channel] += weight * f64::from(self.row[source * CHANNELS + channel]);
            }
        }
    }
}

/// Computes the weighted sum of rows.
fn sum_into<'a>(row: &mut [f32], sources: impl Iterator<Item = (Source<'a>, f64)>) {
    let mut sums = vec![0_f64; row.len()];
    for (source, weight) in sources {
        source.add_to(&mut sums, weight);
    }
    for (value, sum) in row.iter_mut().zip(sums) {
        *value = to_f32(sum);
    }
}

/// Returns the weights of a Gaussian blur, an odd number, summing to 1.
fn gaussian(deviation: f64) -> Vec<f64> {
    #[expect(clippy::cast_possible_truncation, reason = "a blur is far smaller than a picture")]
    let reach = (BLUR_DEVIATIONS * deviation + 0.5) as i64;
    let weight = |offset: i64| (-0.5 * (offset as f64 / deviation).powi(2)).exp();
    if reach <= 0 {
        return vec![1.];
    }
    let weights: Vec<f64> = (-reach..=reach).map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

fn index(place: usize) -> i64 {
    i64::try_from(place).unwrap_or(i64::MAX >> 1)
}

fn to_f32(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "samples are kept in f32")]
    let value = value as f32;
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn mirrors_go_on_without_end() {
        let places = -4..8;
        assert_eq!(
            places.clone().map(|i| mirrored_about_pixels(i, 3)).collect::<Vec<_>>(),
            [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
        );
        assert_eq!(
            places.map(|i| mirrored_about_edges(i, 3)).collect::<Vec<_>>(),
            [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
        );
        assert_eq!((mirrored_about_pixels(-7, 1), mirrored_about_edges(-7, 1)), (0, 0));
    }

    #[test]
    fn the_inside_is_kept_and_the_edge_has_the_median_color() {
        let picture = RgbImage::from_fn(40, 40, |x, _| Rgb([if x < 30 { 10 } else { 200 }; 3]));
        let room = Room { left: 20, top: 20, right: 20, bottom: 20 };
        let continued = with_border(&picture, room, 100.);
        assert_eq!(continued.dimensions(), (80, 80));
        assert_eq!(continued.get_pixel(40, 40), &Rgb([10; 3]), "the middle is as it was");
        assert_eq!(continued.get_pixel(0, 0), &Rgb([10; 3]));
        assert_eq!(continued.get_pixel(79, 40), &Rgb([10; 3]), "not the 200 of its reflection");
    }

    #[test]
    fn a_blur_keeps_what_is_even_and_spreads_what_is_not() {
        let weights = gaussian(2.);
        assert_eq!(weights.len(), 17);
        assert!((weights.iter().sum::<f64>() - 1.).abs() < 1e-12);
        let mut values = vec![0.; 5 * 5 * CHANNELS];
        values[(2 * 5 + 2) * CHANNELS] = 100.;
        let blurred = Samples { width: 5, height: 5, values }.blurred(0.5);
        let total: f32 = blurred.values.iter().sum();
        assert!((total - 100.).abs() < 1e-3, "{total}");
        assert!(blurred.values[(2 * 5 + 2) * CHANNELS] < 100. && blurred.values[(5 + 2) * CHANNELS] > 0.);
        assert!(blurred.values.iter().skip(1).step_by(CHANNELS).all(|&value| value < 1e-6));
    }
}
