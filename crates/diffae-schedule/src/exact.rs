//! Exact inversion: a two-step chain that can be run in either direction.

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;

use crate::chain::Level;
use crate::denoiser::predict_eps;
use crate::prediction::weighted_sum;
use crate::step::report;
use crate::tensor_checks::{check_like, num_items};
use crate::{Denoiser, Error, OnStep, Result, Step, StepChain, StepIdx, x_0_from_eps};

/// The stochastic code of an exact chain: the last state, and what the step before it adds to DDIM.
#[derive(Debug, Clone)]
pub struct ExactCode {
    /// The noisiest state, `x_T`. `[N, ..]`
    pub x_terminal: Tensor,
    /// The residual `x_{T-1} - DDIM(x_T)`; 0 for random `x_T`. `[N, ..]`
    pub residual: Tensor,
}

/// Coefficients of the update `x_{i+1} = before x_{i-1} + here x_i + eps eps(x_i)` of an [`ExactChain`], in which `before`, `here`
/// and `after` are the states of three nodes in a row, the least noisy first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExactCoefficients {
    /// Weight of the state before, `K_i`.
    pub before: f64,
    /// Weight of the state at the node.
    pub here: f64,
    /// Weight of the noise that the network predicts there.
    pub eps: f64,
}

/// Choice of the factors `K_i` of an [`ExactChain`].
///
/// [`Display`](fmt::Display) and [`FromStr`] use the names of [`ExactWeights::names`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExactWeights {
    /// `K_i = (sigma_{i+1} / sigma_i)^(1 - w) ((h_{i+1} / h_i)^2 alpha_{i+1} / alpha_{i-1})^w (alpha_{i+1} / alpha_i)^g` with w and
    /// g by the length of the step, `log(s_{i+1} / s_i)`: from 20 steps down to 10, and in 4 of [`Spacing::Interior`], inversion and
    /// decoding may differ by a relative 0.001 of eps, and `x_T` is close to normal. `g` damps what remains of the start where
    /// all is noise.
    ///
    /// [`Spacing::Interior`]: crate::Spacing::Interior
    #[default]
    Balanced,
    /// `K_i = (h_{i+1} / h_i)^2 alpha_{i+1} / alpha_{i-1}`: second order, and the least sensitive to differences between the
    /// networks of the two directions; the standard deviation of `x_T` is far from 1.
    ///
    /// # Source
    /// Wang et al. 2024 (arXiv:2410.07273), O-BELM.
    OBelm,
    /// `K_i = sigma_{i+1} / sigma_i`: the last two states nearly agree, so that `x_T` alone decodes nearly exactly.
    NoiseRatio,
}

/// Parameters of [`ExactWeights::Balanced`] by `log(s_{i+1} / s_i)`: that length, w and g, interpolated between rows. Found by
/// measurement on the built-in model at 4 to 40 steps; see docs/fewer-steps.md.
const BALANCED: [[f64; 3]; 10] = [
    [0.0, 1.0, 0.0],
    [0.68, 1.0, 0.2],
    [1.43, 0.7, 0.1],
    [1.5, 0.687, 0.094],
    [2.2, 0.56, -0.12],
    [2.4, 0.525, 0.018],
    [3.2, 0.38, -0.05],
    [4.3, 0.3, 0.0],
    [6.5, 0.15, 0.0],
    [13.0, 0.0, 0.0],
];

impl ExactWeights {
    /// All choices, each with its name.
    const NAMED: [(&'static str, Self); 3] =
        [("balanced", Self::Balanced), ("o-belm", Self::OBelm), ("noise-ratio", Self::NoiseRatio)];

    /// Returns the names of all choices, for help texts and completions.
    #[must_use]
    pub fn names() -> impl ExactSizeIterator<Item = &'static str> {
        Self::NAMED.iter().map(|(name, _)| *name)
    }

    /// Returns w and g for a step of this length.
    fn parameters(self, step: f64) -> [f64; 2] {
        match self {
            Self::OBelm => [1.0, 0.0],
            Self::NoiseRatio => [0.0, 0.0],
            Self::Balanced => {
                let pair = BALANCED.windows(2).find(|pair| step < pair[1][0]);
                let [[begin, w_begin, g_begin], [end, w_end, g_end]] = match pair {
                    Some([begin, end]) => [*begin, *end],
                    _ => return [0.0, 0.0],
                };
                let part = ((step - begin) / (end - begin)).max(0.0);
                [w_begin + part * (w_end - w_begin), g_begin + part * (g_end - g_begin)]
            }
        }
    }
}

impl fmt::Display for ExactWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMED.iter().find(|(_, weights)| weights == self).map_or("", |(name, _)| name))
    }
}

impl FromStr for ExactWeights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, weights)| *weights).ok_or_else(|| Error::UnknownExactWeights { got: text.to_owned() })
    }
}

/// A chain of two-step updates, each of which is linear in the state before it, so that it can be solved for that state:
/// inversion and decoding undo each other up to rounding, in any number of steps.
///
/// With the noise-to-signal ratio `s = sigma / alpha` of the nodes, `h_i = s_i - s_{i-1}` and any `K_i > 0`
///
/// `x_{i+1} = K_i x_{i-1} + (alpha_{i+1} - K_i alpha_{i-1}) / alpha_i x_i + (alpha_{i+1} h_{i+1} + K_i alpha_{i-1} h_i) eps_i`
///
/// agrees with DDIM to first order. `K_i` is the factor by which an error of the step down returns in the step up; see
/// [`ExactWeights`]. The clean picture is a node of its own, `s_0 = 0`. Inversion begins there with a step of DDIM, and
/// decoding at `x_T` with a step of DDIM, to which it adds the residual.
///
/// A chain of N steps costs N + 1 evaluations up and N down. Clipping of `x_0` would break exactness, so there is none.
/// # Source
/// The family contains O-BELM of Wang et al. 2024 (arXiv:2410.07273); decision 19 derives the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct ExactChain {
    chain: StepChain,
    weights: ExactWeights,
}

impl ExactChain {
    /// Creates an exact chain.
    #[must_use]
    pub const fn new(chain: StepChain, weights: ExactWeights) -> Self {
        Self { chain, weights }
    }

    /// Returns the nodes of the chain.
    #[must_use]
    pub const fn chain(&self) -> &StepChain {
        &self.chain
    }

    /// Returns the coefficients of the update about node `i`, with 0 < i < N; node 0 is the clean picture.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`] if there is no such node.
    pub fn coefficients(&self, node: usize) -> Result<ExactCoefficients> {
        if node == 0 {
            return Err(Error::StepIdxOutOfRange { got: StepIdx::new(node), num_sampling_steps: self.chain.len() });
        }
        let [before, here, after] = [self.chain.level(node - 1)?, self.chain.level(node)?, self.chain.level(node + 1)?];
        let (h, h_next) = (here.ratio() - before.ratio(), after.ratio() - here.ratio());
        let second_order = (h_next / h).powi(2) * after.alpha / before.alpha;
        let [w, g] = self.weights.parameters((after.ratio() / here.ratio()).ln());
        let noise_ratio = after.sigma / here.sigma;
        let k = noise_ratio.powf(1.0 - w) * second_order.powf(w) * (after.alpha / here.alpha).powf(g);
        Ok(ExactCoefficients {
            before: k,
            here: (after.alpha - k * before.alpha) / here.alpha,
            eps: after.alpha * h_next + k * before.alpha * h,
        })
    }

    fn eps(&self, denoiser: &(impl Denoiser + ?Sized), x: &Tensor, node: usize) -> Result<Tensor> {
        predict_eps(denoiser, x, self.chain.timestep(StepIdx::new(node - 1))?)
    }

    /// Moves a state by DDIM from one noise level to another.
    fn ddim(x: &Tensor, eps: &Tensor, from: Level, to: Level) -> Result<Tensor> {
        let scale = to.alpha / from.alpha;
        weighted_sum(scale, x, to.sigma - scale * from.sigma, eps)
    }

    /// Inverts data to the code from which [`decode`](Self::decode) recovers it.
    ///
    /// # Shapes
    /// - `x_0`, result: `[N, ..]`, the same; f32 or f64, which is also the precision of the arithmetic.
    /// # Errors
    /// As [`DdimSampler::invert`](crate::DdimSampler::invert).
    pub fn invert(
        &self,
        denoiser: &(impl Denoiser + ?Sized),
        x_0: &Tensor,
        on_step: &mut OnStep<'_>,
    ) -> Result<ExactCode> {
        num_items("x_0", x_0)?;
        let (last, num_steps) = (self.chain.len(), self.chain.len() + 1);
        let mut before = x_0.detach();
        let eps = self.eps(denoiser, &before, 1)?;
        let mut here = Self::ddim(&before, &eps, Level::DATA, self.chain.level(1)?)?;
        self.report(on_step, &Evaluation { number: 1, num_steps, node: 1, x: &before, eps: &eps }, &here)?;
        for node in 1..last {
            let eps = self.eps(denoiser, &here, node)?;
            let ExactCoefficients { before: k, here: weight, eps: eps_weight } = self.coefficients(node)?;
            let after = (weighted_sum(k, &before, weight, &here)? + eps.affine(eps_weight, 0.0)?)?;
            self.report(on_step, &Evaluation { number: node + 1, num_steps, node, x: &here, eps: &eps }, &after)?;
            (before, here) = (here, after);
        }
        let eps = self.eps(denoiser, &here, last)?;
        let by_ddim = Self::ddim(&here, &eps, self.chain.level(last)?, self.chain.level(last - 1)?)?;
        let done = Evaluation { number: num_steps, num_steps, node: last, x: &here, eps: &eps };
        self.report(on_step, &done, &here)?;
        Ok(ExactCode { residual: (before - by_ddim)?, x_terminal: here })
    }

    /// Decodes a code to data.
    ///
    /// # Shapes
    /// - `x_terminal`, `residual`, result: `[N, ..]`, the same; f32 or f64. Without a residual it is 0.
    /// # Errors
    /// As [`ReverseProcess::run`](crate::ReverseProcess::run).
    pub fn decode(
        &self,
        denoiser: &(impl Denoiser + ?Sized),
        x_terminal: &Tensor,
        residual: Option<&Tensor>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        num_items("x_terminal", x_terminal)?;
        let num_steps = self.chain.len();
        let mut after = x_terminal.detach();
        let eps = self.eps(denoiser, &after, num_steps)?;
        let mut here = Self::ddim(&after, &eps, self.chain.level(num_steps)?, self.chain.level(num_steps - 1)?)?;
        if let Some(residual) = residual {
            check_like("residual", residual, x_terminal)?;
            here = (here + residual.detach())?;
        }
        let done = Evaluation { number: 1, num_steps, node: num_steps, x: &after, eps: &eps };
        self.report(on_step, &done, &here)?;
        for node in (1..num_steps).rev() {
            let eps = self.eps(denoiser, &here, node)?;
            let ExactCoefficients { before: k, here: weight, eps: eps_weight } = self.coefficients(node)?;
            let sum = (weighted_sum(k.recip(), &after, -weight / k, &here)? - eps.affine(eps_weight / k, 0.0)?)?;
            let number = num_steps - node + 1;
            self.report(on_step, &Evaluation { number, num_steps, node, x: &here, eps: &eps }, &sum)?;
            (after, here) = (here, sum);
        }
        Ok(here)
    }

    fn report(&self, on_step: &mut OnStep<'_>, done: &Evaluation<'_>, x_t: &Tensor) -> Result<()> {
        let idx = StepIdx::new(done.node - 1);
        let x_0 = x_0_from_eps(done.x, done.eps, self.chain.alpha_bar(idx)?)?;
        let (number, num_steps) = (done.number, done.num_steps);
        report(on_step, &Step { number, num_steps, timestep: self.chain.timestep(idx)?, x_t, x_0: &x_0 })
    }
}

/// An evaluation of the network that a step made.
struct Evaluation<'a> {
    number: usize,
    num_steps: usize,
    node: usize,
    /// State that the network saw.
    x: &'a Tensor,
    eps: &'a Tensor,
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;
    use crate::analytic::{distance, linear_schedule, nonlinear};
    use crate::{NoiseSchedule, ReverseProcess, Sampler, Spacing, no_callback, no_noise};

    fn exact(spacing: Spacing, num_steps: usize, weights: ExactWeights) -> ExactChain {
        ExactChain::new(StepChain::spaced(&linear_schedule(), spacing, num_steps).unwrap(), weights)
    }

    fn values(dtype: DType) -> Tensor {
        let values: Vec<f64> = (0..24).map(|i| (f64::from(i) * 12.9898).sin()).collect();
        Tensor::from_vec(values, (2, 12), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn round_trip(chain: &ExactChain, x_0: &Tensor) -> Tensor {
        let ExactCode { x_terminal, residual } = chain.invert(&nonlinear, x_0, &mut no_callback).unwrap();
        chain.decode(&nonlinear, &x_terminal, Some(&residual), &mut no_callback).unwrap()
    }

    #[test]
    fn decoding_undoes_inversion() {
        for (_, weight) in ExactWeights::NAMED {
            for num_steps in [1, 2, 3, 10, 100, 500] {
                let chain = exact(Spacing::LogSnr, num_steps, weight);
                let [f64_error, f32_error] =
                    [DType::F64, DType::F32].map(|dtype| distance(&round_trip(&chain, &values(dtype)), &values(dtype)));
                assert!(f64_error < 1e-10, "{num_steps} steps, {weight}: {f64_error}");
                assert!(f32_error < 1e-3, "{num_steps} steps, {weight}: {f32_error}");
            }
        }
    }

    #[test]
    fn random_noise_is_decoded_near_ddim() {
        let x_terminal = values(DType::F64);
        let fine = StepChain::spaced(&linear_schedule(), Spacing::LogSnr, 500).unwrap();
        let process = ReverseProcess::new(Sampler::DpmSolverPp2M, fine, crate::Clip::None);
        let solved = process.run(&nonlinear, &x_terminal, &mut no_noise, &mut no_callback).unwrap();
        for (_, weight) in ExactWeights::NAMED {
            let decoded =
                exact(Spacing::LogSnr, 100, weight).decode(&nonlinear, &x_terminal, None, &mut no_callback).unwrap();
            assert!(distance(&decoded, &solved) < 0.05, "{weight}: {}", distance(&decoded, &solved));
        }
    }

    /// Codes name their weights, so those of a name never change: others are another name.
    #[test]
    fn the_weights_of_a_name_stay() {
        let schedule = NoiseSchedule::new(&"linear-zsnr".parse().unwrap(), 1000).unwrap();
        for (spacing, num_steps, expected) in [
            (Spacing::LogSnr, 10, &[8.4497, 10.3934, 9.2691, 3.4122, 1.2672, 0.9015, 0.8632, 0.9041, 0.7983][..]),
            (Spacing::Interior, 4, &[53.0649, 17.4526, 3.6696]),
            (Spacing::Interior, 9, &[4.9799, 5.1106, 4.3057, 4.3127, 3.1612, 1.8309, 1.1453, 0.9259]),
        ] {
            let chain =
                ExactChain::new(StepChain::spaced(&schedule, spacing, num_steps).unwrap(), ExactWeights::Balanced);
            let got: Vec<f64> = (1..num_steps).map(|node| chain.coefficients(node).unwrap().before).collect();
            let largest =
                got.iter().zip(expected).map(|(got, expected)| (got / expected - 1.0).abs()).fold(0.0, f64::max);
            assert!(got.len() == expected.len() && largest < 1e-4, "{num_steps} of {spacing}: {got:?}");
        }
    }

    #[test]
    fn each_evaluation_is_reported() {
        let chain = exact(Spacing::LogSnr, 4, ExactWeights::default());
        let mut numbers = vec![];
        let mut on_step = |step: &Step<'_>| {
            numbers.push((step.number, step.num_steps));
            ControlFlow::Continue(())
        };
        let code = chain.invert(&nonlinear, &values(DType::F32), &mut on_step).unwrap();
        chain.decode(&nonlinear, &code.x_terminal, Some(&code.residual), &mut on_step).unwrap();
        assert_eq!(numbers, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (1, 4), (2, 4), (3, 4), (4, 4)]);
        let stop = &mut |_: &Step<'_>| ControlFlow::Break(());
        let error = chain.invert(&nonlinear, &values(DType::F32), stop).unwrap_err();
        assert!(matches!(error, Error::Cancelled { after_steps: 1 }), "{error}");
    }

    #[test]
    fn every_name_is_read_back() {
        for (name, weights) in ExactWeights::NAMED {
            assert_eq!((name.parse::<ExactWeights>().unwrap(), weights.to_string().as_str()), (weights, name));
        }
        let error = "best".parse::<ExactWeights>().unwrap_err().to_string();
        assert!(ExactWeights::names().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn o_belm_is_of_second_order() {
        // With even steps in s, s_0 = 0 included, the update is x_{i+1} = x_{i-1} + 2 h eps in x / alpha.
        let alpha_bars: Vec<f64> = (1..4).map(|i| (1.0 + f64::from(i * i)).recip()).collect();
        let before = std::iter::once(1.0).chain(alpha_bars.iter().copied());
        let betas = alpha_bars.iter().zip(before).map(|(alpha_bar, before)| 1.0 - alpha_bar / before).collect();
        let chain = StepChain::new(&NoiseSchedule::from_betas(betas).unwrap(), &crate::StepSequence::All).unwrap();
        let chain = ExactChain::new(chain, ExactWeights::OBelm);
        for node in 1..3 {
            let ExactCoefficients { before, here, eps } = chain.coefficients(node).unwrap();
            let [low, high] = [node - 1, node + 1].map(|node| chain.chain.level(node).unwrap());
            assert!((before - high.alpha / low.alpha).abs() < 1e-12 && here.abs() < 1e-12);
            assert!((eps - 2.0 * high.alpha).abs() < 1e-12);
        }
    }

    proptest! {
        /// An update has no error if neither data nor noise change along the chain.
        #[test]
        fn coefficients_agree_with_ddim_to_first_order(num_steps in 3..200_usize, choice in 0..3_usize) {
            let chain = exact(Spacing::LogSnr, num_steps, ExactWeights::NAMED[choice].1);
            for node in 1..num_steps {
                let ExactCoefficients { before, here, eps } = chain.coefficients(node).unwrap();
                let [low, middle, high] = [node - 1, node, node + 1].map(|node| chain.chain.level(node).unwrap());
                let update = |x: fn(Level) -> f64| before * x(low) + here * x(middle);
                prop_assert!((update(|level| level.alpha) - high.alpha).abs() < 1e-9);
                prop_assert!((update(|level| level.sigma) + eps - high.sigma).abs() < 1e-9);
            }
        }
    }
}
