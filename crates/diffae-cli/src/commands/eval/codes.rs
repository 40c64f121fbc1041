//! Semantic codes of many pictures, stored in parts, so that interrupted work can be resumed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use diffae_data::Overwrite;
use diffae_infer::{Codes, PipelineSettings};
use diffae_nets::weights::SafetensorsFile;

use crate::args::EvalRunArgs;
use crate::pictures::PictureSet;
use crate::progress::Progress;
use crate::session::Session;

/// Pictures per part.
const PART: usize = 512;
/// Metadata key of a part: its model and pictures.
const KEY: &str = "diffae:codes";

/// Encodes all pictures, `[N, D]` on the CPU. Parts that exist in the folder are read; those of another model or of
/// other pictures are recomputed.
pub(super) fn encode_all(session: &Session, pictures: &PictureSet, folder: &Path) -> Result<Tensor> {
    let folder = folder.join("z_sem");
    fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
    let key = format!("{} {}", serde_json::to_string(&session.settings())?, pictures.fingerprint()?);
    let progress = Progress::start("encode", pictures.len(), 1);
    let mut parts = vec![];
    for (number, part) in pictures.batches(PART).enumerate() {
        let path = folder.join(format!("{number:06}.safetensors"));
        let count = part.len();
        let z_sem = if let Some(z_sem) = kept(&path, &key, count) {
            progress.check(count)?;
            z_sem
        } else {
            let z_sem = encode(session, pictures, part.clone(), &progress)?;
            write(session, &z_sem, part.map(|idx| pictures.name(idx)).collect(), &path, &key)?;
            z_sem
        };
        parts.push(z_sem);
    }
    progress.finish();
    Ok(Tensor::cat(&parts, 0)?)
}

/// Samples the first vectors of the latent net, `[N, D]` on the CPU; parts that exist in the folder are read.
pub(super) fn invent_all(session: &Session, args: &EvalRunArgs, count: usize, num_steps: usize) -> Result<Tensor> {
    let folder = args.out.join("z_sem");
    fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
    let latent = session.latent_fingerprint()?;
    let key = format!("{} {latent:?} {num_steps} {}", serde_json::to_string(&session.settings())?, args.random.seed);
    let settings =
        PipelineSettings { num_latent_steps: num_steps, seed: args.random.seed, ..PipelineSettings::DEFAULT };
    let progress = Progress::start("invent", count, num_steps);
    let mut parts = vec![];
    for start in (0..count).step_by(PART) {
        let numbers = start..(start + PART).min(count);
        let path = folder.join(format!("invented-{:06}.safetensors", parts.len()));
        let z_sem = if let Some(z_sem) = kept(&path, &key, numbers.len()) {
            progress.check(numbers.len() * num_steps)?;
            z_sem
        } else {
            let drawn: Vec<u64> = (numbers.start as u64..numbers.end as u64).collect();
            let z_sem = session.pipeline.sample_z_sem_batch(&drawn, &settings, &mut progress.observer())?;
            let z_sem = z_sem.context("the model has no z_sem")?.to_device(&candle_core::Device::Cpu)?;
            write(session, &z_sem, numbers.map(|number| number.to_string()).collect(), &path, &key)?;
            z_sem
        };
        parts.push(z_sem);
    }
    progress.finish();
    Ok(Tensor::cat(&parts, 0)?)
}

fn write(session: &Session, z_sem: &Tensor, names: Vec<String>, path: &Path, key: &str) -> Result<()> {
    let fingerprint = session.model().fingerprint().to_owned();
    let codes = Codes { z_sem: Some(z_sem.clone()), x_terminal: None, names, fingerprint };
    Ok(codes.write(path, &[(KEY.to_owned(), key.to_owned())], Overwrite::Replace)?)
}

fn encode(
    session: &Session,
    pictures: &PictureSet,
    part: std::ops::Range<usize>,
    progress: &Progress,
) -> Result<Tensor> {
    let mut batches = vec![];
    let size = session.batch_size();
    for start in part.clone().step_by(size) {
        let batch = start..(start + size).min(part.end);
        let count = batch.len();
        let x_0 = pictures.read(session, batch)?;
        batches.push(session.model().encode_semantic(&x_0)?.to_device(&candle_core::Device::Cpu)?);
        progress.check(count)?;
    }
    Ok(Tensor::cat(&batches, 0)?)
}

/// Reads a part that is complete and of the same model and pictures.
fn kept(path: &Path, key: &str, count: usize) -> Option<Tensor> {
    let text = SafetensorsFile::open(path).ok()?.text();
    if text.get(KEY).is_none_or(|kept| kept != key) {
        return None;
    }
    Codes::read(path).ok()?.z_sem.filter(|z_sem| z_sem.dims().first() == Some(&count))
}
