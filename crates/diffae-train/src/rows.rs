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
use crate::{OnStep, Outcome, StepReport, Work};

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

/// Codes of the first pictures.
struct Begun {
    /// By batches, `[n, D]`.
    z_sem: Vec<Tensor>,
    indices: Vec<u32>,
}

/// What says in a file of codes whose codes of which pictures they are, and how many of these were tried.
const KEY: &str = "diffae:codes";
const TRIED: &str = "diffae:tried";

fn key(model: &Model, pictures: &Pictures) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(model.fingerprint().as_bytes());
    for idx in 0..pictures.len() {
        hasher.update(b"\n").update(pictures.name(idx).as_bytes());
    }
    hasher.finalize().to_hex().chars().take(16).collect()
}

impl Begun {
    /// Codes that are there already, and how many pictures were tried for them.
    fn read(path: &Path, key: &str) -> Option<(Self, usize)> {
        let file = SafetensorsFile::open(path).ok()?;
        let text = file.text();
        if text.get(KEY).is_none_or(|noted| noted != key) {
            return None;
        }
        let tried = text.get(TRIED)?.parse().ok()?;
        let z_sem = file.read("z_sem").ok()?.to_tensor(DType::F32, &Device::Cpu).ok()?;
        let stored = file.read("indices").ok()?;
        let indices = Tensor::from_raw_buffer(&stored.bytes, stored.dtype, &stored.shape, &Device::Cpu);
        let indices: Vec<u32> = indices.and_then(|indices| indices.to_vec1()).ok()?;
        (z_sem.dims().first() == Some(&indices.len())).then_some((Self { z_sem: vec![z_sem], indices }, tried))
    }

    fn write(&self, path: &Path, key: &str, tried: usize) -> Result<()> {
        if self.indices.is_empty() {
            return Ok(());
        }
        let indices = Tensor::new(self.indices.as_slice(), &Device::Cpu)?;
        let tensors = [("z_sem".to_owned(), Tensor::cat(&self.z_sem, 0)?), ("indices".to_owned(), indices)].into();
        let text = [(KEY.to_owned(), key.to_owned()), (TRIED.to_owned(), tried.to_string())].into();
        let bytes = safetensors_bytes(&tensors, &text)?;
        Ok(write_atomically(path, &bytes, diffae_infer::Overwrite::Replace)?)
    }
}

impl Codes {
    /// Encodes all pictures, or reads what has been encoded before of the same pictures by the same model. Pictures that
    /// cannot be read are left out, if need be all. Nothing if `on_step` stops it; what is encoded by then is kept.
    pub(crate) fn of(
        (folder, stage): (&RunFolder, Stage),
        file: &str,
        model: &Model,
        pictures: &Pictures,
        on_step: &mut OnStep<'_>,
    ) -> Result<Option<Self>> {
        let path = folder.path().join(file);
        let key = key(model, pictures);
        // A file of other pictures, or of an earlier version that does not say of which, is made anew.
        let nothing = (Begun { z_sem: vec![], indices: vec![] }, 0);
        let (mut codes, mut first) = Begun::read(&path, &key).unwrap_or(nothing);
        let save_every = Duration::from_secs_f64(folder.config().run.save_every_secs);
        let mut last_save = Instant::now();
        let [channels, image_size, _] = model.image_shape();
        let all: Vec<usize> = (0..pictures.len()).collect();
        let num_steps = all.len().div_ceil(ENCODED_AT_ONCE);
        while first < all.len() {
            let some = &all[first..(first + ENCODED_AT_ONCE).min(all.len())];
            let read = some.par_iter().map(|&idx| Ok((idx, pictures.read_or_leave_out(idx, channels, image_size)?)));
            let read = read.collect::<Result<Vec<(usize, Option<Tensor>)>>>()?;
            let present: Vec<(usize, Tensor)> = read.into_iter().filter_map(|(idx, x)| Some((idx, x?))).collect();
            if !present.is_empty() {
                let x_0: Vec<&Tensor> = present.iter().map(|(_, x)| x).collect();
                codes.z_sem.push(model.encode_semantic(&Tensor::stack(&x_0, 0)?)?);
                codes.indices.extend(present.iter().map(|(idx, _)| u32::try_from(*idx).unwrap_or(u32::MAX)));
            }
            first += some.len();
            let (work, step) = (Work::Encoding, first.div_ceil(ENCODED_AT_ONCE));
            let stop = on_step(&StepReport { stage, work, step, num_steps, loss: 0., batch: some.len() })
                == ControlFlow::Break(());
            if stop || first == all.len() || last_save.elapsed() >= save_every {
                codes.write(&path, &key, first)?;
                last_save = Instant::now();
            }
            if stop {
                return Ok(None);
            }
        }
        if codes.indices.is_empty() {
            return Ok(Some(Self { z_sem: Tensor::zeros((0, 1), DType::F32, &Device::Cpu)?, indices: vec![] }));
        }
        Ok(Some(Self { z_sem: Tensor::cat(&codes.z_sem, 0)?, indices: codes.indices }))
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
            let report = StepReport {
                stage: self.stage,
                work: Work::Training,
                step,
                num_steps,
                loss: value,
                batch: settings.batch_size,
            };
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
