//! One step of the first stage: networks, objective, optimizer.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_infer::{Model, ModelConfig};
use diffae_kernels::{ActivationStorage, differentiable, no_gradients, run_in_pool, to_device};
use diffae_nets::features::LpipsNetwork;
use diffae_nets::{
    BatchMoments, Discriminator, ImageShape, ImageSize, SemanticConfig, SpatialAutoencoder, TrainingMode,
};
use diffae_schedule::Timestep;

use crate::adversarial::{discriminator_loss, generator_loss};
use crate::collective::Group;
use crate::compute::Compute;
use crate::config::{Activations, ObjectiveSettings, TrainConfig, only_pictures};
use crate::distillation::Distillation;
use crate::distillation_settings::DistillationSettings;
use crate::draw::Drawing;
use crate::error::{Error, Result};
use crate::frozen;
use crate::loss_scale::LossScale;
use crate::networks::{ImageModel, Networks};
use crate::optimization::{Accumulated, Backpropagation, TrainState, share_of};
use crate::parameters::{Norms, Parameters, Part, dropout_seed};
use crate::part_report::PartReport;
use crate::picture_cache::PictureCache;
use crate::polish::Polish;
use crate::polish_settings::PolishSettings;
use crate::random::Purpose;
use crate::run::{Notes, Stage};
use crate::semantic_loss::SemanticLoss;
use crate::spatial::{self, SpatialModel};
use crate::spatial_settings::SpatialSettings;

/// Networks and optimizer of the first stage.
#[derive(Debug)]
pub struct Trainer {
    networks: Networks,
    learning: Learning,
    /// Parameters of the model that are never trained, and have no optimizer state: those of a spatial autoencoder and of a
    /// pretrained encoder.
    constant: BTreeMap<String, Tensor>,
}

/// Settings, discriminator and state of a trainer: all but the networks.
#[derive(Debug)]
struct Learning {
    config: TrainConfig,
    /// The discriminator under training, and the same one with detached weights, which the generator loss looks through.
    discriminator: Option<(Discriminator, Discriminator)>,
    state: TrainState,
}

/// Losses and norms of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepResult {
    /// Loss of the model, before the step.
    pub loss: f64,
    /// Discriminator loss; `None` without a discriminator, or if no item was below the timestep limit.
    pub loss_discriminator: Option<f64>,
    /// Norm of the gradient before clipping; not finite if the step was skipped, since a gradient in f16 has overflowed.
    pub grad_norm: f64,
    /// Norm of the encoder's gradient before clipping.
    pub grad_norm_encoder: f64,
    /// Norm of the decoder's gradient before clipping; the decoder of a diffusion is its `UNet`.
    pub grad_norm_unet: f64,
    /// Factor of the loss in the backward pass; `None` for number types that need none.
    pub loss_scale: Option<f64>,
    /// Bytes of activations saved for the backward pass of one part of the batch.
    pub activation_bytes: usize,
}

/// Results of a forward pass besides its loss.
struct Forward {
    /// Real and generated images for the discriminator.
    compared: Option<(Tensor, Tensor)>,
    moments: Vec<BatchMoments>,
}

impl Trainer {
    /// Builds the networks of a config on the CPU. Parameters in `given` begin with its values, the others at random by the seed.
    ///
    /// # Errors
    /// If a given parameter does not fit.
    pub fn new(config: &TrainConfig, given: HashMap<String, Tensor>) -> Result<Self> {
        Self::of_model((&config.model_config()?, &Device::Cpu), config, given)
    }

    /// Builds the networks and the diffusion of `model` instead of the config's; see [`Trainer::new`].
    ///
    /// # Errors
    /// If a given parameter does not fit, or the device fails.
    pub fn of_model(
        (model, compute): (&ModelConfig, impl Into<Compute>),
        config: &TrainConfig,
        given: HashMap<String, Tensor>,
    ) -> Result<Self> {
        let compute = compute.into();
        let (of_spatial, given): (HashMap<_, _>, HashMap<_, _>) =
            given.into_iter().partition(|(name, _)| name.starts_with(spatial::PREFIX));
        let frozen = model.encoder().and_then(SemanticConfig::frozen);
        let (of_frozen, given) = frozen::split(frozen, given);
        let frozen = frozen.map(|frozen| frozen::constant(frozen, of_frozen, (config.seed, &compute))).transpose()?;
        let (frozen, of_frozen) = frozen.unzip();
        let (spatial, mut constant) = match model.spatial() {
            Some(sizes) => spatial::constant(sizes, of_spatial, (config.seed, &compute))?,
            None => (None, BTreeMap::new()),
        };
        constant.extend(of_frozen.unwrap_or_default());
        let compared = model.image_shape();
        let max_bytes = config.spatial_net.as_ref().map_or(0, SpatialSettings::max_cached_bytes);
        let spatial = spatial.map(|net| (net, PictureCache::new(max_bytes)));
        let networks = |vb: &VarBuilder<'_>| Networks::new(model, (frozen, spatial), vb);
        Ok(Self { constant, ..Self::built((config, compared), &compute, given, networks)? })
    }

    /// Builds the spatial autoencoder of a model on latents; `config` is that of its stage.
    pub(crate) fn of_spatial(config: &TrainConfig, notes: &Notes, compute: &Compute) -> Result<Self> {
        let perceptual = spatial::perceptual(config, notes.lpips_weights.as_deref(), &compute.device)?;
        let size = config.spatial_net.as_ref().map_or(0, |settings| settings.trained_size(&config.model));
        let compared = ImageSize::from(size).with_channels(config.model.image_channels);
        let mut trainer = Self::built((config, compared), compute, spatial::initial(config)?, |vb| {
            Ok(Networks::Spatial(Box::new(SpatialModel::new(config, perceptual, vb)?)))
        })?;
        // They are computed at the end of the stage.
        for name in SpatialAutoencoder::STATISTICS {
            trainer.learning.state.parameters.freeze(&format!("{}{name}", spatial::PREFIX));
        }
        Ok(trainer)
    }

    /// Builds networks, and a discriminator where there is an adversarial term: of so many channels and pixels.
    fn built(
        (config, compared): (&TrainConfig, ImageShape),
        compute: &Compute,
        given: HashMap<String, Tensor>,
        networks: impl FnOnce(&VarBuilder<'_>) -> Result<Networks>,
    ) -> Result<Self> {
        let device = &compute.device;
        let discriminator = |vb: &VarBuilder<'_>| -> Result<Discriminator> {
            let size = only_pictures("the discriminator", compared.size)?;
            let width = config.objective.discriminator_channels;
            Ok(Discriminator::new(compared.channels, size, width, &vb.pp("discriminator"))?)
        };
        let is_adversarial = config.objective.adversarial_weight > 0.;
        let ((networks, trained), parameters) = Parameters::build((config.seed, compute), given, |vb| {
            Ok((networks(vb)?, is_adversarial.then(|| discriminator(vb)).transpose()?))
        })?;
        let views = VarBuilder::from_tensors(parameters.views("discriminator."), DType::F32, device);
        let discriminator = match trained {
            Some(trained) => Some((trained, discriminator(&views)?)),
            None => None,
        };
        let state = TrainState::new(parameters);
        let learning = Learning { config: config.clone(), discriminator, state };
        Ok(Self { networks, learning, constant: BTreeMap::new() })
    }

    /// Trains by distillation of `teacher` from now on, in place of the objective of a diffusion.
    ///
    /// # Errors
    /// [`Error::Setting`] if the networks are no diffusion; [`Error::Schedule`] if a chain does not exist.
    pub fn distill(self, teacher: Model, settings: &DistillationSettings) -> Result<Self> {
        let Networks::Diffusion(student) = self.networks else {
            let (got, expected) = ("compact".to_owned(), "a diffusion, whose decoder takes steps");
            return Err(Error::Setting { key: "model.kind", got, expected });
        };
        let weight = settings.semantic_weight;
        // Frozen, the encoder of the student is that of the teacher; through views it receives no gradient.
        let encoder = teacher.config().encoder().and_then(SemanticConfig::trained).filter(|_| weight > 0.);
        let state = &self.learning.state;
        let views = || (state.parameters.views("encoder."), state.device());
        let perceptual = encoder.map(|config| SemanticLoss::new(config, views(), weight)).transpose()?;
        let distillation = Distillation::new(student, teacher, settings, perceptual)?;
        Ok(Self { networks: Networks::Distilled(Box::new(distillation)), ..self })
    }

    /// Trains decoder and endpoint network through the chain of `settings` from now on, in place of the objective of a diffusion;
    /// `perceptual` measures how far pictures look from the originals. The encoder receives no gradient.
    ///
    /// # Errors
    /// [`Error::Setting`] if the networks are no diffusion autoencoder with an endpoint network; [`Error::Schedule`] if the chain
    /// does not exist.
    pub fn polish(self, perceptual: LpipsNetwork, settings: &PolishSettings) -> Result<Self> {
        let Networks::Diffusion(model) = self.networks else {
            let (got, expected) = ("compact".to_owned(), "a diffusion, whose decoder takes steps");
            return Err(Error::Setting { key: "model.kind", got, expected });
        };
        let polish = Polish::new(model, settings, perceptual)?;
        Ok(Self { networks: Networks::Polished(Box::new(polish)), ..self })
    }

    /// Freezes a part of the model: `encoder` or `unet`.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no such part.
    pub fn freeze(&mut self, part: &str) -> Result<()> {
        match self.learning.state.parameters.freeze(&format!("{part}.")) {
            0 => Err(Error::Setting { key: "freeze", got: part.to_owned(), expected: "a part of this model" }),
            _ => Ok(()),
        }
    }

    /// Counts the parameters that are trained, or frozen on request.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.learning.state.parameters.count()
    }

    /// Makes one step on images; timesteps, noise and dropout follow from the seed and the step.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, in `[-1, 1]`.
    /// # Errors
    /// [`Error::Diverged`] if a loss or a gradient is NaN or infinite, before the optimizer applies it, but for gradients in f16
    /// while their loss can be scaled less: such a step is skipped; [`Error::Setting`]
    /// if `autoencoder.accumulate` does not divide N; others if the arithmetic fails.
    pub fn step(&mut self, x_0: &Tensor) -> Result<StepResult> {
        let (mut part, size) = (0, self.learning.part_size(x_0.dim(0)?)?);
        self.step_in_group(&mut Group::alone(), &mut || {
            part += 1;
            Ok(x_0.narrow(0, (part - 1) * size, size)?.contiguous()?)
        })
    }

    /// Makes one step together with the other processes of a group. `next` gives the images of the next micro-batch of this
    /// process, which has every n-th one of a step, from that of its rank on.
    ///
    /// # Shapes
    /// - images of a micro-batch: `[N, C, H, W]`, in `[-1, 1]`, on any device.
    /// # Errors
    /// As [`Trainer::step`], `next` and [`Collective::exchange`](crate::Collective::exchange); [`Error::Elsewhere`] if another
    /// process has failed; [`Error::Setting`] if there are more processes than micro-batches.
    pub fn step_in_group(
        &mut self,
        group: &mut Group,
        next: &mut (dyn FnMut() -> Result<Tensor> + Send),
    ) -> Result<StepResult> {
        fn drawn<'a, M: ImageModel>(
            (model, device, how): (&'a M, &'a Device, Drawing),
            next: &'a mut (dyn FnMut() -> Result<Tensor> + Send),
        ) -> impl FnMut(usize) -> Result<(Tensor, M::Input)> + Send + 'a {
            move |part| {
                let x_0 = to_device(&next()?, device)?;
                let first = how.first + part * x_0.dim(0)?;
                let input = model.draw(&x_0, Drawing { first, ..how })?;
                Ok((x_0, input))
            }
        }
        let (how, device) = (self.learning.drawing(), &self.learning.state.device().clone());
        match &self.networks {
            Networks::Diffusion(model) => self.learning.step(model, group, &mut drawn((model, device, how), next)),
            Networks::Distilled(model) => {
                let model = model.as_ref();
                self.learning.step(model, group, &mut drawn((model, device, how), next))
            }
            Networks::Polished(model) => {
                let model = model.as_ref();
                self.learning.step(model, group, &mut drawn((model, device, how), next))
            }
            Networks::Spatial(model) => {
                let model = model.as_ref();
                self.learning.step(model, group, &mut drawn((model, device, how), next))
            }
            Networks::OneShot(model) => self.learning.step(model, group, &mut drawn((model, device, how), next)),
        }
    }

    /// Makes one step of a diffusion with given noise and timesteps.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`; `noise`: the same, or of the shape of latents; `timesteps`: N.
    /// # Errors
    /// As [`Trainer::step`]; [`Error::Setting`] if the networks are no diffusion.
    pub fn step_with(&mut self, x_0: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<StepResult> {
        match &self.networks {
            Networks::Diffusion(model) => {
                let size = self.learning.part_size(x_0.dim(0)?)?;
                let device = self.learning.state.device();
                let (x_0, noise) = (&x_0.to_device(device)?, &noise.to_device(device)?);
                self.learning.step(model, &mut Group::alone(), &mut |part| {
                    let of_part = |tensor: &Tensor| tensor.narrow(0, part * size, size)?.contiguous();
                    let (x_0, noise) = (of_part(x_0)?, of_part(noise)?);
                    let states = model.states(&x_0)?;
                    let input = model.noised(&states, &noise, &timesteps[part * size..(part + 1) * size])?;
                    Ok((x_0, input))
                })
            }
            Networks::Distilled(_) | Networks::Polished(_) => {
                let (got, expected) = ("that of a whole chain".to_owned(), "a diffusion, where timesteps are given");
                Err(Error::Setting { key: "the objective", got, expected })
            }
            Networks::Spatial(_) => {
                let (got, expected) =
                    ("that of a spatial autoencoder".to_owned(), "a diffusion, where timesteps are given");
                Err(Error::Setting { key: "the objective", got, expected })
            }
            Networks::OneShot(_) => {
                let (got, expected) = ("compact".to_owned(), "a diffusion, where timesteps are given");
                Err(Error::Setting { key: "model.kind", got, expected })
            }
        }
    }

    /// Computes the loss on held-out images, always with the same noise, and the relative increase of it when each
    /// `z_sem` is handed to another image: `loss(shifted) / loss - 1`.
    pub(crate) fn validate(&self, x_0: &Tensor) -> Result<(f64, Option<f64>)> {
        let x_0 = &x_0.to_device(self.learning.state.device())?;
        match &self.networks {
            Networks::Diffusion(model) => self.learning.validate(model, x_0),
            Networks::Distilled(model) => self.learning.validate(model.as_ref(), x_0),
            Networks::Polished(model) => self.learning.validate(model.as_ref(), x_0),
            Networks::Spatial(model) => self.learning.validate(model.as_ref(), x_0),
            Networks::OneShot(model) => self.learning.validate(model, x_0),
        }
    }

    #[cfg(test)]
    pub(crate) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Parameters, optimizer state and step.
    pub(crate) fn state(&self) -> &TrainState {
        &self.learning.state
    }

    /// Parameters, optimizer state and step, to load a checkpoint into.
    pub(crate) fn state_mut(&mut self) -> &mut TrainState {
        &mut self.learning.state
    }

    /// Copies the moving averages of the parameters, and those that are never trained: the model.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn averages(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut averages = self.learning.state.parameters.averages()?;
        averages.extend(self.constant.clone());
        Ok(averages)
    }

    /// Copies the parameters under training.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
    pub fn parameters(&self) -> Result<BTreeMap<String, Tensor>> {
        self.learning.state.parameters.current()
    }

    /// Replaces the moving averages, which otherwise start at the parameters.
    ///
    /// # Errors
    /// If one is missing or does not fit.
    pub fn set_averages(&mut self, averages: &BTreeMap<String, Tensor>) -> Result<()> {
        self.learning.state.parameters.set_averages(averages)
    }
}

impl Learning {
    /// The random numbers of the next step.
    fn drawing(&self) -> Drawing {
        let first = self.state.step * self.config.autoencoder.batch_size;
        let ObjectiveSettings { terminal_images: terminal, terminal_share, .. } = self.config.objective;
        Drawing { seed: self.config.seed, purpose: Purpose::Noise, first, terminal, terminal_share }
    }

    /// Makes one step: forward and backward pass of each micro-batch, here or in another process, then the updates.
    fn step<M: ImageModel>(
        &mut self,
        model: &M,
        group: &mut Group,
        next: &mut (dyn FnMut(usize) -> Result<(Tensor, M::Input)> + Send),
    ) -> Result<StepResult> {
        let num_parts = self.config.autoencoder.accumulate;
        require_parts("autoencoder.accumulate", num_parts, group.size())?;
        let mut part = |part: usize, to: &mut Backpropagation<'_>| {
            let (x_0, input) = next(part)?;
            self.backpropagate(model, (&x_0, &input), part, to)
        };
        let accumulated = self.state.accumulate(group, num_parts, &mut part)?;
        let Accumulated { gradients, reports } = accumulated.unwrap_or_default();
        let settings = &self.config.autoencoder;
        let state = &mut self.state;
        let device = state.device().clone();
        let parts: &[Part] =
            if self.discriminator.is_some() { &[Part::Model, Part::Discriminator] } else { &[Part::Model] };
        let scale = state.loss_scale();
        let norms = run_in_pool(&device, || {
            let norms = state.update(group, parts, &gradients, settings)?;
            if norms.whole.is_finite() {
                reports.iter().try_for_each(|report| state.move_statistics(&report.moments))?;
            }
            Ok::<_, Error>(norms)
        })?;
        self.state.count_step();
        let Norms { whole, encoder, unet } = norms;
        let of_discriminator = reports.iter().filter_map(|report| report.loss_discriminator);
        Ok(StepResult {
            loss: reports.iter().map(|report| report.loss).sum(),
            loss_discriminator: of_discriminator.reduce(|sum, loss| sum + loss),
            grad_norm: whole,
            grad_norm_encoder: encoder,
            grad_norm_unet: unet,
            loss_scale: scale.map(LossScale::factor),
            activation_bytes: reports.last().map_or(0, |report| report.activation_bytes),
        })
    }

    /// Number of images in each part of a batch.
    fn part_size(&self, count: usize) -> Result<usize> {
        let parts = self.config.autoencoder.accumulate;
        let size = count.checked_div(parts).filter(|size| size * parts == count);
        let (key, expected) = ("autoencoder.accumulate", "a divisor of the number of pictures of a step");
        size.ok_or_else(|| Error::Setting { key, got: format!("{parts} at a step of {count} pictures"), expected })
    }

    /// Runs forward and backward pass of a micro-batch.
    fn backpropagate<M: ImageModel>(
        &self,
        model: &M,
        (x_0, input): (&Tensor, &M::Input),
        part: usize,
        to: &mut Backpropagation<'_>,
    ) -> Result<PartReport> {
        let objective = &self.config.objective;
        let storage = match objective.activations {
            Activations::F32 => ActivationStorage::F32,
            Activations::Bf16 => ActivationStorage::Bf16,
        };
        let mode = TrainingMode {
            dropout_seed: Some(dropout_seed(self.config.seed, self.state.step, part)),
            checkpoint_blocks: objective.checkpoint_blocks,
        };
        let num_parts = self.config.autoencoder.accumulate;
        let (loss, Forward { compared, moments }) = to.add(storage, || {
            let mut moments = vec![];
            let output = model.forward_training(x_0, input, mode, &mut moments)?;
            let mut loss = model.loss(x_0, input, &output, objective)?;
            let mut compared = None;
            if let Some((_, discriminator)) = &self.discriminator {
                compared = model.compared(x_0, input, &output, objective)?;
                if let Some((_, generated)) = &compared {
                    let term = generator_loss(discriminator, generated)?;
                    let weight = objective.adversarial_weight;
                    loss = differentiable([&loss, &term], |[loss, term]| loss + (term * weight)?)?;
                }
            }
            Ok((share_of(&loss, num_parts)?, Forward { compared, moments }))
        })?;
        let activation_bytes = to.activation_bytes;
        let loss_discriminator = match (&compared, &self.discriminator) {
            (Some((real, generated)), Some((discriminator, _))) => {
                let (loss, ()) = to.add(ActivationStorage::F32, || {
                    let loss = discriminator_loss(discriminator, real, &generated.detach())?;
                    Ok((share_of(&loss, num_parts)?, ()))
                })?;
                Some(loss)
            }
            _ => None,
        };
        Ok(PartReport { loss, loss_discriminator, activation_bytes, moments })
    }

    /// Computes the loss of a model, and how much shifted codes increase it; see [`Trainer::validate`].
    fn validate<M: ImageModel>(&self, model: &M, x_0: &Tensor) -> Result<(f64, Option<f64>)> {
        let input = model.draw(x_0, Drawing::uniform(self.config.seed, Purpose::Preview, 0))?;
        let loss = |code: &M::Code| -> Result<f64> {
            let output = model.decode(code, &input)?;
            let loss = no_gradients(|| model.loss(x_0, &input, &output, &self.config.objective))?;
            Ok(f64::from(loss.to_scalar::<f32>()?))
        };
        run_in_pool(x_0.device(), || {
            let code = model.encode(x_0)?;
            let matching = loss(&code)?;
            let shifted = M::shifted(&code)?.map(|shifted| loss(&shifted)).transpose()?;
            Ok((matching, shifted.map(|shifted| shifted / matching - 1.)))
        })
    }
}

/// Fails if some of so many processes have nothing to do in a step of one of these stages: the first ones, in which micro-batches are
/// divided among processes.
///
/// # Errors
/// [`Error::Setting`].
pub fn check_parts(config: &TrainConfig, stages: &[Stage], num_processes: usize) -> Result<()> {
    for (stage, key) in [(Stage::Spatial, "spatial.accumulate"), (Stage::Autoencoder, "autoencoder.accumulate")] {
        if stages.contains(&stage) && config.stages().contains(&stage) {
            require_parts(key, config.stage(stage).accumulate, num_processes)?;
        }
    }
    Ok(())
}

fn require_parts(key: &'static str, num_parts: usize, num_processes: usize) -> Result<()> {
    if num_processes <= num_parts {
        return Ok(());
    }
    let expected = "one micro-batch or more for each process";
    Err(Error::Setting { key, got: format!("{num_parts} with {num_processes} processes"), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trainer(assignments: &[&str]) -> Trainer {
        let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
        Trainer::new(&crate::presets::config("smoke", &assignments).unwrap(), HashMap::new()).unwrap()
    }

    fn images(count: usize, value: f32) -> Tensor {
        Tensor::full(value, (count, 3, 16, 16), &Device::Cpu).unwrap()
    }

    fn values(trainer: &Trainer) -> Vec<f32> {
        let tensors = trainer.parameters().unwrap();
        tensors.values().flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
    }

    #[test]
    fn a_step_that_diverges_is_an_error_and_changes_nothing() {
        for kind in ["model.kind=autoencoder", "model.kind=compact"] {
            let mut trainer = trainer(&[kind]);
            let before = values(&trainer);
            let error = trainer.step(&images(2, f32::NAN)).unwrap_err();
            assert!(matches!(error, Error::Diverged { quantity: "loss", step: 0, .. }), "{kind}: {error}");
            assert_eq!(values(&trainer), before, "{kind}");
            assert_eq!(trainer.state().step, 0);
            assert!(trainer.step(&images(2, 0.5)).unwrap().loss.is_finite());
            assert_ne!(values(&trainer), before, "{kind}");
        }
    }

    #[test]
    fn a_batch_that_accumulate_does_not_divide_is_refused() {
        let mut trainer = trainer(&["autoencoder.accumulate=2"]);
        let error = trainer.step(&images(3, 0.)).unwrap_err().to_string();
        assert!(error.contains("autoencoder.accumulate is 2 at a step of 3"), "{error}");
        assert!(trainer.step(&images(4, 0.)).is_ok());
    }

    #[test]
    fn timesteps_cannot_be_given_to_a_one_shot_autoencoder() {
        let mut trainer = trainer(&["model.kind=compact"]);
        let x_0 = images(1, 0.);
        let error = trainer.step_with(&x_0, &x_0, &[Timestep::new(3)]).unwrap_err().to_string();
        assert!(error.contains("model.kind is compact, expected a diffusion"), "{error}");
    }
}
