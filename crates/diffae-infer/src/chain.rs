//! What encoding, decoding and sampling share: the networks as denoisers, and the sampler of a step count.

use candle_core::Tensor;
use diffae_nets::{LatentNet, Unet, ZSemProjections};
use diffae_schedule::{Clip, DdimSampler, Denoiser, NoiseSchedule, StepChain, StepSequence, Timestep};

use crate::error::Result;

/// The `UNet` with what it makes of `z_sem`, computed once for the whole chain.
pub(crate) struct UnetDenoiser<'a> {
    pub(crate) unet: &'a Unet,
    pub(crate) z_sem: Option<ZSemProjections>,
}

impl Denoiser for UnetDenoiser<'_> {
    fn eps(&self, x_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        let time = self.unet.project_time(&distinct(timesteps), x_t)?;
        self.unet.forward_projected(x_t, &time, self.z_sem.as_ref())
    }
}

/// The latent net.
pub(crate) struct LatentDenoiser<'a>(pub(crate) &'a LatentNet);

impl Denoiser for LatentDenoiser<'_> {
    fn eps(&self, z_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        self.0.forward(z_t, &distinct(timesteps))
    }
}

/// One timestep where all are the same, as they are in a chain: it is then embedded once for the batch.
fn distinct(timesteps: &[Timestep]) -> Vec<f32> {
    let all_equal = timesteps.windows(2).all(|pair| pair[0] == pair[1]);
    let needed = if all_equal { timesteps.len().min(1) } else { timesteps.len() };
    timesteps[..needed].iter().map(|t| t.get() as f32).collect()
}

/// DDIM with `num_steps` steps over `schedule`.
pub(crate) fn ddim(schedule: &NoiseSchedule, num_steps: usize, clip: Clip, eta: f64) -> Result<DdimSampler> {
    let chain = StepChain::new(schedule, &StepSequence::Ddim(num_steps))?;
    Ok(DdimSampler::new(chain, clip).with_eta(eta)?)
}
