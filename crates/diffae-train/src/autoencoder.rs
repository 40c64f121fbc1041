//! The first stage: encoder and decoder, or the `UNet` of a plain DDPM.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use serde::Serialize;

use crate::checkpoint::Checkpoints;
use crate::config::TrainConfig;
use crate::data::{Batch, Loader, Pictures};
use crate::error::{Error, Result};
use crate::preview::Preview;
use crate::run::{RunFolder, Stage, ValidationLine};
use crate::trainer::{StepResult, Trainer};
use crate::{OnStep, Outcome, StepReport, Work};

/// Pictures that validation looks at.
const MOST_VALIDATED: usize = 64;
/// Below this share, `z_sem` decides next to nothing.
const LEAST_Z_USAGE: f64 = 0.002;
/// Pictures that a run may see before a warning makes sense.
const IMAGES_BEFORE_WARNING: usize = 20_000;

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
    /// Of the `UNet`, or of another decoder.
    grad_norm_unet: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_discriminator: Option<f64>,
    images_per_sec: f64,
    /// Share of the time that training waited for pictures.
    data_wait: f64,
    broken: usize,
}

impl Line {
    /// Of a step, with pictures a second, the share of the time spent waiting, and broken pictures.
    fn new(
        config: &TrainConfig,
        step: usize,
        result: &StepResult,
        ((images_per_sec, data_wait), broken): ((f64, f64), usize),
    ) -> Self {
        let &StepResult { loss, loss_discriminator, grad_norm, grad_norm_encoder, grad_norm_unet, .. } = result;
        Self {
            stage: Stage::Autoencoder,
            step,
            images: step * config.autoencoder.batch_size,
            loss,
            lr: config.autoencoder.lr_at(step - 1),
            grad_norm,
            grad_norm_encoder,
            grad_norm_unet,
            loss_discriminator,
            images_per_sec,
            data_wait,
            broken,
        }
    }
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
        trainer.load_newest(&checkpoints)?;
    }
    let mut metrics = folder.metrics(Stage::Autoencoder, trainer.num_steps_made())?;
    let mut loader = Loader::new(data.train.clone(), &config, trainer.num_steps_made());
    let watched = watched(data, &config)?;
    let preview = Preview::new(folder.path(), &config, &watched)?;
    let num_steps = config.autoencoder.num_steps();
    let (mut meter, mut last_save) = (Meter::new(), Instant::now());
    let report = |work, step, loss, batch| StepReport { stage: Stage::Autoencoder, work, step, num_steps, loss, batch };
    if on_step(&report(Work::Starting, trainer.num_steps_made(), 0., 0)) == ControlFlow::Break(()) {
        return Ok(Outcome::Stopped);
    }
    while trainer.num_steps_made() < num_steps {
        let Batch { x_0, indices } = loader.next()?;
        let named = |error: Error| error.on_batch(|| format!("the images {}", loader.names(&indices)));
        let result = trainer.step(&x_0).map_err(named)?;
        let step = trainer.num_steps_made();
        let images = step * config.autoencoder.batch_size;
        meter.add(indices.len());
        if step.is_multiple_of(config.run.log_every_steps) || step == num_steps {
            let rates = meter.take(&mut loader.waited);
            metrics.write(&Line::new(&config, step, &result, (rates, loader.num_broken())))?;
        }
        let stop = on_step(&report(Work::Training, step, result.loss, indices.len())) == ControlFlow::Break(());
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
            trainer.save(&checkpoints)?;
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

/// The pictures of validation and previews; those of training where none are kept, or none of these can be read.
fn watched(data: &Data, config: &TrainConfig) -> Result<Tensor> {
    for pictures in [&data.validation, &data.train] {
        // Spread over the whole, since names often sort by kind.
        let count = pictures.len().min(MOST_VALIDATED);
        let spread = (0..count).map(|i| (i * pictures.len()).checked_div(count).unwrap_or(0));
        let (channels, image_size) = (config.model.image_channels, config.model.image_size);
        let picture = |idx| pictures.read_or_leave_out(idx, channels, image_size).transpose();
        let read: Vec<Tensor> = spread.filter_map(picture).collect::<Result<_>>()?;
        if !read.is_empty() {
            return Ok(Tensor::stack(&read, 0)?);
        }
    }
    Err(data.train.none_readable())
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
