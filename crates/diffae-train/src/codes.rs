//! Codes of all pictures of a split, encoded once, kept in a file and normalized.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use diffae_data::{Fingerprint, Pictures};
use diffae_infer::{CachedCodes, CodeCache, Model};
use diffae_nets::weights::LatentMoments;
use rayon::prelude::*;

use crate::collective::{FAILED, Group, bytes_of, count_of, floats_of, garbled};
use crate::error::{Error, Result};
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

    /// Reads pictures, `[C, ..]` each, with their numbers; unreadable ones are left out.
    fn read(&self, some: &[usize]) -> Result<(Vec<Tensor>, Vec<u32>)> {
        let format = self.model.picture_format();
        let read = some.par_iter().map(|&idx| Ok((idx, self.pictures.read_or_leave_out(idx, format)?)));
        let read = read.collect::<Result<Vec<(usize, Option<Tensor>)>>>()?;
        let present = read.into_iter().filter_map(|(idx, x)| Some((x?, u32::try_from(idx).unwrap_or(u32::MAX))));
        Ok(present.unzip())
    }
}

/// First bytes of what the first process tells the others while pictures are encoded: where the next round begins, that
/// nothing more comes, or all codes. Another one, [`FAILED`], goes before the sentence of its failure.
const GO_ON: u8 = 2;
const STOP: u8 = 3;
const ALL: u8 = 4;

/// Codes of a batch.
#[derive(Debug, Default)]
struct Encoded {
    /// `[n, D]`, f32 on the CPU; `None` without any.
    z_sem: Option<Tensor>,
    /// Picture of each code, by number.
    indices: Vec<u32>,
}

impl Encoded {
    /// Returns the number of codes, the pictures, and the values.
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = (self.indices.len() as u64).to_le_bytes().to_vec();
        bytes.extend(self.indices.iter().flat_map(|idx| idx.to_le_bytes()));
        if let Some(z_sem) = self.z_sem.as_ref().filter(|_| !self.indices.is_empty()) {
            bytes.extend(bytes_of(&z_sem.flatten_all()?.to_vec1::<f32>()?));
        }
        Ok(bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (count, rest) = bytes.split_first_chunk::<8>().ok_or_else(garbled)?;
        let count = count_of(*count)?;
        let (indices, values) = rest.split_at_checked(count.saturating_mul(4)).ok_or_else(garbled)?;
        let indices: Vec<u32> = indices.as_chunks::<4>().0.iter().map(|&idx| u32::from_le_bytes(idx)).collect();
        let values = floats_of(values)?;
        let width = values.len().checked_div(count).unwrap_or(0);
        let z_sem = (count > 0).then(|| Tensor::from_vec(values, (count, width), &Device::Cpu)).transpose()?;
        Ok(Self { z_sem, indices })
    }
}

impl Encoding<'_> {
    /// Encodes a batch in each process of a group, from some picture on, and returns all in their order, and whether all go on:
    /// a process that is to stop has a break as its `flow`.
    fn round(&self, group: &mut Group, start: usize, flow: ControlFlow<()>) -> Result<(Vec<Encoded>, ControlFlow<()>)> {
        let start_of = |rank: usize| (start + rank * ENCODED_AT_ONCE).min(self.wanted.len());
        let (rank, size) = (group.rank(), group.size());
        let own = group.agree(self.encode(&self.wanted[start_of(rank)..start_of(rank + 1)]))?;
        if size == 1 {
            return Ok((vec![own], flow));
        }
        let [is_stopped] = group.any([flow.is_break()])?;
        let received = group.collective.gather(size, &own.to_bytes()?)?;
        let in_round = received.iter().enumerate().filter(|&(rank, _)| rank == 0 || start_of(rank) < self.wanted.len());
        let flow = if is_stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        Ok((in_round.map(|(_, message)| Encoded::from_bytes(message)).collect::<Result<_>>()?, flow))
    }

    /// Encodes the readable ones of some pictures.
    fn encode(&self, some: &[usize]) -> Result<Encoded> {
        let (x_0, indices) = self.read(some)?;
        let encode = |x_0: Vec<Tensor>| -> Result<Tensor> {
            let x_0 = Tensor::stack(&x_0, 0)?.to_device(self.model.device())?;
            Ok(self.model.encode_semantic(&x_0)?.to_device(&Device::Cpu)?)
        };
        Ok(Encoded { z_sem: (!x_0.is_empty()).then(|| encode(x_0)).transpose()?, indices })
    }
}

impl Codes {
    /// Encodes all pictures of a run, with [`Codes::of`].
    pub(crate) fn of_run(
        (folder, stage): (&RunFolder, Stage),
        file: &str,
        (model, pictures): (&Model, &Pictures),
        (group, on_step): (&mut Group, &mut OnStep<'_>),
    ) -> Result<Option<Self>> {
        let wanted: Vec<usize> = (0..pictures.len()).collect();
        let save_every = Duration::from_secs_f64(folder.config().run.save_every_secs);
        let (file, wanted) = (&folder.path().join(file), wanted.as_slice());
        Self::of(
            &Encoding { file, stage, save_every, model, pictures, wanted, origin: String::new() },
            (group, on_step),
        )
    }

    /// Encodes pictures, or reads the codes of the same pictures and the same model from the file.
    ///
    /// Unreadable pictures are left out, possibly all. Returns `None` if `on_step` stops it in any process; the codes so far
    /// are kept. The processes of a group encode a batch each at a time; all get the codes, and the first one keeps the file.
    pub(crate) fn of(encoding: &Encoding<'_>, (group, on_step): (&mut Group, &mut OnStep<'_>)) -> Result<Option<Self>> {
        group.check_same("a model or pictures", &encoding.key())?;
        if !group.is_first() {
            return Self::assisting(encoding, (group, on_step));
        }
        let &Encoding { file, stage, save_every, wanted, .. } = encoding;
        let cache = CodeCache { path: file, key: encoding.key(), save_every };
        let codes = cache.load();
        let num_steps = wanted.len().div_ceil(ENCODED_AT_ONCE);
        let mut step = codes.num_attempted.div_ceil(ENCODED_AT_ONCE);
        // Batches of the others that the cache has not asked for yet.
        let mut ahead = VecDeque::new();
        let of_all = Cell::new(ControlFlow::Continue(()));
        let mut encode = |batch: Range<usize>, codes: &mut CachedCodes| -> Result<()> {
            if ahead.is_empty() {
                group.collective.broadcast(&[&[GO_ON], &(batch.start as u64).to_le_bytes()[..]].concat())?;
                let (all, flow) = encoding.round(group, batch.start, ControlFlow::Continue(()))?;
                ahead = all.into();
                of_all.set(flow);
            }
            let Encoded { z_sem, indices } = ahead.pop_front().unwrap_or_default();
            codes.push(z_sem, indices, batch.len());
            Ok(())
        };
        let mut after = |batch: usize| {
            step += 1;
            let flow = on_step(&StepReport { stage, work: Work::Encoding, step, num_steps, loss: 0., batch });
            Ok(if of_all.get().is_break() { ControlFlow::Break(()) } else { flow })
        };
        let codes = cache.fill(codes, (wanted.len(), ENCODED_AT_ONCE), &mut encode, &mut after)?;
        let codes =
            codes.map(|codes| Ok::<_, Error>(Self { z_sem: codes.z_sem()?, indices: codes.indices })).transpose()?;
        let message = match &codes {
            Some(codes) if group.size() > 1 => [&[ALL], &codes.encoded().to_bytes()?[..]].concat(),
            _ => vec![STOP],
        };
        group.collective.broadcast(&message)?;
        Ok(codes)
    }

    /// Encodes batches as the first process of the group asks for them.
    fn assisting(encoding: &Encoding<'_>, (group, on_step): (&mut Group, &mut OnStep<'_>)) -> Result<Option<Self>> {
        let num_steps = encoding.wanted.len().div_ceil(ENCODED_AT_ONCE);
        loop {
            let message = group.collective.broadcast(&[])?;
            match message.split_first() {
                Some((&GO_ON, start)) => {
                    let start = count_of(start.try_into().ok().ok_or_else(garbled)?)?;
                    let step = start.div_ceil(ENCODED_AT_ONCE);
                    let report =
                        StepReport { stage: encoding.stage, work: Work::Encoding, step, num_steps, loss: 0., batch: 0 };
                    encoding.round(group, start, on_step(&report)).map(drop)?;
                }
                Some((&ALL, codes)) => {
                    let Encoded { z_sem, indices } = Encoded::from_bytes(codes)?;
                    let z_sem = z_sem.map_or_else(|| Tensor::zeros((0, 1), DType::F32, &Device::Cpu), Ok)?;
                    return Ok(Some(Self { z_sem, indices }));
                }
                Some((&STOP, [])) => return Ok(None),
                // All agree on the outcome next, which this one need not do any more.
                Some((&FAILED, sentence)) => {
                    let problem = String::from_utf8_lossy(sentence).into_owned();
                    return Err(Error::Elsewhere { rank: 0, size: group.size(), problem });
                }
                _ => return Err(garbled()),
            }
        }
    }

    fn encoded(&self) -> Encoded {
        Encoded { z_sem: Some(self.z_sem.clone()), indices: self.indices.clone() }
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
