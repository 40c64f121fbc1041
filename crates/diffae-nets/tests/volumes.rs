//! A `UNet` and an encoder of volumes against PyTorch: outputs and gradients of the same weights.
//!
//! `data/volumes.safetensors` holds inputs, weights, outputs and gradients of the networks written out in PyTorch 2.15, with
//! `torch.nn.functional.conv3d`, `avg_pool3d` and `interpolate`; of the loss `sum over i of sin(i) eps_i`.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use diffae_kernels::{Gradients, differentiable, record};
use diffae_nets::{
    Conditioning, EncoderConfig, ImageSize, RawEncoderConfig, RawUnetConfig, SemanticEncoder, Unet, UnetConfig,
    Winograd, ZLevels,
};

const TIMESTEPS: [f32; 2] = [3., 712.];
/// Largest error relative to the largest value: sums of some thousand products in f32, in another order.
const TOLERANCE: f32 = 2e-5;

fn unet_config() -> UnetConfig {
    UnetConfig::new(RawUnetConfig {
        image_size: ImageSize::Volume([4, 8, 8]),
        in_channels: 2,
        out_channels: 2,
        model_channels: 8,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        num_input_res_blocks: None,
        embed_channels: 8,
        attention_resolutions: vec![4],
        num_heads: 2,
        dropout: 0.,
        conditioning: Conditioning::TimeAndZSem,
        z_levels: ZLevels::NONE,
    })
    .unwrap()
}

fn encoder_config() -> EncoderConfig {
    EncoderConfig::new(RawEncoderConfig {
        image_size: ImageSize::Volume([4, 8, 8]),
        in_channels: 2,
        out_channels: 8,
        model_channels: 8,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_resolutions: vec![4],
        num_heads: 2,
        z_levels: ZLevels::NONE,
    })
    .unwrap()
}

fn fixture() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/volumes.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn assert_close(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let (error, magnitude) = (largest(&(got - expected).unwrap()), largest(expected));
    assert!(error < TOLERANCE * magnitude, "{what}: {error} of {magnitude}");
}

#[test]
fn networks_of_volumes_are_those_of_pytorch() {
    let fixture = fixture();
    let vars: HashMap<String, Var> = fixture
        .iter()
        .filter_map(|(name, tensor)| {
            Some((name.strip_prefix("weight.")?.to_owned(), Var::from_tensor(tensor).unwrap()))
        })
        .collect();
    let weights: HashMap<String, Tensor> =
        vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let built = |weights: HashMap<String, Tensor>| {
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let unet = Unet::new(&unet_config(), &vb.pp("unet")).unwrap();
        (unet, SemanticEncoder::new(&encoder_config(), &vb.pp("encoder")).unwrap())
    };
    let constants = weights.iter().map(|(name, weight)| (name.clone(), weight.detach())).collect();
    let (unet, encoder) = built(weights);
    let (x_0, x_t) = (&fixture["x_0"], &fixture["x_t"]);
    let forward = || {
        let z_sem = encoder.forward(x_0)?;
        let eps = unet.forward_training(x_t, &TIMESTEPS, Some(&z_sem), diffae_nets::TrainingMode::default())?;
        let waves: Vec<f32> = (0..eps.elem_count()).map(|i| (i as f32).sin()).collect();
        let waves = Tensor::from_vec(waves, eps.shape(), &Device::Cpu)?;
        let loss = differentiable([&eps], |[eps]| (eps * &waves)?.sum_all())?;
        Ok::<_, candle_core::Error>((loss, z_sem, eps))
    };
    let ((loss, z_sem, eps), tape) = record(forward).unwrap();
    assert_close("z_sem", &z_sem, &fixture["z_sem"]);
    assert_close("eps", &eps, &fixture["eps"]);
    let mut gradients = Gradients::default();
    tape.backward(&loss, &mut gradients).unwrap();
    let expected = fixture.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("gradient.")?, tensor)));
    let mut count = 0;
    for (name, expected) in expected {
        assert_close(name, gradients.get(&vars[name]).unwrap(), expected);
        count += 1;
    }
    assert_eq!(count, 8);
    // Packed for inference, one by one.
    let (mut unet, mut encoder) = built(constants);
    unet.freeze(Winograd::Process);
    encoder.freeze(Winograd::Process);
    for place in 0..2 {
        let one = |x: &Tensor| x.narrow(0, place, 1).unwrap();
        let z_sem = encoder.forward(&one(x_0)).unwrap();
        assert_close("frozen z_sem", &z_sem, &one(&fixture["z_sem"]));
        let eps = unet.forward(&one(x_t), &TIMESTEPS[place..=place], Some(&z_sem)).unwrap();
        assert_close("frozen eps", &eps, &one(&fixture["eps"]));
    }
    let wrong = x_t.narrow(2, 0, 2).unwrap();
    let error = unet.forward(&wrong, &TIMESTEPS, Some(&z_sem)).unwrap_err().to_string();
    assert!(error.contains("the model expects [N, 2, 4, 8, 8]"), "{error}");
}

#[test]
fn sides_of_volumes_are_halved_as_often_as_levels_ask() {
    let config = |sides: [usize; 3], attention: Vec<usize>| {
        let raw = RawUnetConfig {
            image_size: ImageSize::Volume(sides),
            attention_resolutions: attention,
            ..(*unet_config()).clone()
        };
        UnetConfig::new(raw).map_err(|error| error.to_string())
    };
    assert!(config([4, 8, 16], vec![8]).is_ok());
    assert!(config([3, 8, 16], vec![8]).unwrap_err().contains("image_size [3, 8, 16] is not divisible by 2"));
    assert!(config([0, 8, 16], vec![8]).is_err());
    assert!(config([4, 8, 16], vec![4]).unwrap_err().contains("never occurs"));
    // Three times the depth of a kernel, and as many slices.
    let flat = UnetConfig::new(RawUnetConfig { image_size: 8.into(), ..(*unet_config()).clone() }).unwrap();
    let ratio = unet_config().num_multiply_adds() as f64 / flat.num_multiply_adds() as f64;
    assert!((4. ..12.).contains(&ratio), "{ratio}");
}
