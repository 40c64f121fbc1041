//! The distribution of the previous state, given the present one and the clean data.

use candle_core::Tensor;

use crate::Result;
use crate::prediction::weighted_sum;
use crate::tensor_checks::{check_dtype, check_like};

/// One step of `q(x_prev | x_t, x_0)`, a Gaussian: its variance and the coefficients of its mean.
///
/// - `mean = x_0_coefficient * x_0 + x_t_coefficient * x_t`
/// - `x_0_coefficient = beta * sqrt(alpha_bar_prev) / (1 - alpha_bar)`
/// - `x_t_coefficient = (1 - alpha_bar_prev) * sqrt(1 - beta) / (1 - alpha_bar)`
/// - `variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)`, which is 0 at the first step
/// - `log_variance_clipped = ln(variance)`, but at the first step that of the second
///
/// # Source
/// Ho et al. 2020 (arXiv:2006.11239), Eq. 6 and 7.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Posterior {
    /// The weight of the clean data in the mean.
    pub x_0_coefficient: f64,
    /// The weight of the present state in the mean.
    pub x_t_coefficient: f64,
    /// The variance of the Gaussian.
    pub variance: f64,
    /// The natural logarithm of the variance, finite unless there is only one step, where it is the logarithm of 0.
    pub log_variance_clipped: f64,
}

impl Posterior {
    /// Computes the mean of this distribution; the formula stands at the type.
    ///
    /// # Shapes
    /// - `x_0`, `x_t`, result: the same, any; f32 or f64.
    /// # Errors
    /// [`Error::UnsupportedDtype`](crate::Error::UnsupportedDtype),
    /// [`Error::DtypeMismatch`](crate::Error::DtypeMismatch) and [`Error::ShapeMismatch`](crate::Error::ShapeMismatch)
    /// for tensors that do not fit;
    /// [`Error::Tensor`](crate::Error::Tensor) if the arithmetic fails.
    /// # Source
    /// Ho et al. 2020 (arXiv:2006.11239), Eq. 7.
    pub fn mean(&self, x_0: &Tensor, x_t: &Tensor) -> Result<Tensor> {
        check_dtype("x_t", x_t)?;
        check_like("x_0", x_0, x_t)?;
        weighted_sum(self.x_0_coefficient, x_0, self.x_t_coefficient, x_t)
    }

    /// Computes the posterior of each step of a chain; the two tables have the same length.
    pub(crate) fn table(betas: &[f64], alpha_bars: &[f64]) -> Vec<Self> {
        let alpha_bars_prev = std::iter::once(1.0).chain(alpha_bars.iter().copied());
        let mut table: Vec<Self> = betas
            .iter()
            .zip(alpha_bars)
            .zip(alpha_bars_prev)
            .map(|((&beta, &alpha_bar), alpha_bar_prev)| Self::new(beta, alpha_bar, alpha_bar_prev))
            .collect();
        if let [first, second, ..] = table.as_mut_slice() {
            first.log_variance_clipped = second.log_variance_clipped;
        }
        table
    }

    fn new(beta: f64, alpha_bar: f64, alpha_bar_prev: f64) -> Self {
        let variance = beta * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar);
        Self {
            x_0_coefficient: beta * alpha_bar_prev.sqrt() / (1.0 - alpha_bar),
            x_t_coefficient: (1.0 - alpha_bar_prev) * (1.0 - beta).sqrt() / (1.0 - alpha_bar),
            variance,
            log_variance_clipped: variance.ln(),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::Error;

    fn two_steps() -> Vec<Posterior> {
        // alpha_bar = 0.5, then 0.375
        Posterior::table(&[0.5, 0.25], &[0.5, 0.375])
    }

    fn assert_close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-15, "got {got}, expected {expected}");
    }

    #[test]
    fn the_first_step_ends_in_the_data() {
        let first = two_steps()[0];
        assert_close(first.x_0_coefficient, 1.0);
        assert_close(first.x_t_coefficient, 0.0);
        assert_close(first.variance, 0.0);
    }

    #[test]
    fn a_later_step_has_the_value_of_the_formula() {
        let second = two_steps()[1];
        assert_close(second.variance, 0.2);
        assert_close(second.x_0_coefficient, 0.25 * 0.5_f64.sqrt() / 0.625);
        assert_close(second.x_t_coefficient, 0.8 * 0.75_f64.sqrt());
        assert_close(second.log_variance_clipped, 0.2_f64.ln());
    }

    #[test]
    fn the_first_log_variance_is_that_of_the_second_step() {
        assert_close(two_steps()[0].log_variance_clipped, 0.2_f64.ln());
    }

    #[test]
    fn the_log_variance_of_an_only_step_is_that_of_zero() {
        let only = Posterior::table(&[0.5], &[0.5])[0];
        assert!(only.log_variance_clipped.is_infinite() && only.log_variance_clipped < 0.0);
    }

    #[test]
    fn the_mean_keeps_a_noiseless_path() {
        // For eps = 0: x_t = sqrt(alpha_bar) x_0, and the mean is sqrt(alpha_bar_prev) x_0.
        let x_0 = Tensor::new(&[1.0, -2.0], &Device::Cpu).unwrap();
        let mean = two_steps()[1].mean(&x_0, &(&x_0 * 0.375_f64.sqrt()).unwrap()).unwrap();
        for (got, x_0) in mean.to_vec1::<f64>().unwrap().into_iter().zip([1.0, -2.0]) {
            assert_close(got, 0.5_f64.sqrt() * x_0);
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_rejected() {
        let x_t = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let x_0 = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(two_steps()[0].mean(&x_0, &x_t), Err(Error::ShapeMismatch { name: "x_0", .. })));
    }
}
