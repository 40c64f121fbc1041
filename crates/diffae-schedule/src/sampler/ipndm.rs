//! iPNDM: a linear multistep method with the weights of equal steps.

use std::collections::VecDeque;

use candle_core::Tensor;

use crate::prediction::weighted_sum;
use crate::step::Stepper;
use crate::{Clip, Denoised, Prediction, Result, StepChain, StepIdx, x_0_from_eps};

/// Weights of the newest prediction and those before it, by order.
const WEIGHTS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// The improved pseudo-numerical method: the step of DDIM with `eps = sum_j w_j eps_j` over the newest predictions, where
/// `w` are the Adams-Bashforth weights of equal steps, whatever the steps are. The order grows from 1 with the history.
///
/// First order where steps differ in length, unlike the method whose weights follow the steps; measured, it is among the
/// best at few evaluations.
/// # Source
/// Zhang and Chen 2022 (arXiv:2204.13902), Section 3.3 (iPNDM); Liu et al. 2022 (arXiv:2202.09778) for the weights.
#[derive(Debug)]
pub(crate) struct Ipndm {
    chain: StepChain,
    clip: Clip,
    order: usize,
    /// Earlier predictions of eps, the newest first.
    before: VecDeque<Tensor>,
}

impl Ipndm {
    /// Creates the method of an order from 1 to 4.
    pub(crate) fn new(chain: StepChain, clip: Clip, order: usize) -> Self {
        Self { chain, clip, order: order.clamp(1, WEIGHTS.len()), before: VecDeque::new() }
    }
}

impl Stepper for Ipndm {
    fn step(&mut self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, _noise: Option<&Tensor>) -> Result<Denoised> {
        let (alpha_bar, alpha_bar_prev) = (self.chain.alpha_bar(idx)?, self.chain.alpha_bar_prev(idx)?);
        let Prediction { x_0, eps } = Prediction::from_eps(x_t, eps, alpha_bar, self.clip)?;
        self.before.truncate(self.order - 1);
        self.before.push_front(eps);
        let weights = WEIGHTS[self.before.len() - 1];
        let mut combined = self.before[0].affine(weights[0], 0.0)?;
        for (eps, &weight) in self.before.iter().zip(weights).skip(1) {
            combined = (combined + eps.affine(weight, 0.0)?)?;
        }
        let estimate = x_0_from_eps(x_t, &combined, alpha_bar)?;
        let x_prev = weighted_sum(alpha_bar_prev.sqrt(), &estimate, (1.0 - alpha_bar_prev).sqrt(), &combined)?;
        Ok(Denoised { x_prev, x_0 })
    }
}
