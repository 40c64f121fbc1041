//! Estimate of a run's duration on this machine, from measured steps.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use diffae_infer::{DecodeOptions, LoadOptions, Model, ModelConfig, ModelSource};
use diffae_nets::SemanticConfig;
use diffae_schedule::{no_callback, no_noise};

use crate::autoencoder::num_validated;
use crate::classifier::{Examples, Labeled};
use crate::code_stage::{CodeStage, NUM_VALIDATIONS};
use crate::collective::Group;
use crate::collective::Reduction;
use crate::compute::Compute;
use crate::config::{Kind, StageSettings, TrainConfig};
use crate::draw::{Draw, Drawing};
use crate::error::Result;
use crate::latent::LatentTrainer;
use crate::networks::MAX_CODE_BYTES;
use crate::picture_cache::num_computed;
use crate::preview::{MAX_SHOWN, NUM_SAMPLE_ROWS};
use crate::random::Purpose;
use crate::run::{Notes, Stage};
use crate::spatial_settings::SpatialSettings;
use crate::trainer::Trainer;

/// Maximum number of pictures in the measured step.
const MAX_MEASURED: usize = 8;
/// Minimum duration of a measurement; shorter steps are repeated.
const MEASURE_FOR: Duration = Duration::from_millis(300);
/// Number of measured steps of the classifier.
const CLASSIFIER_STEPS: usize = 30;
/// Passes through the chain for each picture of a preview: one inversion and three decodings.
const NUM_PREVIEW_PASSES: usize = 4;
/// Pictures in a sheet of samples.
const NUM_SAMPLES: usize = MAX_SHOWN * NUM_SAMPLE_ROWS;

/// Amounts of data in a planned run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planned {
    /// Number of training pictures.
    pub num_train: usize,
    /// Number of held-out pictures.
    pub num_validation: usize,
    /// Number of attributes; 0 without labels.
    pub num_attributes: usize,
}

/// The cost of a run.
#[derive(Debug, Clone)]
pub struct Estimate {
    /// Number of parameters that the first stage trains.
    pub num_parameters: usize,
    /// Bytes of activations per picture that a step of the first stage saves for the backward pass.
    pub kept_bytes_per_image: usize,
    /// Stages to be trained, in order.
    pub stages: Vec<StageEstimate>,
}

/// The cost of a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageEstimate {
    /// Stage.
    pub stage: Stage,
    /// Number of steps.
    pub num_steps: usize,
    /// Seconds for all steps.
    pub training_secs: f64,
    /// Seconds to encode all pictures; 0 in the first stage, and if an earlier stage encodes them.
    pub encoding_secs: f64,
    /// Seconds for previews and validation.
    pub preview_secs: f64,
}

impl StageEstimate {
    /// Adds up the seconds of the stage.
    #[must_use]
    pub fn secs(&self) -> f64 {
        self.training_secs + self.encoding_secs + self.preview_secs
    }
}

impl Estimate {
    /// Measures a step or two of each stage, with initial networks, on pictures and codes that are all zero.
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn new(config: &TrainConfig, notes: &Notes, trainer: &mut Trainer, planned: Planned) -> Result<Self> {
        let trains_spatial = notes.spatial_weights.is_none() && notes.init_from.is_none();
        let (secs_per_image, kept_bytes_per_image) = measure_pictures(config, trainer)?;
        let config_of_model = config.model_config()?;
        let model = ModelSource::from_networks(config_of_model.clone(), trainer.averages()?)
            .build(&LoadOptions::on(trainer.state().device()))?;
        let costs = Costs::measure(config, &model)?;
        let every = config.run.preview_every_images;
        let num_previews = config.autoencoder.images.checked_div(every).unwrap_or(0);
        let num_images = config.autoencoder.num_steps() * config.autoencoder.batch_size;
        let autoencoder = StageEstimate {
            stage: Stage::Autoencoder,
            num_steps: config.autoencoder.num_steps(),
            training_secs: secs_per_image * num_images as f64
                + costs.of_constants((config, &config_of_model), planned, num_images),
            encoding_secs: 0.,
            preview_secs: num_previews as f64 * costs.of_preview(config, planned),
        };
        let mut stages = vec![];
        if let Some(of_stage) = config.of_spatial_stage().filter(|_| trains_spatial) {
            let settings = &of_stage.autoencoder;
            let mut of_spatial = Trainer::of_spatial(&of_stage, notes, &Compute::from(trainer.state().device()))?;
            let (secs_per_image, _) = measure_pictures(&of_stage, &mut of_spatial)?;
            stages.push(StageEstimate {
                stage: Stage::Spatial,
                num_steps: settings.num_steps(),
                training_secs: secs_per_image * (settings.num_steps() * settings.batch_size) as f64,
                encoding_secs: 0.,
                preview_secs: 0.,
            });
        }
        stages.push(autoencoder);
        if config.model.kind != Kind::Ddpm {
            let num_pictures = planned.num_train + planned.num_validation;
            stages.push(StageEstimate {
                stage: Stage::Latent,
                num_steps: config.latent.num_steps(),
                training_secs: config.latent.num_steps() as f64 * measure_latent(config)?,
                encoding_secs: num_pictures as f64 * costs.encoding,
                preview_secs: if every > 0 { NUM_VALIDATIONS as f64 * costs.of_samples(config) } else { 0. },
            });
            if planned.num_attributes > 0 {
                let step_secs = measure_classifier(config, planned.num_attributes)?;
                stages.push(StageEstimate {
                    stage: Stage::Classifier,
                    num_steps: config.classifier.num_steps(),
                    training_secs: config.classifier.num_steps() as f64 * step_secs,
                    encoding_secs: 0.,
                    preview_secs: 0.,
                });
            }
        }
        Ok(Self { num_parameters: trainer.num_parameters(), kept_bytes_per_image, stages })
    }

    /// Computes the memory of values, gradients, two moments and averages of all parameters in f32, in bytes.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        self.num_parameters * 5 * size_of::<f32>()
    }

    /// Computes the least memory of a step of the first stage with `at_once` pictures in a micro-batch, in bytes: parameters with
    /// their state, and the activations that are saved. Intermediate results come on top.
    #[must_use]
    pub fn step_bytes(&self, at_once: usize) -> usize {
        self.state_bytes() + self.kept_bytes_per_image * at_once
    }

    /// Estimates what a process of a group holds and sends in a step of the first stage, which has `num_parts` micro-batches.
    #[must_use]
    pub fn in_group(&self, num_parts: usize, kind: GroupKind) -> GroupEstimate {
        let count = kind.size.min(num_parts).max(1);
        let value_bytes = (self.num_parameters * size_of::<f32>()) as f64;
        // Parameters are whole; sums of gradients, two moments and averages may be divided.
        let state = if kind.shards_state { 1. + 4. / count as f64 } else { 5. };
        let rounds = num_parts as f64 / count as f64;
        let sent = match kind.reduction {
            Reduction::Ordered => rounds + 1.,
            // Sums go to all, and new values after them.
            Reduction::Fast if kind.shards_state => 3.,
            Reduction::Fast => 2.,
        };
        let to_others = (count - 1) as f64 / count as f64;
        let is_alone = count == 1;
        GroupEstimate {
            num_parts: num_parts.div_ceil(count),
            state_bytes: value_bytes * state,
            exchange_bytes: if is_alone { 0. } else { 2. * value_bytes },
            sent_bytes: value_bytes * sent * to_others,
        }
    }

    /// Returns the least number of micro-batches into which a batch can be cut for steps of at most so many bytes; `None` if
    /// single pictures take more.
    #[must_use]
    pub fn accumulate_within(&self, batch_size: usize, bytes: usize) -> Option<usize> {
        let divides = |count: &usize| batch_size.is_multiple_of(*count);
        (1..=batch_size).filter(divides).find(|count| self.step_bytes(batch_size.div_euclid(*count)) <= bytes)
    }
}

/// Measures seconds and saved activations of a step of the first stage, per picture.
fn measure_pictures(config: &TrainConfig, trainer: &mut Trainer) -> Result<(f64, usize)> {
    let stage = &config.autoencoder;
    let count = stage.batch_size.min(MAX_MEASURED.max(stage.accumulate)).next_multiple_of(stage.accumulate);
    let shape = config.picture_format().shape.of_batch(count);
    let x_0 = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
    let kept = trainer.step(&x_0)?.activation_bytes; // what a first step takes longer
    let secs = repeated(&mut || trainer.step(&x_0).map(drop))?;
    Ok((secs / count as f64, (kept * stage.accumulate).checked_div(count).unwrap_or(0)))
}

/// Durations of the model's calls, in seconds.
struct Costs {
    /// Encoding of a picture.
    encoding: f64,
    /// One step of decoding or inverting a picture; the whole decoding of a one-shot model.
    decoding: f64,
    /// Encoding of a picture to latents, in a model on latents.
    to_latents: f64,
    /// Decoding of a picture from its latents, in a model on latents.
    from_latents: f64,
    /// Whether results of networks that are not trained are kept: on a CPU.
    keeps_results: bool,
}

impl Costs {
    fn measure(config: &TrainConfig, model: &Model) -> Result<Self> {
        let shape = config.picture_format().shape.of_batch(2);
        let x_0 = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        let encoding = if model.has_z_sem() {
            model.encode_semantic(&x_0)?;
            repeated(&mut || Ok(model.encode_semantic(&x_0).map(drop)?))? / 2.
        } else {
            0.
        };
        let steps = if config.model.kind == Kind::Compact { 1 } else { 2 };
        let z_sem = if model.has_z_sem() { Some(model.encode_semantic(&x_0)?) } else { None };
        let x_terminal = model.zero_x_terminal(2)?;
        let mut decode = || {
            let options = DecodeOptions::ddim(steps);
            let decoded = model.decode(&x_terminal, z_sem.as_ref(), &options, &mut no_noise, &mut no_callback);
            Ok(decoded.map(drop)?)
        };
        decode()?;
        let (both, states) = (repeated(&mut decode)?, model.zero_x_terminal(2)?);
        let (to_latents, from_latents) = if config.spatial_net.is_some() {
            model.states(&x_0)?;
            model.pictures(&states)?;
            (
                repeated(&mut || Ok(model.states(&x_0).map(drop)?))? / 2.,
                repeated(&mut || Ok(model.pictures(&states).map(drop)?))? / 2.,
            )
        } else {
            (0., 0.)
        };
        let decoding = (both - 2. * from_latents).max(0.) / (2 * steps) as f64;
        Ok(Self { encoding, decoding, to_latents, from_latents, keeps_results: model.device().is_cpu() })
    }

    /// Estimates the seconds that networks which are not trained take in the first stage on a CPU, where a measured step finds their
    /// results kept.
    fn of_constants(&self, (config, model): (&TrainConfig, &ModelConfig), planned: Planned, num_images: usize) -> f64 {
        if !self.keeps_results {
            return 0.;
        }
        let variants = if config.data.flip > 0. { 2 } else { 1 };
        let secs = |of_one: f64, max_bytes: usize, num_values: usize| {
            let num_kept = max_bytes.checked_div(num_values * size_of::<f32>()).unwrap_or(0);
            let computed = num_computed(num_images, variants * planned.num_train, num_kept);
            // Where nothing may be kept, the measured step has computed it.
            if max_bytes == 0 { 0. } else { of_one * computed }
        };
        let max_cached = config.spatial_net.as_ref().map_or(0, SpatialSettings::max_cached_bytes);
        let latents = model
            .spatial()
            .map_or(0., |sizes| secs(self.to_latents, max_cached, sizes.latent_shape().iter().product()));
        let frozen = model.encoder().and_then(SemanticConfig::frozen);
        let codes = frozen.map_or(0., |frozen| secs(self.encoding, MAX_CODE_BYTES, frozen.network.width()));
        latents + codes
    }

    /// Estimates the seconds of a preview of the first stage, with its validation.
    fn of_preview(&self, config: &TrainConfig, planned: Planned) -> f64 {
        let watched = if planned.num_validation > 0 { planned.num_validation } else { planned.num_train };
        let steps = if config.model.kind == Kind::Compact { 1 } else { config.run.preview_steps };
        let sheet = watched.min(MAX_SHOWN) * NUM_PREVIEW_PASSES * steps;
        let validated = num_validated(watched, config.model.image_size) as f64;
        let from_latents = (watched.min(MAX_SHOWN) * NUM_PREVIEW_PASSES) as f64 * self.from_latents;
        (sheet as f64 + 2. * validated) * self.decoding + validated * self.encoding + from_latents
    }

    /// Estimates the seconds of a sheet of samples.
    fn of_samples(&self, config: &TrainConfig) -> f64 {
        let steps = if config.model.kind == Kind::Compact { 1 } else { config.run.preview_steps };
        NUM_SAMPLES as f64 * (steps as f64 * self.decoding + self.from_latents)
    }
}

/// Measures the seconds of a step of the latent stage.
fn measure_latent(config: &TrainConfig) -> Result<f64> {
    let latent = config.latent_config()?;
    let schedule = latent.diffusion.noise_schedule()?;
    let mut trainer = LatentTrainer::new(&latent, &config.latent, (config.seed, &Device::Cpu), HashMap::new())?;
    let z_0 = Tensor::zeros((config.latent.batch_size, config.model.z_channels), DType::F32, &Device::Cpu)?;
    let how = Drawing::uniform(config.seed, Purpose::LatentNoise, 0);
    let mut step = || {
        let Draw { noise, timesteps } = Draw::new(&schedule, &z_0, how)?;
        trainer.step_with(&z_0, &noise, &timesteps).map(drop)
    };
    step()?;
    repeated(&mut step)
}

/// Measures the seconds of a step of the classifier.
fn measure_classifier(config: &TrainConfig, num_attributes: usize) -> Result<f64> {
    let batch_size = config.classifier.batch_size;
    let settings = StageSettings { images: CLASSIFIER_STEPS * batch_size, ..config.classifier.clone() };
    let z = Tensor::zeros((batch_size, config.model.z_channels), DType::F32, &Device::Cpu)?;
    let absent = vec![false; num_attributes];
    let samples = (0..).take(batch_size).map(|row: u32| (row, absent.as_slice())).collect();
    let examples = Examples { train: Labeled { z, samples }, validation: None, num_attributes };
    let (stage, seed) = (Stage::Classifier, config.seed);
    let stage = CodeStage { folder: None, stage, settings: &settings, seed, num_samples: batch_size };
    let go_on = &mut |_: &crate::StepReport| std::ops::ControlFlow::Continue(());
    let start = Instant::now();
    examples.fit(&stage, config.edit_directions, (&mut Group::alone(), go_on))?;
    Ok(start.elapsed().as_secs_f64() / CLASSIFIER_STEPS as f64)
}

/// Measures the mean seconds of a call, repeated until it has taken long enough to be measured.
fn repeated(what: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let (start, mut count) = (Instant::now(), 0);
    while count == 0 || start.elapsed() < MEASURE_FOR {
        what()?;
        count += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(count))
}

/// A group of processes that an estimate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupKind {
    /// Number of processes.
    pub size: usize,
    /// Order of sums.
    pub reduction: Reduction,
    /// Whether the optimizer state is divided among the processes.
    pub shards_state: bool,
}

/// Memory and messages of one process of a group, in a step of the first stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupEstimate {
    /// Micro-batches of a step that the process computes, at most.
    pub num_parts: usize,
    /// Bytes of values, gradients, moments and averages that the process holds.
    pub state_bytes: f64,
    /// Most bytes beyond these while gradients are exchanged: the gradient of a micro-batch, and sums that the process owns.
    pub exchange_bytes: f64,
    /// Bytes that the process sends in a step, and receives.
    pub sent_bytes: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_a_group_sends_its_part() {
        let estimate = Estimate { num_parameters: 1000, kept_bytes_per_image: 0, stages: vec![] };
        let of = |num_parts, size, reduction, shards_state| {
            let GroupEstimate { num_parts, state_bytes, exchange_bytes, sent_bytes } =
                estimate.in_group(num_parts, GroupKind { size, reduction, shards_state });
            (num_parts, [state_bytes, exchange_bytes, sent_bytes].map(f64::round))
        };
        assert_eq!(of(1, 1, Reduction::Ordered, false), (1, [20e3, 0., 0.]));
        assert_eq!(of(2, 2, Reduction::Ordered, false), (1, [20e3, 8e3, 4e3]));
        assert_eq!(of(8, 2, Reduction::Ordered, true), (4, [12e3, 8e3, 10e3]));
        assert_eq!(of(8, 2, Reduction::Fast, false), (4, [20e3, 8e3, 4e3]));
        assert_eq!(of(8, 2, Reduction::Fast, true), (4, [12e3, 8e3, 6e3]));
        // The others have no micro-batch.
        assert_eq!(of(4, 9, Reduction::Ordered, true), (1, [8e3, 8e3, 6e3]));
    }

    #[test]
    fn a_batch_is_cut_until_a_step_fits() {
        let estimate = Estimate { num_parameters: 100, kept_bytes_per_image: 1000, stages: vec![] };
        assert_eq!(estimate.step_bytes(12), 14_000);
        for (bytes, expected) in
            [(14_000, Some(1)), (13_999, Some(2)), (6_500, Some(3)), (3_000, Some(12)), (2_999, None)]
        {
            assert_eq!(estimate.accumulate_within(12, bytes), expected, "{bytes}");
        }
    }
}
