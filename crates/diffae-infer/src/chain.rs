//! Parts shared by encoding, decoding and sampling: the networks as denoisers, and the chain for a number of steps.

use candle_core::Tensor;
use diffae_nets::{ChainConditions, TimeProjections, Unet, UnetReplays, ZSemProjections};
use diffae_schedule::{Denoiser, NoiseSchedule, PredictionTarget, Spacing, StepChain, Timestep};

use crate::error::{Error, Result, computing};
use crate::model::{Latent, Model};
use crate::model_config::TunedChain;

/// Minimum number of timesteps of a chain whose network calls are recorded, where they may be: a recording takes the time of two.
const MIN_RECORDED: usize = 4;

/// The `UNet` as a denoiser, with its conditions on `z_sem` and on a chain's timesteps computed once for the whole
/// chain.
pub(crate) struct UnetDenoiser<'a> {
    unet: &'a Unet,
    replays: &'a UnetReplays,
    schedule: &'a NoiseSchedule,
    prediction: PredictionTarget,
    z_sem: Option<ZSemProjections>,
    timesteps: Vec<Timestep>,
    time: TimeProjections,
    /// The conditions in another form, where the network is to be recorded.
    recorded: Option<ChainConditions>,
}

impl<'a> UnetDenoiser<'a> {
    pub(crate) fn new(model: &'a Model, z_sem: Option<&Tensor>, chain: &StepChain, like: &Tensor) -> Result<Self> {
        let (unet, schedule, prediction) = model.diffusion()?;
        let timesteps = chain.timesteps().to_vec();
        let numbers: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
        let time = computing("projecting timesteps", unet.project_time(&numbers, like))?;
        let z_sem = z_sem.map(|z_sem| computing("projecting z_sem", unet.project_z_sem(z_sem))).transpose()?;
        let recorded = if timesteps.len() < MIN_RECORDED {
            None
        } else {
            computing("joining conditions", unet.chain_conditions(&time, z_sem.as_ref()))?
        };
        let replays = model.replays();
        Ok(Self { unet, replays, schedule, prediction, z_sem, timesteps, time, recorded })
    }
}

impl Model {
    /// Returns the chain of `num_steps` steps with a spacing; of [`Spacing::Tuned`] that which the model's config holds.
    ///
    /// # Errors
    /// [`Error::MissingPart`](crate::Error::MissingPart) in a one-shot autoencoder; [`Error::Schedule`](crate::Error::Schedule)
    /// if there is no such chain.
    pub fn step_chain(&self, spacing: Spacing, num_steps: usize) -> Result<StepChain> {
        let schedule = self.schedule()?;
        if spacing != Spacing::Tuned {
            return Ok(StepChain::spaced(schedule, spacing, num_steps)?);
        }
        let chains = self.config().chains();
        let Some(TunedChain { timesteps, .. }) = chains.and_then(|chains| chains.tuned(num_steps)) else {
            if let Some(own) = chains.and_then(|chains| chains.distilled) {
                let problem = format!(
                    "the decoder was trained for {} {} steps, and has no others that are tuned",
                    own.steps, own.spacing
                );
                return Err(Error::Conflict { problem });
            }
            let tuned = chains.iter().flat_map(|chains| &chains.tuned).map(|chain| chain.timesteps.len()).collect();
            return Err(diffae_schedule::Error::NotTuned { got: num_steps, tuned }.into());
        };
        Ok(StepChain::from_timesteps(schedule, timesteps.iter().copied().map(Timestep::new).collect())?)
    }

    /// Returns the `UNet` as a denoiser with its condition, for samplers of `diffae-schedule`: what `z_sem` and the timesteps
    /// of the chain contribute is computed once.
    ///
    /// # Shapes
    /// - `z_sem`: `[N, D]`, absent in a plain DDPM; `like`: a state, `[N, C, H, W]`, for its dtype and device.
    /// # Errors
    /// [`Error::MissingPart`](crate::Error::MissingPart) in a one-shot autoencoder; [`Error::Tensor`](crate::Error::Tensor) if
    /// shapes do not fit.
    pub fn denoiser<'a>(
        &'a self,
        z_sem: Option<&Tensor>,
        chain: &StepChain,
        like: &Tensor,
    ) -> Result<impl Denoiser + use<'a>> {
        UnetDenoiser::new(self, z_sem, chain, like)
    }
}

impl Denoiser for UnetDenoiser<'_> {
    fn eps(&self, x_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        let step = match *distinct(timesteps) {
            [t] => self.timesteps.iter().position(|known| *known == t),
            _ => None,
        };
        let unet = self.unet;
        let replayed = match (step, &self.recorded) {
            (Some(step), Some(conditions)) => unet.forward_replayed(self.replays, x_t, conditions, step)?,
            _ => None,
        };
        let predicted = if let Some(predicted) = replayed {
            predicted
        } else {
            let time = step.map(|step| self.time.of(step));
            let time = time.unwrap_or_else(|| unet.project_time(&numbers(distinct(timesteps)), x_t))?;
            unet.forward_projected(x_t, &time, self.z_sem.as_ref())?
        };
        eps_of(self.prediction, self.schedule, (predicted, x_t), timesteps)
    }
}

/// Converts a prediction of the network to the noise.
fn eps_of(
    target: PredictionTarget,
    schedule: &NoiseSchedule,
    (predicted, x_t): (Tensor, &Tensor),
    timesteps: &[Timestep],
) -> candle_core::Result<Tensor> {
    match (target, distinct(timesteps)) {
        (PredictionTarget::Eps, _) => Ok(predicted),
        (_, &[t]) => {
            let alpha_bar = schedule.alpha_bar(t).map_err(candle_core::Error::wrap)?;
            target.eps(&predicted, x_t, alpha_bar).map_err(candle_core::Error::wrap)
        }
        (_, timesteps) => candle_core::bail!("{target} at {} timesteps at once", timesteps.len()),
    }
}

/// The latent net as a denoiser.
pub(crate) struct LatentDenoiser<'a>(pub(crate) &'a Latent);

impl Denoiser for LatentDenoiser<'_> {
    fn eps(&self, z_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        let predicted = self.0.net.forward(z_t, &numbers(distinct(timesteps)))?;
        eps_of(self.0.prediction, &self.0.schedule, (predicted, z_t), timesteps)
    }
}

/// Returns a single timestep where all are the same, as they are in a chain: it is then embedded once for the batch.
fn distinct(timesteps: &[Timestep]) -> &[Timestep] {
    let all_equal = timesteps.windows(2).all(|pair| pair[0] == pair[1]);
    if all_equal { &timesteps[..timesteps.len().min(1)] } else { timesteps }
}

fn numbers(timesteps: &[Timestep]) -> Vec<f32> {
    timesteps.iter().map(|t| t.get() as f32).collect()
}
