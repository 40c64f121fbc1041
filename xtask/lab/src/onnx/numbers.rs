//! Our numbers for an export: what each graph gets and gives, and whole chains.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use diffae_infer::{
    AttributeEdit, CodesBatch, CodesNeed, Model, NoisePurpose, NoiseSource, Pipeline, PipelineSettings, no_observer,
};

/// Number of pictures.
const COUNT: u64 = 2;
/// Timesteps of single network calls, one for each picture.
const TIMESTEPS: [f32; 2] = [37., 901.];
const SEED: u64 = 20;

type Numbers = BTreeMap<String, Tensor>;

/// Computes inputs and results of all parts of a model, by name.
pub(super) fn numbers(pipeline: &Pipeline) -> Result<Numbers> {
    let model = pipeline.model();
    let settings = PipelineSettings::of_model(model.config());
    let mut numbers = Numbers::new();
    let x_0 = (drawn(NoisePurpose::Step, &model.image_shape().dims())? * 0.5)?.clamp(-1f32, 1f32)?;
    let x_terminal = model.random_x_terminal(NoiseSource::new(SEED), 0..COUNT)?;
    let encoded = pipeline.encode_batch(&x_0, CodesNeed::Both, &settings, &mut no_observer)?;
    let z_sem = encoded.z_sem.as_ref();
    if let Ok(unet) = model.unet() {
        let prediction = unet.forward(&x_terminal, &TIMESTEPS, z_sem)?;
        insert(&mut numbers, "prediction", &prediction);
        insert(&mut numbers, "timesteps", &Tensor::new(&TIMESTEPS, &Device::Cpu)?);
    }
    let decode = |x_terminal: &Tensor, chain, z_sem| {
        let codes = CodesBatch { x_terminal, chain, z_sem, numbers: &[0, 1] };
        pipeline.decode_batch(codes, &settings, &mut no_observer)
    };
    insert(&mut numbers, "decoded", &decode(&x_terminal, None, z_sem)?);
    let edited = edited(&mut numbers, model, z_sem)?;
    if let (Some(chain), Some(x_terminal)) = (&encoded.chain, &encoded.x_terminal) {
        insert(&mut numbers, "inverted", x_terminal);
        insert(&mut numbers, "decoded_along", &decode(x_terminal, Some(chain), edited.as_ref().or(z_sem))?);
    }
    latent(&mut numbers, pipeline, &settings)?;
    insert(&mut numbers, "x_0", &x_0);
    insert(&mut numbers, "x_T", &x_terminal);
    if let Some(z_sem) = z_sem {
        insert(&mut numbers, "z_sem", z_sem);
    }
    Ok(numbers)
}

/// Edits all attributes at once, each picture at other strengths.
fn edited(numbers: &mut Numbers, model: &Model, z_sem: Option<&Tensor>) -> Result<Option<Tensor>> {
    let (Ok(classifier), Some(z_sem)) = (model.classifier(), z_sem) else { return Ok(None) };
    let count = classifier.config().attributes.len();
    let strength = |row: usize, idx: usize| 0.25 * ((3 * row + idx + 1) as f64).sin();
    let mut rows = vec![];
    let mut strengths = vec![];
    for row in 0..z_sem.dim(0)? {
        let edits: Vec<_> = (0..count)
            .map(|attribute_idx| AttributeEdit { attribute_idx, strength: strength(row, attribute_idx) })
            .collect();
        rows.push(model.edit_many(&z_sem.narrow(0, row, 1)?, &edits)?);
        strengths.extend(edits.iter().map(|edit| edit.strength));
    }
    let edited = Tensor::cat(&rows, 0)?;
    let strengths = Tensor::from_vec(strengths, (rows.len(), count), &Device::Cpu)?;
    insert(numbers, "strengths", &strengths.to_dtype(candle_core::DType::F32)?);
    insert(numbers, "edited", &edited);
    Ok(Some(edited))
}

/// One call of the latent net, and codes that it samples.
fn latent(numbers: &mut Numbers, pipeline: &Pipeline, settings: &PipelineSettings) -> Result<()> {
    let Ok(net) = pipeline.model().latent_net() else { return Ok(()) };
    let z_t = drawn(NoisePurpose::ZTerminal, &[net.config().z_channels])?;
    insert(numbers, "latent_prediction", &net.forward(&z_t, &TIMESTEPS)?);
    if pipeline.model().latent_moments().is_ok() {
        let sampled = pipeline.denoise_z_sem_batch(&z_t, settings, &mut no_observer)?;
        insert(numbers, "sampled_z_sem", &sampled);
    }
    insert(numbers, "z_t", &z_t);
    Ok(())
}

fn drawn(purpose: NoisePurpose, shape: &[usize]) -> Result<Tensor> {
    Ok(NoiseSource::new(SEED).batch(purpose, 0..COUNT, shape, &Device::Cpu)?)
}

fn insert(numbers: &mut Numbers, name: &str, tensor: &Tensor) {
    numbers.insert(name.to_owned(), tensor.clone());
}
