//! Comparison with pytorch-fid, timm, efficientnet-lite-pytorch and lpips on weights from a formula;
//! `xtask/peer/feature_fixtures.py` generates the numbers.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use diffae_eval::{Error, FeatureKind, FeatureNetwork, Lpips, LpipsBackbone};
use diffae_kernels::{Gradients, no_gradients, record};
use diffae_nets::features::LpipsNetwork;
use diffae_nets::weights::{TensorMap, Weights};
use diffae_nets::{FrozenEncoder, FrozenEncoderConfig, FrozenNetwork, RawFrozenEncoderConfig};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    networks: BTreeMap<String, OfNetwork>,
    lpips: BTreeMap<String, Vec<OfPairs>>,
    /// Name and sizes of each network's parameters.
    shapes: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct OfNetwork {
    side: usize,
    pictures: Vec<Facts>,
}

#[derive(Deserialize)]
struct Facts {
    first: Vec<f64>,
    sum: f64,
    length: f64,
}

#[derive(Deserialize)]
struct OfPairs {
    side: usize,
    distances: Vec<f64>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/networks.json")).unwrap()
}

/// Mirrors the function `uniform` of the script.
fn uniform(count: usize, seed: u32) -> impl Iterator<Item = f64> {
    (0..u32::try_from(count).unwrap()).map(move |place| {
        let mut bits = place.wrapping_mul(2_654_435_761).wrapping_add(seed);
        for (shift, factor) in [(16, 0x7feb_352d), (15, 0x846c_a68b)] {
            bits = (bits ^ (bits >> shift)).wrapping_mul(factor);
        }
        bits ^= bits >> 16;
        f64::from(bits) / f64::from(1_u32 << 31) - 1.
    })
}

/// Mirrors the function `fill` of the script.
#[expect(clippy::cast_possible_truncation, reason = "as numpy does")]
fn fill(name: &str, shape: &[usize]) -> Tensor {
    let values = uniform(shape.iter().product(), crc32fast::hash(name.as_bytes()));
    let fan_in: usize = shape.iter().skip(1).product();
    let is = |end: &str| name.ends_with(end);
    let value = |u: f64| match shape.len() {
        _ if is("running_var") => 1. + 0.5 * u,
        2.. if is("weight") => u * (6. / fan_in as f64).sqrt(),
        _ if is("weight") || is("gamma") => 1. + 0.2 * u,
        _ => 0.2 * u,
    };
    Tensor::from_vec(values.map(|u| value(u) as f32).collect(), shape, &Device::Cpu).unwrap()
}

/// The parameters of a network.
fn weights(fixture: &Fixture, network: &str) -> TensorMap {
    let tensor = |line: &String| {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap().to_owned();
        let shape: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
        let tensor = fill(&name, &shape);
        (name, tensor)
    };
    TensorMap(fixture.shapes[network].iter().map(tensor).collect())
}

/// Mirrors the function `picture` of the script.
#[expect(clippy::cast_possible_truncation, reason = "as numpy does")]
fn pictures(count: usize, side: usize, seed: f64) -> Tensor {
    let mut values = vec![];
    for picture in 0..count {
        for channel in 0..3 {
            for row in 0..side {
                for column in 0..side {
                    let (y, x) = (row as f64, column as f64);
                    let wave = (0.37 * y + 0.05 * f64::from(1 + channel) * x + seed + picture as f64).sin();
                    values.push((0.5 + 0.5 * wave * (0.013 * y * x + seed).cos()) as f32);
                }
            }
        }
    }
    Tensor::from_vec(values, (count, 3, side, side), &Device::Cpu).unwrap()
}

fn close(got: f64, expected: f64, scale: f64) -> bool {
    (got - expected).abs() <= 2e-4 * scale.max(expected.abs())
}

fn features_agree(kind: FeatureKind) {
    let fixture = fixture();
    let OfNetwork { side, pictures: expected } = &fixture.networks[kind.name()];
    let weights = Weights::new(Arc::new(weights(&fixture, kind.name())));
    let network = FeatureNetwork::new(kind, &weights, &Device::Cpu).unwrap();
    let features = network.features(&pictures(2, *side, 3.)).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(features[0].len(), network.width());
    for (features, expected) in features.iter().zip(expected) {
        let features: Vec<f64> = features.iter().copied().map(f64::from).collect();
        let scale = expected.length / (features.len() as f64).sqrt();
        for (got, expected) in features.iter().zip(&expected.first) {
            assert!(close(*got, *expected, scale), "{kind}: {got}, expected {expected}");
        }
        let sum: f64 = features.iter().sum();
        assert!(close(sum, expected.sum, expected.length), "{kind}: sum {sum}, expected {}", expected.sum);
        let length = features.iter().map(|f| f * f).sum::<f64>().sqrt();
        assert!(close(length, expected.length, 0.), "{kind}: length {length}, expected {}", expected.length);
    }
}

#[test]
fn inception_is_that_of_pytorch_fid() {
    features_agree(FeatureKind::Inception);
}

#[test]
fn efficientnet_lite_is_that_of_its_package() {
    features_agree(FeatureKind::EfficientNetLite0);
}

#[test]
fn dinov2_is_that_of_timm() {
    features_agree(FeatureKind::DinoV2);
}

#[test]
fn a_frozen_encoder_computes_features() {
    let released = Weights::new(Arc::new(weights(&fixture(), "dinov2")));
    let network = FeatureNetwork::new(FeatureKind::DinoV2, &released.unread(), &Device::Cpu).unwrap();
    let x = pictures(2, 64, 3.);
    let expected = network.features(&x).unwrap().to_vec2::<f32>().unwrap();
    let parameters = Weights::new(Arc::new(FrozenNetwork::DinoV2Small.parameters(&released).unwrap()));
    let config = RawFrozenEncoderConfig { network: FrozenNetwork::DinoV2Small, image_size: 64, in_channels: 3 };
    let config = FrozenEncoderConfig::new(config).unwrap();
    let encoder = FrozenEncoder::new(&config, &parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    parameters.check_each_used_once().unwrap();
    let z_sem = encoder.forward(&x.affine(2., -1.).unwrap()).unwrap().to_vec2::<f32>().unwrap();
    for (got, expected) in z_sem.iter().flatten().zip(expected.iter().flatten()) {
        assert!((got - expected).abs() < 1e-3, "{got}, expected {expected}");
    }
    // The same bits in any batch, or alone.
    for (item, row) in z_sem.iter().enumerate() {
        let alone = encoder.forward(&x.affine(2., -1.).unwrap().narrow(0, item, 1).unwrap()).unwrap();
        assert_eq!(alone.to_vec2::<f32>().unwrap()[0], *row);
    }
    let larger = FrozenNetwork::DinoV2Base.parameters(&released).unwrap_err().to_string();
    assert!(larger.contains("384 features and 12 blocks, dinov2-b has 768 and 12"), "{larger}");
}

#[test]
fn perceptual_distances_are_those_of_lpips() {
    let fixture = fixture();
    for backbone in LpipsBackbone::ALL {
        let lpips = Lpips::new(backbone, &weights(&fixture, backbone.name()), &Device::Cpu).unwrap();
        for OfPairs { side, distances } in &fixture.lpips[backbone.name()] {
            let (x, y) = (pictures(2, *side, 3.), pictures(2, *side, 4.));
            for (got, expected) in lpips.distance(&x, &y).unwrap().into_iter().zip(distances) {
                assert!(close(got, *expected, 0.), "{}: {got}, expected {expected}", backbone.name());
            }
            assert_eq!(lpips.distance(&x, &x).unwrap(), [0., 0.]);
        }
    }
}

/// Along the unit vector of the gradient, the slope of the distance is the length of the gradient.
#[test]
fn perceptual_distances_of_vgg_have_gradients() {
    let network = LpipsNetwork::new(LpipsBackbone::Vgg, &weights(&fixture(), "vgg"), &Device::Cpu).unwrap();
    let signed = |seed| pictures(1, 32, seed).affine(2., -1.).unwrap();
    let wanted = no_gradients(|| network.activations(&signed(4.))).unwrap();
    let x = Var::from_tensor(&signed(3.)).unwrap();
    let distance = |x: &Tensor| network.distance_from(&wanted, x);
    let (loss, tape) = record(|| distance(&x)).unwrap();
    let mut gradients = Gradients::default();
    tape.backward(&loss, &mut gradients).unwrap();
    let scalar = |tensor: Tensor| f64::from(tensor.sum_all().unwrap().to_scalar::<f32>().unwrap());
    let gradient = gradients.get(&x).unwrap();
    let slope = scalar(gradient.sqr().unwrap()).sqrt();
    let moved = |step: f64| (x.as_tensor() + (gradient * (step / slope)).unwrap()).unwrap();
    let value = |step: f64| scalar(no_gradients(|| distance(&moved(step))).unwrap());
    let difference = (value(0.02) - value(-0.02)) / 0.04;
    assert!(slope > 0. && (difference / slope - 1.).abs() < 0.02, "{difference} {slope}");
    // Where no activation is above 0 there is no direction, and no gradient either.
    let dark = TensorMap(
        weights(&fixture(), "vgg").0.into_iter().map(|(name, tensor)| (name, tensor.zeros_like().unwrap())).collect(),
    );
    let dark = LpipsNetwork::new(LpipsBackbone::Vgg, &dark, &Device::Cpu).unwrap();
    let (loss, tape) = record(|| dark.distance(&signed(4.), &x)).unwrap();
    let mut gradients = Gradients::default();
    tape.backward(&loss, &mut gradients).unwrap();
    assert!(scalar(gradients.get(&x).unwrap().abs().unwrap()) < 1e-9);
}

#[test]
fn what_does_not_fit_is_refused() {
    let alex = weights(&fixture(), "alex");
    let wrong = Lpips::new(LpipsBackbone::Squeeze, &alex, &Device::Cpu);
    assert!(matches!(wrong, Err(Error::Weights(_))), "{wrong:?}");
    let lpips = Lpips::new(LpipsBackbone::Alex, &alex, &Device::Cpu).unwrap();
    let tensor = |value: f32, side: usize, channels: usize| {
        Tensor::full(value, (1, channels, side, side), &Device::Cpu).unwrap()
    };
    let x = tensor(0.5, 32, 3);
    assert!(lpips.distance(&x, &tensor(0.5, 32, 1)).is_err());
    assert!(matches!(lpips.distance(&x, &tensor(-0.5, 32, 3)), Err(Error::ValueOutOfRange { .. })));
    assert!(matches!(lpips.distance(&x, &tensor(f32::NAN, 32, 3)), Err(Error::NonFinite { .. })));
    assert!(matches!(lpips.distance(&tensor(0.5, 31, 3), &tensor(0.5, 31, 3)), Err(Error::TooSmall { .. })));
    let two = tensor(0.5, 32, 2);
    assert!(matches!(lpips.distance(&two, &two), Err(Error::Channels { .. })));
    // Gray pictures are color pictures with equal channels.
    let (gray, other) = (tensor(0.5, 32, 1), tensor(0.7, 32, 1));
    assert_eq!(lpips.distance(&gray, &other).unwrap(), lpips.distance(&x, &tensor(0.7, 32, 3)).unwrap());
}
