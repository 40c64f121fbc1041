//! Comparison with pytorch-fid, prdc, scikit-learn, scikit-image and torchmetrics; `xtask/peer/eval_fixtures.py`
//! generates the numbers.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use candle_core::{Device, Tensor};
use diffae_eval::{
    FeatureStatistics, LinearProbe, auroc, average_precision, frechet_distance, kernel_distance, manifold_overlap,
    ms_ssim, ssim,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    pairs: Vec<Pair>,
    scores: Vec<f64>,
    labels: Vec<bool>,
    auroc: f64,
    average_precision: f64,
    probes: Vec<Probe>,
    ssim: Vec<(usize, usize, f64, f64)>,
    ms_ssim: Vec<(usize, usize, f64, f64)>,
}

#[derive(Deserialize)]
struct Probe {
    inverse_penalty: f64,
    weight: Vec<f64>,
    bias: f64,
}

#[derive(Deserialize)]
struct Pair {
    counts: [usize; 2],
    width: usize,
    seeds: [f64; 2],
    frechet: f64,
    kernel: f64,
    /// The kernel distance of torchmetrics, for sets of equal size only.
    kernel_torchmetrics: Option<f64>,
    overlap: Vec<(usize, f64, f64, f64, f64)>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/features.json")).unwrap()
}

/// Mirrors the function `features` of the script.
fn features(count: usize, width: usize, seed: f64) -> Tensor {
    let value = |i: usize, j: usize| {
        let angle = 12.9898 * i as f64 * (1. + j as f64) + 78.233 * j as f64 + seed;
        angle.sin() * (1 + j % 3) as f64 + 0.1 * seed
    };
    let values: Vec<f64> = (0..count).flat_map(|i| (0..width).map(move |j| value(i, j))).collect();
    Tensor::from_vec(values, (count, width), &Device::Cpu).unwrap()
}

#[test]
fn distances_are_those_of_python() {
    for Pair { counts, width, seeds, frechet, kernel, kernel_torchmetrics, overlap } in fixture().pairs {
        let [x, y] = [0, 1].map(|i| features(counts[i], width, seeds[i]));
        let statistics = |features: &Tensor| {
            let mut statistics = FeatureStatistics::new(width);
            // In two batches, of which one is uneven.
            let half = features.dim(0).unwrap().div_ceil(2) - 1;
            statistics.add(&features.narrow(0, 0, half).unwrap()).unwrap();
            statistics.add(&features.narrow(0, half, features.dim(0).unwrap() - half).unwrap()).unwrap();
            statistics
        };
        let moments = |features: &Tensor| statistics(features).moments().unwrap();
        let got = frechet_distance(&moments(&x), &moments(&y)).unwrap();
        assert!((got - frechet).abs() < 1e-6 * frechet.max(1.), "{counts:?}: {got}, expected {frechet}");
        let got = kernel_distance(&x, &y).unwrap();
        assert!((got - kernel).abs() < 1e-9 * kernel.abs().max(1.), "{counts:?}: {got}, expected {kernel}");
        if let Some(kernel) = kernel_torchmetrics {
            assert!((got - kernel).abs() < 1e-9 * kernel.abs().max(1.), "{counts:?}: {got}, expected {kernel}");
        }
        for (k, precision, recall, density, coverage) in overlap {
            let got = manifold_overlap(&x, &y, k).unwrap();
            let got = [got.precision, got.recall, got.density, got.coverage];
            for (got, expected) in got.iter().zip([precision, recall, density, coverage]) {
                assert!((got - expected).abs() < 1e-12, "{counts:?}, {k} neighbors: {got}, expected {expected}");
            }
        }
    }
}

#[test]
fn areas_are_those_of_python() {
    let Fixture { scores, labels, auroc: expected_auroc, average_precision: expected_precision, .. } = fixture();
    assert!((auroc(&scores, &labels).unwrap() - expected_auroc).abs() < 1e-12);
    assert!((average_precision(&scores, &labels).unwrap() - expected_precision).abs() < 1e-12);
}

#[test]
fn a_probe_is_that_of_python() {
    let x = features(80, 5, 6.);
    let rows = x.to_vec2::<f64>().unwrap();
    let present: Vec<bool> = rows.iter().map(|row| (row[0] + 2. * row[3]).sin() > 0.2).collect();
    for Probe { inverse_penalty, weight, bias } in fixture().probes {
        let got = LinearProbe::fit(&x, &present, inverse_penalty).unwrap();
        for (got, expected) in got.weight.iter().zip(&weight).chain([(&got.bias, &bias)]) {
            assert!((got - expected).abs() < 1e-5 * expected.abs().max(1.), "{got}, expected {expected}");
        }
    }
}

/// Mirrors the function `picture` of the script.
fn picture(height: usize, width: usize, seed: f64) -> Vec<f64> {
    let mut values = vec![];
    for channel in 0..3 {
        for row in 0..height {
            for column in 0..width {
                let (i, j) = (row as f64, column as f64);
                let wave = (0.37 * i + 0.05 * f64::from(1 + channel) * j + seed).sin();
                values.push(0.5 + 0.5 * wave * (0.013 * i * j + seed).cos());
            }
        }
    }
    values
}

#[test]
fn similarities_are_those_of_python() {
    let Fixture { ssim: cases, ms_ssim: over_scales, .. } = fixture();
    for (measure, cases) in [(ssim as fn(&Tensor, &Tensor) -> _, cases), (ms_ssim, over_scales)] {
        for (height, width, mix, expected) in cases {
            let (x, y) = (picture(height, width, 1.), picture(height, width, 2.));
            let y: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x + mix * (y - x)).collect();
            let tensor = |values: Vec<f64>| {
                let tensor = Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu).unwrap();
                tensor.to_dtype(candle_core::DType::F32).unwrap().clamp(0f32, 1f32).unwrap()
            };
            let got = measure(&tensor(x), &tensor(y)).unwrap()[0];
            assert!((got - expected).abs() < 1e-5, "{height} by {width}: {got}, expected {expected}");
        }
    }
    let small = Tensor::zeros((1, 3, 175, 200), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(ms_ssim(&small, &small).unwrap_err().to_string().contains("175"));
}
