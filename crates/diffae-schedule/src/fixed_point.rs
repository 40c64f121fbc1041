//! Inversion by fixed points: the noise map from which DDIM recovers the data.

use candle_core::{DType, Tensor};

use crate::denoiser::predict_eps;
use crate::prediction::weighted_sum;
use crate::step::report;
use crate::tensor_checks::num_items;
use crate::{
    Clip, Denoiser, OnStep, Result, ReverseProcess, Sampler, Step, StepChain, StepIdx, no_noise, x_0_from_eps,
};

/// Inversion of DDIM step by step: each state towards the noise is the one that a step of DDIM leads back from.
///
/// With noise levels `alpha`, `sigma` of node i and `alpha'`, `sigma'` of the node before, the step back from `x` to `x'` is
/// solved for `x`, which stands on both sides:
///
/// `x = g(x) = (alpha / alpha') x' + (sigma - (alpha / alpha') sigma') eps(x)`
///
/// The iteration starts at the eps of the node before and is accelerated (Anderson, depth 1): with `f = g(x) - x`,
/// `x_next = g - theta (g - g_before)`, `theta = <f, f - f_before> / |f - f_before|^2`. It ends where a step of DDIM from `x`
/// comes within [`tolerance`](Self::tolerance) of `x'`, with `g(x)`, or at the limit, with the iterate that came nearest. The
/// clean picture is a node of its own.
///
/// The code is one state, `x_T` alone, which any implementation of DDIM decodes along the same timesteps. Where the network
/// takes details for noise there may be no such state; then the limit ends the iteration, and decoding loses the detail.
/// # Source
/// The iteration is that of Pan et al. 2023 (arXiv:2309.04907), AIDI, along the chain of decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedPoint {
    chain: StepChain,
    /// Tolerance of the root mean square of `DDIM(x) - x'`, in units of the data, `[-1, 1]`. Default: 0.001, an eighth of a
    /// step of 8-bit values.
    pub tolerance: f64,
    /// Maximum number of evaluations per step. Default: 10.
    pub max_evaluations: usize,
}

/// The iterates of one step, all `[N, ..]`.
struct Iterates {
    /// Result of each item: the iterate x of the least error, or `g(x)` of one within the tolerance; with the eps of x.
    best: [Tensor; 2],
    /// Error of that iterate.
    errors: Vec<f64>,
    /// `f` and `g` of the iteration before.
    before: Option<[Tensor; 2]>,
}

impl FixedPoint {
    /// Creates an inversion along a chain, with the default tolerance and limit.
    #[must_use]
    pub const fn new(chain: StepChain) -> Self {
        Self { chain, tolerance: 1e-3, max_evaluations: 10 }
    }

    /// Returns the nodes of the chain.
    #[must_use]
    pub const fn chain(&self) -> &StepChain {
        &self.chain
    }

    /// Inverts data to the noise map from which [`decode`](Self::decode) recovers it, within the tolerance. The callback is
    /// called after each evaluation. What becomes of an item does not depend on its batch.
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
    ) -> Result<Tensor> {
        num_items("x_0", x_0)?;
        let limit = self.max_evaluations.max(1);
        let (mut number, num_steps) = (0, self.chain.len() * limit + 1);
        let mut evaluate = |x: &Tensor, idx: StepIdx| -> Result<Tensor> {
            let timestep = self.chain.timestep(idx)?;
            let eps = predict_eps(denoiser, x, timestep)?;
            number += 1;
            let x_0 = x_0_from_eps(x, &eps, self.chain.alpha_bar(idx)?)?;
            report(on_step, &Step { number, num_steps, timestep, x_t: x, x_0: &x_0 })?;
            Ok(eps)
        };
        let mut x = x_0.detach();
        let first = self.chain.level(1)?;
        let mut eps = evaluate(&x.affine(first.alpha, 0.0)?, StepIdx::new(0))?;
        for idx in self.chain.indices() {
            let (from, to) = (self.chain.level(idx.get())?, self.chain.level(idx.get() + 1)?);
            let scale = to.alpha / from.alpha;
            let eps_weight = to.sigma - scale * from.sigma;
            let mut iterate = weighted_sum(scale, &x, eps_weight, &eps)?;
            let mut iterates: Option<Iterates> = None;
            for evaluation in 1..=limit {
                let eps = evaluate(&iterate, idx)?;
                let g = weighted_sum(scale, &x, eps_weight, &eps)?;
                let f = (&g - &iterate)?;
                let errors: Vec<f64> = root_mean_squares(&f)?.into_iter().map(|error| error / scale).collect();
                // Where iterates approach a solution, g(x) is nearer than x; elsewhere it may be anywhere.
                let is_near: Vec<bool> = errors.iter().map(|&error| error <= self.tolerance).collect();
                let result = choose(&is_near, &g, &iterate)?;
                let known = Iterates::with(iterates.take(), [&result, &eps], errors)?;
                if evaluation == limit || known.errors.iter().all(|&error| error <= self.tolerance) {
                    iterates = Some(known);
                    break;
                }
                let is_done: Vec<bool> = known.errors.iter().map(|&error| error <= self.tolerance).collect();
                let next = known.accelerated(&f, &g)?;
                iterate = choose(&is_done, &iterate, &next)?;
                iterates = Some(Iterates { before: Some([f, g]), ..known });
            }
            if let Some(Iterates { best: [solved, eps_there], .. }) = iterates {
                (x, eps) = (solved, eps_there);
            }
        }
        Ok(x)
    }

    /// Decodes a noise map by DDIM, without clipping, which would not be undone.
    ///
    /// # Shapes
    /// - `x_terminal`, result: `[N, ..]`, the same; f32 or f64.
    /// # Errors
    /// As [`ReverseProcess::run`].
    pub fn decode(
        &self,
        denoiser: &(impl Denoiser + ?Sized),
        x_terminal: &Tensor,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let process = ReverseProcess::new(Sampler::DDIM, self.chain.clone(), Clip::None);
        process.run(denoiser, x_terminal, &mut no_noise, on_step)
    }
}

impl Iterates {
    /// Adds an iterate with its result and eps: keeps them for the items of which it is the best.
    fn with(known: Option<Self>, result: [&Tensor; 2], errors: Vec<f64>) -> Result<Self> {
        let Some(known) = known else { return Ok(Self { best: result.map(Clone::clone), errors, before: None }) };
        // NaN is no improvement.
        let is_better: Vec<bool> = errors.iter().zip(&known.errors).map(|(new, old)| new < old).collect();
        let [x, eps] = [0, 1].map(|i| choose(&is_better, result[i], &known.best[i]));
        let least = errors.iter().zip(&known.errors).zip(&is_better);
        let errors = least.map(|((&new, &old), &is_better)| if is_better { new } else { old }).collect();
        Ok(Self { best: [x?, eps?], errors, before: known.before })
    }

    /// Computes the next iterate from `f` and `g` of the last two.
    fn accelerated(&self, f: &Tensor, g: &Tensor) -> Result<Tensor> {
        let Some([f_before, g_before]) = &self.before else { return Ok(g.clone()) };
        let change = (f - f_before)?;
        let pairs = dot_products(f, &change)?.into_iter().zip(dot_products(&change, &change)?);
        let thetas: Vec<f64> = pairs.map(|(along, square)| if square > 0.0 { along / square } else { 0.0 }).collect();
        Ok((g - column(&thetas, g)?.broadcast_mul(&(g - g_before)?)?)?)
    }
}

/// Computes the inner product of each item, f64 on the host.
fn dot_products(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let products = x.to_dtype(DType::F64)?.mul(&y.to_dtype(DType::F64)?)?;
    Ok(products.flatten_from(1)?.sum(1)?.to_vec1::<f64>()?)
}

fn root_mean_squares(x: &Tensor) -> Result<Vec<f64>> {
    let num_values = x.elem_count() as f64 / num_items("f", x)? as f64;
    Ok(dot_products(x, x)?.into_iter().map(|square| (square / num_values).sqrt()).collect())
}

/// Returns one value per item, `[N, 1, ..]`, of the dtype and device of `like`.
fn column(values: &[f64], like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[0] = values.len();
    Ok(Tensor::from_vec(values.to_vec(), shape, like.device())?.to_dtype(like.dtype())?)
}

/// Selects each item from `yes` or from `no`.
fn choose(is_yes: &[bool], yes: &Tensor, no: &Tensor) -> Result<Tensor> {
    match is_yes.iter().filter(|&&is_yes| is_yes).count() {
        0 => return Ok(no.clone()),
        count if count == is_yes.len() => return Ok(yes.clone()),
        _ => {}
    }
    let items = is_yes.iter().enumerate().map(|(idx, &is_yes)| if is_yes { yes } else { no }.narrow(0, idx, 1));
    Ok(Tensor::cat(&items.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use candle_core::Device;

    use super::*;
    use crate::analytic::{distance, linear_schedule, nonlinear};
    use crate::{DdimSampler, Error, Spacing, Timestep, no_callback};

    fn fixed_point(num_steps: usize) -> FixedPoint {
        FixedPoint::new(StepChain::spaced(&linear_schedule(), Spacing::LogSnr, num_steps).unwrap())
    }

    fn data(count: usize) -> Tensor {
        let values: Vec<f64> = (0..count * 12).map(|i| (i as f64 * 12.9898).sin() * 0.9).collect();
        Tensor::from_vec(values, (count, 12), &Device::Cpu).unwrap()
    }

    #[test]
    fn decoding_recovers_the_data_within_the_tolerance() {
        let x_0 = data(3);
        for num_steps in [5, 10, 20] {
            let inversion = fixed_point(num_steps);
            let round_trip = |inversion: &FixedPoint| {
                let x_terminal = inversion.invert(&nonlinear, &x_0, &mut no_callback).unwrap();
                distance(&inversion.decode(&nonlinear, &x_terminal, &mut no_callback).unwrap(), &x_0)
            };
            let fine = FixedPoint { tolerance: 1e-9, max_evaluations: 100, ..inversion.clone() };
            let ddim = DdimSampler::new(inversion.chain().clone(), Clip::None);
            let by_ddim = ddim.invert(&nonlinear, &x_0, &mut no_callback).unwrap();
            let by_ddim = distance(&inversion.decode(&nonlinear, &by_ddim, &mut no_callback).unwrap(), &x_0);
            let [coarse, fine] = [inversion, fine].map(|inversion| round_trip(&inversion));
            assert!(coarse < 0.01 && fine < 1e-7, "{num_steps} steps: {coarse}, {fine}");
            assert!(coarse < by_ddim / 5.0, "{num_steps} steps: {coarse}, {by_ddim} by DDIM");
        }
    }

    #[test]
    fn an_item_is_inverted_as_it_is_alone() {
        let x_0 = data(4);
        // The middle two take other numbers of iterations than the others.
        let scales = Tensor::new(&[[1.0], [0.01], [3.0], [1.0]], &Device::Cpu).unwrap();
        let x_0 = x_0.broadcast_mul(&scales).unwrap();
        let inversion = fixed_point(6);
        let together = inversion.invert(&nonlinear, &x_0, &mut no_callback).unwrap();
        for idx in 0..4 {
            let item = x_0.narrow(0, idx, 1).unwrap();
            let alone = inversion.invert(&nonlinear, &item, &mut no_callback).unwrap();
            assert_eq!(alone.to_vec2::<f64>().unwrap()[0], together.to_vec2::<f64>().unwrap()[idx], "{idx}");
        }
    }

    #[test]
    fn without_a_solution_the_nearest_iterate_is_returned() {
        // A network that turns with the least change: the iteration finds nothing.
        let wild = |x_t: &Tensor, _: &[Timestep]| (x_t * 40.0)?.sin()? * 2.0;
        let inversion = FixedPoint { tolerance: 0.0, max_evaluations: 7, ..fixed_point(1) };
        let x_0 = data(3);
        let mut iterates = vec![];
        let mut keep = |step: &Step<'_>| {
            iterates.push(step.x_t.clone());
            ControlFlow::Continue(())
        };
        let x_terminal = inversion.invert(&wild, &x_0, &mut keep).unwrap();
        // The first evaluation is of the data themselves.
        assert_eq!(iterates.len(), 1 + 7);
        let errors = |x: &Tensor| {
            let decoded = inversion.decode(&wild, x, &mut no_callback).unwrap();
            root_mean_squares(&(decoded - &x_0).unwrap()).unwrap()
        };
        let of_iterates: Vec<Vec<f64>> = iterates[1..].iter().map(errors).collect();
        for (item, error) in errors(&x_terminal).into_iter().enumerate() {
            let least = of_iterates.iter().map(|errors| errors[item]).fold(f64::INFINITY, f64::min);
            assert!(least > 0.1 && (error - least).abs() < 1e-12, "{item}: {error}, but {least} was seen");
        }
    }

    #[test]
    fn a_network_without_a_solution_ends_at_the_limit() {
        // What is left after the step is nothing, whatever the state is.
        let all_noise = |x_t: &Tensor, timesteps: &[Timestep]| {
            let alpha_bar = linear_schedule().alpha_bar(timesteps[0]).map_err(candle_core::Error::wrap)?;
            x_t / (1.0 - alpha_bar).sqrt()
        };
        let inversion = FixedPoint { max_evaluations: 4, ..fixed_point(3) };
        let mut numbers = vec![];
        let mut on_step = |step: &Step<'_>| {
            numbers.push((step.number, step.num_steps));
            ControlFlow::Continue(())
        };
        let x_terminal = inversion.invert(&all_noise, &data(2), &mut on_step).unwrap();
        assert_eq!((numbers.first(), numbers.len()), (Some(&(1, 13)), numbers.last().unwrap().0));
        assert!((5..=13).contains(&numbers.len()), "{numbers:?}");
        assert!(x_terminal.sum_all().unwrap().to_scalar::<f64>().unwrap().is_finite());
        let stop = &mut |_: &Step<'_>| ControlFlow::Break(());
        let error = inversion.invert(&all_noise, &data(2), stop).unwrap_err();
        assert!(matches!(error, Error::Cancelled { after_steps: 1 }), "{error}");
    }
}
