//! Fits a linear layer with the tape and Adam: `cargo run --release --example fit_line`

#![expect(clippy::print_stdout, reason = "this is what the example shows")]

use candle_core::{DType, Device, Tensor, Var};
use diffae_kernels::{AdamConfig, AdamStep, Gradients, ParameterState, adam_step, differentiable, linear, record};

const NUM_STEPS: usize = 400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // y = 3 a - 2 b + 1, and parameters that start at 0.
    let x = Tensor::new(&[[0f32, 0.], [1., 0.], [0., 1.], [1., 1.], [2., 1.]], &Device::Cpu)?;
    let truth = Tensor::new(&[[1f32], [4.], [-1.], [2.], [5.]], &Device::Cpu)?;
    let weight = Var::zeros((1, 2), DType::F32, &Device::Cpu)?;
    let bias = Var::zeros(1, DType::F32, &Device::Cpu)?;
    let config = AdamConfig { lr: 0.05, beta_1: 0.9, beta_2: 0.999, eps: 1e-8, weight_decay: 0., ema_decay: 0. };
    let state = ParameterState::without_average;
    let mut parameters = [(&weight, state(&weight)?), (&bias, state(&bias)?)];
    for step_idx in 0..NUM_STEPS {
        let (loss, tape) = record(|| {
            let y = linear(&x, &weight, &bias)?;
            differentiable([&y, &truth], |[y, truth]| (y - truth)?.sqr()?.mean_all())
        })?;
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients)?;
        for (parameter, state) in &mut parameters {
            let gradient = gradients.get(parameter).ok_or("a parameter has no gradient")?;
            adam_step(parameter, gradient, state, &AdamStep { config, step_idx, gradient_scale: 1. })?;
        }
        if step_idx % 100 == 0 {
            println!("step {step_idx}: loss {:.6}", loss.to_scalar::<f32>()?);
        }
    }
    println!("weight {:?}, bias {:?}", weight.to_vec2::<f32>()?, bias.to_vec1::<f32>()?);
    Ok(())
}
