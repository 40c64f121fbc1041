//! Three optimizer steps: losses, gradient norms, parameters and their moving averages.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use diffae_infer::ModelSource;
use diffae_nets::weights::{ArchitectureHints, ParameterSet, name_from_pytorch};
use diffae_schedule::Timestep;
use diffae_train::{LatentTrainer, OptimizerKind, StageSettings, Trainer, presets};

use super::fixture::Fixture;
use super::report::{Report, Tolerance};

/// Checks the golden training steps of a model folder, if there are any.
pub(crate) fn check(folder: &Path, report: &mut Report) -> Result<()> {
    let golden = Fixture::open(&folder.join("golden.safetensors"))?;
    if golden.get("train_lr")?.is_none() {
        return Ok(());
    }
    let open = |set| -> Result<_> {
        let hints = ArchitectureHints::default();
        Ok(ModelSource::open_checkpoint(&folder.join("last.ckpt"), set, &hints)?)
    };
    let (online, ema) = (open(ParameterSet::Online)?, open(ParameterSet::Ema)?);
    let lr = *golden.numbers("train_lr")?.first().context("train_lr is empty")?;
    autoencoder(&golden, &online, &ema, lr, report)?;
    if golden.get("latent_train_loss")?.is_some() { latent(&golden, &online, lr, report) } else { Ok(()) }
}

fn autoencoder(golden: &Fixture, online: &ModelSource, ema: &ModelSource, lr: f64, report: &mut Report) -> Result<()> {
    let mut config = presets::config("smoke", &[])?;
    config.autoencoder = StageSettings { lr, clip_norm: 1., ema_decay: 0.9999, ..config.autoencoder };
    let mut trainer = Trainer::of_model((online.config(), &Device::Cpu), &config, given(online)?)?;
    trainer.set_averages(&ema.networks(DType::F32)?)?;
    let (x, noise) = (golden.tensor("train_x")?, golden.tensor("train_noise")?);
    let (losses, norms) = (golden.numbers("train_loss")?, golden.numbers("train_grad_norm")?);
    for (step, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
        let result = trainer.step_with(&x.get(step)?, &noise.get(step)?, &timesteps(golden, step)?)?;
        report.add(&format!("step {step}: loss"), relative(result.loss, *loss), Tolerance::Loss);
        report.add(&format!("step {step}: gradient norm"), relative(result.grad_norm, *norm), Tolerance::Gradient);
    }
    compare(golden, "train_after3.", &trainer.parameters()?, report)?;
    compare(golden, "train_ema_after3.", &trainer.averages()?, report)
}

fn latent(golden: &Fixture, online: &ModelSource, lr: f64, report: &mut Report) -> Result<()> {
    let config = online.config().latent().context("the model has no latent net")?;
    let settings = presets::config("smoke", &[])?.latent;
    let settings = StageSettings { lr, clip_norm: 1., optimizer: OptimizerKind::Adamw, weight_decay: 0.01, ..settings };
    let mut trainer = LatentTrainer::new(config, &settings, (0, &Device::Cpu), given(online)?)?;
    let (z, noise) = (golden.tensor("latent_train_z")?, golden.tensor("latent_train_noise")?);
    for (step, loss) in golden.numbers("latent_train_loss")?.iter().enumerate() {
        let got = trainer.step_with(&z.get(step)?, &noise.get(step)?, &timesteps(golden, step)?)?;
        report.add(&format!("latent step {step}: loss"), relative(got, *loss), Tolerance::Loss);
    }
    let parameters = trainer.parameters()?;
    let prefix = "latent_train_after3.";
    for name in golden.names().into_iter().filter(|name| name.starts_with(prefix)) {
        let parameter = format!("latent_net.{}", name.strip_prefix(prefix).unwrap_or_default());
        let got = parameters.get(&parameter).with_context(|| format!("there is no parameter {parameter}"))?;
        // Adam makes a step of nearly the same length of any gradient, also of one that is rounding alone.
        report.tensors(&name, got, &golden.tensor(&name)?, Tolerance::Gradient)?;
    }
    Ok(())
}

fn compare(golden: &Fixture, prefix: &str, got: &BTreeMap<String, Tensor>, report: &mut Report) -> Result<()> {
    for name in golden.names().into_iter().filter(|name| name.starts_with(prefix)) {
        let parameter = name_from_pytorch(name.strip_prefix(prefix).unwrap_or_default());
        let got = got.get(&parameter).with_context(|| format!("there is no parameter {parameter}"))?;
        // Adam makes a step of nearly the same length of any gradient, also of one that is rounding alone.
        report.tensors(&name, got, &golden.tensor(&name)?, Tolerance::Gradient)?;
    }
    Ok(())
}

fn given(source: &ModelSource) -> Result<HashMap<String, Tensor>> {
    Ok(source.networks(DType::F32)?.into_iter().collect())
}

fn timesteps(golden: &Fixture, step: usize) -> Result<Vec<Timestep>> {
    let numbers = golden.tensor("train_t")?.get(step)?.to_vec1::<i64>()?;
    numbers.into_iter().map(|t| Ok(Timestep::new(usize::try_from(t)?))).collect()
}

fn relative(got: f64, expected: f64) -> f64 {
    (got - expected).abs() / expected.abs()
}
