//! `UniPC`: a predictor and a corrector that needs no extra network evaluation.

use candle_core::Tensor;

use super::dpm_solver::is_too_long;
use crate::prediction::weighted_sum;
use crate::spacing::half_log_snr;
use crate::step::Stepper;
use crate::{Clip, Denoised, Prediction, Result, StepChain, StepIdx};

/// `UniPC` with `B(h) = e^h - 1` (`bh2`) in the data prediction, of order p.
///
/// With `lambda = log(alpha / sigma)`, `h = lambda' - lambda` of the step from `(alpha, sigma)` to `(alpha', sigma')`,
/// `H = -h` and `phi_1 = B = e^H - 1`, `phi_{k+1} = phi_k / H - 1 / k!`:
///
/// `x' = (sigma' / sigma) x - alpha' phi_1 x_0 - alpha' B sum_m rho_m D_m`
///
/// where `D_m = (x_0_m - x_0) / r_m` and `r_m = (lambda_m - lambda) / h` for the p - 1 nodes before. The weights solve
/// `sum_m rho_m r_m^(k-1) = k! phi_{k+1} / B` for k = 1, .., p - 1; with one node before, `rho = 1/2`.
///
/// The corrector repeats the step with one node more, the new one (r = 1), once the network was evaluated there; its
/// result takes the place of the prediction in the next step. The step that ends in the data returns `x_0`.
/// # Source
/// Zhao et al. 2023 (arXiv:2302.04867), Algorithms 1 and 2.
#[derive(Debug)]
pub(crate) struct UniPc {
    chain: StepChain,
    clip: Clip,
    order: usize,
    /// Nodes that were visited, the newest first: `lambda` and the estimate of `x_0`.
    nodes: Vec<(f64, Tensor)>,
    /// The last step: the state that it was taken from, its index and its order.
    last: Option<(Tensor, StepIdx, usize)>,
}

impl UniPc {
    /// Creates the method of an order from 1 to 3.
    pub(crate) fn new(chain: StepChain, clip: Clip, order: usize) -> Self {
        Self { chain, clip, order: order.clamp(1, 3), nodes: vec![], last: None }
    }

    /// Returns the order of a step: lower at the begin, where nodes are few, before the step into the data, and where the step
    /// is much longer than the one before.
    fn order_of(&self, idx: StepIdx, lambda_next: f64) -> usize {
        let order = self.order.min(idx.get() + 1).min(self.nodes.len());
        match self.nodes.as_slice() {
            [(lambda, _), (before, _), ..] if is_too_long(lambda_next - lambda, lambda - before) => 1,
            _ => order,
        }
    }
}

/// Takes a step from the newest of `nodes` at `alpha_bar` to `alpha_bar_next`; `new` is the estimate of `x_0` there, if
/// it is known.
fn advance(
    nodes: &[(f64, Tensor)],
    x: &Tensor,
    [alpha_bar, alpha_bar_next]: [f64; 2],
    new: Option<&Tensor>,
) -> Result<Tensor> {
    let (lambda, x_0) = &nodes[0];
    let h = half_log_snr(alpha_bar_next) - lambda;
    let scale = ((1.0 - alpha_bar_next) / (1.0 - alpha_bar)).sqrt();
    let (alpha, phi_1) = (alpha_bar_next.sqrt(), (-h).exp_m1());
    let mut next = weighted_sum(scale, x, -alpha * phi_1, x_0)?;
    let older = nodes[1..].iter().map(|(lambda_m, x_0_m)| ((lambda_m - lambda) / h, x_0_m));
    let used: Vec<(f64, &Tensor)> = older.chain(new.map(|x_0| (1.0, x_0))).collect();
    let ratios: Vec<f64> = used.iter().map(|(ratio, _)| *ratio).collect();
    for ((ratio, x_0_m), rho) in used.into_iter().zip(weights(&ratios, h)) {
        let difference = ((x_0_m - x_0)? / ratio)?;
        next = (next + difference.affine(-alpha * phi_1 * rho, 0.0)?)?;
    }
    Ok(next)
}

impl Stepper for UniPc {
    fn step(&mut self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, _noise: Option<&Tensor>) -> Result<Denoised> {
        let (alpha_bar, alpha_bar_prev) = (self.chain.alpha_bar(idx)?, self.chain.alpha_bar_prev(idx)?);
        let Prediction { x_0, .. } = Prediction::from_eps(x_t, eps, alpha_bar, self.clip)?;
        let x_t = match &self.last {
            Some((before, from, order)) => {
                advance(&self.nodes[..*order], before, [self.chain.alpha_bar(*from)?, alpha_bar], Some(&x_0))?
            }
            None => x_t.clone(),
        };
        self.nodes.truncate(self.order.max(2) - 1);
        self.nodes.insert(0, (half_log_snr(alpha_bar), x_0.clone()));
        let order = self.order_of(idx, half_log_snr(alpha_bar_prev));
        let x_prev = if idx.get() == 0 {
            x_0.clone()
        } else {
            advance(&self.nodes[..order], &x_t, [alpha_bar, alpha_bar_prev], None)?
        };
        self.last = Some((x_t, idx, order));
        Ok(Denoised { x_prev, x_0 })
    }
}

/// Solves for the weights of the nodes at `ratios` from the newest, in units of the step.
fn weights(ratios: &[f64], h: f64) -> Vec<f64> {
    let (big_h, count) = (-h, ratios.len());
    if count == 1 {
        return vec![0.5];
    }
    let b = big_h.exp_m1();
    let (mut phi, mut factorial) = (b / big_h - 1.0, 1.0);
    let mut rows: Vec<Vec<f64>> = vec![];
    for k in 1..=count {
        factorial *= k as f64;
        let mut row: Vec<f64> = ratios.iter().map(|ratio| ratio.powf((k - 1) as f64)).collect();
        row.push(phi * factorial / b);
        rows.push(row);
        phi = phi / big_h - factorial.recip() / (k + 1) as f64;
    }
    solve(rows)
}

/// Solves a small linear system by elimination; each row holds the coefficients and the value.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let count = rows.len();
    for pivot in 0..count {
        let largest = (pivot..count).max_by(|&a, &b| rows[a][pivot].abs().total_cmp(&rows[b][pivot].abs()));
        rows.swap(pivot, largest.unwrap_or(pivot));
        for row in 0..count {
            if row != pivot {
                let factor = rows[row][pivot] / rows[pivot][pivot];
                let above = rows[pivot].clone();
                for (value, above) in rows[row].iter_mut().zip(&above).skip(pivot) {
                    *value -= factor * above;
                }
            }
        }
    }
    (0..count).map(|row| rows[row][count] / rows[row][row]).collect()
}
