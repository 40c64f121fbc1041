//! The measures give the numbers of the reference implementation.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use candle_core::{Device, Tensor};
use diffae_eval::{mse, psnr, ssim};

/// Relative to the expected value. The reference computes in f32, this crate in f64; measured: at most 9e-8.
const METRIC_TOLERANCE: f64 = 1e-6;

fn golden(name: &str) -> Tensor {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/data/metrics.safetensors");
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.remove(name).unwrap_or_else(|| panic!("the fixture has no tensor {name}"))
}

/// Compares the measured value of each image with the reference's.
fn assert_matches_golden(name: &str, got: &[f64]) {
    let expected = golden(name).to_vec1::<f32>().unwrap();
    assert_eq!(got.len(), expected.len());
    for (image_idx, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got / f64::from(expected) - 1.).abs();
        assert!(error <= METRIC_TOLERANCE, "{name} of image {image_idx}: got {got}, expected {expected} ({error:e})");
    }
}

#[test]
fn mse_matches_the_reference() {
    assert_matches_golden("mse", &mse(&golden("x"), &golden("y")).unwrap());
}

#[test]
fn psnr_matches_the_reference() {
    assert_matches_golden("psnr", &psnr(&golden("x"), &golden("y")).unwrap());
}

#[test]
fn ssim_matches_the_reference() {
    assert_matches_golden("ssim", &ssim(&golden("x"), &golden("y")).unwrap());
}
