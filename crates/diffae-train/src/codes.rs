//! Codes of all pictures of a split, encoded once, kept in a file and normalized.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use diffae_data::{Fingerprint, Pictures};
use diffae_infer::{CachedCodes, CodeCache, Model};
use diffae_nets::weights::LatentMoments;
use rayon::prelude::*;

use crate::error::Result;
use crate::run::{RunFolder, Stage};
use crate::{OnStep, StepReport, Work};

/// Number of pictures that are encoded at once.
const ENCODED_AT_ONCE: usize = 32;
/// Files with the codes of training pictures and of held-out ones.
pub(crate) const CODES_FILE: &str = "codes.safetensors";
pub(crate) const VALIDATION_CODES_FILE: &str = "codes-validation.safetensors";
/// Lower bound of the standard deviation, for components of `z_sem` that never vary.
const MIN_STD: f64 = 1e-6;

/// Codes of the readable pictures of a split.
#[derive(Debug)]
pub(crate) struct Codes {
    /// `z_sem`, `[n, D]`.
    pub(crate) z_sem: Tensor,
    /// Picture of each code, by number.
    pub(crate) indices: Vec<u32>,
}

/// Pictures to encode, and the file for their codes.
pub(crate) struct Encoding<'a> {
    pub(crate) file: &'a Path,
    pub(crate) stage: Stage,
    pub(crate) save_every: Duration,
    pub(crate) model: &'a Model,
    pub(crate) pictures: &'a Pictures,
    /// Pictures to encode, by number.
    pub(crate) wanted: &'a [usize],
    /// Fingerprint that distinguishes pictures of the same names.
    pub(crate) origin: String,
}

impl Encoding<'_> {
    fn key(&self) -> String {
        let mut fingerprint = Fingerprint::new();
        fingerprint.update(self.model.fingerprint().as_bytes()).update(self.origin.as_bytes());
        for &idx in self.wanted {
            fingerprint.update(b"\n").update(self.pictures.name(idx).as_bytes());
        }
        fingerprint.digits()
    }

    /// Reads pictures, `[C, H, W]` each, with their numbers; unreadable ones are left out.
    fn read(&self, some: &[usize]) -> Result<(Vec<Tensor>, Vec<u32>)> {
        let [channels, image_size, _] = self.model.image_shape();
        let read = some.par_iter().map(|&idx| Ok((idx, self.pictures.read_or_leave_out(idx, channels, image_size)?)));
        let read = read.collect::<Result<Vec<(usize, Option<Tensor>)>>>()?;
        let present = read.into_iter().filter_map(|(idx, x)| Some((x?, u32::try_from(idx).unwrap_or(u32::MAX))));
        Ok(present.unzip())
    }
}

impl Codes {
    /// Encodes all pictures of a run, with [`Codes::of`].
    pub(crate) fn of_run(
        (folder, stage): (&RunFolder, Stage),
        file: &str,
        (model, pictures): (&Model, &Pictures),
        on_step: &mut OnStep<'_>,
    ) -> Result<Option<Self>> {
        let wanted: Vec<usize> = (0..pictures.len()).collect();
        let save_every = Duration::from_secs_f64(folder.config().run.save_every_secs);
        let (file, wanted) = (&folder.path().join(file), wanted.as_slice());
        Self::of(&Encoding { file, stage, save_every, model, pictures, wanted, origin: String::new() }, on_step)
    }

    /// Encodes pictures, or reads the codes of the same pictures and the same model from the file.
    ///
    /// Unreadable pictures are left out, possibly all. Returns `None` if `on_step` stops it; the codes so far are kept.
    pub(crate) fn of(encoding: &Encoding<'_>, on_step: &mut OnStep<'_>) -> Result<Option<Self>> {
        let &Encoding { file, stage, save_every, model, wanted, .. } = encoding;
        let cache = CodeCache { path: file, key: encoding.key(), save_every };
        let codes = cache.load();
        let num_steps = wanted.len().div_ceil(ENCODED_AT_ONCE);
        let mut step = codes.num_attempted.div_ceil(ENCODED_AT_ONCE);
        let mut encode = |batch: Range<usize>, codes: &mut CachedCodes| -> Result<()> {
            let len = batch.len();
            let (x_0, indices) = encoding.read(&wanted[batch])?;
            let encode = |x_0: Vec<Tensor>| -> Result<Tensor> {
                let x_0 = Tensor::stack(&x_0, 0)?.to_device(model.device())?;
                Ok(model.encode_semantic(&x_0)?.to_device(&Device::Cpu)?)
            };
            codes.push((!x_0.is_empty()).then(|| encode(x_0)).transpose()?, indices, len);
            Ok(())
        };
        let mut after = |batch: usize| {
            step += 1;
            Ok(on_step(&StepReport { stage, work: Work::Encoding, step, num_steps, loss: 0., batch }))
        };
        let codes = cache.fill(codes, (wanted.len(), ENCODED_AT_ONCE), &mut encode, &mut after)?;
        codes.map(|codes| Ok(Self { z_sem: codes.z_sem()?, indices: codes.indices })).transpose()
    }

    /// Computes the [`moments_of`] these codes.
    pub(crate) fn moments(&self) -> Result<LatentMoments> {
        moments_of(&self.z_sem)
    }

    /// Normalizes the codes, `[n, D]`.
    pub(crate) fn normalized(&self, moments: &LatentMoments) -> Result<Tensor> {
        Ok(moments.normalize(&self.z_sem)?)
    }
}

/// Computes mean and standard deviation (with n - 1) of each component of codes.
///
/// # Shapes
/// - `z_sem`: `[n, D]`; results: `[D]`, f32.
/// # Errors
/// [`Error::Data`](crate::Error::Data) with fewer than two codes.
pub fn moments_of(z_sem: &Tensor) -> Result<LatentMoments> {
    let count = z_sem.dim(0)?;
    if count < 2 {
        let problem = "statistics of z_sem need at least two pictures".to_owned();
        return Err(diffae_data::Error::Data { path: CODES_FILE.into(), problem }.into());
    }
    let z = z_sem.to_dtype(DType::F64)?;
    let mean = z.mean_keepdim(0)?;
    let squares = z.broadcast_sub(&mean)?.sqr()?.sum(0)?;
    let std = (squares / (count - 1) as f64)?.sqrt()?.maximum(MIN_STD)?;
    Ok(LatentMoments::new(mean.squeeze(0)?.to_dtype(DType::F32)?, std.to_dtype(DType::F32)?)?)
}
