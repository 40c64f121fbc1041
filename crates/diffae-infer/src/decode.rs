//! `(z_sem, x_T) -> x_0`.

use candle_core::Tensor;
use diffae_schedule::{Clip, NoiseFn, OnStep};

use crate::chain::{UnetDenoiser, ddim};
use crate::error::Result;
use crate::model::Model;

/// How a chain from noise to pictures runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeOptions {
    /// Number of steps. 20 do for reconstructions and interpolations, 100 for edits.
    pub num_steps: usize,
    /// 0 is deterministic, 1 adds as much noise at each step as DDPM.
    pub eta: f64,
    /// Whether the estimate of `x_0` is clamped to the range of pictures at each step.
    pub clip: Clip,
}

impl DecodeOptions {
    /// Deterministic, clipped: what the paper uses.
    #[must_use]
    pub fn ddim(num_steps: usize) -> Self {
        Self { num_steps, eta: 0., clip: Clip::UnitRange }
    }
}

impl Model {
    /// Decodes pictures with DDIM.
    ///
    /// # Shapes
    /// - `x_terminal`: `[N, C, H, W]` (`x_T`), f32; `z_sem`: `[N, D]`, absent in a plain DDPM; result: `x_0`, as
    ///   `x_terminal`, in `[-1, 1]` if clipped.
    /// - `noise`: standard normal noise like its argument; called only where eta is positive.
    /// # Errors
    /// [`Schedule`](crate::Error::Schedule) if there is no sequence of so many steps;
    /// [`Interrupted`](crate::Error::Interrupted) if `on_step` breaks; [`Tensor`](crate::Error::Tensor) if shapes do not
    /// fit.
    pub fn decode(
        &self,
        x_terminal: &Tensor,
        z_sem: Option<&Tensor>,
        options: &DecodeOptions,
        noise: &mut NoiseFn<'_>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let sampler = ddim(self.schedule(), options.num_steps, options.clip, options.eta)?;
        let denoiser = UnetDenoiser::new(self, z_sem, sampler.chain(), x_terminal)?;
        Ok(sampler.decode(&denoiser, x_terminal, noise, on_step)?)
    }
}
