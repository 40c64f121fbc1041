//! Encoding: `x_0 -> (z_sem, x_T)`.

use candle_core::Tensor;
use diffae_schedule::{Clip, DdimSampler, ExactChain, ExactCode, OnStep, Spacing};

use crate::chain::UnetDenoiser;
use crate::error::Result;
use crate::model::Model;
use crate::stochastic_code::{ExactSettings, Residual, StochasticCode};

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
        let inversion = DdimSampler::new(self.step_chain(Spacing::Leading, num_steps)?, Clip::UnitRange);
        let denoiser = UnetDenoiser::new(self, z_sem, inversion.chain(), x_0)?;
        Ok(inversion.invert(&denoiser, x_0, on_step)?)
    }

    /// Encodes pictures to stochastic codes from which [`decode_exactly`](Self::decode_exactly) recovers them, up to
    /// rounding, in any number of steps.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; `z_sem`: `[N, D]`, absent in a plain DDPM.
    /// # Errors
    /// As [`Model::invert`].
    /// # Source
    /// [`ExactChain`](diffae_schedule::ExactChain).
    pub fn invert_exactly(
        &self,
        x_0: &Tensor,
        z_sem: Option<&Tensor>,
        settings: ExactSettings,
        on_step: &mut OnStep<'_>,
    ) -> Result<StochasticCode> {
        let chain = self.exact_chain(settings)?;
        let denoiser = UnetDenoiser::new(self, z_sem, chain.chain(), x_0)?;
        let ExactCode { x_terminal, residual } = chain.invert(&denoiser, x_0, on_step)?;
        Ok(StochasticCode { x_terminal, residual: Some(Residual { tensor: residual, chain: settings }) })
    }

    /// Decodes stochastic codes of an exact chain along that chain. With another `z_sem` than that of the inversion this is
    /// an edit: the step from `x_T` is computed for the new one, and the residual is added.
    ///
    /// # Shapes
    /// - `x_terminal`: `[N, C, H, W]`, f32; `z_sem`: `[N, D]`, absent in a plain DDPM; result: `x_0`, as `x_terminal`; not
    ///   clipped.
    /// # Errors
    /// As [`Model::decode`].
    pub fn decode_exactly(
        &self,
        (x_terminal, residual): (&Tensor, &Residual),
        z_sem: Option<&Tensor>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let chain = self.exact_chain(residual.chain)?;
        let denoiser = UnetDenoiser::new(self, z_sem, chain.chain(), x_terminal)?;
        Ok(chain.decode(&denoiser, x_terminal, Some(&residual.tensor), on_step)?)
    }

    fn exact_chain(&self, settings: ExactSettings) -> Result<ExactChain> {
        let ExactSettings { steps, spacing, weights } = settings;
        Ok(ExactChain::new(self.step_chain(spacing, steps)?, weights))
    }
}
