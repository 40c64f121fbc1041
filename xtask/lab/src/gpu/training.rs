//! Optimizer steps, and runs that stop and move between devices.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use diffae_data::rgb_from_tensor;
use diffae_schedule::Timestep;
use diffae_train::{Compute, Notes, Outcome, RunFolder, TrainOptions, Trainer, Work, presets, train};

use super::Scale;
use super::card::{Card, relative_error, values};
use super::rows::Rows;

/// Largest relative difference of the first loss and gradient, and of later ones: Adam amplifies the rounding of steps before.
const LIMITS: [f64; 2] = [1e-4, 1e-2];
/// Largest differences of arithmetic in bf16 and f16, with eight and eleven bits of mantissa, from f32.
const HALF_LIMITS: [f64; 2] = [5e-2, 1e-1];
const NUM_STEPS: usize = 4;

/// Compares a few steps with the CPU, and with themselves.
pub(super) fn steps(card: &Card, scale: &Scale, rows: &mut Rows) -> Result<()> {
    let (preset, batch) = if scale.quick { ("smoke", 4) } else { ("small64", 16) };
    let kinds: [(&str, &[&str], DType); 5] = [
        ("diffusion", &[], DType::F32),
        ("saved in bf16", &["objective.checkpoint_blocks=true", "objective.activations=bf16"], DType::F32),
        ("compact", &["model.kind=compact"], DType::F32),
        ("bf16", &[], DType::BF16),
        ("f16", &[], DType::F16),
    ];
    for (kind, settings, dtype) in kinds {
        let settings: Vec<String> = settings.iter().map(|&text| text.to_owned()).collect();
        let config = presets::config(preset, &settings)?;
        let model = config.model_config()?;
        let shape = model.image_shape().of_batch(batch);
        let steps = |device: &Device| -> Result<(Vec<f64>, usize, Trainer)> {
            // The other CPU computes in f32, and none has a matrix product for bf16.
            let dtype = if device.is_cpu() { DType::F32 } else { dtype };
            let compute = Compute { device: device.clone(), dtype };
            let mut trainer = Trainer::of_model((&model, compute), &config, HashMap::new())?;
            let (mut figures, mut skipped) = (vec![], 0usize);
            for step in 0..NUM_STEPS {
                let x = values(&shape, step)?;
                // A step whose gradients overflow in f16 is skipped; the same one follows at half the scale of the loss.
                let result = loop {
                    let result = if kind == "compact" {
                        trainer.step(&x)?
                    } else {
                        let timesteps: Vec<Timestep> = (0..batch).map(|i| Timestep::new(1 + 61 * i)).collect();
                        trainer.step_with(&x, &values(x.dims(), 50 + step)?, &timesteps)?
                    };
                    if result.loss_scale.is_none() || result.grad_norm.is_finite() {
                        break result;
                    }
                    skipped += 1;
                };
                figures.extend([result.loss, result.grad_norm]);
            }
            Ok((figures, skipped, trainer))
        };
        let [got, expected] = card.run_both(steps)?;
        let error = |place: usize| (got.0[place] - expected.0[place]).abs() / expected.0[place].abs();
        let limits = if dtype == DType::F32 { LIMITS } else { HALF_LIMITS };
        rows.compare(&format!("{kind}: loss and gradient of the first step"), largest([error(0), error(1)]), limits[0]);
        let losses = largest((0..NUM_STEPS).map(|step| error(2 * step)));
        rows.compare(&format!("{kind}: losses of all steps"), losses, limits[1]);
        let again = card.run(steps)?;
        if dtype == DType::F16 {
            rows.measure(&format!("{kind}: steps skipped, whose gradients overflow"), got.1 as f64);
        }
        let (first, second) = (got.2.parameters()?, again.2.parameters()?);
        let mut errors = vec![];
        for (name, parameter) in &first {
            errors.push(relative_error(second.get(name).context("a parameter is missing")?, parameter)?);
        }
        rows.compare(&format!("{kind}: parameters of the same steps once more"), largest(errors), 0.);
    }
    Ok(())
}

/// Returns the largest of some errors; NaN if one is.
fn largest(errors: impl IntoIterator<Item = f64>) -> f64 {
    errors.into_iter().fold(0f64, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
}

/// Compares runs that stop, and go on here or on the CPU, with whole ones.
pub(super) fn resume(card: &Card, _: &Scale, rows: &mut Rows) -> Result<()> {
    let folder = tempfile::tempdir().context("there is no folder for temporary files")?;
    let data = pictures(folder.path())?;
    let run = |name: &str, places: &[(bool, usize)]| -> Result<(Vec<u8>, Vec<f64>)> {
        let path = folder.path().join(name);
        for &(is_card, num_steps) in places {
            let part = |device: &Device| train_part(&path, &data, device, num_steps);
            if is_card {
                card.run(part)?
            } else {
                part(&Device::Cpu)?
            };
        }
        let log = fs::read_to_string(path.join("metrics.jsonl"))?;
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["loss"].as_f64();
        Ok((fs::read(path.join("model.safetensors"))?, log.lines().filter_map(loss).collect()))
    };
    let all = usize::MAX;
    let (model, losses) = run("whole", &[(true, all)])?;
    let (again, _) = run("again", &[(true, all)])?;
    rows.compare("a run once more: 0 is the same model", f64::from(u8::from(again != model)), 0.);
    let (stopped, _) = run("stopped", &[(true, 2), (true, 3), (true, all)])?;
    rows.compare("a run that was stopped twice: 0 is the same model", f64::from(u8::from(stopped != model)), 0.);
    let (_, on_cpu) = run("cpu", &[(false, all)])?;
    let (_, moved) = run("moved", &[(false, 2), (true, 2), (false, 2), (true, all)])?;
    for (name, losses) in [("here", losses), ("here and on the CPU in turns", moved)] {
        ensure!(losses.len() == on_cpu.len(), "{} losses in place of {}", losses.len(), on_cpu.len());
        let errors = losses.iter().zip(&on_cpu).map(|(a, b)| (a - b).abs() / b.abs());
        rows.compare(&format!("losses of a run {name}"), largest(errors), LIMITS[1]);
    }
    Ok(())
}

/// Makes a few pictures to train on, in a folder.
pub(super) fn pictures(folder: &Path) -> Result<PathBuf> {
    let data = folder.join("pictures");
    fs::create_dir(&data)?;
    for number in 0..20 {
        rgb_from_tensor(&values(&[3, 16, 16], number)?)?.save(data.join(format!("{number:02}.png")))?;
    }
    Ok(data)
}

/// Trains until a number of steps are made, or to the end.
fn train_part(path: &Path, data: &Path, device: &Device, num_steps: usize) -> Result<Outcome> {
    let settings = [
        "autoencoder.images=32",
        "autoencoder.batch_size=8",
        "latent.images=24",
        "latent.batch_size=8",
        "run.preview_every_images=0",
        "run.save_every_secs=0",
        "run.log_every_steps=1",
    ];
    let config = presets::config("smoke", &settings.map(str::to_owned))?;
    let notes = Notes { data: data.to_owned(), ..Notes::default() };
    let mut folder = RunFolder::open_or_create(path, &config, &notes)?;
    let options = TrainOptions { resume: true, compute: device.into(), ..TrainOptions::default() };
    let mut made = 0;
    Ok(train(&mut folder, &options, &mut |report| {
        made += usize::from(report.work == Work::Training);
        if made >= num_steps { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?)
}
