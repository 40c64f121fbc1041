//! One step of the first stage: networks, objective, optimizer.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_infer::ModelConfig;
use diffae_kernels::{ActivationStorage, Gradients, differentiable, no_gradients, record_with, run_in_pool};
use diffae_nets::{BatchMoments, Discriminator, TrainingMode};
use diffae_schedule::Timestep;

use crate::adversarial::{judged_loss, told_apart_loss};
use crate::checkpoint::Checkpoints;
use crate::config::{Activations, ObjectiveSettings, TrainConfig};
use crate::error::{Error, Result};
use crate::networks::{Given, Networks};
use crate::objective::Drawing;
use crate::parameters::{Norms, Parameters, Part, dropout_seed, require_finite};
use crate::random::Purpose;

/// Networks and optimizer between two steps.
#[derive(Debug)]
pub struct Trainer {
    config: TrainConfig,
    networks: Networks,
    /// The discriminator as it learns, and the same as the networks face it: without gradients of its own.
    discriminator: Option<(Discriminator, Discriminator)>,
    parameters: Parameters,
    /// Steps that have been made.
    step: usize,
}

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub struct StepResult {
    /// The loss.
    pub loss: f64,
    /// That of the discriminator, if there is one and it had something to look at.
    pub loss_discriminator: Option<f64>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// That of the encoder's part.
    pub grad_norm_encoder: f64,
    /// That of the part of the `UNet`, or of another decoder.
    pub grad_norm_unet: f64,
    /// Memory of the activations that were kept for the way back, of one part of the batch.
    pub activation_bytes: usize,
}

/// What the forward pass of a part of a batch leaves.
struct Forward {
    loss: Tensor,
    /// Real pictures, and what the networks made of them, for the discriminator.
    shown: Option<(Tensor, Tensor)>,
    moments: Vec<BatchMoments>,
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
        let [channels, size, _] = model.image_shape();
        let judge = |vb: &VarBuilder<'_>| {
            Discriminator::new(channels, size, config.objective.discriminator_channels, &vb.pp("discriminator"))
        };
        let judges = config.objective.adversarial_weight > 0.;
        let ((networks, learning), parameters) = Parameters::build(config.seed, given, |vb| {
            Ok((Networks::new(model, vb)?, judges.then(|| judge(vb)).transpose()?))
        })?;
        let views = VarBuilder::from_tensors(parameters.views("discriminator."), DType::F32, &Device::Cpu);
        let discriminator = match learning {
            Some(learning) => Some((learning, judge(&views)?)),
            None => None,
        };
        Ok(Self { config: config.clone(), networks, discriminator, parameters, step: 0 })
    }

    /// Leaves a part as it is: `encoder` or `unet`.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no such part.
    pub fn freeze(&mut self, part: &str) -> Result<()> {
        match self.parameters.freeze(&format!("{part}.")) {
            0 => Err(Error::Setting { key: "freeze", got: part.to_owned(), expected: "a part of this model" }),
            _ => Ok(()),
        }
    }

    /// Number of parameters of the model.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.parameters.count()
    }

    /// One step on pictures `[N, C, H, W]` in `[-1, 1]`; timesteps, noise and dropout follow from the seed and the step.
    ///
    /// # Errors
    /// [`Error::Diverged`] if a loss or a gradient is NaN or infinite, before the optimizer applies it; [`Error::Setting`]
    /// if `autoencoder.accumulate` does not divide N; others if the arithmetic fails.
    pub fn step(&mut self, x_0: &Tensor) -> Result<StepResult> {
        let first = self.step * self.config.autoencoder.batch_size;
        let ObjectiveSettings { terminal_images: terminal, terminal_share, .. } = self.config.objective;
        let how = Drawing { seed: self.config.seed, purpose: Purpose::Noise, first, terminal, terminal_share };
        let given = self.networks.draw(x_0, how)?;
        self.step_on(x_0, &given)
    }

    /// One step of a diffusion with given timesteps and noise, both as `x_0` or one a picture.
    ///
    /// # Errors
    /// As [`Trainer::step`], and if the networks are no diffusion.
    pub fn step_with(&mut self, x_0: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<StepResult> {
        let given = self.networks.noised(x_0, noise, timesteps)?;
        self.step_on(x_0, &given)
    }

    fn step_on(&mut self, x_0: &Tensor, given: &Given) -> Result<StepResult> {
        // The tape belongs to the thread that records it, so the whole step runs on one of the pool.
        run_in_pool(|| {
            let (mut loss, mut loss_discriminator, mut activation_bytes) = (0., None, 0);
            let (mut gradients, mut judging) = (Gradients::default(), Gradients::default());
            let (parts, size) = (self.config.autoencoder.accumulate, self.part_size(x_0.dim(0)?)?);
            for part in 0..parts {
                let x_0 = x_0.narrow(0, part * size, size)?.contiguous()?;
                let given = given.narrow(part * size, size)?;
                let (forward, bytes) = self.accumulate(&x_0, &given, part, &mut gradients)?;
                loss += f64::from(forward.loss.to_scalar::<f32>()?);
                activation_bytes = bytes;
                if let Some((real, made)) = &forward.shown {
                    let of_part = self.judge(real, made, &mut judging)?;
                    loss_discriminator = Some(loss_discriminator.unwrap_or(0.) + of_part);
                }
                for loss in [Some(loss), loss_discriminator].into_iter().flatten() {
                    require_finite("loss", loss, self.step)?;
                }
                for BatchMoments { path, mean, variance } in forward.moments {
                    self.parameters.set(&format!("{path}.running_mean"), &mean)?;
                    self.parameters.set(&format!("{path}.running_var"), &variance)?;
                }
            }
            let settings = &self.config.autoencoder;
            let Norms { whole, encoder, unet } =
                self.parameters.update_part(Part::Model, &gradients, settings, self.step)?;
            if loss_discriminator.is_some() {
                self.parameters.update_part(Part::Discriminator, &judging, settings, self.step)?;
            }
            self.step += 1;
            Ok(StepResult {
                loss,
                loss_discriminator,
                grad_norm: whole,
                grad_norm_encoder: encoder,
                grad_norm_unet: unet,
                activation_bytes,
            })
        })
    }

    /// Pictures of each part of a batch.
    fn part_size(&self, count: usize) -> Result<usize> {
        let parts = self.config.autoencoder.accumulate;
        let size = count.checked_div(parts).filter(|size| size * parts == count);
        let (key, expected) = ("autoencoder.accumulate", "a divisor of the number of pictures of a step");
        size.ok_or_else(|| Error::Setting { key, got: format!("{parts} at a step of {count} pictures"), expected })
    }

    /// Runs a part of a batch forward and back.
    fn accumulate(&self, x_0: &Tensor, given: &Given, part: usize, to: &mut Gradients) -> Result<(Forward, usize)> {
        let objective = &self.config.objective;
        let storage = match objective.activations {
            Activations::F32 => ActivationStorage::F32,
            Activations::Bf16 => ActivationStorage::Bf16,
        };
        let mode = TrainingMode {
            dropout_seed: Some(dropout_seed(self.config.seed, self.step, part)),
            checkpoint_blocks: objective.checkpoint_blocks,
        };
        let share = 1. / self.config.autoencoder.accumulate as f64;
        let (forward, tape) = record_with(storage, || -> Result<Forward> {
            let mut moments = vec![];
            let made = self.networks.forward_training(x_0, given, mode, &mut moments)?;
            let mut loss = self.networks.loss(x_0, given, &made, objective)?;
            let mut shown = None;
            if let Some((_, discriminator)) = &self.discriminator {
                shown = self.networks.shown(x_0, given, &made, objective.adversarial_timesteps)?;
                if let Some((_, made)) = &shown {
                    let term = judged_loss(discriminator, made)?;
                    let weight = objective.adversarial_weight;
                    loss = differentiable([&loss, &term], |[loss, term]| loss + (term * weight)?)?;
                }
            }
            let loss = differentiable([&loss], |[loss]| loss * share)?;
            Ok(Forward { loss, shown, moments })
        })?;
        let bytes = tape.num_kept_bytes();
        tape.backward(&forward.loss, to)?;
        Ok((forward, bytes))
    }

    /// The discriminator's own loss on what the networks made.
    fn judge(&self, real: &Tensor, made: &Tensor, to: &mut Gradients) -> Result<f64> {
        let Some((discriminator, _)) = &self.discriminator else { return Ok(0.) };
        let share = 1. / self.config.autoencoder.accumulate as f64;
        let (loss, tape) = record_with(ActivationStorage::F32, || -> Result<Tensor> {
            let loss = told_apart_loss(discriminator, real, &made.detach())?;
            Ok(differentiable([&loss], |[loss]| loss * share)?)
        })?;
        tape.backward(&loss, to)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// Loss on pictures that are not trained on, always with the same noise, and how much worse it gets when `z_sem` is
    /// handed to the next picture: `loss(shuffled) / loss - 1`.
    pub(crate) fn validate(&self, x_0: &Tensor) -> Result<(f64, Option<f64>)> {
        let how =
            Drawing { seed: self.config.seed, purpose: Purpose::Preview, first: 0, terminal: 0, terminal_share: 0. };
        let given = self.networks.draw(x_0, how)?;
        let loss = |z_sem: Option<&Tensor>| -> Result<f64> {
            let made = self.networks.decode(z_sem, &given)?;
            let loss = self.networks.loss(x_0, &given, &made, &self.config.objective)?;
            Ok(f64::from(loss.to_scalar::<f32>()?))
        };
        run_in_pool(|| {
            no_gradients(|| {
                let Some(z_sem) = self.networks.encode(x_0)? else { return Ok((loss(None)?, None)) };
                let (matching, count) = (loss(Some(&z_sem))?, z_sem.dim(0)?);
                if count < 2 {
                    return Ok((matching, None));
                }
                let shuffled = Tensor::cat(&[z_sem.narrow(0, 1, count - 1)?, z_sem.narrow(0, 0, 1)?], 0)?;
                Ok((matching, Some(loss(Some(&shuffled))? / matching - 1.)))
            })
        })
    }

    /// Steps that have been made.
    pub(crate) fn num_steps_made(&self) -> usize {
        self.step
    }

    /// Goes on from the newest whole checkpoint.
    pub(crate) fn load_newest(&mut self, checkpoints: &Checkpoints) -> Result<()> {
        self.step = checkpoints.load_newest(&mut self.parameters)?;
        Ok(())
    }

    /// Saves where it is.
    pub(crate) fn save(&self, checkpoints: &Checkpoints) -> Result<()> {
        checkpoints.save(&self.parameters, self.step)
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
            assert_eq!(trainer.num_steps_made(), 0);
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
        assert!(trainer.step_with(&x_0, &x_0, &[Timestep::new(3)]).is_err());
    }
}
