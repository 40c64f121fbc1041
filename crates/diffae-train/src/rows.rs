//! What the two small stages share: training on the codes of all pictures.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{D, DType, Device, Tensor};
use diffae_infer::{Model, write_atomically};
use diffae_kernels::{Gradients, record, run_in_pool};
use diffae_nets::weights::{LatentMoments, SafetensorsFile, TensorSource, safetensors_bytes};
use rayon::prelude::*;
use serde::Serialize;

use crate::checkpoint::Checkpoints;
use crate::config::StageSettings;
use crate::data::Pictures;
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::random::permutation;
use crate::run::{RunFolder, Stage, ValidationLine};
use crate::{OnStep, Outcome, StepReport};

/// Pictures that are encoded at once.
const ENCODED_AT_ONCE: usize = 32;
/// Codes of the pictures that are trained on, and of those that are not.
pub(crate) const CODES_FILE: &str = "codes.safetensors";
pub(crate) const VALIDATION_CODES_FILE: &str = "codes-validation.safetensors";
/// How often a stage is validated.
const VALIDATIONS: usize = 10;
/// Keeps a direction of `z_sem` that never varies from being divided by zero.
const LEAST_STD: f64 = 1e-6;

/// Codes of all training pictures.
#[derive(Debug)]
pub(crate) struct Codes {
    /// `z_sem`, `[n, D]`.
    pub(crate) z_sem: Tensor,
    /// Which pictures they are of.
    pub(crate) indices: Vec<u32>,
}

impl Codes {
    /// Encodes all pictures, or reads what has been encoded before. Pictures that cannot be read are left out.
    pub(crate) fn of(folder: &Path, file: &str, model: &Model, pictures: &Pictures) -> Result<Self> {
        let path = folder.join(file);
        if path.exists() {
            return Self::read(&path);
        }
        let [channels, image_size, _] = model.image_shape();
        let (mut codes, mut indices) = (vec![], vec![]);
        let all: Vec<usize> = (0..pictures.len()).collect();
        for some in all.chunks(ENCODED_AT_ONCE) {
            let read = some.par_iter().map(|&idx| (idx, pictures.read(idx, channels, image_size).ok()));
            let read: Vec<(usize, Option<Tensor>)> = read.collect();
            let present: Vec<(usize, Tensor)> = read.into_iter().filter_map(|(idx, x)| Some((idx, x?))).collect();
            if present.is_empty() {
                continue;
            }
            let x_0: Vec<&Tensor> = present.iter().map(|(_, x)| x).collect();
            codes.push(model.encode_semantic(&Tensor::stack(&x_0, 0)?)?);
            indices.extend(present.iter().map(|(idx, _)| u32::try_from(*idx).unwrap_or(u32::MAX)));
        }
        if codes.is_empty() {
            let problem = "none of its pictures can be read".to_owned();
            return Err(Error::Data { path: pictures.root().to_owned(), problem });
        }
        let codes = Self { z_sem: Tensor::cat(&codes, 0)?, indices };
        codes.write(&path)?;
        Ok(codes)
    }

    fn read(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let z_sem = file.read("z_sem")?.to_tensor(DType::F32, &Device::Cpu)?;
        let stored = file.read("indices")?;
        let indices = Tensor::from_raw_buffer(&stored.bytes, stored.dtype, &stored.shape, &Device::Cpu)?.to_vec1()?;
        Ok(Self { z_sem, indices })
    }

    fn write(&self, path: &Path) -> Result<()> {
        let indices = Tensor::new(self.indices.as_slice(), &Device::Cpu)?;
        let tensors = [("z_sem".to_owned(), self.z_sem.clone()), ("indices".to_owned(), indices)].into();
        let bytes = safetensors_bytes(&tensors, &std::collections::BTreeMap::new())?;
        Ok(write_atomically(path, &bytes, diffae_infer::Overwrite::Replace)?)
    }

    /// Mean and standard deviation (with n - 1) of each direction.
    pub(crate) fn moments(&self) -> Result<LatentMoments> {
        let count = self.z_sem.dim(0)?;
        if count < 2 {
            let problem = "statistics of z_sem need at least two pictures".to_owned();
            return Err(Error::Data { path: CODES_FILE.into(), problem });
        }
        let z = self.z_sem.to_dtype(DType::F64)?;
        let mean = z.mean_keepdim(0)?;
        let squares = z.broadcast_sub(&mean)?.sqr()?.sum(0)?;
        let std = (squares / (count - 1) as f64)?.sqrt()?.maximum(LEAST_STD)?;
        Ok(LatentMoments::new(mean.squeeze(0)?.to_dtype(DType::F32)?, std.to_dtype(DType::F32)?)?)
    }

    /// `(z_sem - mean) / std`, `[n, D]`.
    pub(crate) fn normalized(&self, moments: &LatentMoments) -> Result<Tensor> {
        let row = |x: &Tensor| x.reshape((1, ()));
        let (mean, std) = (row(&moments.mean)?, row(&moments.std)?);
        debug_assert_eq!(self.z_sem.dim(D::Minus1).ok(), mean.dim(D::Minus1).ok());
        Ok(self.z_sem.broadcast_sub(&mean)?.broadcast_div(&std)?)
    }
}

#[derive(Debug, Serialize)]
struct Line {
    stage: Stage,
    step: usize,
    images: usize,
    loss: f64,
    lr: f64,
    grad_norm: f64,
}

/// What looks at a stage from time to time: the loss on what is not trained on, if there is any, after so many rows.
pub(crate) type Watch<'a> = dyn Fn(&Parameters, usize) -> Result<Option<f64>> + 'a;

/// A stage over `num_rows` rows.
pub(crate) struct RowStage<'a> {
    pub(crate) folder: &'a RunFolder,
    pub(crate) stage: Stage,
    pub(crate) settings: &'a StageSettings,
    pub(crate) num_rows: usize,
}

impl RowStage<'_> {
    /// Trains from the newest checkpoint, if there is one, to the end. `loss` is that of a step on some rows; it is
    /// recorded.
    pub(crate) fn run(
        &self,
        parameters: &mut Parameters,
        on_step: &mut OnStep<'_>,
        loss: &(impl Fn(usize, &[usize]) -> Result<Tensor> + Sync),
        watch: &Watch<'_>,
    ) -> Result<Outcome> {
        let run = &self.folder.config().run;
        let (settings, seed) = (self.settings, self.folder.config().seed);
        let checkpoints = Checkpoints::new(self.folder.path(), self.stage.name(), run.keep);
        checkpoints.clear_partial();
        let mut step = if checkpoints.any() { checkpoints.load_newest(parameters)? } else { 0 };
        let mut metrics = self.folder.metrics(self.stage, step)?;
        let num_steps = settings.num_steps();
        let mut order = (usize::MAX, vec![]);
        let mut last_save = Instant::now();
        while step < num_steps {
            let first = step * settings.batch_size;
            let mut rows = Vec::with_capacity(settings.batch_size);
            for place in first..first + settings.batch_size {
                let epoch = place.checked_div(self.num_rows).unwrap_or(0);
                if order.0 != epoch {
                    order = (epoch, permutation(seed, epoch as u64, self.num_rows));
                }
                rows.push(order.1[place % self.num_rows]);
            }
            let (value, norms) = run_in_pool(|| -> Result<_> {
                let mut gradients = Gradients::default();
                let (loss, tape) = record(|| loss(step, &rows))?;
                let value = f64::from(loss.to_scalar::<f32>()?);
                if !value.is_finite() {
                    return Err(Error::Diverged { loss: value, step, pictures: format!("rows {rows:?}") });
                }
                tape.backward(&loss, &mut gradients)?;
                Ok((value, parameters.update(&gradients, settings, step)?))
            })?;
            step += 1;
            if step % run.log_every_steps == 0 || step == num_steps {
                let (images, lr, grad_norm) = (step * settings.batch_size, settings.lr_at(step - 1), norms.whole);
                metrics.write(&Line { stage: self.stage, step, images, loss: value, lr, grad_norm })?;
            }
            let report = StepReport { stage: self.stage, step, num_steps, loss: value, batch: settings.batch_size };
            let stop = on_step(&report) == ControlFlow::Break(());
            let crossed =
                (step * VALIDATIONS).checked_div(num_steps) > ((step - 1) * VALIDATIONS).checked_div(num_steps);
            if crossed && !stop && run.preview_every_images > 0 {
                let images = step * settings.batch_size;
                if let Some(validation_loss) = watch(parameters, images)? {
                    let (stage, z_usage) = (self.stage, None);
                    metrics.write(&ValidationLine { stage, step, images, validation_loss, z_usage })?;
                }
            }
            if stop || last_save.elapsed() >= Duration::from_secs_f64(run.save_every_secs) || step == num_steps {
                checkpoints.save(parameters, step)?;
                last_save = Instant::now();
            }
            if stop {
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Finished)
    }
}
