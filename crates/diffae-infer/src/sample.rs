//! Latent sampling: noise -> `z_sem`.

use candle_core::Tensor;
use diffae_schedule::{Clip, OnStep, ReverseProcess, Sampler, no_noise};

use crate::chain::{LatentDenoiser, chain};
use crate::error::Result;
use crate::model::Model;

impl Model {
    /// Samples normalized semantic codes with the latent diffusion: deterministic DDIM without clipping.
    ///
    /// # Shapes
    /// - `z_terminal`: standard normal noise, `[N, D]`, f32; result: normalized `z_sem`, `[N, D]`, f32.
    /// # Errors
    /// [`MissingPart`](crate::Error::MissingPart) if the model has no latent net; others as for [`Model::decode`].
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), section 4.
    pub fn sample_z_sem_normalized(
        &self,
        z_terminal: &Tensor,
        num_steps: usize,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let latent = self.latent()?;
        let process = ReverseProcess::new(Sampler::DDIM, chain(&latent.schedule, num_steps)?, Clip::None);
        Ok(process.run(&LatentDenoiser(latent), z_terminal, &mut no_noise, on_step)?)
    }

    /// Samples semantic codes, ready for [`Model::decode`].
    ///
    /// # Shapes
    /// - `z_terminal`: standard normal noise, `[N, D]`, f32; result: `z_sem`, `[N, D]`, f32.
    /// # Errors
    /// As [`Model::sample_z_sem_normalized`], and if the model has no latent statistics.
    pub fn sample_z_sem(&self, z_terminal: &Tensor, num_steps: usize, on_step: &mut OnStep<'_>) -> Result<Tensor> {
        self.denormalize(&self.sample_z_sem_normalized(z_terminal, num_steps, on_step)?)
    }
}
