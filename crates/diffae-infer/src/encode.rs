//! Encoding: `x_0 -> (z_sem, x_T)`.

use candle_core::Tensor;
use diffae_schedule::{Clip, DdimSampler, OnStep};

use crate::chain::{UnetDenoiser, chain};
use crate::error::Result;
use crate::model::Model;

impl Model {
    /// Encodes pictures to their semantic codes `z_sem`.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; result: `z_sem` `[N, D]`, f32.
    /// # Errors
    /// [`MissingPart`](crate::Error::MissingPart) in a plain DDPM; [`Tensor`](crate::Error::Tensor) if the shape does not
    /// fit.
    pub fn encode_semantic(&self, x_0: &Tensor) -> Result<Tensor> {
        self.run_encoder(x_0)
    }

    /// Encodes pictures to their noise maps `x_T`, which hold the details that `z_sem` lacks: runs DDIM backwards.
    ///
    /// The paper uses 250 steps. Fewer give an `x_T` that decodes less exactly.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; `z_sem`: `[N, D]`, absent in a plain DDPM; result: `x_T`, as `x_0`.
    /// # Errors
    /// [`Schedule`](crate::Error::Schedule) if there is no sequence of so many steps;
    /// [`Cancelled`](crate::Error::Cancelled) if `on_step` breaks; [`Tensor`](crate::Error::Tensor) if shapes do not
    /// fit.
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), Eq. 8.
    pub fn invert(
        &self,
        x_0: &Tensor,
        z_sem: Option<&Tensor>,
        num_steps: usize,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let inversion = DdimSampler::new(chain(self.schedule()?, num_steps)?, Clip::UnitRange);
        let denoiser = UnetDenoiser::new(self, z_sem, inversion.chain(), x_0)?;
        Ok(inversion.invert(&denoiser, x_0, on_step)?)
    }
}
