//! Comparison with pytorch-fid and scikit-learn; `xtask/peer/eval_fixtures.py` makes the numbers.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use candle_core::{Device, Tensor};
use diffae_eval::{FeatureStatistics, auroc, average_precision, frechet_distance, kernel_distance};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    pairs: Vec<Pair>,
    scores: Vec<f64>,
    labels: Vec<bool>,
    auroc: f64,
    average_precision: f64,
}

#[derive(Deserialize)]
struct Pair {
    counts: [usize; 2],
    width: usize,
    seeds: [f64; 2],
    frechet: f64,
    kernel: f64,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/features.json")).unwrap()
}

/// As the script's function of that name.
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
    for Pair { counts, width, seeds, frechet, kernel } in fixture().pairs {
        let [x, y] = [0, 1].map(|i| features(counts[i], width, seeds[i]));
        let statistics = |features: &Tensor| {
            let mut statistics = FeatureStatistics::new(width);
            // In two batches, of which one is uneven.
            let half = features.dim(0).unwrap().div_ceil(2) - 1;
            statistics.add(&features.narrow(0, 0, half).unwrap()).unwrap();
            statistics.add(&features.narrow(0, half, features.dim(0).unwrap() - half).unwrap()).unwrap();
            statistics
        };
        let got = frechet_distance(&statistics(&x), &statistics(&y)).unwrap();
        assert!((got - frechet).abs() < 1e-6 * frechet.max(1.), "{counts:?}: {got}, expected {frechet}");
        let got = kernel_distance(&x, &y).unwrap();
        assert!((got - kernel).abs() < 1e-9 * kernel.abs().max(1.), "{counts:?}: {got}, expected {kernel}");
    }
}

#[test]
fn areas_are_those_of_python() {
    let Fixture { scores, labels, auroc: expected_auroc, average_precision: expected_precision, .. } = fixture();
    assert!((auroc(&scores, &labels).unwrap() - expected_auroc).abs() < 1e-12);
    assert!((average_precision(&scores, &labels).unwrap() - expected_precision).abs() < 1e-12);
}
