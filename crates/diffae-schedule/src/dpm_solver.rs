//! DPM-Solver++(2M): second order from one evaluation per step.

use candle_core::Tensor;

use crate::prediction::weighted_sum;
use crate::sampler::Stepper;
use crate::{Clip, Denoised, Prediction, Result, StepChain, StepIdx};

/// Maximum length of a second-order step, in lengths of the step before. On evenly spaced timesteps only the step to
/// timestep 0 is longer.
const MAX_STEP_RATIO: f64 = 2.0;

/// The second-order multistep solver in the data prediction.
///
/// With `lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar))`, `h = lambda_prev - lambda`, and `r` the `h` of the step
/// before over this one:
///
/// `D = (1 + 1 / 2r) * x_0 - 1 / 2r * x_0_before`
///
/// `x_prev = sqrt(1 - alpha_bar_prev) / sqrt(1 - alpha_bar) * x_t - sqrt(alpha_bar_prev) * (exp(-h) - 1) * D`
///
/// Some steps take `D = x_0`, which is DDIM: the first, which has nothing before it; the one that ends in the data, whose
/// `h` is infinite; and those with `r < 1 / MAX_STEP_RATIO`, which would extrapolate too far.
/// # Source
/// Lu et al. 2022 (arXiv:2211.01095), Algorithm 2.
#[derive(Debug)]
pub(crate) struct DpmSolverPp2M {
    chain: StepChain,
    clip: Clip,
    /// Estimate of `x_0` and step length `h` of the step before.
    before: Option<(Tensor, f64)>,
}

impl DpmSolverPp2M {
    pub(crate) const fn new(chain: StepChain, clip: Clip) -> Self {
        Self { chain, clip, before: None }
    }
}

impl Stepper for DpmSolverPp2M {
    fn step(&mut self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, _noise: Option<&Tensor>) -> Result<Denoised> {
        let (alpha_bar, alpha_bar_prev) = (self.chain.alpha_bar(idx)?, self.chain.alpha_bar_prev(idx)?);
        let Prediction { x_0, .. } = Prediction::from_eps(x_t, eps, alpha_bar, self.clip)?;
        let h = half_log_snr(alpha_bar_prev) - half_log_snr(alpha_bar);
        let extrapolated = match &self.before {
            Some((x_0_before, h_before)) if h <= MAX_STEP_RATIO * h_before => {
                let weight = 0.5 * h / h_before;
                weighted_sum(1.0 + weight, &x_0, -weight, x_0_before)?
            }
            _ => x_0.clone(),
        };
        let noise_ratio = ((1.0 - alpha_bar_prev) / (1.0 - alpha_bar)).sqrt();
        let x_prev = weighted_sum(noise_ratio, x_t, -alpha_bar_prev.sqrt() * (-h).exp_m1(), &extrapolated)?;
        self.before = Some((x_0.clone(), h));
        Ok(Denoised { x_prev, x_0 })
    }
}

/// Returns half the logarithm of the signal-to-noise ratio; infinite for clean data.
fn half_log_snr(alpha_bar: f64) -> f64 {
    0.5 * (alpha_bar / (1.0 - alpha_bar)).ln()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{DdimSampler, NoiseSchedule, StepSequence};

    /// Returns a chain with `alpha_bar` = 0.8, 0.5, 0.2: the odds are 4, 1 and 1/4, so that both inner steps have
    /// `h = log(2)`.
    fn even_steps() -> StepChain {
        let schedule = NoiseSchedule::from_betas(vec![0.2, 0.375, 0.6]).unwrap();
        StepChain::new(&schedule, &StepSequence::All).unwrap()
    }

    fn row(value: f64) -> Tensor {
        Tensor::new(&[[value]], &Device::Cpu).unwrap()
    }

    fn number(tensor: &Tensor) -> f64 {
        tensor.to_vec2::<f64>().unwrap()[0][0]
    }

    fn assert_close(got: &Tensor, expected: f64) {
        let got = number(got);
        assert!((got - expected).abs() < 1e-14, "got {got}, expected {expected}");
    }

    #[test]
    fn a_later_step_has_the_value_of_the_formula() {
        let mut solver = DpmSolverPp2M::new(even_steps(), Clip::None);
        let first = solver.step(StepIdx::new(2), &row(1.0), &row(0.5), None).unwrap();
        let second = solver.step(StepIdx::new(1), &row(0.7), &row(-0.2), None).unwrap();
        // r = 1: D = 1.5 x_0 - 0.5 x_0_before; exp(-h) = 1/2.
        let x_0_before = (1.0 - 0.8_f64.sqrt() * 0.5) / 0.2_f64.sqrt();
        let x_0 = (0.7 + 0.5_f64.sqrt() * 0.2) / 0.5_f64.sqrt();
        assert_close(&first.x_0, x_0_before);
        assert_close(&second.x_0, x_0);
        let expected = 0.4_f64.sqrt() * 0.7 + 0.8_f64.sqrt() * 0.5 * (1.5 * x_0 - 0.5 * x_0_before);
        assert_close(&second.x_prev, expected);
    }

    #[test]
    fn the_first_step_is_that_of_ddim() {
        let ddim = DdimSampler::new(even_steps(), Clip::UnitRange);
        for (idx, x_t, eps) in [(2, 1.0, 0.5), (1, -0.3, 0.9), (0, 2.0, -0.1)] {
            let idx = StepIdx::new(idx);
            let by_ddim = ddim.denoise_step(idx, &row(x_t), &row(eps), None).unwrap();
            let step = DpmSolverPp2M::new(even_steps(), Clip::UnitRange).step(idx, &row(x_t), &row(eps), None).unwrap();
            assert_close(&step.x_prev, number(&by_ddim.x_prev));
        }
    }

    #[test]
    fn a_step_much_longer_than_the_one_before_is_that_of_ddim() {
        // The odds are 400, 1 and 0.9: the second step is far more than twice as long as the first.
        let odds = |odds: f64| odds / (1.0 + odds);
        let [a, b, c] = [400.0, 1.0, 0.9].map(odds);
        let schedule = NoiseSchedule::from_betas(vec![1.0 - a, 1.0 - b / a, 1.0 - c / b]).unwrap();
        let chain = StepChain::new(&schedule, &StepSequence::All).unwrap();
        let mut solver = DpmSolverPp2M::new(chain.clone(), Clip::None);
        solver.step(StepIdx::new(2), &row(1.0), &row(0.5), None).unwrap();
        let long = solver.step(StepIdx::new(1), &row(0.7), &row(-0.2), None).unwrap();
        let ddim = DdimSampler::new(chain, Clip::None);
        let by_ddim = ddim.denoise_step(StepIdx::new(1), &row(0.7), &row(-0.2), None).unwrap();
        assert_close(&long.x_prev, number(&by_ddim.x_prev));
    }

    #[test]
    fn the_step_that_ends_in_the_data_returns_x_0() {
        let mut solver = DpmSolverPp2M::new(even_steps(), Clip::None);
        solver.step(StepIdx::new(1), &row(0.7), &row(-0.2), None).unwrap();
        let last = solver.step(StepIdx::new(0), &row(0.7), &row(-0.2), None).unwrap();
        assert_close(&last.x_prev, number(&last.x_0));
    }
}
