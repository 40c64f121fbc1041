//! Gradients of the whole autoencoder against central differences, in f64.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use diffae_kernels::{Gradients, differentiable, no_gradients, record};
use diffae_nets::{
    AutoencoderConfig, Conditioning, DiffusionAutoencoder, EncoderConfig, RawEncoderConfig, RawUnetConfig,
    TrainingMode, UnetConfig,
};

/// Step of the differences: rounding in f64 is about 1e-16 / STEP, the neglected term about STEP^2.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-6;

fn config() -> AutoencoderConfig {
    let unet = UnetConfig::new(RawUnetConfig {
        image_size: 8,
        in_channels: 2,
        out_channels: 2,
        model_channels: 4,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        num_input_res_blocks: None,
        embed_channels: 6,
        attention_resolutions: vec![4],
        num_heads: 2,
        dropout: 0.25,
        conditioning: Conditioning::TimeAndZSem,
    });
    let encoder = EncoderConfig::new(RawEncoderConfig {
        image_size: 8,
        in_channels: 2,
        out_channels: 6,
        model_channels: 4,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_resolutions: vec![4],
        num_heads: 1,
    });
    AutoencoderConfig::new(encoder.unwrap(), unet.unwrap()).unwrap()
}

/// Numbers that look random, of about unit size.
fn numbers(shape: &[usize], seed: f64) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| (i as f64 * 12.9898 + seed * 78.233).sin() * 1.3;
    Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// Every parameter of the model has the gradient that moving it shows; with dropout, and with recomputed blocks.
#[test]
fn the_autoencoder_has_the_gradients_that_differences_show() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
    let model = DiffusionAutoencoder::new(&config(), &vb).unwrap();
    let mut named: Vec<(String, Var)> = vars.data().lock().unwrap().clone().into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    for (i, (_, var)) in named.iter().enumerate() {
        // Zero-initialized layers would hide everything before them.
        let moved = (var.as_tensor() + (numbers(var.dims(), i as f64) * 0.2).unwrap()).unwrap();
        var.set(&moved).unwrap();
    }
    let (x_0, x_t, target) = (numbers(&[2, 2, 8, 8], 1.), numbers(&[2, 2, 8, 8], 2.), numbers(&[2, 2, 8, 8], 3.));
    for mode in [
        TrainingMode::default(),
        TrainingMode { dropout_seed: Some(5), checkpoint_blocks: false },
        TrainingMode { dropout_seed: Some(5), checkpoint_blocks: true },
    ] {
        let loss = || -> Result<Tensor> {
            let predicted = model.forward_training(&x_0, &x_t, &[3., 700.], mode)?;
            differentiable([&predicted], |[predicted]| (&target - predicted)?.sqr()?.mean_all())
        };
        let (recorded, tape) = record(loss).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&recorded, &mut gradients).unwrap();
        let value = || no_gradients(loss).unwrap().to_scalar::<f64>().unwrap();
        for (name, var) in &named {
            let gradient = gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let original = var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for at in [0, original.len() >> 1] {
                let moved_by = |by: f64| {
                    let mut values = original.clone();
                    values[at] += by;
                    var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                    value()
                };
                let expected = (moved_by(STEP) - moved_by(-STEP)) / (2. * STEP);
                moved_by(0.);
                let difference = (gradient[at] - expected).abs();
                assert!(difference < TOLERANCE, "{name}[{at}], {mode:?}: {} instead of {expected}", gradient[at]);
            }
        }
    }
}
