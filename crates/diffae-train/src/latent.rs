//! The second stage: a diffusion over normalized `z_sem`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use diffae_infer::{LoadOptions, ModelSource, Overwrite};
use diffae_kernels::differentiable;
use diffae_nets::LatentNet;
use diffae_schedule::{NoiseSchedule, Timestep};

use crate::data::Pictures;
use crate::error::Result;
use crate::objective::Noised;
use crate::parameters::Parameters;
use crate::random::Purpose;
use crate::rows::{Codes, RowStage};
use crate::run::{RunFolder, Stage};
use crate::{OnStep, Outcome};

/// `mean |noise - predicted|` of a latent net at given timesteps; recorded.
///
/// # Shapes
/// - `z_0`: normalized codes, `[N, D]`; `noise`: the same; `timesteps`: N.
/// # Errors
/// If shapes do not fit.
/// # Source
/// Preechakul et al. 2022 (arXiv:2111.15640), appendix A.1.
pub fn latent_loss(
    net: &LatentNet,
    schedule: &NoiseSchedule,
    (z_0, noise): (&Tensor, &Tensor),
    timesteps: &[Timestep],
) -> Result<Tensor> {
    let z_t = schedule.q_sample(z_0, noise, timesteps)?;
    let numbers: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
    let predicted = net.forward(&z_t, &numbers)?;
    Ok(differentiable([&predicted], |[predicted]| (noise - predicted)?.abs()?.mean_all())?)
}

/// Trains the stage from where it is to its end, and adds the latent net to the model.
pub(crate) fn run(folder: &RunFolder, pictures: &Pictures, on_step: &mut OnStep<'_>) -> Result<Outcome> {
    let config = folder.config();
    let mut source = ModelSource::open(folder.path(), &diffae_nets::weights::ArchitectureHints::default())?;
    let codes = Codes::of(folder.path(), &source.build(&LoadOptions::cpu())?, pictures)?;
    let moments = codes.moments()?;
    let z = codes.normalized(&moments)?;
    let latent = config.latent_config()?;
    let (net, mut parameters) =
        Parameters::build(config.seed, HashMap::new(), |vb| Ok(LatentNet::new(&latent.net, &vb.pp("latent_net"))?))?;
    let schedule = latent.diffusion.noise_schedule()?;
    let settings = &config.latent;
    let stage = RowStage { folder, stage: Stage::Latent, settings, num_rows: codes.indices.len() };
    let loss = |step: usize, rows: &[usize]| {
        let rows: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).unwrap_or(u32::MAX)).collect();
        let z_0 = z.index_select(&Tensor::new(rows.as_slice(), &Device::Cpu)?, 0)?;
        // Noise of its own: the first stage draws from the same purpose below these numbers.
        let first = (1 << 48) + step * settings.batch_size;
        let noised = Noised::draw(&schedule, &z_0, config.seed, Purpose::Noise, first)?;
        latent_loss(&net, &schedule, (&z_0, &noised.noise), &noised.timesteps)
    };
    if stage.run(&mut parameters, on_step, &loss)? == Outcome::Stopped {
        return Ok(Outcome::Stopped);
    }
    let mut tensors: BTreeMap<String, Tensor> = source.networks(DType::F32)?;
    tensors.retain(|name, _| !name.starts_with("latent_net."));
    tensors.extend(parameters.averages()?);
    let model = diffae_infer::ModelConfig { latent: Some(latent), ..source.config().clone() };
    source = source.with_networks(model, tensors);
    source.set_latent_moments(moments)?;
    source.write(folder.path(), DType::F32, Overwrite::Replace)?;
    Ok(Outcome::Finished)
}
