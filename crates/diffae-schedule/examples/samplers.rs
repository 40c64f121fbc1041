//! Compares samplers on data whose best denoiser is known: `cargo run --release --example samplers`
//!
//! Values of the data are normal with variance 1/4. Printed is the largest error of the decoded values, beside those of
//! 1000 DDIM steps, for all samplers that draw no noise of their own.

#![expect(clippy::print_stdout, reason = "this is what the example shows")]

use std::fmt::Write;

use candle_core::{Device, Tensor};
use diffae_schedule::{
    BetaSchedule, Clip, NoiseSchedule, ReverseProcess, Sampler, StepChain, StepSequence, Timestep, no_callback,
    no_noise,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000)?;
    let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
        let alpha_bar = schedule.alpha_bar(timesteps[0]).map_err(candle_core::Error::wrap)?;
        x_t.affine((1. - alpha_bar).sqrt() / (alpha_bar / 4. + 1. - alpha_bar), 0.)
    };
    let x_terminal = Tensor::new(&[[-1.5, -0.5, 0.25, 2.]], &Device::Cpu)?; // [N, D], f64
    let decode = |sampler: Sampler, num_steps: usize| {
        let chain = StepChain::new(&schedule, &StepSequence::Ddim(num_steps))?;
        ReverseProcess::new(sampler, chain, Clip::None).run(&denoiser, &x_terminal, &mut no_noise, &mut no_callback)
    };
    let exact = decode(Sampler::DDIM, 1000)?;
    println!("{:<12}{:>12}{:>12}{:>12}", "sampler", "5 steps", "20 steps", "100 steps");
    for name in Sampler::names().filter(|name| name.parse().is_ok_and(Sampler::is_deterministic)) {
        let mut line = format!("{name:<12}");
        for num_steps in [5, 20, 100] {
            let error = (decode(name.parse()?, num_steps)? - &exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
            write!(line, "{error:>12.6}")?;
        }
        println!("{line}");
    }
    Ok(())
}
