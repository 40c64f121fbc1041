//! Semantic codes of many pictures, stored in parts, so that interrupted work can be resumed.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use diffae_data::{Overwrite, PictureSet};
use diffae_infer::{Codes, PipelineSettings};
use diffae_nets::weights::SafetensorsFile;

use crate::error::{Result, cannot, unsuitable};
use crate::evaluated_model::EvaluatedModel;
use crate::evaluation::{Evaluation, Stage};

/// Pictures per part.
const PART: usize = 512;
/// Metadata key of a part: its model and pictures.
const KEY: &str = "diffae:codes";

/// Encodes all pictures, `[N, D]` on the CPU. Parts that exist in the folder are read; those of another model or of
/// other pictures are recomputed.
pub(crate) fn encode_all(
    evaluation: &Evaluation<'_>,
    model: &EvaluatedModel,
    pictures: &PictureSet,
    folder: &Path,
) -> Result<Tensor> {
    fs::create_dir_all(folder).map_err(cannot("write", folder))?;
    let key = format!("{} {}", serde_json::to_string(&model.settings())?, pictures.fingerprint()?);
    let stage = evaluation.stage("encode", pictures.len(), 1);
    let mut parts = vec![];
    for (number, part) in pictures.batches(PART).enumerate() {
        let path = folder.join(format!("{number:06}.safetensors"));
        let count = part.len();
        let z_sem = if let Some(z_sem) = kept(&path, &key, count) {
            stage.check(count)?;
            z_sem
        } else {
            let z_sem = encode(model, pictures, part.clone(), &stage)?;
            write(model, &z_sem, part.map(|idx| pictures.name(idx)).collect(), &path, &key)?;
            z_sem
        };
        parts.push(z_sem);
    }
    stage.finish();
    Ok(Tensor::cat(&parts, 0)?)
}

/// Samples the first `count` vectors of the latent net, `[N, D]` on the CPU; parts that exist in the folder are read.
pub(crate) fn sample_all(
    evaluation: &Evaluation<'_>,
    model: &EvaluatedModel,
    count: usize,
    num_steps: usize,
) -> Result<Tensor> {
    let (folder, seed) = (evaluation.codes(), evaluation.seed());
    fs::create_dir_all(folder).map_err(cannot("write", folder))?;
    let latent = model.latent_fingerprint()?;
    let key = format!("{} {latent:?} {num_steps} {seed}", serde_json::to_string(&model.settings())?);
    let settings = PipelineSettings { num_latent_steps: num_steps, seed, ..PipelineSettings::DEFAULT };
    let stage = evaluation.stage("sample z_sem", count, num_steps);
    let mut parts = vec![];
    for start in (0..count).step_by(PART) {
        let numbers = start..(start + PART).min(count);
        let path = folder.join(format!("sampled-{:06}.safetensors", parts.len()));
        let z_sem = if let Some(z_sem) = kept(&path, &key, numbers.len()) {
            stage.check(numbers.len() * num_steps)?;
            z_sem
        } else {
            let drawn: Vec<u64> = (numbers.start as u64..numbers.end as u64).collect();
            let z_sem = model.pipeline().sample_z_sem_batch(&drawn, &settings, &mut stage.observer())?;
            let z_sem = z_sem.ok_or_else(|| unsuitable("the model has no z_sem"))?.to_device(&Device::Cpu)?;
            write(model, &z_sem, numbers.map(|number| number.to_string()).collect(), &path, &key)?;
            z_sem
        };
        parts.push(z_sem);
    }
    stage.finish();
    Ok(Tensor::cat(&parts, 0)?)
}

fn write(model: &EvaluatedModel, z_sem: &Tensor, names: Vec<String>, path: &Path, key: &str) -> Result<()> {
    let fingerprint = model.model().fingerprint().to_owned();
    let codes = Codes { z_sem: Some(z_sem.clone()), x_terminal: None, names, fingerprint };
    Ok(codes.write(path, &[(KEY.to_owned(), key.to_owned())], Overwrite::Replace)?)
}

fn encode(
    model: &EvaluatedModel,
    pictures: &PictureSet,
    part: std::ops::Range<usize>,
    stage: &Stage<'_>,
) -> Result<Tensor> {
    let mut batches = vec![];
    let size = model.batch_size();
    for start in part.clone().step_by(size) {
        let batch = start..(start + size).min(part.end);
        let count = batch.len();
        let x_0 = model.read(pictures, batch)?;
        batches.push(model.model().encode_semantic(&x_0)?.to_device(&Device::Cpu)?);
        stage.check(count)?;
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
