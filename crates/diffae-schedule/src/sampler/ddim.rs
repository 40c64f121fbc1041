//! DDIM: sampling in few steps, and the inversion of the same path.

use candle_core::Tensor;

use crate::denoiser::predict_eps;
use crate::prediction::weighted_sum;
use crate::step::{Stepper, add_noise, report};
use crate::tensor_checks::num_items;
use crate::{Clip, Denoised, Denoiser, Error, Inverted, OnStep, Prediction, Result, Step, StepChain, StepIdx};

/// The steps of DDIM and of its inversion.
///
/// First order in the step length. With `eta = 0`, the default, decoding ([`ReverseProcess`](crate::ReverseProcess) with
/// [`Sampler::Ddim`](crate::Sampler::Ddim)) draws no noise, and inversion follows the same path in reverse; the more
/// steps, the better the two match.
///
/// States are never inspected for NaN, which would cost a pass per step: what the denoiser returns reaches the result.
/// Inversion builds no graph for gradients, whatever the denoiser's weights are; [`denoise_step`](Self::denoise_step)
/// and [`invert_step`](Self::invert_step) do.
#[derive(Debug, Clone, PartialEq)]
pub struct DdimSampler {
    chain: StepChain,
    clip: Clip,
    eta: f64,
}

impl DdimSampler {
    /// Creates a deterministic sampler over a chain.
    #[must_use]
    pub const fn new(chain: StepChain, clip: Clip) -> Self {
        Self { chain, clip, eta: 0.0 }
    }

    /// Sets the stochasticity: from 0, deterministic, to 1, which is DDPM with [`DdpmVariance::FixedSmall`].
    ///
    /// # Errors
    /// [`Error::EtaOutOfRange`], also for NaN.
    /// # Source
    /// Song et al. 2020 (arXiv:2010.02502), Eq. 16.
    ///
    /// [`DdpmVariance::FixedSmall`]: crate::DdpmVariance::FixedSmall
    pub fn with_eta(self, eta: f64) -> Result<Self> {
        if (0.0..=1.0).contains(&eta) { Ok(Self { eta, ..self }) } else { Err(Error::EtaOutOfRange { got: eta }) }
    }

    /// Returns the chain of this sampler.
    #[must_use]
    pub const fn chain(&self) -> &StepChain {
        &self.chain
    }

    /// Returns the standard deviation of the noise that a step towards the data adds.
    ///
    /// `sigma = eta * sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * sqrt(1 - alpha_bar / alpha_bar_prev)`, which is 0
    /// at the step that ends in the data.
    /// # Errors
    /// [`Error::StepIdxOutOfRange`].
    /// # Source
    /// Song et al. 2020 (arXiv:2010.02502), Eq. 16. Their alpha is our `alpha_bar`.
    pub fn sigma(&self, idx: StepIdx) -> Result<f64> {
        let (alpha_bar, alpha_bar_prev) = (self.chain.alpha_bar(idx)?, self.chain.alpha_bar_prev(idx)?);
        Ok(self.eta * ((1.0 - alpha_bar_prev) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_prev)).sqrt())
    }

    /// Inverts data to `x_terminal`, the noise from which decoding recovers the data.
    ///
    /// Starts at the first step of the chain and applies [`invert_step`](Self::invert_step) to each. The last one goes
    /// to `alpha_bar = 0`, so that the result is the last prediction of `eps`, and nothing else.
    /// # Shapes
    /// - `x_0`, result: `[N, ..]`, the same; f32 or f64, which is also the precision of the arithmetic.
    /// # Errors
    /// [`Error::StochasticInversion`] unless `eta` is 0; [`Error::Cancelled`] if the callback breaks;
    /// [`Error::Denoiser`] if it fails; [`Error::NoBatchAxis`], [`Error::UnsupportedDtype`], [`Error::DtypeMismatch`]
    /// and [`Error::ShapeMismatch`] for tensors that do not fit, the denoiser's included; [`Error::Tensor`] if the
    /// arithmetic fails.
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), the stochastic encoder. Their alpha is our `alpha_bar`.
    pub fn invert(
        &self,
        denoiser: &(impl Denoiser + ?Sized),
        x_0: &Tensor,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        self.check_deterministic()?;
        num_items("x_0", x_0)?;
        let num_steps = self.chain.len();
        let mut x_t = x_0.detach();
        for (number, idx) in (1..).zip(self.chain.indices()) {
            let timestep = self.chain.timestep(idx)?;
            let eps = predict_eps(denoiser, &x_t, timestep)?;
            let Inverted { x_next, x_0 } = self.invert_step(idx, &x_t, &eps)?;
            report(on_step, &Step { number, num_steps, timestep, x_t: &x_next, x_0: &x_0 })?;
            x_t = x_next;
        }
        Ok(x_t)
    }

    /// Moves `x_t` one step towards the data.
    ///
    /// `x_prev = sqrt(alpha_bar_prev) * x_0 + sqrt(1 - alpha_bar_prev - sigma^2) * eps + sigma * noise`, where `x_0`
    /// and `eps` are those of [`Prediction::from_eps`].
    /// # Shapes
    /// - `x_t`, `eps`, `noise`, both results: the same, any; f32 or f64.
    ///
    /// `noise` is there exactly if [`sigma`](Self::sigma) is not 0.
    /// # Errors
    /// [`Error::StepIdxOutOfRange`]; [`Error::NoiseMissing`] and [`Error::NoiseUnused`]; [`Error::UnsupportedDtype`],
    /// [`Error::DtypeMismatch`] and [`Error::ShapeMismatch`] for tensors that do not fit; [`Error::Tensor`] if the
    /// arithmetic fails.
    /// # Source
    /// Song et al. 2020 (arXiv:2010.02502), Eq. 12, with sigma from Eq. 16. Their alpha is our `alpha_bar`.
    pub fn denoise_step(&self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, noise: Option<&Tensor>) -> Result<Denoised> {
        let alpha_bar_prev = self.chain.alpha_bar_prev(idx)?;
        let sigma = self.sigma(idx)?;
        let Prediction { x_0, eps } = Prediction::from_eps(x_t, eps, self.chain.alpha_bar(idx)?, self.clip)?;
        // Negative by rounding only: alpha_bar / alpha_bar_prev > alpha_bar, hence sigma^2 < 1 - alpha_bar_prev.
        let direction = (1.0 - alpha_bar_prev - sigma * sigma).max(0.0).sqrt();
        let mean = weighted_sum(alpha_bar_prev.sqrt(), &x_0, direction, &eps)?;
        Ok(Denoised { x_prev: add_noise(mean, sigma, noise, idx)?, x_0 })
    }

    /// Moves `x_t` one step towards the noise.
    ///
    /// `x_next = sqrt(alpha_bar_next) * x_0 + sqrt(1 - alpha_bar_next) * eps`, where `x_0` and `eps` are those of
    /// [`Prediction::from_eps`]. For the same `eps`, [`denoise_step`](Self::denoise_step) at the next step undoes it.
    /// # Shapes
    /// - `x_t`, `eps`, both results: the same, any; f32 or f64.
    /// # Errors
    /// [`Error::StochasticInversion`] unless `eta` is 0; [`Error::StepIdxOutOfRange`]; [`Error::UnsupportedDtype`],
    /// [`Error::DtypeMismatch`] and [`Error::ShapeMismatch`] for tensors that do not fit; [`Error::Tensor`] if the
    /// arithmetic fails.
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), the stochastic encoder. Their alpha is our `alpha_bar`.
    pub fn invert_step(&self, idx: StepIdx, x_t: &Tensor, eps: &Tensor) -> Result<Inverted> {
        self.check_deterministic()?;
        let alpha_bar_next = self.chain.alpha_bar_next(idx)?;
        let Prediction { x_0, eps } = Prediction::from_eps(x_t, eps, self.chain.alpha_bar(idx)?, self.clip)?;
        let x_next = weighted_sum(alpha_bar_next.sqrt(), &x_0, (1.0 - alpha_bar_next).sqrt(), &eps)?;
        Ok(Inverted { x_next, x_0 })
    }

    fn check_deterministic(&self) -> Result<()> {
        if self.eta > 0.0 { Err(Error::StochasticInversion { eta: self.eta }) } else { Ok(()) }
    }
}

impl Stepper for DdimSampler {
    fn sigma(&self, idx: StepIdx) -> Result<f64> {
        Self::sigma(self, idx)
    }

    fn step(&mut self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, noise: Option<&Tensor>) -> Result<Denoised> {
        self.denoise_step(idx, x_t, eps, noise)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::{NoiseSchedule, StepSequence, Timestep, no_callback};

    /// Returns a sampler with `alpha_bar` = 0.64, then 0.36: all roots are rational.
    fn two_steps(clip: Clip) -> DdimSampler {
        let schedule = NoiseSchedule::from_betas(vec![0.36, 0.4375]).unwrap();
        DdimSampler::new(StepChain::new(&schedule, &StepSequence::All).unwrap(), clip)
    }

    fn row(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
    }

    fn assert_close(got: &Tensor, expected: &[f64]) {
        let got = got.squeeze(0).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-14, "got {got}, expected {expected}");
        }
    }

    fn zero_eps(x_t: &Tensor, _: &[Timestep]) -> candle_core::Result<Tensor> {
        x_t.zeros_like()
    }

    #[test]
    fn a_step_towards_the_data_has_the_value_of_the_formula() {
        let sampler = two_steps(Clip::None);
        let step = sampler.denoise_step(StepIdx::new(1), &row(&[1.0]), &row(&[0.25]), None).unwrap();
        let x_0 = (1.0 - 0.8 * 0.25) / 0.6;
        assert_close(&step.x_0, &[x_0]);
        assert_close(&step.x_prev, &[0.8 * x_0 + 0.6 * 0.25]);
    }

    #[test]
    fn a_clipped_step_uses_the_recomputed_eps() {
        let sampler = two_steps(Clip::UnitRange);
        let step = sampler.denoise_step(StepIdx::new(1), &row(&[1.0]), &row(&[0.25]), None).unwrap();
        assert_close(&step.x_0, &[1.0]);
        assert_close(&step.x_prev, &[0.8 + 0.6 * 0.5]);
        let step = sampler.invert_step(StepIdx::new(0), &row(&[1.0]), &row(&[0.0])).unwrap();
        assert_close(&step.x_0, &[1.0]);
        assert_close(&step.x_next, &[0.6 + 0.8 / 3.0]);
    }

    #[test]
    fn a_stochastic_step_has_the_value_of_the_formula() {
        let sampler = two_steps(Clip::None).with_eta(0.5).unwrap();
        let variance = 0.25 * (0.36 / 0.64) * (1.0 - 0.36 / 0.64);
        let idx = StepIdx::new(1);
        assert!((sampler.sigma(idx).unwrap().powi(2) - variance).abs() < 1e-15);
        let step = sampler.denoise_step(idx, &row(&[1.0]), &row(&[0.25]), Some(&row(&[-2.0]))).unwrap();
        let expected = 0.8 * (0.8 / 0.6) + (0.36 - variance).sqrt() * 0.25 - 2.0 * variance.sqrt();
        assert_close(&step.x_prev, &[expected]);
    }

    #[test]
    fn the_step_that_ends_in_the_data_adds_no_noise() {
        let sampler = two_steps(Clip::None).with_eta(1.0).unwrap();
        assert!(sampler.sigma(StepIdx::new(0)).unwrap().abs() < f64::MIN_POSITIVE);
        let step = sampler.denoise_step(StepIdx::new(0), &row(&[1.0]), &row(&[0.5]), None).unwrap();
        assert_close(&step.x_prev, &[(1.0 - 0.6 * 0.5) / 0.8]);
    }

    #[test]
    fn a_step_towards_the_noise_has_the_value_of_the_formula() {
        let step = two_steps(Clip::None).invert_step(StepIdx::new(0), &row(&[1.0]), &row(&[0.5])).unwrap();
        assert_close(&step.x_0, &[0.7 / 0.8]);
        assert_close(&step.x_next, &[0.6 * 0.7 / 0.8 + 0.8 * 0.5]);
    }

    #[test]
    fn inversion_ends_in_the_last_eps_to_the_bit() {
        let eps = row(&[0.1, -0.7, 0.3]);
        let x_terminal = two_steps(Clip::None)
            .invert(&|_: &Tensor, _: &[Timestep]| Ok(eps.clone()), &row(&[1.0, 2.0, 3.0]), &mut no_callback)
            .unwrap();
        assert_eq!(x_terminal.to_vec2::<f64>().unwrap(), eps.to_vec2::<f64>().unwrap());
    }

    #[test]
    fn the_denoiser_is_told_training_timesteps_from_the_least_noisy() {
        let schedule = NoiseSchedule::from_betas(vec![0.1; 100]).unwrap();
        let chain = StepChain::new(&schedule, &StepSequence::Ddim(4)).unwrap();
        let sampler = DdimSampler::new(chain, Clip::None);
        let told = std::cell::RefCell::new(Vec::new());
        let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
            told.borrow_mut().push(timesteps[0].get());
            x_t.zeros_like()
        };
        sampler.invert(&denoiser, &row(&[1.0]), &mut no_callback).unwrap();
        assert_eq!(told.take(), [0, 25, 50, 75]);
    }

    #[test]
    fn the_callback_can_stop() {
        let sampler = two_steps(Clip::None);
        let mut stop_at_the_end = |step: &Step<'_>| match step.number {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let error = sampler.invert(&zero_eps, &row(&[1.0]), &mut stop_at_the_end).unwrap_err();
        assert!(matches!(error, Error::Cancelled { after_steps: 2 }), "{error}");
    }

    #[test]
    fn an_eta_outside_its_range_is_rejected() {
        for eta in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = two_steps(Clip::None).with_eta(eta).unwrap_err();
            assert!(matches!(error, Error::EtaOutOfRange { .. }), "{error}");
        }
    }

    #[test]
    fn a_stochastic_sampler_does_not_invert() {
        let sampler = two_steps(Clip::None).with_eta(0.5).unwrap();
        for error in [
            sampler.invert(&zero_eps, &row(&[1.0]), &mut no_callback).unwrap_err(),
            sampler.invert_step(StepIdx::new(0), &row(&[1.0]), &row(&[1.0])).unwrap_err(),
        ] {
            assert!(matches!(error, Error::StochasticInversion { eta } if (eta - 0.5).abs() < 1e-15), "{error}");
        }
    }

    #[test]
    fn a_step_beyond_the_chain_is_rejected() {
        let (sampler, beyond, x_t) = (two_steps(Clip::None), StepIdx::new(2), row(&[1.0]));
        assert!(matches!(sampler.sigma(beyond), Err(Error::StepIdxOutOfRange { .. })));
        assert!(matches!(sampler.denoise_step(beyond, &x_t, &x_t, None), Err(Error::StepIdxOutOfRange { .. })));
        assert!(matches!(sampler.invert_step(beyond, &x_t, &x_t), Err(Error::StepIdxOutOfRange { .. })));
    }

    #[test]
    fn a_state_that_no_chain_can_work_on_is_rejected() {
        let sampler = two_steps(Clip::None);
        let scalar = Tensor::new(1.0, &Device::Cpu).unwrap();
        let error = sampler.invert(&zero_eps, &scalar, &mut no_callback).unwrap_err();
        assert!(matches!(error, Error::NoBatchAxis { name: "x_0" }), "{error}");
        let integers = row(&[1.0]).to_dtype(DType::I64).unwrap();
        let error = sampler.invert(&zero_eps, &integers, &mut no_callback).unwrap_err();
        assert!(matches!(error, Error::UnsupportedDtype { name: "x_0", got: DType::I64 }), "{error}");
    }

    #[test]
    fn nan_from_the_denoiser_reaches_the_result() {
        let denoiser = |x_t: &Tensor, _: &[Timestep]| x_t * f64::NAN;
        let inverted = two_steps(Clip::UnitRange).invert(&denoiser, &row(&[1.0]), &mut no_callback);
        assert!(inverted.unwrap().to_vec2::<f64>().unwrap()[0][0].is_nan());
    }

    #[test]
    fn inversion_builds_no_graph_but_a_step_does() {
        let weight = Var::from_tensor(&row(&[1.0])).unwrap();
        let denoiser = |x_t: &Tensor, _: &[Timestep]| x_t * weight.as_tensor();
        let sampler = two_steps(Clip::None);
        let x_0 = weight.as_tensor();
        let inverted = sampler.invert(&denoiser, x_0, &mut no_callback).unwrap();
        assert!(!inverted.track_op());
        assert!(sampler.denoise_step(StepIdx::new(0), x_0, x_0, None).unwrap().x_prev.track_op());
    }
}
