//! Conversions between `x_0` and `eps`, given `x_t`.

use candle_core::Tensor;

use crate::tensor_checks::{check_dtype, check_like};
use crate::{Error, Result};

/// Clipping of the `x_0` estimate before a sampler uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clip {
    /// Clamps `x_0` to `[-1, 1]`, the range of images, and recomputes `eps` so that the two still compose `x_t`.
    UnitRange,
    /// Leaves `x_0` as it is, as for latent codes, which have no range.
    None,
}

/// The decomposition of `x_t` into data and noise: `x_t = sqrt(alpha_bar) * x_0 + sqrt(1 - alpha_bar) * eps`.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// The estimate of the clean data, clipped if requested.
    pub x_0: Tensor,
    /// The noise that belongs to this `x_0`: the predicted one, or with clipping, the recomputed one.
    pub eps: Tensor,
}

impl Prediction {
    /// Splits `x_t` by the predicted noise, and clips `x_0` if requested.
    ///
    /// `x_0` is [`x_0_from_eps`]. With [`Clip::UnitRange`] it is then clamped to `[-1, 1]` and `eps` is
    /// [`eps_from_x_0`] of the clamped value; NaN stays NaN. With [`Clip::None`], `eps` is returned unchanged.
    /// # Shapes
    /// - `x_t`, `eps`, both results: the same, any; f32 or f64.
    /// # Errors
    /// As [`x_0_from_eps`].
    /// # Source
    /// The released code of Diff-AE (arXiv:2111.15640); the paper does not mention clipping.
    pub fn from_eps(x_t: &Tensor, eps: &Tensor, alpha_bar: f64, clip: Clip) -> Result<Self> {
        let x_0 = x_0_from_eps(x_t, eps, alpha_bar)?;
        match clip {
            Clip::None => Ok(Self { x_0, eps: eps.clone() }),
            Clip::UnitRange => {
                let x_0 = x_0.clamp(-1.0, 1.0)?;
                let eps = eps_from_x_0(x_t, &x_0, alpha_bar)?;
                Ok(Self { x_0, eps })
            }
        }
    }
}

/// Estimates the clean data from the noise in `x_t`.
///
/// `x_0 = sqrt(1 / alpha_bar) * x_t - sqrt(1 / alpha_bar - 1) * eps`
/// # Shapes
/// - `x_t`, `eps`, result: the same, any; f32 or f64.
///
/// `alpha_bar` is in `(0, 1)`, as all those of a schedule are.
/// # Errors
/// [`Error::AlphaBarOutOfRange`]; [`Error::UnsupportedDtype`], [`Error::DtypeMismatch`] and [`Error::ShapeMismatch`]
/// for tensors that do not fit; [`Error::Tensor`] if the arithmetic fails.
/// # Source
/// Song et al. 2020 (arXiv:2010.02502), Eq. 9. Their alpha is our `alpha_bar`.
pub fn x_0_from_eps(x_t: &Tensor, eps: &Tensor, alpha_bar: f64) -> Result<Tensor> {
    check_dtype("x_t", x_t)?;
    check_like("eps", eps, x_t)?;
    check_alpha_bar(alpha_bar)?;
    weighted_sum(alpha_bar.recip().sqrt(), x_t, -(alpha_bar.recip() - 1.0).sqrt(), eps)
}

/// Computes the noise in `x_t` whose clean data is `x_0`.
///
/// `eps = (sqrt(1 / alpha_bar) * x_t - x_0) / sqrt(1 / alpha_bar - 1)`
/// # Shapes
/// - `x_t`, `x_0`, result: the same, any; f32 or f64.
///
/// `alpha_bar` is in `(0, 1)`, as all those of a schedule are.
/// # Errors
/// [`Error::AlphaBarOutOfRange`]; [`Error::UnsupportedDtype`], [`Error::DtypeMismatch`] and [`Error::ShapeMismatch`]
/// for tensors that do not fit; [`Error::Tensor`] if the arithmetic fails.
/// # Source
/// Song et al. 2020 (arXiv:2010.02502), Eq. 9, solved for the noise. Their alpha is our `alpha_bar`.
pub fn eps_from_x_0(x_t: &Tensor, x_0: &Tensor, alpha_bar: f64) -> Result<Tensor> {
    check_dtype("x_t", x_t)?;
    check_like("x_0", x_0, x_t)?;
    check_alpha_bar(alpha_bar)?;
    let noise_to_signal = (alpha_bar.recip() - 1.0).sqrt();
    weighted_sum(alpha_bar.recip().sqrt() / noise_to_signal, x_t, -noise_to_signal.recip(), x_0)
}

/// Computes `a * x + b * y`.
pub(crate) fn weighted_sum(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Result<Tensor> {
    Ok((x.affine(a, 0.0)? + y.affine(b, 0.0)?)?)
}

/// Rejects an `alpha_bar` outside `(0, 1)`, and NaN.
pub(crate) fn check_alpha_bar(alpha_bar: f64) -> Result<()> {
    if alpha_bar > 0.0 && alpha_bar < 1.0 { Ok(()) } else { Err(Error::AlphaBarOutOfRange { got: alpha_bar }) }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;

    fn vector(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.to_vec1().unwrap()
    }

    fn assert_close(got: &Tensor, expected: &[f64]) {
        let got = values(got);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.into_iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-12 * expected.abs().max(1.0), "got {got}, expected {expected}");
        }
    }

    #[test]
    fn x_0_is_what_is_left_without_the_noise() {
        // sqrt(alpha_bar) = 0.6, sqrt(1 - alpha_bar) = 0.8
        let x_0 = x_0_from_eps(&vector(&[1.0, -0.5]), &vector(&[0.5, 1.0]), 0.36).unwrap();
        assert_close(&x_0, &[1.0, -1.3 / 0.6]);
    }

    #[test]
    fn eps_is_what_is_left_without_the_signal() {
        let eps = eps_from_x_0(&vector(&[1.0, -0.5]), &vector(&[1.0, -1.0]), 0.36).unwrap();
        assert_close(&eps, &[0.5, 0.125]);
    }

    #[test]
    fn clipping_clamps_x_0_and_recomputes_eps() {
        let (x_t, eps) = (vector(&[1.0, -0.5]), vector(&[0.5, 1.0]));
        let prediction = Prediction::from_eps(&x_t, &eps, 0.36, Clip::UnitRange).unwrap();
        assert_close(&prediction.x_0, &[1.0, -1.0]);
        assert_close(&prediction.eps, &[0.5, 0.125]);
    }

    #[test]
    fn without_clipping_eps_is_the_predicted_one_to_the_bit() {
        let (x_t, eps) = (vector(&[1.0, -0.5]), vector(&[0.1, 1.0]));
        let prediction = Prediction::from_eps(&x_t, &eps, 0.36, Clip::None).unwrap();
        assert_eq!(values(&prediction.eps), values(&eps));
        assert_close(&prediction.x_0, &[0.92 / 0.6, -1.3 / 0.6]);
    }

    #[test]
    fn clipping_does_not_hide_nan() {
        for dtype in [DType::F32, DType::F64] {
            let x_t = vector(&[f64::NAN, 0.0]).to_dtype(dtype).unwrap();
            let prediction = Prediction::from_eps(&x_t, &x_t.zeros_like().unwrap(), 0.36, Clip::UnitRange).unwrap();
            for tensor in [prediction.x_0, prediction.eps] {
                let nan: Vec<bool> = values(&tensor.to_dtype(DType::F64).unwrap()).iter().map(|v| v.is_nan()).collect();
                assert_eq!(nan, [true, false]);
            }
        }
    }

    #[test]
    fn an_alpha_bar_outside_its_range_is_rejected() {
        let x = vector(&[0.0]);
        for alpha_bar in [0.0, 1.0, -0.1, 1.1, f64::NAN] {
            for result in [x_0_from_eps(&x, &x, alpha_bar), eps_from_x_0(&x, &x, alpha_bar)] {
                let error = result.unwrap_err();
                assert!(matches!(error, Error::AlphaBarOutOfRange { .. }), "{error}");
            }
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_rejected() {
        let x_t = vector(&[0.0, 0.0]);
        for convert in [x_0_from_eps, eps_from_x_0] {
            let error = convert(&x_t, &vector(&[0.0]), 0.5).unwrap_err();
            assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
            let error = convert(&x_t, &x_t.to_dtype(DType::F32).unwrap(), 0.5).unwrap_err();
            assert!(matches!(error, Error::DtypeMismatch { .. }), "{error}");
            let x_t = x_t.to_dtype(DType::I64).unwrap();
            let error = convert(&x_t, &x_t, 0.5).unwrap_err();
            assert!(matches!(error, Error::UnsupportedDtype { name: "x_t", .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn x_0_to_eps_to_x_0_is_the_identity(
            x_t in proptest::collection::vec(-3.0..3.0, 8),
            x_0 in proptest::collection::vec(-1.0..1.0, 8),
            alpha_bar in 1e-4..0.9999,
        ) {
            let x_t = vector(&x_t);
            let eps = eps_from_x_0(&x_t, &vector(&x_0), alpha_bar).unwrap();
            // x_0_from_eps subtracts numbers that are 1 / sqrt(alpha_bar) times as large.
            for (got, expected) in values(&x_0_from_eps(&x_t, &eps, alpha_bar).unwrap()).into_iter().zip(x_0) {
                prop_assert!((got - expected).abs() < 1e-12, "got {}, expected {}", got, expected);
            }
        }

        #[test]
        fn a_prediction_makes_up_x_t(
            x_t in proptest::collection::vec(-3.0..3.0, 8),
            eps in proptest::collection::vec(-3.0..3.0, 8),
            alpha_bar in 1e-4..0.9999_f64,
        ) {
            for clip in [Clip::UnitRange, Clip::None] {
                let prediction = Prediction::from_eps(&vector(&x_t), &vector(&eps), alpha_bar, clip).unwrap();
                let sum = weighted_sum(alpha_bar.sqrt(), &prediction.x_0, (1.0 - alpha_bar).sqrt(), &prediction.eps);
                for (got, expected) in values(&sum.unwrap()).into_iter().zip(&x_t) {
                    prop_assert!((got - expected).abs() < 1e-12, "got {}, expected {}", got, expected);
                }
            }
        }
    }
}
