//! Latent sampling: noise -> `z_sem`.

use candle_core::Tensor;
use diffae_schedule::{OnStep, ReverseProcess, StepChain, no_noise};

use crate::chain::LatentDenoiser;
use crate::decode::DecodeOptions;
use crate::error::Result;
use crate::model::Model;

impl Model {
    /// Samples normalized semantic codes with the latent diffusion.
    ///
    /// # Shapes
    /// - `z_terminal`: standard normal noise, `[N, D]`, f32; result: normalized `z_sem`, `[N, D]`, f32.
    /// - `options`: a deterministic sampler, and no clipping, as codes have no range; see [`DecodeOptions::latent`].
    /// # Errors
    /// [`MissingPart`](crate::Error::MissingPart) if the model has no latent net; [`Schedule`](crate::Error::Schedule) if the
    /// sampler adds noise; others as for [`Model::decode`].
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), section 4.
    pub fn sample_z_sem_normalized(
        &self,
        z_terminal: &Tensor,
        options: &DecodeOptions,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let latent = self.latent()?;
        let chain = StepChain::spaced(&latent.schedule, options.spacing, options.num_steps)?;
        let process = ReverseProcess::new(options.sampler, chain, options.clip);
        Ok(process.run(&LatentDenoiser(latent), z_terminal, &mut no_noise, on_step)?)
    }

    /// Samples semantic codes, ready for [`Model::decode`].
    ///
    /// # Shapes
    /// - `z_terminal`: standard normal noise, `[N, D]`, f32; result: `z_sem`, `[N, D]`, f32.
    /// # Errors
    /// As [`Model::sample_z_sem_normalized`], and if the model has no latent statistics.
    pub fn sample_z_sem(
        &self,
        z_terminal: &Tensor,
        options: &DecodeOptions,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        self.denormalize(&self.sample_z_sem_normalized(z_terminal, options, on_step)?)
    }
}
