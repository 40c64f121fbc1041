//! One step of a sampler: the trait of all methods, results, callback and noise.

use std::ops::ControlFlow;

use candle_core::Tensor;

use crate::tensor_checks::check_like;
use crate::{Error, Result, StepIdx, Timestep};

/// A step that a sampler has just completed, for progress and previews.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The number of completed steps, this one included: from 1 to `num_steps`.
    pub number: usize,
    /// The total number of steps.
    pub num_steps: usize,
    /// The timestep at which the denoiser was evaluated.
    pub timestep: Timestep,
    /// The new state: less noisy by one step when decoding, noisier by one step when inverting. `[N, ..]`
    pub x_t: &'a Tensor,
    /// The estimate of the clean data that this step used, clipped if clipping is on. `[N, ..]`
    pub x_0: &'a Tensor,
}

/// A sampler running on one chain; a multistep method keeps its history of earlier steps here.
pub(crate) trait Stepper {
    /// Returns the standard deviation of the noise that a step adds; 0 for deterministic methods.
    fn sigma(&self, _idx: StepIdx) -> Result<f64> {
        Ok(0.0)
    }

    /// Moves `x_t` one step towards the data. The loop calls it for each step of the chain once, the noisiest first.
    ///
    /// `noise` is there exactly if [`sigma`](Self::sigma) is not 0.
    fn step(&mut self, idx: StepIdx, x_t: &Tensor, eps: &Tensor, noise: Option<&Tensor>) -> Result<Denoised>;
}

/// A callback that runs after each step; [`ControlFlow::Break`] ends the sampler with [`Error::Cancelled`], even at the
/// last.
pub type OnStep<'a> = dyn FnMut(&Step<'_>) -> ControlFlow<()> + 'a;

/// A source of noise for a sampler: standard normal values with the shape, dtype and device of the argument.
pub type NoiseFn<'a> = dyn FnMut(&Tensor) -> candle_core::Result<Tensor> + 'a;

/// The empty callback, which never stops a sampler.
pub const fn no_callback(_step: &Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A noise source that always fails, for deterministic samplers, which never call it.
///
/// # Errors
/// Always.
pub fn no_noise(_like: &Tensor) -> candle_core::Result<Tensor> {
    candle_core::bail!("there is no source of noise")
}

/// The result of one denoising step, towards the data.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// The state one step less noisy.
    pub x_prev: Tensor,
    /// The estimate of the clean data that this step used, clipped if clipping is on.
    pub x_0: Tensor,
}

/// The result of one inversion step, towards the noise.
#[derive(Debug, Clone)]
pub struct Inverted {
    /// The state one step noisier.
    pub x_next: Tensor,
    /// The estimate of the clean data that this step used, clipped if clipping is on.
    pub x_0: Tensor,
}

/// Calls the callback, and ends the chain if it breaks.
pub(crate) fn report(on_step: &mut OnStep<'_>, step: &Step<'_>) -> Result<()> {
    match on_step(step) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled { after_steps: step.number }),
    }
}

/// Draws noise for a step that adds some.
pub(crate) fn draw_noise(
    noise: &mut NoiseFn<'_>,
    x_t: &Tensor,
    sigma: f64,
    timestep: Timestep,
) -> Result<Option<Tensor>> {
    if sigma > 0.0 { noise(x_t).map(Some).map_err(|source| Error::NoiseSource { timestep, source }) } else { Ok(None) }
}

/// Computes `mean + sigma * noise`; noise is there exactly if `sigma > 0`.
pub(crate) fn add_noise(mean: Tensor, sigma: f64, noise: Option<&Tensor>, idx: StepIdx) -> Result<Tensor> {
    match (noise, sigma > 0.0) {
        (None, false) => Ok(mean),
        (None, true) => Err(Error::NoiseMissing { idx }),
        (Some(_), false) => Err(Error::NoiseUnused { idx }),
        (Some(noise), true) => {
            check_like("noise", noise, &mean)?;
            Ok((mean + noise.affine(sigma, 0.0)?)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    const IDX: StepIdx = StepIdx::new(4);

    fn ones() -> Tensor {
        Tensor::ones((1, 2), DType::F64, &Device::Cpu).unwrap()
    }

    #[test]
    fn noise_is_scaled_and_added() {
        let sum = add_noise(ones(), 0.5, Some(&ones()), IDX).unwrap();
        assert_eq!(sum.to_vec2::<f64>().unwrap(), [[1.5, 1.5]]);
    }

    #[test]
    fn missing_noise_is_an_error() {
        assert!(matches!(add_noise(ones(), 0.5, None, IDX), Err(Error::NoiseMissing { idx: IDX })));
    }

    #[test]
    fn noise_that_would_be_ignored_is_an_error() {
        assert!(matches!(add_noise(ones(), 0.0, Some(&ones()), IDX), Err(Error::NoiseUnused { idx: IDX })));
    }

    #[test]
    fn noise_that_does_not_fit_is_an_error() {
        let noise = ones().narrow(1, 0, 1).unwrap();
        assert!(matches!(add_noise(ones(), 0.5, Some(&noise), IDX), Err(Error::ShapeMismatch { name: "noise", .. })));
    }

    #[test]
    fn noise_is_drawn_only_where_it_is_added() {
        let timestep = Timestep::new(50);
        assert!(draw_noise(&mut no_noise, &ones(), 0.0, timestep).unwrap().is_none());
        let error = draw_noise(&mut no_noise, &ones(), 0.1, timestep).unwrap_err();
        assert!(matches!(error, Error::NoiseSource { timestep, .. } if timestep.get() == 50), "{error}");
    }

    #[test]
    fn a_break_is_a_cancellation() {
        let x = ones();
        let step = Step { number: 3, num_steps: 5, timestep: Timestep::new(50), x_t: &x, x_0: &x };
        assert!(report(&mut no_callback, &step).is_ok());
        let error = report(&mut |_: &Step<'_>| ControlFlow::Break(()), &step).unwrap_err();
        assert!(matches!(error, Error::Cancelled { after_steps: 3 }), "{error}");
    }
}
