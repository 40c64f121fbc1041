//! Compares samplers and spacings: how near few steps come to the exact solution of the same `x_T`.
//!
//! Decodes the eight faces that come with the built-in model from random `x_T` and prints, for each number of steps, the PSNR to
//! the solution of 200 steps of DPM-Solver++(2M): the median, and in parentheses the worst face.

#![expect(clippy::print_stdout, reason = "the table is the result")]

use std::error::Error;

use candle_core::Tensor;
use diffae_data::tensor_from_rgb;
use diffae_infer::{LoadOptions, Model, ModelSource, NoiseSource, built_in_pictures};
use diffae_schedule::{Clip, NoiseSchedule, ReverseProcess, Sampler, Spacing, StepChain, no_callback, no_noise};

const STEPS: [usize; 4] = [5, 10, 20, 50];
const EXACT_STEPS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let model = ModelSource::built_in()?.build(&LoadOptions::cpu())?;
    let [channels, size, _] = model.image_shape();
    let faces = built_in_pictures()?;
    let faces = faces.iter().map(|(_, face)| tensor_from_rgb(face, channels, size)).collect::<Result<Vec<_>, _>>()?;
    let z_sem = model.encode_semantic(&Tensor::stack(&faces, 0)?)?;
    let x_terminal = model.random_x_terminal(NoiseSource::new(0), 0..faces.len() as u64)?;
    let decode = |sampler: Sampler, chain: StepChain| decode(&model, (&x_terminal, &z_sem), sampler, chain);
    let schedule: &NoiseSchedule = model.schedule()?;
    let exact = decode(Sampler::DpmSolverPp2M, StepChain::spaced(schedule, Spacing::LogSnr, EXACT_STEPS)?)?;

    println!("PSNR (dB) to {EXACT_STEPS} steps of dpm++2m, at {STEPS:?} steps");
    for name in Sampler::names() {
        let sampler: Sampler = name.parse()?;
        for spacing in Spacing::names().filter(|_| sampler.is_deterministic()) {
            let mut row = vec![format!("{name:>8} {spacing:>9}")];
            for steps in STEPS {
                let chain = StepChain::spaced(schedule, spacing.parse()?, steps)?;
                let mut psnr = psnr(&decode(sampler, chain)?, &exact)?;
                psnr.sort_by(f64::total_cmp);
                let median = psnr.get(psnr.len().div_ceil(2)).copied().unwrap_or(f64::NAN);
                row.push(format!("{median:5.1} ({:4.1})", psnr.first().copied().unwrap_or(f64::NAN)));
            }
            println!("{}", row.join("  "));
        }
    }
    Ok(())
}

fn decode(
    model: &Model,
    (x_terminal, z_sem): (&Tensor, &Tensor),
    sampler: Sampler,
    chain: StepChain,
) -> Result<Tensor, Box<dyn Error>> {
    let denoiser = model.denoiser(Some(z_sem), &chain, x_terminal)?;
    let process = ReverseProcess::new(sampler, chain, Clip::UnitRange);
    Ok(process.run(&denoiser, x_terminal, &mut no_noise, &mut no_callback)?)
}

/// Computes the PSNR of each picture, both in [-1, 1].
fn psnr(x: &Tensor, y: &Tensor) -> candle_core::Result<Vec<f64>> {
    let mse = (x - y)?.sqr()?.flatten_from(1)?.mean(1)?.to_vec1::<f32>()?;
    Ok(mse.into_iter().map(|mse| 10. * (4. / f64::from(mse)).log10()).collect())
}
