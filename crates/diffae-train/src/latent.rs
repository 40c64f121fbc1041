//! The second stage: a diffusion over normalized `z_sem`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_data::Overwrite;
use diffae_infer::{LatentConfig, LoadOptions, Model, ModelSource};
use diffae_kernels::{differentiable, no_gradients};
use diffae_nets::LatentNet;
use diffae_nets::weights::ArchitectureHints;
use diffae_schedule::{NoiseSchedule, Timestep};

use crate::code_stage::{CodeObjective, CodeStage};
use crate::codes::{CODES_FILE, Codes, VALIDATION_CODES_FILE};
use crate::collective::Group;
use crate::compute::Compute;
use crate::config::StageSettings;
use crate::draw::{Draw, Drawing, Draws};
use crate::error::Result;
use crate::optimization::TrainState;
use crate::parameters::Parameters;
use crate::preview::write_samples;
use crate::random::Purpose;
use crate::run::{RunFolder, Stage};
use crate::{Data, OnStep, Outcome};

/// Computes the loss of a latent net at given timesteps, `mean |noise - predicted|`; it can be recorded.
///
/// # Shapes
/// - `z_0`: normalized codes, `[N, D]`; `noise`: `[N, D]`; `timesteps`: N.
/// # Errors
/// If shapes do not fit, or the loss or the gradient is NaN or infinite.
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

/// A latent net and its optimizer.
#[derive(Debug)]
pub struct LatentTrainer {
    net: LatentNet,
    state: TrainState,
    schedule: NoiseSchedule,
    settings: StageSettings,
}

impl LatentTrainer {
    /// Builds a latent net. Parameters in `given` begin with its values, the others at random by the seed.
    ///
    /// # Errors
    /// If a given parameter does not fit, or the device fails.
    pub fn new(
        config: &LatentConfig,
        settings: &StageSettings,
        (seed, compute): (u64, impl Into<Compute>),
        given: HashMap<String, Tensor>,
    ) -> Result<Self> {
        let build = |vb: &VarBuilder<'_>| Ok(LatentNet::new(&config.net, &vb.pp("latent_net"))?);
        let (net, parameters) = Parameters::build((seed, compute), given, build)?;
        let schedule = config.diffusion.noise_schedule()?;
        Ok(Self { net, state: TrainState::new(parameters), schedule, settings: settings.clone() })
    }

    /// Makes one step with given timesteps and noise, and returns the loss before it.
    ///
    /// # Shapes
    /// - `z_0`: normalized codes, `[N, D]`; `noise`: `[N, D]`; `timesteps`: N.
    /// # Errors
    /// If shapes do not fit, or the loss or the gradient is NaN or infinite.
    pub fn step_with(&mut self, z_0: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<f64> {
        let Self { net, schedule, state, .. } = self;
        let (z_0, noise) = (&z_0.to_device(state.device())?, &noise.to_device(state.device())?);
        let loss = |_| latent_loss(net, schedule, (z_0, noise), timesteps);
        Ok(self.state.minimize((&self.settings, &mut Group::alone()), (z_0.dim(0)?, 1), loss)?.loss)
    }

    /// Copies the parameters under training.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
    pub fn parameters(&self) -> Result<BTreeMap<String, Tensor>> {
        self.state.parameters.current()
    }
}

/// Opens the model of a run, as far as it is.
pub(crate) fn opened(folder: &RunFolder, device: &Device) -> Result<(ModelSource, Model)> {
    let source = ModelSource::open(folder.path(), &ArchitectureHints::default())?;
    let model = source.build(&LoadOptions::on(device))?;
    Ok((source, model))
}

/// Trains the stage from its newest checkpoint to its end, and adds the latent net to the model.
pub(crate) fn run(
    (folder, compute): (&RunFolder, &Compute),
    data: &Data,
    (group, on_step): (&mut Group, &mut OnStep<'_>),
) -> Result<Outcome> {
    let (config, device) = (folder.config(), &compute.device);
    let (source, model) = group.agree(opened(folder, device))?;
    let mut encoded = |file, pictures, group: &mut Group| {
        Codes::of_run((folder, Stage::Latent), file, (&model, pictures), (group, on_step))
    };
    let Some(codes) = encoded(CODES_FILE, &data.train, group)? else {
        return Ok(Outcome::Stopped);
    };
    if codes.indices.is_empty() {
        return Err(data.train.none_readable().into());
    }
    let moments = codes.moments()?;
    let z = codes.normalized(&moments)?.to_device(device)?;
    let latent = config.latent_config()?;
    let settings = &config.latent;
    let LatentTrainer { net, mut state, schedule, .. } =
        LatentTrainer::new(&latent, settings, (config.seed, compute), HashMap::new())?;
    let (num_samples, draws) = (codes.indices.len(), Draws::default());
    let loss = |first: usize, samples: &[usize]| {
        let rows: Vec<u32> = samples.iter().map(|&row| u32::try_from(row).unwrap_or(u32::MAX)).collect();
        let z_0 = z.index_select(&Tensor::new(rows.as_slice(), z.device())?, 0)?;
        let how = Drawing::uniform(config.seed, Purpose::LatentNoise, first);
        let Draw { noise, timesteps } = draws.next(&schedule, &z_0, how)?;
        latent_loss(&net, &schedule, (&z_0, &noise), &timesteps)
    };
    let validation = if data.validation.is_empty() {
        None
    } else {
        let Some(codes) = encoded(VALIDATION_CODES_FILE, &data.validation, group)? else {
            return Ok(Outcome::Stopped);
        };
        let normalized = || Ok::<_, crate::Error>(codes.normalized(&moments)?.to_device(device)?);
        (!codes.indices.is_empty()).then(normalized).transpose()?
    };
    drop(model);
    let with_latent_net = |parameters: &Parameters| -> Result<ModelSource> {
        let mut tensors: BTreeMap<String, Tensor> = source.networks(DType::F32)?;
        tensors.retain(|name, _| !name.starts_with("latent_net."));
        tensors.extend(parameters.averages()?);
        let mut with = source.with_networks(source.config().with_latent(latent.clone())?, tensors);
        with.set_latent_moments(moments.clone())?;
        Ok(with)
    };
    let validate = |parameters: &Parameters, images: usize| {
        write_samples(folder.path(), config, with_latent_net(parameters)?.build(&LoadOptions::on(device))?, images)?;
        let Some(z_0) = &validation else { return Ok(None) };
        let how = Drawing::uniform(config.seed, Purpose::Preview, 0);
        let Draw { noise, timesteps } = Draw::new(&schedule, z_0, how)?;
        let loss = no_gradients(|| latent_loss(&net, &schedule, (z_0, &noise), &timesteps))?;
        Ok(Some(f64::from(loss.to_scalar::<f32>()?)))
    };
    let stage = CodeStage { folder: Some(folder), stage: Stage::Latent, settings, seed: config.seed, num_samples };
    if stage.run(&mut state, CodeObjective { loss, validate }, (group, on_step))? == Outcome::Stopped {
        return Ok(Outcome::Stopped);
    }
    if group.is_first() {
        with_latent_net(&state.parameters)?.write(folder.path(), DType::F32, Overwrite::Replace)?;
    }
    Ok(Outcome::Finished)
}
