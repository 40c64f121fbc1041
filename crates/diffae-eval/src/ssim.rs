//! Structural similarity with a Gaussian window.

use std::iter;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::image_pairs::ImagePairs;

/// Pixels from the center of the window to its border: what is cut off beyond weighs less than 0.1%.
const WINDOW_RADIUS: usize = 5;
/// Pixels a side of the window.
const WINDOW_SIZE: usize = 2 * WINDOW_RADIUS + 1;
/// Standard deviation of the window, in pixels.
const WINDOW_SIGMA: f64 = 1.5;
/// Largest value minus smallest value of an image, `L`.
const VALUE_RANGE: f64 = 1.;
/// `(0.01 * L)^2`: keeps the comparison of luminance defined where both means vanish.
const C1: f64 = (0.01 * VALUE_RANGE) * (0.01 * VALUE_RANGE);
/// `(0.03 * L)^2`: keeps the comparison of contrast defined where both variances vanish.
const C2: f64 = (0.03 * VALUE_RANGE) * (0.03 * VALUE_RANGE);

/// Structural similarity (SSIM) of each image.
///
/// In a window around every pixel, for each channel on its own,
/// `ssim = (2 * mu_x * mu_y + C1) * (2 * sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1) * (sigma_x^2 + sigma_y^2 + C2))`
/// with the window's weighted means `mu`, variances `sigma^2 = E[x^2] - mu_x^2` and covariance
/// `sigma_xy = E[x * y] - mu_x * mu_y`, `C1 = 0.01^2`, `C2 = 0.03^2`; then the mean over channels and pixels.
///
/// The window is an 11x11 Gaussian of standard deviation 1.5 whose weights sum to one. Beyond the border an image
/// counts as zero ("same" convolution), and the weights are not renormalized there: this choice, that of the
/// reference implementation, is part of the number. It makes every image size from 1x1 measurable.
///
/// All arithmetic is f64: `E[x^2] - mu_x^2` cancels badly in f32 where images are smooth.
///
/// # Shapes
/// - `x`, `y`: `[N, C, H, W]`, f32, in `[0, 1]`.
/// - Result: `N` values in `[-1, 1]`, 1 for identical images.
///
/// # Errors
/// Every variant of [`Error`](crate::Error).
///
/// # Source
/// Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity"
/// (doi:10.1109/TIP.2003.819861), Eq. 13 and, for the mean, Eq. 17. They leave the border open.
pub fn ssim(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let pairs = ImagePairs::new(x, y)?;
    let (window, width) = (gaussian_window(), pairs.width());
    Ok(pairs.map_planes(|x, y| plane_ssim(x, y, width, &window)))
}

/// Returns the mean similarity of two planes of rows of `width` pixels.
fn plane_ssim(x: &[f32], y: &[f32], width: usize, window: &[f64; WINDOW_SIZE]) -> f64 {
    let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let y: Vec<f64> = y.iter().copied().map(f64::from).collect();
    let moments = Moments::of(&x, &y, width, window);
    (0..x.len()).map(|i| moments.luminance(i) * moments.structure(i)).sum::<f64>() / x.len() as f64
}

/// Moments of two planes in the window around each pixel.
struct Moments {
    mu_x: Vec<f64>,
    mu_y: Vec<f64>,
    mean_xx: Vec<f64>,
    mean_yy: Vec<f64>,
    mean_xy: Vec<f64>,
}

impl Moments {
    fn of(x: &[f64], y: &[f64], width: usize, window: &[f64; WINDOW_SIZE]) -> Self {
        let mean = |values: &[f64]| smooth(values, width, window);
        let mean_of_product = |a: &[f64], b: &[f64]| {
            let product: Vec<f64> = iter::zip(a, b).map(|(a, b)| a * b).collect();
            mean(&product)
        };
        Self {
            mu_x: mean(x),
            mu_y: mean(y),
            mean_xx: mean_of_product(x, x),
            mean_yy: mean_of_product(y, y),
            mean_xy: mean_of_product(x, y),
        }
    }

    /// Returns the luminance term at pixel `i`.
    fn luminance(&self, i: usize) -> f64 {
        let (mu_x, mu_y) = (self.mu_x[i], self.mu_y[i]);
        (2. * mu_x * mu_y + C1) / (mu_x * mu_x + mu_y * mu_y + C1)
    }

    /// Returns the contrast and structure term at pixel `i`.
    fn structure(&self, i: usize) -> f64 {
        let sigma_sq_x = self.mean_xx[i] - self.mu_x[i] * self.mu_x[i];
        let sigma_sq_y = self.mean_yy[i] - self.mu_y[i] * self.mu_y[i];
        let sigma_xy = self.mean_xy[i] - self.mu_x[i] * self.mu_y[i];
        (2. * sigma_xy + C2) / (sigma_sq_x + sigma_sq_y + C2)
    }
}

/// Weights of the scales, finest first.
const SCALE_WEIGHTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/// Shortest side that MS-SSIM measures: the window must fit into the coarsest scale.
const MS_SSIM_MIN_SIDE: usize = WINDOW_SIZE << (SCALE_WEIGHTS.len() - 1);

/// Multi-scale structural similarity (MS-SSIM) of each image:
/// `luminance-and-structure_5 ^ w_5 * product over scales 1 to 4 of structure_k ^ w_k`, each a mean over channels and
/// pixels, those below zero counted as zero; a scale is the one before, averaged over squares of two by two pixels. Weights
/// are 0.0448, 0.2856, 0.3001, 0.2363, 0.1333.
///
/// The border is torchmetrics': means of structure are over pixels whose window lies inside; at the fifth scale all pixels
/// count, and the image is mirrored beyond its border.
///
/// # Shapes
/// - `x`, `y`: `[N, C, H, W]`, f32, in `[0, 1]`, H and W at least 176.
/// - Result: `N` values in `[0, 1]`, 1 for identical images.
///
/// # Errors
/// [`Error::TooSmall`](crate::Error::TooSmall) if a side is shorter; others as [`ssim`].
///
/// # Source
/// Wang, Simoncelli and Bovik 2003, "Multi-scale structural similarity for image quality assessment", Eq. 7.
pub fn ms_ssim(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let pairs = ImagePairs::new(x, y)?;
    let [height, width] = [pairs.height(), pairs.width()];
    if height.min(width) < MS_SSIM_MIN_SIDE {
        return Err(Error::TooSmall { got: height.min(width), least: MS_SSIM_MIN_SIDE });
    }
    let window = gaussian_window();
    Ok(pairs.map_images(|x, y| {
        let planes = |image: &[f32]| -> Vec<Vec<f64>> {
            let plane = |values: &[f32]| values.iter().copied().map(f64::from).collect();
            image.chunks_exact(height * width).map(plane).collect()
        };
        image_ms_ssim(planes(x), planes(y), width, &window)
    }))
}

fn image_ms_ssim(mut x: Vec<Vec<f64>>, mut y: Vec<Vec<f64>>, width: usize, window: &[f64; WINDOW_SIZE]) -> f64 {
    let (mut product, mut width) = (1., width);
    for (scale, weight) in SCALE_WEIGHTS.iter().enumerate() {
        if scale > 0 {
            x = x.iter().map(|plane| halve(plane, width)).collect();
            y = y.iter().map(|plane| halve(plane, width)).collect();
            width >>= 1;
        }
        let (mut sum, mut count) = (0., 0.);
        for (x, y) in iter::zip(&x, &y) {
            if scale + 1 < SCALE_WEIGHTS.len() {
                let moments = Moments::of(x, y, width, window);
                inside(x.len(), width).for_each(|i| (sum, count) = (sum + moments.structure(i), count + 1.));
            } else {
                let (x, y, width) = (mirrored(x, width), mirrored(y, width), width + 2 * WINDOW_RADIUS);
                let moments = Moments::of(&x, &y, width, window);
                let similarity = |i| moments.luminance(i) * moments.structure(i);
                inside(x.len(), width).for_each(|i| (sum, count) = (sum + similarity(i), count + 1.));
            }
        }
        product *= f64::max(sum / count, 0.).powf(*weight);
    }
    product
}

/// Returns the pixels whose window lies inside a plane.
fn inside(length: usize, width: usize) -> impl Iterator<Item = usize> {
    let rows = WINDOW_RADIUS..(length.checked_div(width).unwrap_or(0)).saturating_sub(WINDOW_RADIUS);
    rows.flat_map(move |row| (WINDOW_RADIUS..width - WINDOW_RADIUS).map(move |col| row * width + col))
}

/// Pads a plane with [`WINDOW_RADIUS`] pixels on each side, mirrored at its outermost ones, which are not repeated. Its
/// sides must be longer than that.
fn mirrored(plane: &[f64], width: usize) -> Vec<f64> {
    let height = plane.len().checked_div(width).unwrap_or(0);
    let source = |place: usize, length: usize| {
        let from_first = place.abs_diff(WINDOW_RADIUS);
        let last = length - 1;
        if from_first > last { 2 * last - from_first } else { from_first }
    };
    let mut mirrored = vec![];
    for row in 0..height + 2 * WINDOW_RADIUS {
        let row = source(row, height);
        mirrored.extend((0..width + 2 * WINDOW_RADIUS).map(|column| plane[row * width + source(column, width)]));
    }
    mirrored
}

/// Averages squares of two by two pixels; an odd row or column at the end is left out.
fn halve(plane: &[f64], width: usize) -> Vec<f64> {
    let mut halved = vec![];
    for rows in plane.chunks_exact(2 * width) {
        let (upper, lower) = rows.split_at(width);
        for (upper, lower) in iter::zip(upper.chunks_exact(2), lower.chunks_exact(2)) {
            halved.push((upper[0] + upper[1] + lower[0] + lower[1]) / 4.);
        }
    }
    halved
}

/// Convolves a plane with the window along both axes; pixels beyond the border are zero.
fn smooth(plane: &[f64], width: usize, window: &[f64; WINDOW_SIZE]) -> Vec<f64> {
    let mut along_x = vec![0.; plane.len()];
    for (row_out, row) in iter::zip(along_x.chunks_exact_mut(width), plane.chunks_exact(width)) {
        for (tap, &weight) in window.iter().enumerate() {
            add_shifted(row_out, row, tap, 1, weight);
        }
    }
    let mut along_y = vec![0.; plane.len()];
    for (tap, &weight) in window.iter().enumerate() {
        add_shifted(&mut along_y, &along_x, tap, width, weight);
    }
    along_y
}

/// Adds `weight * values[i + (tap - WINDOW_RADIUS) * stride]` to each `sums[i]` for which that value exists.
fn add_shifted(sums: &mut [f64], values: &[f64], tap: usize, stride: usize, weight: f64) {
    let num_skipped = tap.abs_diff(WINDOW_RADIUS) * stride;
    if num_skipped >= values.len() {
        return;
    }
    let num_kept = values.len() - num_skipped;
    let (sums, values) = if tap < WINDOW_RADIUS {
        (&mut sums[num_skipped..], &values[..num_kept])
    } else {
        (&mut sums[..num_kept], &values[num_skipped..])
    };
    for (sum, value) in iter::zip(sums, values) {
        *sum += weight * value;
    }
}

/// Returns the weights of one axis; the window is their outer product. They sum to one.
fn gaussian_window() -> [f64; WINDOW_SIZE] {
    let weights: [f64; WINDOW_SIZE] = std::array::from_fn(|tap| {
        let distance = tap.abs_diff(WINDOW_RADIUS) as f64;
        (-distance * distance / (2. * WINDOW_SIGMA * WINDOW_SIGMA)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::Error;

    /// Rounding of sums of at most 121 products of values up to 1, divided by at least `C1` and `C2`.
    const TOLERANCE: f64 = 1e-9;

    fn image(values: &[f32], height: usize, width: usize) -> Tensor {
        Tensor::from_slice(values, (1, 1, height, width), &Device::Cpu).unwrap()
    }

    /// The mean of `values` in the window around `(row, col)`, straight from the definition in two dimensions.
    fn window_mean(values: &[f64], width: usize, row: usize, col: usize) -> f64 {
        let (window, mut mean) = (gaussian_window(), 0.);
        for (i, row_values) in values.chunks_exact(width).enumerate() {
            for (j, value) in row_values.iter().enumerate() {
                let (Some(tap_row), Some(tap_col)) = ((i + 5).checked_sub(row), (j + 5).checked_sub(col)) else {
                    continue;
                };
                if tap_row < WINDOW_SIZE && tap_col < WINDOW_SIZE {
                    mean += window[tap_row] * window[tap_col] * value;
                }
            }
        }
        mean
    }

    #[test]
    fn the_window_is_a_symmetric_distribution() {
        let window = gaussian_window();
        assert!((window.iter().sum::<f64>() - 1.).abs() < 1e-15);
        for i in 0..WINDOW_SIZE {
            assert_eq!(window[i].to_bits(), window[WINDOW_SIZE - 1 - i].to_bits());
        }
        let ratio = window[5] / window[4];
        assert!((ratio - (1. / 4.5f64).exp()).abs() < 1e-15, "neighbors differ by exp(1 / (2 * 1.5^2)), got {ratio}");
    }

    #[test]
    fn one_pixel_follows_the_formula() {
        // From the definition: all but the central weight of the window lies beyond the border. The pixels are dark
        // enough for C1 and C2 to count.
        let expected = 0.796_946_578_114_116_2;
        let got = ssim(&image(&[1. / 64.], 1, 1), &image(&[1. / 16.], 1, 1)).unwrap();
        assert!((got[0] - expected).abs() < TOLERANCE, "got {got:?}, expected {expected}");
    }

    #[test]
    fn black_and_white_are_as_different_as_constants_can_be() {
        let similarity = ssim(&image(&[0.; 256], 16, 16), &image(&[1.; 256], 16, 16)).unwrap();
        assert!((0. ..0.01).contains(&similarity[0]), "{similarity:?}");
    }

    #[test]
    fn an_inverted_checkerboard_is_anticorrelated() {
        let board: Vec<f32> = (0..1024).map(|i| if (i ^ (i >> 5)) & 1 == 0 { 0. } else { 1. }).collect();
        let inverted: Vec<f32> = board.iter().map(|value| 1. - value).collect();
        let similarity = ssim(&image(&board, 32, 32), &image(&inverted, 32, 32)).unwrap();
        assert!((-1. ..-0.5).contains(&similarity[0]), "{similarity:?}");
    }

    #[test]
    fn invalid_batches_are_refused() {
        let error = ssim(&image(&[0.], 1, 1), &image(&[f32::NAN], 1, 1)).unwrap_err();
        assert!(matches!(error, Error::NonFinite { batch: "y", image_idx: 0, .. }), "{error:?}");
    }

    /// Height, width and the pixels of two images, from 1x1 to beyond the window.
    fn image_pair() -> impl Strategy<Value = (usize, usize, Vec<(f32, f32)>)> {
        (1usize..16, 1usize..16).prop_flat_map(|(height, width)| {
            let pixels = prop::collection::vec((0f32..=1., 0f32..=1.), height * width);
            (Just(height), Just(width), pixels)
        })
    }

    proptest! {
        #[test]
        fn smoothing_in_two_passes_is_the_window_in_two_dimensions((height, width, pixels) in image_pair()) {
            let plane: Vec<f64> = pixels.iter().map(|&(x, _)| f64::from(x)).collect();
            let smoothed = smooth(&plane, width, &gaussian_window());
            for row in 0..height {
                for col in 0..width {
                    let expected = window_mean(&plane, width, row, col);
                    prop_assert!((smoothed[row * width + col] - expected).abs() < 1e-14);
                }
            }
        }

        #[test]
        fn similarity_is_symmetric_bounded_and_one_for_identical_images((height, width, pixels) in image_pair()) {
            let (x, y): (Vec<f32>, Vec<f32>) = pixels.into_iter().unzip();
            let (x, y) = (image(&x, height, width), image(&y, height, width));
            let similarity = ssim(&x, &y).unwrap()[0];
            prop_assert!(similarity.abs() <= 1. + TOLERANCE);
            prop_assert!((similarity - ssim(&y, &x).unwrap()[0]).abs() < TOLERANCE);
            prop_assert!((ssim(&x, &x).unwrap()[0] - 1.).abs() < TOLERANCE);
        }

        #[test]
        fn each_image_is_measured_alone((height, width, pixels) in image_pair()) {
            let (x, y): (Vec<f32>, Vec<f32>) = pixels.into_iter().unzip();
            let (x, y) = (image(&x, height, width), image(&y, height, width));
            let batch = ssim(&Tensor::cat(&[&x, &y, &x], 0).unwrap(), &Tensor::cat(&[&y, &y, &x], 0).unwrap()).unwrap();
            let alone = [ssim(&x, &y).unwrap()[0], ssim(&y, &y).unwrap()[0], ssim(&x, &x).unwrap()[0]];
            prop_assert_eq!(batch, alone);
        }
    }
}
