//! Encoding: `x_0 -> (z_sem, x_T)`.

use candle_core::Tensor;
use diffae_schedule::{Clip, DdimSampler, ExactChain, FixedPoint, OnStep, ReverseProcess, Spacing, no_noise};

use crate::chain::UnetDenoiser;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::stochastic_code::{ChainSettings, CodeChain, SampledSettings, StochasticCode};

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
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; `z_sem`: `[N, D]`, absent in a plain DDPM; result: `x_T`, `[N, ..]` as
    ///   [`x_terminal_shape`](Self::x_terminal_shape).
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
        let clip = self.clip_of_states(Clip::UnitRange);
        let inversion = DdimSampler::new(self.step_chain(Spacing::Leading, num_steps)?, clip);
        let x_0 = self.states(x_0)?;
        let denoiser = UnetDenoiser::new(self, z_sem, inversion.chain(), &x_0)?;
        Ok(inversion.invert(&denoiser, &x_0, on_step)?)
    }

    /// Encodes pictures to stochastic codes from which [`decode_along`](Self::decode_along) recovers them: along an exact
    /// chain up to rounding, by fixed points within a tolerance, in any number of steps. What a spatial autoencoder loses is
    /// lost: its latents are recovered.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; `z_sem`: `[N, D]`, absent in a plain DDPM.
    /// # Errors
    /// As [`Model::invert`]; [`Error::Conflict`] for a chain of samples.
    /// # Source
    /// [`ExactChain`] and [`FixedPoint`].
    pub fn invert_along(
        &self,
        x_0: &Tensor,
        z_sem: Option<&Tensor>,
        settings: ChainSettings,
        on_step: &mut OnStep<'_>,
    ) -> Result<StochasticCode> {
        let steps = self.step_chain(settings.spacing(), settings.steps())?;
        let x_0 = &self.states(x_0)?;
        let denoiser = UnetDenoiser::new(self, z_sem, &steps, x_0)?;
        let (x_terminal, residual) = match settings {
            ChainSettings::Sampled(_) => {
                let problem = format!("pictures are to be inverted, but not along {settings}");
                return Err(Error::Conflict { problem });
            }
            ChainSettings::Exact(exact) => {
                let code = ExactChain::new(steps, exact.weights).invert(&denoiser, x_0, on_step)?;
                (code.x_terminal, Some(code.residual))
            }
            ChainSettings::FixedPoint(_) => (FixedPoint::new(steps).invert(&denoiser, x_0, on_step)?, None),
        };
        Ok(StochasticCode { x_terminal, chain: Some(CodeChain { settings, residual }) })
    }

    /// Decodes stochastic codes along the chain that made them. With another `z_sem` than that of the inversion this is an
    /// edit: of an exact chain the step from `x_T` is computed for the new one, and the residual is added.
    ///
    /// # Shapes
    /// - `x_terminal`: `[N, ..]` as [`x_terminal_shape`](Self::x_terminal_shape), f32; `z_sem`: `[N, D]`, absent in a plain
    ///   DDPM; result: `x_0`, `[N, C, H, W]`; not clipped but for samples.
    /// # Errors
    /// As [`Model::decode`]; if the sampler of samples adds noise.
    pub fn decode_along(
        &self,
        x_terminal: &Tensor,
        chain: &CodeChain,
        z_sem: Option<&Tensor>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let CodeChain { settings, residual } = chain;
        let steps = self.step_chain(settings.spacing(), settings.steps())?;
        let denoiser = UnetDenoiser::new(self, z_sem, &steps, x_terminal)?;
        let decoded = match *settings {
            ChainSettings::Exact(exact) => {
                ExactChain::new(steps, exact.weights).decode(&denoiser, x_terminal, residual.as_ref(), on_step)
            }
            ChainSettings::FixedPoint(_) => FixedPoint::new(steps).decode(&denoiser, x_terminal, on_step),
            ChainSettings::Sampled(SampledSettings { sampler, .. }) => {
                let process = ReverseProcess::new(sampler, steps, self.clip_of_states(Clip::UnitRange));
                process.run(&denoiser, x_terminal, &mut no_noise, on_step)
            }
        };
        self.clipped_pictures(&decoded?, if settings.is_sampled() { Clip::UnitRange } else { Clip::None })
    }
}
