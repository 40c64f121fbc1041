//! A denoiser with a closed form, for the tests of several files.

use candle_core::{DType, Tensor};

use crate::{BetaSchedule, NoiseSchedule, Timestep};

/// Returns the linear schedule of 1000 timesteps.
pub(crate) fn linear_schedule() -> NoiseSchedule {
    NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap()
}

/// Predicts eps for data of standard deviation 0.7, but not linearly in the state.
pub(crate) fn nonlinear(x_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
    let alpha_bar = linear_schedule().alpha_bar(timesteps[0]).map_err(candle_core::Error::wrap)?;
    let shrunk = (x_t * (alpha_bar.sqrt() * 0.49 / (0.49 * alpha_bar + 1.0 - alpha_bar)))?;
    let bend = ((x_t * 3.0)?.sin()? * (0.2 * (1.0 - alpha_bar)))?;
    let x_0 = (&shrunk + (&shrunk * bend)?)?;
    (x_t - (x_0 * alpha_bar.sqrt())?)? / (1.0 - alpha_bar).sqrt()
}

/// Returns the largest difference of two tensors.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap();
    difference.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}
