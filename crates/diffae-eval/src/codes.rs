//! Semantic codes of many pictures, which measures share and an interrupted evaluation keeps.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use diffae_data::{PictureSet, Shard};
use diffae_infer::{CachedCodes, CodeCache, PipelineSettings};

use crate::error::{Result, unsuitable};
use crate::evaluated_model::EvaluatedModel;
use crate::evaluation::Evaluation;

/// Vectors of the latent net per batch.
const SAMPLED_AT_ONCE: usize = 512;
/// Time between two writes of a cache.
const SAVE_EVERY: Duration = Duration::from_mins(1);

/// The file of the codes of encoded pictures.
const ENCODED: &str = "encoded.safetensors";

/// Encodes all pictures, `[N, D]` on the CPU. Codes of the same model and pictures in the folder are read, also those of
/// shards.
pub(crate) fn encode_all(
    evaluation: &Evaluation<'_>,
    model: &EvaluatedModel,
    pictures: &PictureSet,
    folder: &Path,
) -> Result<Tensor> {
    let key = key_of(model, pictures)?;
    let shards = evaluation.files_of_shards(folder, ENCODED)?;
    let known: Vec<(Range<usize>, Tensor)> = shards
        .into_iter()
        .filter_map(|(shard, path)| {
            let codes = CodeCache { path: &path, key: of_shard(&key, shard), save_every: SAVE_EVERY }.load();
            let start = shard.range(pictures.len()).start;
            Some((start..start + codes.num_attempted, codes.z_sem().ok().filter(|_| codes.num_attempted > 0)?))
        })
        .collect();
    let cache = CodeCache { path: &folder.join(ENCODED), key, save_every: SAVE_EVERY };
    let stage = evaluation.stage("encode", pictures.len(), 1);
    let mut encode = |batch: Range<usize>| {
        // Batches of the whole cross the borders of shards.
        let is_in = |(range, _): &&(Range<usize>, Tensor)| range.start <= batch.start && batch.end <= range.end;
        if let Some((range, z_sem)) = known.iter().find(is_in) {
            return Ok(z_sem.narrow(0, batch.start - range.start, batch.len())?);
        }
        let x_0 = model.read(pictures, batch)?;
        Ok(model.model().encode_semantic(&x_0)?)
    };
    let z_sem = complete(&cache, (pictures.len(), model.batch_size()), &mut encode, &|count| stage.check(count))?;
    stage.finish();
    Ok(z_sem)
}

/// Encodes a shard of the pictures, which [`encode_all`] then finds.
pub(crate) fn encode_shard(
    evaluation: &Evaluation<'_>,
    model: &EvaluatedModel,
    pictures: &PictureSet,
    (folder, shard): (&Path, Shard),
) -> Result<()> {
    let (range, path) = (shard.range(pictures.len()), shard.path(&folder.join(ENCODED)));
    let cache = CodeCache { path: &path, key: of_shard(&key_of(model, pictures)?, shard), save_every: SAVE_EVERY };
    let stage = evaluation.stage("encode", range.len(), 1);
    let mut encode = |batch: Range<usize>| {
        let x_0 = model.read(pictures, range.start + batch.start..range.start + batch.end)?;
        Ok(model.model().encode_semantic(&x_0)?)
    };
    if !range.is_empty() {
        complete(&cache, (range.len(), model.batch_size()), &mut encode, &|count| stage.check(count))?;
    }
    stage.finish();
    Ok(())
}

/// Returns what decides the codes of pictures.
fn key_of(model: &EvaluatedModel, pictures: &PictureSet) -> Result<String> {
    Ok(format!("{} {}", serde_json::to_string(&model.settings())?, pictures.fingerprint()?))
}

fn of_shard(key: &str, shard: Shard) -> String {
    format!("{key} {shard}")
}

/// Samples the first `count` vectors of the latent net, `[N, D]` on the CPU; those in the cache are read.
pub(crate) fn sample_all(
    evaluation: &Evaluation<'_>,
    model: &EvaluatedModel,
    count: usize,
    num_steps: usize,
) -> Result<Tensor> {
    let (latent, seed) = (model.latent_fingerprint()?, evaluation.seed());
    let key = format!("{} {latent:?} {num_steps} {seed}", serde_json::to_string(&model.settings())?);
    let path = evaluation.codes().join("sampled.safetensors");
    let cache = CodeCache { path: &path, key, save_every: SAVE_EVERY };
    let settings = PipelineSettings { num_latent_steps: num_steps, seed, ..PipelineSettings::REFERENCE };
    let stage = evaluation.stage("sample z_sem", count, num_steps);
    let mut sample = |batch: Range<usize>| {
        let numbers: Vec<u64> = (batch.start as u64..batch.end as u64).collect();
        let z_sem = model.pipeline().sample_z_sem_batch(&numbers, &settings, &mut stage.observer())?;
        z_sem.ok_or_else(|| unsuitable("the model has no z_sem"))
    };
    // Its calls are noted as they come; only those of vectors that were there already are not.
    stage.check(cache.load().num_attempted.min(count) * num_steps)?;
    let z_sem = complete(&cache, (count, SAMPLED_AT_ONCE), &mut sample, &|_| Ok(()))?;
    stage.finish();
    Ok(z_sem)
}

/// Reads the codes in a cache, and computes the others.
fn complete(
    cache: &CodeCache<'_>,
    (count, batch_size): (usize, usize),
    compute: &mut dyn FnMut(Range<usize>) -> Result<Tensor>,
    check: &dyn Fn(usize) -> Result<()>,
) -> Result<Tensor> {
    let known = cache.load();
    check(known.num_attempted)?;
    let mut push = |batch: Range<usize>, codes: &mut CachedCodes| {
        let numbers = batch.clone().map(|idx| u32::try_from(idx).unwrap_or(u32::MAX)).collect();
        codes.push(Some(compute(batch.clone())?.to_device(&Device::Cpu)?), numbers, batch.len());
        Ok(())
    };
    let mut after = |batch: usize| check(batch).map(|()| ControlFlow::Continue(()));
    let codes = cache.fill(known, (count, batch_size), &mut push, &mut after)?;
    Ok(codes.unwrap_or_default().z_sem()?.narrow(0, 0, count)?)
}
