//! The first stage: encoder and `UNet`, or the `UNet` of a plain DDPM.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use candle_nn::VarBuilder;
use diffae_infer::ModelConfig;
use diffae_kernels::{ActivationStorage, Gradients, no_gradients, record_with, run_in_pool};
use diffae_nets::{SemanticEncoder, TrainingMode, Unet};
use diffae_schedule::{NoiseSchedule, PredictionTarget};
use serde::Serialize;

use crate::checkpoint::Checkpoints;
use crate::config::{Activations, TrainConfig};
use crate::data::{Batch, Loader, Pictures};
use crate::error::{Error, Result};
use crate::objective::{Draw, Drawing, Noised, prediction_loss};
use crate::parameters::{Norms, Parameters, dropout_seed};
use crate::preview::Preview;
use crate::random::Purpose;
use crate::run::{RunFolder, Stage};
use crate::{OnStep, Outcome, StepReport};

/// Pictures that validation looks at.
const MOST_VALIDATED: usize = 64;
/// Below this share, `z_sem` decides next to nothing.
const LEAST_Z_USAGE: f64 = 0.002;
/// Pictures that a run may see before a warning makes sense.
const IMAGES_BEFORE_WARNING: usize = 20_000;

/// The networks.
#[derive(Debug)]
struct Networks {
    encoder: Option<SemanticEncoder>,
    unet: Unet,
}

/// Networks and optimizer between two steps.
#[derive(Debug)]
pub struct Trainer {
    config: TrainConfig,
    networks: Networks,
    parameters: Parameters,
    schedule: NoiseSchedule,
    prediction: PredictionTarget,
    /// Steps that have been made.
    step: usize,
}

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub struct StepResult {
    /// The loss.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// That of the encoder's part.
    pub grad_norm_encoder: f64,
    /// That of the `UNet`'s part.
    pub grad_norm_unet: f64,
    /// Memory of the activations that were kept for the way back, of one part of the batch.
    pub activation_bytes: usize,
}

impl Trainer {
    /// Networks of a config. Parameters that `given` has begin with its values, the others at random by the seed.
    ///
    /// # Errors
    /// If a given parameter does not fit.
    pub fn new(config: &TrainConfig, given: HashMap<String, Tensor>) -> Result<Self> {
        Self::of_model(&config.model_config()?, config, given)
    }

    /// The same with the networks and the diffusion of `model` instead of the config's.
    ///
    /// # Errors
    /// If a given parameter does not fit.
    pub fn of_model(model: &ModelConfig, config: &TrainConfig, given: HashMap<String, Tensor>) -> Result<Self> {
        let build = |vb: &VarBuilder<'_>| {
            let encoder = model.encoder.as_ref().map(|encoder| SemanticEncoder::new(encoder, &vb.pp("encoder")));
            Ok(Networks { encoder: encoder.transpose()?, unet: Unet::new(&model.unet, &vb.pp("unet"))? })
        };
        let (networks, parameters) = Parameters::build(config.seed, given, build)?;
        let (schedule, prediction) = (model.diffusion.noise_schedule()?, model.diffusion.prediction);
        Ok(Self { config: config.clone(), networks, parameters, schedule, prediction, step: 0 })
    }

    /// Leaves a part as it is: `encoder` or `unet`.
    pub fn freeze(&mut self, part: &str) {
        self.parameters.freeze(&format!("{part}."));
    }

    /// Number of parameters.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.parameters.count()
    }

    /// One step on pictures `[N, C, H, W]` in `[-1, 1]`; timesteps, noise and dropout follow from the seed and the step.
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn step(&mut self, x_0: &Tensor) -> Result<StepResult> {
        let first = self.step * self.config.autoencoder.batch_size;
        let terminal = self.config.objective.terminal_images;
        let how = Drawing { seed: self.config.seed, purpose: Purpose::Noise, first, terminal };
        let Draw { noise, timesteps } = Draw::new(&self.schedule, x_0, how)?;
        self.step_with(x_0, &noise, &timesteps)
    }

    /// One step with given timesteps and noise, both as `x_0` or one a picture.
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn step_with(
        &mut self,
        x_0: &Tensor,
        noise: &Tensor,
        timesteps: &[diffae_schedule::Timestep],
    ) -> Result<StepResult> {
        self.step_on(x_0, &Noised::new(self.diffusion(), x_0, noise, timesteps)?)
    }

    fn step_on(&mut self, x_0: &Tensor, noised: &Noised) -> Result<StepResult> {
        // The tape belongs to the thread that records it, so the whole step runs on one of the pool.
        let storage = match self.config.objective.activations {
            Activations::F32 => ActivationStorage::F32,
            Activations::Bf16 => ActivationStorage::Bf16,
        };
        let (loss, norms, activation_bytes) = run_in_pool(|| -> Result<(f64, Norms, usize)> {
            let mut gradients = Gradients::default();
            let parts = self.config.autoencoder.accumulate;
            let size = x_0.dim(0)?.checked_div(parts).unwrap_or(0);
            let (mut total, mut activation_bytes) = (0., 0);
            for part in 0..parts {
                let narrow = |tensor: &Tensor| tensor.narrow(0, part * size, size)?.contiguous();
                let x_0 = narrow(x_0)?;
                let noised = Noised {
                    x_t: narrow(&noised.x_t)?,
                    target: narrow(&noised.target)?,
                    timesteps: noised.timesteps[part * size..(part + 1) * size].to_vec(),
                };
                let mode = TrainingMode {
                    dropout_seed: Some(dropout_seed(self.config.seed, self.step, part)),
                    checkpoint_blocks: self.config.objective.checkpoint_blocks,
                };
                let (loss, tape) = record_with(storage, || -> Result<Tensor> {
                    let loss = self.loss(&x_0, &noised, mode)?;
                    let share = 1. / parts as f64;
                    Ok(diffae_kernels::differentiable([&loss], |[loss]| loss * share)?)
                })?;
                activation_bytes = tape.num_kept_bytes();
                tape.backward(&loss, &mut gradients)?;
                total += f64::from(loss.to_scalar::<f32>()?);
            }
            // A step on a loss that is no number would ruin what has been learnt.
            let norms = if total.is_finite() {
                self.parameters.update(&gradients, &self.config.autoencoder, self.step)?
            } else {
                Norms { whole: f64::NAN, encoder: f64::NAN, unet: f64::NAN }
            };
            Ok((total, norms, activation_bytes))
        })?;
        if loss.is_finite() {
            self.step += 1;
        }
        let Norms { whole, encoder, unet } = norms;
        Ok(StepResult { loss, grad_norm: whole, grad_norm_encoder: encoder, grad_norm_unet: unet, activation_bytes })
    }

    fn diffusion(&self) -> (&NoiseSchedule, PredictionTarget) {
        (&self.schedule, self.prediction)
    }

    fn loss(&self, x_0: &Tensor, noised: &Noised, mode: TrainingMode) -> Result<Tensor> {
        let z_sem = self.networks.encoder.as_ref().map(|encoder| encoder.forward(x_0)).transpose()?;
        self.loss_given(z_sem.as_ref(), noised, mode)
    }

    fn loss_given(&self, z_sem: Option<&Tensor>, noised: &Noised, mode: TrainingMode) -> Result<Tensor> {
        let predicted = self.networks.unet.forward_training(&noised.x_t, &noised.numbers(), z_sem, mode)?;
        prediction_loss(self.diffusion(), noised, &predicted, self.config.objective.loss_weight)
    }

    /// Loss on pictures that are not trained on, always with the same noise, and how much worse it gets when `z_sem` is
    /// handed to the next picture: `loss(shuffled) / loss - 1`.
    pub(crate) fn validate(&self, x_0: &Tensor) -> Result<(f64, Option<f64>)> {
        let how = Drawing { seed: self.config.seed, purpose: Purpose::Preview, first: 0, terminal: 0 };
        let Draw { noise, timesteps } = Draw::new(&self.schedule, x_0, how)?;
        let noised = Noised::new(self.diffusion(), x_0, &noise, &timesteps)?;
        run_in_pool(|| {
            no_gradients(|| -> Result<_> {
                let mode = TrainingMode::default();
                let number = |loss: Tensor| -> Result<f64> { Ok(f64::from(loss.to_scalar::<f32>()?)) };
                let Some(encoder) = &self.networks.encoder else {
                    return Ok((number(self.loss_given(None, &noised, mode)?)?, None));
                };
                let z_sem = encoder.forward(x_0)?;
                let loss = number(self.loss_given(Some(&z_sem), &noised, mode)?)?;
                let count = z_sem.dim(0)?;
                if count < 2 {
                    return Ok((loss, None));
                }
                let shuffled = Tensor::cat(&[z_sem.narrow(0, 1, count - 1)?, z_sem.narrow(0, 0, 1)?], 0)?;
                let shuffled = number(self.loss_given(Some(&shuffled), &noised, mode)?)?;
                Ok((loss, Some(shuffled / loss - 1.)))
            })
        })
    }

    /// The moving averages of the parameters: the model.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn averages(&self) -> Result<BTreeMap<String, Tensor>> {
        self.parameters.averages()
    }

    /// The parameters themselves.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
    pub fn parameters(&self) -> Result<BTreeMap<String, Tensor>> {
        self.parameters.current()
    }

    /// Starts the moving averages elsewhere than at the parameters.
    ///
    /// # Errors
    /// If one is missing or does not fit.
    pub fn set_averages(&mut self, averages: &BTreeMap<String, Tensor>) -> Result<()> {
        self.parameters.set_averages(averages)
    }
}

/// A line of the log.
#[derive(Debug, Serialize)]
struct Line {
    stage: Stage,
    step: usize,
    images: usize,
    loss: f64,
    lr: f64,
    grad_norm: f64,
    grad_norm_encoder: f64,
    grad_norm_unet: f64,
    images_per_sec: f64,
    /// Share of the time that training waited for pictures.
    data_wait: f64,
    broken: usize,
}

/// A line of the log with validation.
#[derive(Debug, Serialize)]
struct ValidationLine {
    stage: Stage,
    step: usize,
    images: usize,
    validation_loss: f64,
    z_usage: Option<f64>,
}

/// Where the data of a stage come from.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    pub(crate) train: Pictures,
    pub(crate) validation: Pictures,
}

/// Trains the stage from its newest checkpoint, if there is one, to its end.
pub(crate) fn run(folder: &RunFolder, trainer: &mut Trainer, data: &Data, on_step: &mut OnStep<'_>) -> Result<Outcome> {
    let config = folder.config().clone();
    let checkpoints = Checkpoints::new(folder.path(), Stage::Autoencoder.name(), config.run.keep);
    checkpoints.clear_partial();
    if checkpoints.any() {
        trainer.step = checkpoints.load_newest(&mut trainer.parameters)?;
    }
    let mut metrics = folder.metrics(Stage::Autoencoder, trainer.step)?;
    let mut loader = Loader::new(data.train.clone(), &config, trainer.step);
    let watched = watched(data, &config)?;
    let preview = Preview::new(folder.path(), &config, &watched)?;
    let num_steps = config.autoencoder.num_steps();
    let (mut meter, mut last_save) = (Meter::new(), Instant::now());
    while trainer.step < num_steps {
        let Batch { x_0, indices } = loader.next()?;
        let result = trainer.step(&x_0)?;
        if !result.loss.is_finite() {
            let (step, pictures) = (trainer.step, loader.names(&indices));
            return Err(Error::Diverged { loss: result.loss, step, pictures });
        }
        let (step, images) = (trainer.step, trainer.step * config.autoencoder.batch_size);
        meter.add(indices.len());
        if step % config.run.log_every_steps == 0 || step == num_steps {
            let (images_per_sec, data_wait) = meter.take(&mut loader.waited);
            let StepResult { loss, grad_norm, grad_norm_encoder, grad_norm_unet, .. } = result;
            let (lr, broken) = (config.autoencoder.lr_at(step - 1), loader.num_broken());
            metrics.write(&Line {
                stage: Stage::Autoencoder,
                step,
                images,
                loss,
                lr,
                grad_norm,
                grad_norm_encoder,
                grad_norm_unet,
                images_per_sec,
                data_wait,
                broken,
            })?;
        }
        let report = StepReport { stage: Stage::Autoencoder, step, num_steps, loss: result.loss, batch: indices.len() };
        let stop = on_step(&report) == ControlFlow::Break(());
        let every = config.run.preview_every_images;
        let crossed = every > 0 && images.div_euclid(every) > (images - indices.len()).div_euclid(every);
        if crossed && !stop {
            let (validation_loss, z_usage) = trainer.validate(&watched)?;
            metrics.write(&ValidationLine { stage: Stage::Autoencoder, step, images, validation_loss, z_usage })?;
            warn_of_unused_z(z_usage, images);
            preview.write(trainer.averages()?, images)?;
        }
        let due = last_save.elapsed() >= Duration::from_secs_f64(config.run.save_every_secs);
        if stop || due || step == num_steps {
            checkpoints.save(&trainer.parameters, step)?;
            last_save = Instant::now();
        }
        if stop {
            return Ok(Outcome::Stopped);
        }
    }
    Ok(Outcome::Finished)
}

/// Whether the stage has been begun.
pub(crate) fn is_begun(folder: &RunFolder) -> bool {
    Checkpoints::new(folder.path(), Stage::Autoencoder.name(), 1).any()
}

fn warn_of_unused_z(z_usage: Option<f64>, images: usize) {
    if z_usage.is_some_and(|usage| usage < LEAST_Z_USAGE) && images >= IMAGES_BEFORE_WARNING {
        tracing::warn!(
            "z_sem hardly matters: with the codes of other pictures the noise is predicted as well as with the right \
             ones, so pictures are not decoded from their meaning; train longer, or with a smaller z_sem or UNet"
        );
    }
}

/// The pictures of validation and previews; those of training where none are kept.
fn watched(data: &Data, config: &TrainConfig) -> Result<Tensor> {
    let pictures = if data.validation.is_empty() { &data.train } else { &data.validation };
    // Spread over the whole, since names often sort by kind. Broken ones are reported when training meets them.
    let count = pictures.len().min(MOST_VALIDATED);
    let spread = (0..count).map(|i| (i * pictures.len()).checked_div(count).unwrap_or(0));
    let picture = |idx| pictures.read(idx, config.model.image_channels, config.model.image_size).ok();
    let read: Vec<Tensor> = spread.filter_map(picture).collect();
    if read.is_empty() {
        let problem = "none of its pictures can be read".to_owned();
        return Err(Error::Data { path: pictures.root().to_owned(), problem });
    }
    Ok(Tensor::stack(&read, 0)?)
}

/// Images a second, and the share of time spent waiting.
struct Meter {
    since: Instant,
    images: usize,
}

impl Meter {
    fn new() -> Self {
        Self { since: Instant::now(), images: 0 }
    }

    fn add(&mut self, images: usize) {
        self.images += images;
    }

    fn take(&mut self, waited: &mut Duration) -> (f64, f64) {
        let elapsed = self.since.elapsed().as_secs_f64().max(1e-9);
        let result = (self.images as f64 / elapsed, waited.as_secs_f64() / elapsed);
        *self = Self::new();
        *waited = Duration::ZERO;
        result
    }
}
