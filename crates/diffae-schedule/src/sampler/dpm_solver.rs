//! DPM-Solver++: second or third order from one evaluation per step.

use candle_core::Tensor;

use crate::prediction::weighted_sum;
use crate::spacing::half_log_snr;
use crate::step::Stepper;
use crate::{Clip, Denoised, Prediction, Result, StepChain, StepIdx};

/// Maximum length of a higher-order step, in lengths of the step before. On evenly spaced timesteps only the step to
/// timestep 0 is longer.
const MAX_STEP_RATIO: f64 = 2.0;

/// The multistep solver in the data prediction, of second (2M) or third order (3M).
///
/// With `lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar))`, `h = lambda_prev - lambda`, and `r_0`, `r_1` the `h` of the two
/// steps before over this one:
///
/// `D_1 = (x_0 - x_0_before) / r_0`, `D_2 = (x_0_before - x_0_before_that) / r_1`
///
/// `x_prev = sqrt(1 - alpha_bar_prev) / sqrt(1 - alpha_bar) * x_t - sqrt(alpha_bar_prev) * (p_1 * D + p_2 * d_1 + p_3 * d_2)`
///
/// with `p_1 = exp(-h) - 1`. In 2M `D = x_0 + D_1 / 2` and the rest is 0. In 3M `D = x_0`, `p_2 = -(p_1 / h + 1)`,
/// `p_3 = 2 (p_1 / h + 1) / h - 1`, `d_1 = D_1 + r_0 / (r_0 + r_1) (D_1 - D_2)` and `d_2 = (D_1 - D_2) / (r_0 + r_1)`.
///
/// Some steps are of lower order: those with too little before them; those with `r_0 < 1 / MAX_STEP_RATIO`, which would
/// extrapolate too far and take `D = x_0`, which is DDIM; the step that ends in the data, whose `h` is infinite, and in 3M
/// the one before it.
///
/// The published implementations of 3M have half this `p_3`, which leaves half of the second derivative's share out: they
/// converge with order 2.
/// # Source
/// Lu et al. 2022 (arXiv:2211.01095), Algorithm 2 for 2M; 3M integrates the parabola through the newest three estimates.
#[derive(Debug)]
pub(crate) struct DpmSolverPp {
    chain: StepChain,
    clip: Clip,
    order: usize,
    /// Estimates of `x_0` and step lengths `h` of the steps before, the newest first.
    before: Vec<(Tensor, f64)>,
}

impl DpmSolverPp {
    /// Creates the solver of order 2 or 3.
    pub(crate) fn new(chain: StepChain, clip: Clip, order: usize) -> Self {
        Self { chain, clip, order: order.clamp(2, 3), before: vec![] }
    }
}

/// Returns whether a step of length `h` after one of `h_before` is too long for a method of higher order.
pub(crate) fn is_too_long(h: f64, h_before: f64) -> bool {
    h > MAX_STEP_RATIO * h_before
}

impl Stepper for DpmSolverPp {
    fn step(&mut self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, _noise: Option<&Tensor>) -> Result<Denoised> {
        let (alpha_bar, alpha_bar_prev) = (self.chain.alpha_bar(idx)?, self.chain.alpha_bar_prev(idx)?);
        let Prediction { x_0, .. } = Prediction::from_eps(x_t, eps, alpha_bar, self.clip)?;
        let h = half_log_snr(alpha_bar_prev) - half_log_snr(alpha_bar);
        let (signal, p_1) = (alpha_bar_prev.sqrt(), (-h).exp_m1());
        let order = self.order.min(idx.get() + 1);
        let (data, correction) = match self.before.as_slice() {
            [(_, h_0), ..] if is_too_long(h, *h_0) => (x_0.clone(), None),
            [(x_1, h_0), (x_2, h_1)] if order == 3 => {
                let (r_0, r_1) = (h_0 / h, h_1 / h);
                let newer = weighted_sum(r_0.recip(), &x_0, -r_0.recip(), x_1)?;
                let older = weighted_sum(r_1.recip(), x_1, -r_1.recip(), x_2)?;
                let share = r_0 / (r_0 + r_1);
                let (p_2, p_3) = (-(p_1 / h + 1.0), 2.0 * (p_1 / h + 1.0) / h - 1.0);
                let of_newer = p_2 * (1.0 + share) + p_3 / (r_0 + r_1);
                let of_older = -p_2 * share - p_3 / (r_0 + r_1);
                (x_0.clone(), Some(weighted_sum(-signal * of_newer, &newer, -signal * of_older, &older)?))
            }
            [(x_1, h_0), ..] if order >= 2 => {
                let weight = 0.5 * h / h_0;
                (weighted_sum(1.0 + weight, &x_0, -weight, x_1)?, None)
            }
            _ => (x_0.clone(), None),
        };
        let noise_ratio = ((1.0 - alpha_bar_prev) / (1.0 - alpha_bar)).sqrt();
        let mut x_prev = weighted_sum(noise_ratio, x_t, -signal * p_1, &data)?;
        if let Some(correction) = correction {
            x_prev = (x_prev + correction)?;
        }
        self.before.insert(0, (x_0.clone(), h));
        self.before.truncate(self.order - 1);
        Ok(Denoised { x_prev, x_0 })
    }
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
        let mut solver = DpmSolverPp::new(even_steps(), Clip::None, 2);
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
            let step =
                DpmSolverPp::new(even_steps(), Clip::UnitRange, 2).step(idx, &row(x_t), &row(eps), None).unwrap();
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
        let mut solver = DpmSolverPp::new(chain.clone(), Clip::None, 2);
        solver.step(StepIdx::new(2), &row(1.0), &row(0.5), None).unwrap();
        let long = solver.step(StepIdx::new(1), &row(0.7), &row(-0.2), None).unwrap();
        let ddim = DdimSampler::new(chain, Clip::None);
        let by_ddim = ddim.denoise_step(StepIdx::new(1), &row(0.7), &row(-0.2), None).unwrap();
        assert_close(&long.x_prev, number(&by_ddim.x_prev));
    }

    #[test]
    fn the_step_that_ends_in_the_data_returns_x_0() {
        let mut solver = DpmSolverPp::new(even_steps(), Clip::None, 2);
        solver.step(StepIdx::new(1), &row(0.7), &row(-0.2), None).unwrap();
        let last = solver.step(StepIdx::new(0), &row(0.7), &row(-0.2), None).unwrap();
        assert_close(&last.x_prev, number(&last.x_0));
    }
}
