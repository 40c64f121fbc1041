//! Costs of number types: in codes, in pictures, and in the loss of training.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use diffae_eval::psnr;
use diffae_infer::{
    BUILT_IN_MODEL, Codes, LoadOptions, Model, Pipeline, PipelineSettings, built_in_pictures, no_observer,
};
use diffae_train::{Compute, Trainer, presets};

use super::Scale;
use super::card::{Card, relative_error};
use super::rows::Rows;
use crate::bench::work::{Numbers, Preset};

/// Number of training steps, and of the last ones whose losses are averaged.
const STEPS: (usize, usize) = (2000, 100);
const QUICK_STEPS: (usize, usize) = (3, 2);
/// Number of faces to train on, and of those in a step.
const FACES: (u64, usize) = (64, 16);

/// Results of the built-in model: codes of its faces, those decoded again, and codes in f32 decoded.
struct Decoded {
    codes: Codes,
    again: Tensor,
    from_f32: Tensor,
}

/// Measures the number types beside f32 on the CPU; with TF32 allowed f32 is that.
pub(super) fn measure(card: &Card, scale: &Scale, rows: &mut Rows) -> Result<()> {
    let is_cpu = card.run(|device| Ok(device.is_cpu()))?;
    let numbers: &[DType] = match (scale.numbers, is_cpu) {
        (Numbers::Tf32, _) => &[DType::F32],
        // Candle has no products for bf16 on a CPU.
        (_, true) => &[DType::F16],
        (_, false) => &[DType::F32, DType::BF16, DType::F16],
    };
    let name = |dtype: DType| if scale.numbers == Numbers::Tf32 { "tf32" } else { dtype.as_str() };
    let pictures: Vec<_> = built_in_pictures()?.into_iter().map(|(_, picture)| picture).collect();
    let load = |device: &Device, dtype: DType| -> Result<(Pipeline, PipelineSettings)> {
        let model = Model::load(Path::new(BUILT_IN_MODEL), &LoadOptions { dtype, ..LoadOptions::on(device) })?;
        let settings = PipelineSettings::of_model(model.config());
        Ok((Pipeline::new(model), settings))
    };
    let pictures = if scale.quick { &pictures[..2.min(pictures.len())] } else { &pictures };
    let (exact, settings) = load(&Device::Cpu, DType::F32)?;
    let x_0 = exact.tensor_of(pictures)?;
    let originals = ((&x_0 + 1.)? * 0.5)?;
    let codes = exact.encode_tensor(&x_0, &settings, &mut no_observer)?;
    let decoded = |device: &Device, dtype: DType| -> Result<Decoded> {
        let (pipeline, settings) = load(device, dtype)?;
        let own = pipeline.encode_tensor(&pipeline.tensor_of(pictures)?, &settings, &mut no_observer)?;
        let decode = |codes: &Codes| -> Result<Tensor> {
            Ok(pipeline.decode_tensor(codes, &settings, &mut no_observer)?.to_device(&Device::Cpu)?)
        };
        let (again, from_f32) = (decode(&own)?, decode(&codes)?);
        Ok(Decoded { codes: own, again, from_f32 })
    };
    for &dtype in numbers {
        let Decoded { codes: own, again, from_f32 } = card.run(|device| decoded(device, dtype))?;
        if let (Some(got), Some(expected)) = (&own.z_sem, &codes.z_sem) {
            rows.measure(
                &format!("{}: z_sem, relative to f32 on the CPU", name(dtype)),
                relative_error(got, expected)?,
            );
        }
        for (what, pictures) in [("faces encoded and decoded", &again), ("codes of f32 decoded", &from_f32)] {
            let of_each = psnr(&((pictures + 1.)? * 0.5)?, &originals)?;
            let mean = of_each.iter().sum::<f64>() / of_each.len().max(1) as f64;
            rows.measure(&format!("{}: PSNR of {what}, dB", name(dtype)), mean);
        }
    }
    let (num_steps, num_averaged) = if scale.quick { QUICK_STEPS } else { STEPS };
    let faces = faces(&exact, &settings)?;
    let loss = |device: &Device, dtype: DType| -> Result<f64> {
        let losses = trained(&faces, Compute { device: device.clone(), dtype }, num_steps)?;
        Ok(losses.iter().rev().take(num_averaged).sum::<f64>() / num_averaged as f64)
    };
    let what = format!("mean loss of the last {num_averaged} of {num_steps} steps");
    for &dtype in numbers {
        let loss = card.run(|device| loss(device, dtype))?;
        rows.measure(&format!("{}: {what}", name(dtype)), loss);
    }
    if is_cpu {
        rows.measure(&format!("f32 on the CPU: {what}"), loss(&Device::Cpu, DType::F32)?);
    }
    Ok(())
}

/// Samples faces of 32 pixels to train on, `[N, 3, 32, 32]`.
fn faces(pipeline: &Pipeline, settings: &PipelineSettings) -> Result<Tensor> {
    let codes = pipeline.sample_codes(&(0..FACES.0).collect::<Vec<_>>(), settings, &mut no_observer)?;
    let faces = pipeline.decode_tensor(&codes, settings, &mut no_observer)?;
    let (size, wanted) = (faces.dim(3)?, Preset::small().image_size);
    ensure!(size.is_multiple_of(wanted), "faces of {size} pixels cannot be averaged to {wanted}");
    Ok(faces.avg_pool2d(size.div_euclid(wanted))?)
}

/// Trains a small diffusion autoencoder; returns the losses of all steps.
fn trained(faces: &Tensor, compute: Compute, num_steps: usize) -> Result<Vec<f64>> {
    let batch = FACES.1;
    let settings = [
        "model.kind=autoencoder".to_owned(),
        format!("autoencoder.batch_size={batch}"),
        "autoencoder.accumulate=1".to_owned(),
    ];
    let config = presets::config("smoke", &settings)?;
    let model = Preset::small().model_config(None)?;
    let mut trainer = Trainer::of_model((&model, compute), &config, HashMap::new())?;
    let num_batches = faces.dim(0)?.div_euclid(batch);
    let step = |number: usize| Ok(trainer.step(&faces.narrow(0, number % num_batches * batch, batch)?)?.loss);
    (0..num_steps).map(step).collect()
}
