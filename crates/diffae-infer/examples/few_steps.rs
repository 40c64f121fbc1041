//! Compares samplers and spacings: how near few steps come to the exact solution of the same `x_T`.
//!
//! Decodes the eight faces that come with the built-in model from random `x_T` and prints, for each number of steps, the PSNR to
//! the solution of 200 steps of DPM-Solver++(2M): the median, and in parentheses the worst face. Before the table come the PSNR
//! to the faces themselves, which rewards poor solvers, and the distances of sampled `z_sem` to their exact solution.

#![expect(clippy::print_stdout, reason = "the table is the result")]

use std::error::Error;

use candle_core::Tensor;
use diffae_data::tensor_from_rgb;
use diffae_infer::{DecodeOptions, LoadOptions, Model, ModelSource, NoisePurpose, NoiseSource, built_in_pictures};
use diffae_schedule::{Clip, NoiseSchedule, ReverseProcess, Sampler, Spacing, StepChain, no_callback, no_noise};

const STEPS: [usize; 4] = [5, 10, 20, 50];
const EXACT_STEPS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let model = ModelSource::built_in()?.build(&LoadOptions::cpu())?;
    let faces = built_in_pictures()?;
    let faces =
        faces.iter().map(|(_, face)| tensor_from_rgb(face, model.picture_format())).collect::<Result<Vec<_>, _>>()?;
    let x_0 = Tensor::stack(&faces, 0)?;
    let z_sem = model.encode_semantic(&x_0)?;
    let x_terminal = model.random_x_terminal(NoiseSource::new(0), 0..faces.len() as u64)?;
    let decode = |sampler: Sampler, chain: StepChain| decode(&model, (&x_terminal, &z_sem), sampler, chain);
    let schedule: &NoiseSchedule = model.schedule()?;
    let exact = decode(Sampler::DpmSolverPp2M, StepChain::spaced(schedule, Spacing::LogSnr, EXACT_STEPS)?)?;

    println!("PSNR (dB) to the faces: {:.1} of {EXACT_STEPS} steps of dpm++2m", median(psnr(&exact, &x_0)?));
    for steps in [1, 5, 50] {
        let decoded = decode(Sampler::DDIM, StepChain::spaced(schedule, Spacing::LogSnr, steps)?)?;
        println!("  {:.1} of ddim, log-snr, {steps} steps", median(psnr(&decoded, &x_0)?));
    }
    compare_latents(&model)?;
    println!("PSNR (dB) to {EXACT_STEPS} steps of dpm++2m, at {STEPS:?} steps");
    for name in Sampler::names() {
        let sampler: Sampler = name.parse()?;
        for spacing in Spacing::names().filter(|&name| sampler.is_deterministic() && name != "tuned") {
            let mut row = vec![format!("{name:>8} {spacing:>9}")];
            for steps in STEPS {
                let chain = StepChain::spaced(schedule, spacing.parse()?, steps)?;
                let psnr = psnr(&decode(sampler, chain)?, &exact)?;
                let worst = psnr.iter().copied().fold(f64::INFINITY, f64::min);
                row.push(format!("{:5.1} ({worst:4.1})", median(psnr)));
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
    let process = ReverseProcess::new(sampler, chain, model.clip_of_states(Clip::UnitRange));
    Ok(model.pictures(&process.run(&denoiser, x_terminal, &mut no_noise, &mut no_callback)?)?)
}

/// Prints the distance of sampled codes to those of 500 steps, relative to the length of these.
fn compare_latents(model: &Model) -> Result<(), Box<dyn Error>> {
    let width = model.latent_net()?.config().z_channels;
    let z_terminal = NoiseSource::new(0).batch(NoisePurpose::ZTerminal, 0..64, &[width], model.device())?;
    let sample = |sampler, spacing, num_steps| {
        let options = DecodeOptions { num_steps, spacing, sampler, clip: Clip::None };
        model.sample_z_sem_normalized(&z_terminal, &options, &mut no_callback)
    };
    let exact = sample(Sampler::DpmSolverPp2M, Spacing::LogSnr, 500)?;
    let length = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    println!("relative distance of z_sem to 500 steps of dpm++2m, log-snr");
    for (sampler, spacing, steps) in [
        (Sampler::DDIM, Spacing::Leading, 20),
        (Sampler::DDIM, Spacing::Leading, 200),
        (Sampler::DpmSolverPp2M, Spacing::LogSnr, 10),
        (Sampler::DpmSolverPp2M, Spacing::LogSnr, 20),
        (Sampler::DpmSolverPp2M, Spacing::LogSnr, 50),
    ] {
        let distance = length(&(sample(sampler, spacing, steps)? - &exact)?)? / length(&exact)?;
        println!("  {distance:.4} of {sampler}, {spacing}, {steps} steps");
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().div_ceil(2)).copied().unwrap_or(f64::NAN)
}

/// Computes the PSNR of each picture, both in [-1, 1].
fn psnr(x: &Tensor, y: &Tensor) -> candle_core::Result<Vec<f64>> {
    let mse = (x - y)?.sqr()?.flatten_from(1)?.mean(1)?.to_vec1::<f32>()?;
    Ok(mse.into_iter().map(|mse| 10. * (4. / f64::from(mse)).log10()).collect())
}
