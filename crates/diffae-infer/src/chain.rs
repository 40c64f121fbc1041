//! What encoding, decoding and sampling share: the networks as denoisers, and the sampler of a step count.

use candle_core::Tensor;
use diffae_nets::{LatentNet, TimeProjections, Unet, ZSemProjections};
use diffae_schedule::{Clip, DdimSampler, Denoiser, NoiseSchedule, StepChain, StepSequence, Timestep};

use crate::error::{Result, computing};

/// The `UNet` with what it makes of `z_sem` and of a chain's timesteps, computed once for the whole chain.
pub(crate) struct UnetDenoiser<'a> {
    unet: &'a Unet,
    z_sem: Option<ZSemProjections>,
    timesteps: Vec<Timestep>,
    time: TimeProjections,
}

impl<'a> UnetDenoiser<'a> {
    pub(crate) fn new(unet: &'a Unet, z_sem: Option<&Tensor>, chain: &StepChain, like: &Tensor) -> Result<Self> {
        let timesteps = chain.timesteps().to_vec();
        let numbers: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
        let time = computing("projecting timesteps", unet.project_time(&numbers, like))?;
        let z_sem = z_sem.map(|z_sem| computing("projecting z_sem", unet.project_z_sem(z_sem))).transpose()?;
        Ok(Self { unet, z_sem, timesteps, time })
    }
}

impl Denoiser for UnetDenoiser<'_> {
    fn eps(&self, x_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        let known = |t: Timestep| self.timesteps.iter().position(|known| *known == t);
        let time = match *distinct(timesteps) {
            [t] => known(t).map(|idx| self.time.of(idx)),
            _ => None,
        };
        let time = time.unwrap_or_else(|| self.unet.project_time(&numbers(distinct(timesteps)), x_t))?;
        self.unet.forward_projected(x_t, &time, self.z_sem.as_ref())
    }
}

/// The latent net.
pub(crate) struct LatentDenoiser<'a>(pub(crate) &'a LatentNet);

impl Denoiser for LatentDenoiser<'_> {
    fn eps(&self, z_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        self.0.forward(z_t, &numbers(distinct(timesteps)))
    }
}

/// One timestep where all are the same, as they are in a chain: it is then embedded once for the batch.
fn distinct(timesteps: &[Timestep]) -> &[Timestep] {
    let all_equal = timesteps.windows(2).all(|pair| pair[0] == pair[1]);
    if all_equal { &timesteps[..timesteps.len().min(1)] } else { timesteps }
}

fn numbers(timesteps: &[Timestep]) -> Vec<f32> {
    timesteps.iter().map(|t| t.get() as f32).collect()
}

/// DDIM with `num_steps` steps over `schedule`.
pub(crate) fn ddim(schedule: &NoiseSchedule, num_steps: usize, clip: Clip, eta: f64) -> Result<DdimSampler> {
    let chain = StepChain::new(schedule, &StepSequence::Ddim(num_steps))?;
    Ok(DdimSampler::new(chain, clip).with_eta(eta)?)
}
