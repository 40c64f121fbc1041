//! Networks of a hierarchical `z_sem`, against those of one code.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use diffae_nets::{
    AutoencoderConfig, Conditioning, EncoderConfig, RawEncoderConfig, RawUnetConfig, SemanticEncoder, Unet, UnetConfig,
    ZLevels,
};

const PARTS: [usize; 3] = [3, 5, 8];
const WIDTH: usize = 16;

fn unet(z_levels: ZLevels) -> UnetConfig {
    UnetConfig::new(RawUnetConfig {
        image_size: 16.into(),
        in_channels: 3,
        out_channels: 3,
        model_channels: 32,
        channel_mult: vec![1, 2, 2],
        num_res_blocks: 1,
        num_input_res_blocks: None,
        embed_channels: WIDTH,
        attention_resolutions: vec![8],
        num_heads: 2,
        dropout: 0.,
        conditioning: Conditioning::TimeAndZSem,
        z_levels,
    })
    .unwrap()
}

fn raw_encoder(channel_mult: Vec<usize>, z_levels: Vec<usize>) -> RawEncoderConfig {
    RawEncoderConfig {
        image_size: 16.into(),
        in_channels: 3,
        out_channels: if z_levels.is_empty() { WIDTH } else { z_levels.iter().sum() },
        model_channels: 32,
        channel_mult,
        num_res_blocks: 2,
        attention_resolutions: vec![16],
        num_heads: 1,
        z_levels: z_levels.into(),
    }
}

fn encoder(channel_mult: Vec<usize>, z_levels: Vec<usize>) -> EncoderConfig {
    EncoderConfig::new(raw_encoder(channel_mult, z_levels)).unwrap()
}

fn numbers(dims: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., dims, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(got: &Tensor, expected: &Tensor) {
    let difference = (got - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(got.dims() == expected.dims() && difference < 1e-5, "{difference}");
}

/// Builds a network with random weights; returns them, too.
fn random<T>(build: impl FnOnce(&VarBuilder<'_>) -> candle_core::Result<T>) -> (T, HashMap<String, Tensor>) {
    let vars = VarMap::new();
    let network = build(&VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
    let data = vars.data().lock().unwrap();
    // Layers that begin at zero would hide all that is before them.
    data.values().for_each(|var| var.set(&numbers(var.dims()).affine(0.2, 0.1).unwrap()).unwrap());
    (network, data.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect())
}

/// A network whose blocks see a part of the code is one whose blocks see all of it, with weights of zero for the other parts.
#[test]
fn blocks_see_the_part_of_their_level_alone() {
    let levels = ZLevels::from(PARTS.to_vec());
    let (network, mut weights) = random(|vb| Unet::new(&unet(levels.clone()), vb));
    let level_of = |name: &str| match name.split_once(".cond_emb_layers").unwrap().0 {
        "input_blocks.1.0" | "output_blocks.4.0" | "output_blocks.5.0" | "output_blocks.3.2" => 0,
        "input_blocks.2.0" | "input_blocks.3.0" | "output_blocks.2.0" | "output_blocks.3.0" | "output_blocks.1.1" => 1,
        _ => 2,
    };
    for (name, weight) in weights.iter_mut().filter(|(name, _)| name.ends_with("cond_emb_layers.1.weight")) {
        let part = levels.range(level_of(name), WIDTH);
        assert_eq!(weight.dim(1).unwrap(), part.len(), "{name}");
        *weight = weight.pad_with_zeros(1, part.start, WIDTH - part.end).unwrap();
    }
    let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let whole = Unet::new(&unet(ZLevels::NONE), &vb).unwrap();
    let (x_t, z_sem) = (numbers(&[2, 3, 16, 16]), numbers(&[2, WIDTH]));
    let of = |network: &Unet, z_sem: &Tensor| network.forward(&x_t, &[3., 700.], Some(z_sem)).unwrap();
    assert_close(&of(&network, &z_sem), &of(&whole, &z_sem));
    let moved = levels.replaced(&z_sem, &numbers(&[2, WIDTH]), &[0]).unwrap();
    let change = |network: &Unet| (of(network, &moved) - of(network, &z_sem)).unwrap();
    assert_close(&change(&network), &change(&whole));
    assert!(values(&change(&network)).iter().any(|change| change.abs() > 1e-3));
}

/// The part of a level is the code of an encoder that ends there, whose middle blocks change nothing.
#[test]
fn a_part_is_computed_from_the_features_of_its_level() {
    let (network, weights) = random(|vb| SemanticEncoder::new(&encoder(vec![1, 2, 2], PARTS.to_vec()), vb));
    let x_0 = numbers(&[2, 3, 16, 16]);
    let z_sem = network.forward(&x_0).unwrap();
    assert_eq!(z_sem.dims(), [2, WIDTH]);

    let heads = [("z_levels.0", 0..3, vec![1]), ("z_levels.1", 3..8, vec![1, 2]), ("out", 8..16, vec![1, 2, 2])];
    for (head, part, channel_mult) in heads {
        let raw = RawEncoderConfig { out_channels: part.len(), ..raw_encoder(channel_mult, vec![]) };
        let (_, own) = random(|vb| SemanticEncoder::new(&EncoderConfig::new(raw.clone()).unwrap(), vb));
        let of_middle = |name: &str, like: &Tensor| match weights.get(name) {
            Some(weight) if head == "out" => weight.clone(),
            _ => like.zeros_like().unwrap(),
        };
        let taken = own.iter().map(|(name, like)| {
            let weight = match name.strip_prefix("out.") {
                Some(rest) => weights[&format!("{head}.{rest}")].clone(),
                None if name.starts_with("middle_block") => of_middle(name, like),
                None => weights[name].clone(),
            };
            (name.clone(), weight)
        });
        let vb = VarBuilder::from_tensors(taken.collect(), DType::F32, &Device::Cpu);
        let ending = SemanticEncoder::new(&EncoderConfig::new(raw).unwrap(), &vb).unwrap();
        assert_close(&z_sem.narrow(1, part.start, part.len()).unwrap(), &ending.forward(&x_0).unwrap());
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let raw = |z_levels: Vec<usize>| RawUnetConfig { z_levels: z_levels.into(), ..(*unet(ZLevels::NONE)).clone() };
    let message = |raw: RawUnetConfig| UnetConfig::new(raw).unwrap_err().to_string();
    for wrong in [vec![8, 8], vec![3, 5, 9], vec![usize::MAX, 1, 17]] {
        assert!(message(raw(wrong)).contains("3 levels, and 16 together"));
    }
    assert!(message(raw(vec![0, 8, 8])).contains("z_levels"));
    let time = RawUnetConfig { conditioning: Conditioning::Time, ..raw(PARTS.to_vec()) };
    assert!(message(time).contains("hierarchy of codes"));

    let joined = |encoder, unet| AutoencoderConfig::new(encoder, unet);
    let levels = ZLevels::from(PARTS.to_vec());
    joined(encoder(vec![1, 2, 2], PARTS.to_vec()), unet(levels.clone())).unwrap();
    // An encoder that goes further down still gives the coarsest part at its end.
    joined(encoder(vec![1, 1, 2, 2], vec![3, 5, 0, 8]), unet(levels.clone())).unwrap();
    for other in [vec![], vec![5, 3, 8]] {
        let error = joined(encoder(vec![1, 2, 2], other), unet(levels.clone())).unwrap_err().to_string();
        assert!(error.contains("not those of the unet, [3, 5, 8]"), "{error}");
    }
    assert!(joined(encoder(vec![1, 2, 2], PARTS.to_vec()), unet(ZLevels::NONE)).is_err());
}
