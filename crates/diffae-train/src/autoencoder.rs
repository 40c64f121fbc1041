//! The first stage: encoder and decoder, or the `UNet` of a plain DDPM.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use diffae_data::{Batch, Loader};
use diffae_nets::ImageSize;
use serde::Serialize;

use crate::checkpoint::Checkpoints;
use crate::collective::Group;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::optimization::{Stepped, TrainState};
use crate::order;
use crate::preview::Preview;
use crate::reduce::Share;
use crate::run::{RunFolder, Stage};
use crate::trainer::{StepResult, Trainer};
use crate::training_loop::{Learner, TrainingLoop, Validation};
use crate::{Data, OnStep, Outcome};

/// Maximum number of pictures in validation.
const MAX_VALIDATED: usize = 64;
/// Maximum number of pixels in validation: fewer large pictures are compared, which are in memory at once.
const MAX_VALIDATED_PIXELS: usize = MAX_VALIDATED * 128 * 128;
/// Minimum `z_usage` of a model whose decoder uses `z_sem`.
const MIN_Z_USAGE: f64 = 0.002;
/// Number of images seen before a low `z_usage` is worth a warning.
const IMAGES_BEFORE_WARNING: usize = 20_000;

/// Trains the stage, or that of the spatial autoencoder with a config in the form of this one, from its newest checkpoint, if
/// there is one, to its end.
pub(crate) fn run(
    (folder, stage): (&RunFolder, Stage),
    config: &TrainConfig,
    trainer: &mut Trainer,
    data: &Data,
    (group, on_step): (&mut Group, &mut OnStep<'_>),
) -> Result<Outcome> {
    let share = Share::new((group.rank(), group.size()), config.autoencoder.accumulate);
    let watched = group
        .is_first()
        .then(|| Watched::new((folder.path(), trainer.state().device()), data, (config, stage)))
        .transpose();
    let watched = group.agree(watched)?;
    let training = TrainingLoop::resume(folder, stage, (trainer.state_mut(), group))?;
    let loader = order::loader(data.train.clone(), config, (share, trainer.state().step));
    let learner = &mut FirstStage { config, trainer, loader, watched, meter: Meter::new(), batch: vec![], last: None };
    training.run(learner, on_step)
}

/// Pictures of validation and previews.
struct Watched {
    x_0: Tensor,
    preview: Preview,
}

impl Watched {
    fn new(at: (&Path, &Device), data: &Data, (config, stage): (&TrainConfig, Stage)) -> Result<Self> {
        let x_0 = watched(data, config)?;
        Ok(Self { preview: Preview::new(at, (config, stage), &x_0)?, x_0 })
    }
}

/// The first stage under training.
struct FirstStage<'a> {
    config: &'a TrainConfig,
    trainer: &'a mut Trainer,
    loader: Loader,
    /// Of the first process of a group alone.
    watched: Option<Watched>,
    meter: Meter,
    /// Pictures of the last step in this process, by number.
    batch: Vec<usize>,
    last: Option<StepResult>,
}

/// Fields of a log line that only the first stage has.
#[derive(Debug, Serialize)]
struct Details {
    grad_norm_encoder: f64,
    /// Norm of the gradient of the `UNet`, or of another decoder.
    grad_norm_unet: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_discriminator: Option<f64>,
    images_per_sec: f64,
    /// Share of the time that training waited for pictures.
    data_wait: f64,
    broken: usize,
}

impl Learner for FirstStage<'_> {
    type Details = Option<Details>;

    fn state(&self) -> &TrainState {
        self.trainer.state()
    }

    fn state_mut(&mut self) -> &mut TrainState {
        self.trainer.state_mut()
    }

    fn step(&mut self, group: &mut Group) -> Result<Stepped> {
        let (loader, batch, num_samples) = (&mut self.loader, &mut self.batch, self.config.autoencoder.batch_size);
        batch.clear();
        let mut next = || {
            let Batch { x_0, indices } = loader.next_batch()?;
            batch.extend(indices);
            Ok(x_0)
        };
        let loss_scale = self.trainer.state().loss_scale();
        let result = self.trainer.step_in_group(group, &mut next)?;
        self.last = Some(result);
        self.meter.images += num_samples;
        Ok(Stepped { loss: result.loss, grad_norm: result.grad_norm, num_samples, loss_scale })
    }

    fn batch(&self) -> String {
        let names = self.batch.iter().map(|&idx| self.loader.pictures().name(idx));
        format!("the images {}", names.collect::<Vec<_>>().join(", "))
    }

    fn details(&mut self) -> Option<Details> {
        let StepResult { grad_norm_encoder, grad_norm_unet, loss_discriminator, .. } = self.last?;
        let (images_per_sec, data_wait) = self.meter.take(self.loader.take_waited());
        let broken = self.loader.pictures().unreadable().len();
        Some(Details { grad_norm_encoder, grad_norm_unet, loss_discriminator, images_per_sec, data_wait, broken })
    }

    fn is_validated_after(&self, step: usize) -> bool {
        let (every, size) = (self.config.run.preview_every_images, self.config.autoencoder.batch_size);
        every > 0 && (step * size).div_euclid(every) > ((step - 1) * size).div_euclid(every)
    }

    fn validate(&mut self) -> Result<Option<Validation>> {
        let Some(Watched { x_0, preview }) = &self.watched else { return Ok(None) };
        let images = self.trainer.state().step * self.config.autoencoder.batch_size;
        let (loss, z_usage) = self.trainer.validate(x_0)?;
        warn_of_unused_z(z_usage, images);
        preview.write(self.trainer.averages()?, images)?;
        Ok(Some(Validation { loss, z_usage }))
    }
}

/// Returns whether the stage has a checkpoint.
pub(crate) fn is_begun(folder: &RunFolder, stage: Stage) -> bool {
    Checkpoints::new(folder.path(), stage.name(), 1).any()
}

fn warn_of_unused_z(z_usage: Option<f64>, images: usize) {
    if z_usage.is_some_and(|usage| usage < MIN_Z_USAGE) && images >= IMAGES_BEFORE_WARNING {
        tracing::warn!(
            "z_sem hardly matters: with the codes of other pictures the noise is predicted as well as with the right \
             ones, so pictures are not decoded from their meaning; train longer, or with a smaller z_sem or UNet"
        );
    }
}

/// Returns the number of pictures in validation, of a split of so many.
pub(crate) fn num_validated(num_pictures: usize, image_size: ImageSize) -> usize {
    let most = MAX_VALIDATED_PIXELS.checked_div(image_size.num_pixels()).unwrap_or(1).clamp(1, MAX_VALIDATED);
    num_pictures.min(most)
}

/// Reads the pictures of validation and previews: held-out ones, or training pictures if no held-out one can be read.
pub(crate) fn watched(data: &Data, config: &TrainConfig) -> Result<Tensor> {
    for pictures in [&data.validation, &data.train] {
        // Spread over the whole split, since names often sort by kind.
        let count = num_validated(pictures.len(), config.model.image_size);
        let spread = (0..count).map(|i| (i * pictures.len()).checked_div(count).unwrap_or(0));
        let format = config.picture_format();
        let picture = |idx| pictures.read_or_leave_out(idx, format).transpose();
        let read: Vec<Tensor> = spread.filter_map(picture).collect::<diffae_data::Result<_>>()?;
        if !read.is_empty() {
            return Ok(Tensor::stack(&read, 0)?);
        }
    }
    Err(data.train.none_readable().into())
}

/// Measures images per second and the share of time spent waiting.
struct Meter {
    since: Instant,
    images: usize,
}

impl Meter {
    fn new() -> Self {
        Self { since: Instant::now(), images: 0 }
    }

    fn take(&mut self, waited: Duration) -> (f64, f64) {
        let elapsed = self.since.elapsed().as_secs_f64().max(1e-9);
        let result = (self.images as f64 / elapsed, waited.as_secs_f64() / elapsed);
        *self = Self::new();
        result
    }
}
