//! Checks of schedules, step sequences, one ancestral step, embeddings and image measures.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use diffae_nets::timestep_embedding;
use diffae_schedule::{BetaSchedule, Clip, DdpmSampler, DdpmVariance, NoiseSchedule, StepChain, StepIdx, StepSequence};

use super::fixture::Fixture;
use super::report::{Report, Tolerance};

/// Length of the noise schedule of all step sequences.
const NUM_TRAIN_TIMESTEPS: usize = 1000;

/// Checks `math.safetensors`.
pub(crate) fn check(path: &Path, report: &mut Report) -> Result<()> {
    report.begin("math");
    let golden = Fixture::open(path)?;
    for name in golden.names() {
        let family = name.split('.').next().unwrap_or_default();
        match family {
            "betas" | "alphas_cumprod" => schedule(&golden, &name, report)?,
            "timesteps" => timesteps(&golden, &name, report)?,
            "timestep_embedding" => embedding(&golden, &name, report)?,
            _ => {}
        }
    }
    let linear = NoiseSchedule::new(&BetaSchedule::Linear, NUM_TRAIN_TIMESTEPS)?;
    spaced(&golden, &linear, report)?;
    ancestral(&golden, &linear, report)?;
    measures(&golden, report)
}

/// Checks `betas.NAME.T` and `alphas_cumprod.NAME.T`; NAME may hold dots.
fn schedule(golden: &Fixture, name: &str, report: &mut Report) -> Result<()> {
    let (rest, length) = name.rsplit_once('.').context("no length")?;
    let (family, schedule) = rest.split_once('.').context("no schedule")?;
    let schedule = NoiseSchedule::new(&schedule.parse::<BetaSchedule>()?, length.parse()?)?;
    let got = if family == "betas" { schedule.betas() } else { schedule.alpha_bars() };
    report.tables(name, got, &golden.numbers(name)?);
    Ok(())
}

/// Checks `timesteps.ddimN` and `timesteps.sections.A,B,C`.
fn timesteps(golden: &Fixture, name: &str, report: &mut Report) -> Result<()> {
    let text = name.trim_start_matches("timesteps.").trim_start_matches("sections.");
    let sequence: StepSequence = text.replace('_', ",").parse()?;
    let got: Vec<f64> = sequence.timesteps(NUM_TRAIN_TIMESTEPS)?.iter().map(|t| t.get() as f64).collect();
    report.tables(name, &got, &golden.numbers(name)?);
    Ok(())
}

fn embedding(golden: &Fixture, name: &str, report: &mut Report) -> Result<()> {
    let Ok(width) = name.trim_start_matches("timestep_embedding.").parse() else { return Ok(()) };
    #[expect(clippy::cast_possible_truncation, reason = "golden timesteps are small")]
    let timesteps: Vec<f32> = golden.numbers("timestep_embedding.t")?.into_iter().map(|t| t as f32).collect();
    let got = timestep_embedding(&timesteps, width, &Device::Cpu)?;
    // At t = 999 one unit in the last place of a frequency moves the angle by 6e-5.
    report.tensors(name, &got, &golden.tensor(name)?, Tolerance::Network)
}

/// Checks the linear chain at ddim20.
fn spaced(golden: &Fixture, linear: &NoiseSchedule, report: &mut Report) -> Result<()> {
    let chain = StepChain::new(linear, &StepSequence::Ddim(20))?;
    let each = |value: &dyn Fn(StepIdx) -> diffae_schedule::Result<f64>| -> Result<Vec<f64>> {
        Ok(chain.indices().map(value).collect::<diffae_schedule::Result<_>>()?)
    };
    let timesteps: Vec<f64> = chain.timesteps().iter().map(|t| t.get() as f64).collect();
    report.tables("spaced20.timestep_map", &timesteps, &golden.numbers("spaced20.timestep_map")?);
    for (name, got) in [
        ("betas", each(&|idx| chain.beta(idx))?),
        ("alphas_cumprod", each(&|idx| chain.alpha_bar(idx))?),
        ("alphas_cumprod_prev", each(&|idx| chain.alpha_bar_prev(idx))?),
        ("alphas_cumprod_next", each(&|idx| chain.alpha_bar_next(idx))?),
        ("posterior_variance", each(&|idx| Ok(chain.posterior(idx)?.variance))?),
        ("posterior_log_variance_clipped", each(&|idx| Ok(chain.posterior(idx)?.log_variance_clipped))?),
        ("posterior_mean_coef1", each(&|idx| Ok(chain.posterior(idx)?.x_0_coefficient))?),
        ("posterior_mean_coef2", each(&|idx| Ok(chain.posterior(idx)?.x_t_coefficient))?),
    ] {
        let name = format!("spaced20.{name}");
        if golden.get(&name)?.is_some() {
            report.tables(&name, &got, &golden.numbers(&name)?);
        }
    }
    Ok(())
}

/// Checks `p(x_prev | x_t)` with clipping and the fixed large variance, at another timestep for each picture.
fn ancestral(golden: &Fixture, linear: &NoiseSchedule, report: &mut Report) -> Result<()> {
    let chain = StepChain::new(linear, &StepSequence::All)?;
    let sampler = DdpmSampler::new(chain, Clip::UnitRange, DdpmVariance::FixedLarge);
    let (x_t, eps) = (golden.tensor("ancestral.x_t")?, golden.tensor("ancestral.eps")?);
    let mut rows: [Vec<Tensor>; 4] = Default::default();
    for (item, t) in golden.counts("ancestral.t")?.into_iter().enumerate() {
        let one = |tensor: &Tensor| tensor.narrow(0, item, 1);
        let reverse = sampler.posterior(StepIdx::new(t), &one(&x_t)?, &one(&eps)?)?;
        let constant = |value: f64| one(&x_t)?.affine(0., value);
        let got = [reverse.mean, constant(reverse.variance)?, constant(reverse.log_variance)?, reverse.x_0];
        for (rows, got) in rows.iter_mut().zip(got) {
            rows.push(got);
        }
    }
    for (name, rows) in ["mean", "variance", "log_variance", "pred_xstart"].into_iter().zip(&rows) {
        let name = format!("ancestral.{name}");
        report.tensors(&name, &Tensor::cat(rows, 0)?, &golden.tensor(&name)?, Tolerance::Formula)?;
    }
    Ok(())
}

fn measures(golden: &Fixture, report: &mut Report) -> Result<()> {
    if golden.get("metrics.x")?.is_none() {
        return Ok(());
    }
    let (x, y) = (golden.tensor("metrics.x")?, golden.tensor("metrics.y")?);
    for (name, got) in [
        ("metrics.mse", diffae_eval::mse(&x, &y)?),
        ("metrics.psnr", diffae_eval::psnr(&x, &y)?),
        ("metrics.ssim", diffae_eval::ssim(&x, &y)?),
    ] {
        let expected = golden.tensor(name)?;
        report.tensors(name, &Tensor::new(got, &Device::Cpu)?, &expected, Tolerance::Formula)?;
    }
    Ok(())
}
