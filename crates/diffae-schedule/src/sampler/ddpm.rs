//! DDPM: ancestral sampling, which adds noise at each step but the last.

use candle_core::Tensor;

use crate::step::{Stepper, add_noise};
use crate::{Clip, Denoised, Prediction, Result, StepChain, StepIdx};

/// The variance of `x_prev` about its mean. Neither choice is learned.
///
/// # Source
/// Ho et al. 2020 (arXiv:2006.11239), Section 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DdpmVariance {
    /// The variance of the posterior, exact for data that is one point.
    FixedSmall,
    /// Beta, exact for standard normal data; at the first step, the posterior variance of the second.
    FixedLarge,
}

/// The Gaussian `p(x_prev | x_t)` from which an ancestral step is drawn.
#[derive(Debug, Clone)]
pub struct ReverseDistribution {
    /// The mean of the Gaussian. `[N, ..]`
    pub mean: Tensor,
    /// The variance of the Gaussian, the same for all elements.
    pub variance: f64,
    /// The natural logarithm of the variance, where [`DdpmVariance::FixedSmall`] takes the clipped one.
    pub log_variance: f64,
    /// The estimate of the clean data in the mean, clipped if clipping is on. `[N, ..]`
    pub x_0: Tensor,
}

/// The steps of DDPM; [`ReverseProcess`](crate::ReverseProcess) with [`Sampler::Ddpm`](crate::Sampler::Ddpm) takes them.
#[derive(Debug, Clone, PartialEq)]
pub struct DdpmSampler {
    chain: StepChain,
    clip: Clip,
    variance: DdpmVariance,
}

impl DdpmSampler {
    /// Creates a sampler over a chain.
    #[must_use]
    pub const fn new(chain: StepChain, clip: Clip, variance: DdpmVariance) -> Self {
        Self { chain, clip, variance }
    }

    /// Returns the chain of this sampler.
    #[must_use]
    pub const fn chain(&self) -> &StepChain {
        &self.chain
    }

    /// Returns the standard deviation of the noise that a step adds: `exp(log_variance / 2)`, but 0 at the step that
    /// ends in the data.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`](crate::Error::StepIdxOutOfRange).
    /// # Source
    /// Ho et al. 2020 (arXiv:2006.11239), Algorithm 2.
    pub fn sigma(&self, idx: StepIdx) -> Result<f64> {
        let (_, log_variance) = self.variance_and_log(idx)?;
        Ok(if idx.get() == 0 { 0.0 } else { (0.5 * log_variance).exp() })
    }

    /// Moves `x_t` one step towards the data.
    ///
    /// `x_prev = mean + sigma * noise`, with the mean of [`posterior`](Self::posterior).
    /// # Shapes
    /// - `x_t`, `eps`, `noise`, both results: the same, any; f32 or f64.
    ///
    /// `noise` is there exactly if [`sigma`](Self::sigma) is not 0.
    /// # Errors
    /// As [`DdimSampler::denoise_step`](crate::DdimSampler::denoise_step).
    /// # Source
    /// Ho et al. 2020 (arXiv:2006.11239), Algorithm 2.
    pub fn denoise_step(&self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, noise: Option<&Tensor>) -> Result<Denoised> {
        let ReverseDistribution { mean, x_0, .. } = self.posterior(idx, x_t, eps)?;
        Ok(Denoised { x_prev: add_noise(mean, self.sigma(idx)?, noise, idx)?, x_0 })
    }

    /// Returns the distribution of the state one step less noisy: the posterior with the estimate of `x_0` for the
    /// data.
    ///
    /// `mean = x_0_coefficient * x_0 + x_t_coefficient * x_t`, where `x_0` is that of [`Prediction::from_eps`] and the
    /// coefficients are those of [`Posterior`](crate::Posterior); the variance is that of [`DdpmVariance`].
    /// # Shapes
    /// - `x_t`, `eps`, `mean`, `x_0`: the same, any; f32 or f64.
    /// # Errors
    /// [`Error::StepIdxOutOfRange`](crate::Error::StepIdxOutOfRange); as [`Prediction::from_eps`].
    /// # Source
    /// Ho et al. 2020 (arXiv:2006.11239), Eq. 7 with `x_0` from Eq. 15.
    pub fn posterior(&self, idx: StepIdx, x_t: &Tensor, eps: &Tensor) -> Result<ReverseDistribution> {
        let (variance, log_variance) = self.variance_and_log(idx)?;
        let Prediction { x_0, .. } = Prediction::from_eps(x_t, eps, self.chain.alpha_bar(idx)?, self.clip)?;
        let mean = self.chain.posterior(idx)?.mean(&x_0, x_t)?;
        Ok(ReverseDistribution { mean, variance, log_variance, x_0 })
    }

    fn variance_and_log(&self, idx: StepIdx) -> Result<(f64, f64)> {
        let posterior = self.chain.posterior(idx)?;
        Ok(match self.variance {
            DdpmVariance::FixedSmall => (posterior.variance, posterior.log_variance_clipped),
            // The clipped logarithm at the first step is that of the second step's variance.
            DdpmVariance::FixedLarge if idx.get() == 0 => {
                (posterior.log_variance_clipped.exp(), posterior.log_variance_clipped)
            }
            DdpmVariance::FixedLarge => {
                let beta = self.chain.beta(idx)?;
                (beta, beta.ln())
            }
        })
    }
}

impl Stepper for DdpmSampler {
    fn sigma(&self, idx: StepIdx) -> Result<f64> {
        Self::sigma(self, idx)
    }

    fn step(&mut self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, noise: Option<&Tensor>) -> Result<Denoised> {
        self.denoise_step(idx, x_t, eps, noise)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Error, NoiseSchedule, StepSequence};

    /// Returns a sampler with `alpha_bar` = 0.64, then 0.36.
    fn two_steps(clip: Clip, variance: DdpmVariance) -> DdpmSampler {
        let schedule = NoiseSchedule::from_betas(vec![0.36, 0.4375]).unwrap();
        DdpmSampler::new(StepChain::new(&schedule, &StepSequence::All).unwrap(), clip, variance)
    }

    fn row(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
    }

    fn number(tensor: &Tensor) -> f64 {
        tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap()[0]
    }

    fn assert_close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-14, "got {got}, expected {expected}");
    }

    const SMALL_VARIANCE: f64 = 0.4375 * 0.36 / 0.64;

    #[test]
    fn the_small_variance_is_the_posteriors() {
        let sampler = two_steps(Clip::None, DdpmVariance::FixedSmall);
        let second = sampler.posterior(StepIdx::new(1), &row(&[1.0]), &row(&[0.25])).unwrap();
        assert_close(second.variance, SMALL_VARIANCE);
        assert_close(second.log_variance, SMALL_VARIANCE.ln());
        let first = sampler.posterior(StepIdx::new(0), &row(&[1.0]), &row(&[0.25])).unwrap();
        assert_close(first.variance, 0.0);
        assert_close(first.log_variance, SMALL_VARIANCE.ln());
    }

    #[test]
    fn the_large_variance_is_beta_but_at_the_first_step() {
        let sampler = two_steps(Clip::None, DdpmVariance::FixedLarge);
        let second = sampler.posterior(StepIdx::new(1), &row(&[1.0]), &row(&[0.25])).unwrap();
        assert_close(second.variance, 0.4375);
        assert_close(second.log_variance, 0.4375_f64.ln());
        let first = sampler.posterior(StepIdx::new(0), &row(&[1.0]), &row(&[0.25])).unwrap();
        assert_close(first.variance, SMALL_VARIANCE);
        assert_close(first.log_variance, SMALL_VARIANCE.ln());
    }

    #[test]
    fn the_mean_has_the_value_of_the_formula() {
        let sampler = two_steps(Clip::None, DdpmVariance::FixedSmall);
        let reverse = sampler.posterior(StepIdx::new(1), &row(&[1.0]), &row(&[0.25])).unwrap();
        let x_0 = 0.8 / 0.6;
        assert_close(number(&reverse.x_0), x_0);
        assert_close(number(&reverse.mean), (0.4375 * 0.8 * x_0 + 0.36 * 0.75) / 0.64);
    }

    #[test]
    fn a_clipped_mean_uses_the_clipped_data() {
        let sampler = two_steps(Clip::UnitRange, DdpmVariance::FixedSmall);
        let reverse = sampler.posterior(StepIdx::new(1), &row(&[1.0]), &row(&[0.25])).unwrap();
        assert_close(number(&reverse.x_0), 1.0);
        assert_close(number(&reverse.mean), (0.4375 * 0.8 + 0.36 * 0.75) / 0.64);
    }

    #[test]
    fn a_step_adds_noise_of_its_standard_deviation() {
        let idx = StepIdx::new(1);
        for (variance, expected) in [(DdpmVariance::FixedSmall, SMALL_VARIANCE), (DdpmVariance::FixedLarge, 0.4375)] {
            let sampler = two_steps(Clip::None, variance);
            let mean = sampler.posterior(idx, &row(&[1.0]), &row(&[0.25])).unwrap().mean;
            let step = sampler.denoise_step(idx, &row(&[1.0]), &row(&[0.25]), Some(&row(&[-2.0]))).unwrap();
            assert_close(number(&step.x_prev), number(&mean) - 2.0 * expected.sqrt());
        }
    }

    #[test]
    fn the_last_step_of_sampling_adds_no_noise_and_ends_in_the_data() {
        for variance in [DdpmVariance::FixedSmall, DdpmVariance::FixedLarge] {
            let sampler = two_steps(Clip::None, variance);
            let step = sampler.denoise_step(StepIdx::new(0), &row(&[1.0]), &row(&[0.5]), None).unwrap();
            assert_close(number(&step.x_prev), number(&step.x_0));
            let error = sampler.denoise_step(StepIdx::new(0), &row(&[1.0]), &row(&[0.5]), Some(&row(&[1.0])));
            assert!(matches!(error, Err(Error::NoiseUnused { .. })));
            let error = sampler.denoise_step(StepIdx::new(1), &row(&[1.0]), &row(&[0.5]), None);
            assert!(matches!(error, Err(Error::NoiseMissing { .. })));
        }
    }

    #[test]
    fn a_step_beyond_the_chain_is_rejected() {
        let (sampler, beyond, x_t) = (two_steps(Clip::None, DdpmVariance::FixedLarge), StepIdx::new(2), row(&[1.0]));
        assert!(matches!(sampler.sigma(beyond), Err(Error::StepIdxOutOfRange { .. })));
        assert!(matches!(sampler.posterior(beyond, &x_t, &x_t), Err(Error::StepIdxOutOfRange { .. })));
        assert!(matches!(sampler.denoise_step(beyond, &x_t, &x_t, None), Err(Error::StepIdxOutOfRange { .. })));
    }
}
