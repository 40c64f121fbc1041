//! Errors taken pixel by pixel: mean squared error and peak signal-to-noise ratio.

use candle_core::Tensor;

use crate::error::Result;
use crate::image_pairs::ImagePairs;

/// Mean squared error of each image.
///
/// `mse = mean((x - y)^2)` over channels and pixels, summed in f64.
///
/// # Shapes
/// - `x`, `y`: `[N, C, H, W]`, f32, in `[0, 1]`.
/// - Result: `N` values in `[0, 1]`, 0 for identical images.
///
/// # Errors
/// Every variant of [`Error`](crate::Error).
pub fn mse(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    Ok(ImagePairs::new(x, y)?.map_images(mean_squared_error))
}

/// Peak signal-to-noise ratio of each image, in decibels.
///
/// `psnr = 10 * log10(peak^2 / mse)` with `peak = 1`, the largest value an image can hold.
///
/// Identical images have no noise: their ratio is [`f64::INFINITY`], and so is any mean it enters. A caller that
/// averages over a data set should average [`mse`], or say what it does with such pairs.
///
/// # Shapes
/// - `x`, `y`: `[N, C, H, W]`, f32, in `[0, 1]`.
/// - Result: `N` values in `[0, inf]`.
///
/// # Errors
/// Every variant of [`Error`](crate::Error).
pub fn psnr(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    // `recip` keeps the sign right: 1 / 0 is +inf, and 1 / 1 gives +0 decibels, not -0.
    Ok(mse(x, y)?.into_iter().map(|mse| 10. * mse.recip().log10()).collect())
}

fn mean_squared_error(x: &[f32], y: &[f32]) -> f64 {
    let sum: f64 = x.iter().zip(y).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum();
    sum / x.len() as f64
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::Error;

    fn row(values: Vec<f32>) -> Tensor {
        let width = values.len();
        Tensor::from_vec(values, (1, 1, 1, width), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_error_is_the_mean_of_squares() {
        assert_eq!(mse(&row(vec![0., 0.5, 1.]), &row(vec![0.5, 0.5, 0.])).unwrap(), [(0.25 + 0. + 1.) / 3.]);
    }

    #[test]
    fn each_image_is_measured_alone() {
        let x = Tensor::zeros((2, 3, 4, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = Tensor::from_vec([vec![0.5f32; 60], vec![1.; 60]].concat(), (2, 3, 4, 5), &Device::Cpu).unwrap();
        assert_eq!(mse(&x, &y).unwrap(), [0.25, 1.]);
        assert_eq!(psnr(&x, &y).unwrap(), [10. * 4f64.log10(), 0.]);
    }

    #[test]
    fn a_tenth_is_twenty_decibels() {
        let ratio = psnr(&row(vec![0.1, 0.]), &row(vec![0., 0.1])).unwrap();
        assert!((ratio[0] - 20.).abs() < 1e-6, "{ratio:?}");
    }

    #[test]
    fn identical_images_have_an_infinite_ratio() {
        assert_eq!(psnr(&row(vec![0.3]), &row(vec![0.3])).unwrap(), [f64::INFINITY]);
    }

    #[test]
    fn invalid_batches_are_refused() {
        let (x, y) = (row(vec![0.]), row(vec![0., 0.]));
        assert!(matches!(mse(&x, &y), Err(Error::ShapeMismatch { .. })));
        assert!(matches!(psnr(&x, &y), Err(Error::ShapeMismatch { .. })));
    }

    proptest! {
        #[test]
        fn the_order_of_the_two_batches_does_not_matter(
            values in prop::collection::vec((0f32..=1., 0f32..=1.), 1..40),
        ) {
            let (x, y) = values.into_iter().unzip();
            let (x, y) = (row(x), row(y));
            let error = mse(&x, &y).unwrap();
            prop_assert!((0. ..=1.).contains(&error[0]));
            prop_assert_eq!(error, mse(&y, &x).unwrap());
            prop_assert_eq!(psnr(&x, &y).unwrap(), psnr(&y, &x).unwrap());
            prop_assert_eq!(mse(&x, &x).unwrap(), [0.]);
        }
    }
}
