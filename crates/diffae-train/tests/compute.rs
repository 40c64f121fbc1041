//! Training in other numbers than f32: parameters stay f32, layers read them converted, and gradients come back converted.
//!
//! f64 stands for bf16, which Candle does not multiply on a CPU: the conversions are at the same places, and what is computed between
//! them is that of f32 up to its rounding. f16 has a test of its own, `half`.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod short_runs;

use candle_core::safetensors::load;
use candle_core::{DType, Device};
use diffae_kernels::kernel_set;
use diffae_train::Compute;

use short_runs::{pictures, trained};

#[test]
fn other_numbers_give_the_training_of_f32_with_parameters_in_f32() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    for (kind, settings) in [
        ("adversarial", &["objective.adversarial_weight=0.1", "objective.adversarial_timesteps=400"][..]),
        ("checkpointed", &["objective.checkpoint_blocks=true", "autoencoder.clip_norm=0.5"]),
        ("compact", &["model.kind=compact"]),
        ("on latents", &["spatial.images=16", "spatial_net.adversarial_weight=0.1"]),
    ] {
        let folder = |name: &str| parent.path().join(format!("{kind}-{name}"));
        let run = |name: &str, dtype: DType, stops: &[usize]| {
            let legs: Vec<_> = stops.iter().map(|&stop| (kernel_set(), stop)).collect();
            trained(&folder(name), &notes, settings, &Compute { device: Device::Cpu, dtype }, &legs)
        };
        let expected = run("f32", DType::F32, &[usize::MAX]);
        let got = run("f64", DType::F64, &[usize::MAX]);
        got.assert_like(&expected, kind);
        if kind == "adversarial" {
            assert_ne!(got.figures, expected.figures, "f64 rounds otherwise than f32");
            let again = run("resumed", DType::F64, &[2, 5, usize::MAX]);
            assert!(got.model == again.model, "a run is not the same when it is resumed");
        }
        let tensors = load(folder("f64").join("model.safetensors"), &Device::Cpu).unwrap();
        assert!(tensors.values().all(|tensor| tensor.dtype() == DType::F32));
    }
}
