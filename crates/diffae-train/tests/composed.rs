//! Training on the composed backend, which GPUs use, here on the CPU: parameters, optimizer state and arithmetic are tensors of
//! Candle's. One test, since the backend is selected for the whole process.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod short_runs;

use candle_core::Device;
use diffae_kernels::{KernelSet, kernel_set};

use short_runs::{pictures, trained};

#[test]
fn training_in_tensors_is_training_in_kernels() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let (kernels, composed) = (kernel_set(), KernelSet::Candle);
    for (kind, settings) in [
        ("diffusion", &["objective.adversarial_weight=0.1", "objective.adversarial_timesteps=400"][..]),
        ("checkpointed", &["objective.checkpoint_blocks=true", "autoencoder.clip_norm=0.5"]),
        ("compact", &["model.kind=compact"]),
    ] {
        let run = |name: &str, backends: &[(KernelSet, usize)]| {
            let folder = parent.path().join(format!("{kind}-{name}"));
            trained(&folder, &notes, settings, &(&Device::Cpu).into(), backends)
        };
        let expected = run("kernels", &[(kernels, usize::MAX)]);
        let got = run("composed", &[(composed, usize::MAX)]);
        got.assert_like(&expected, kind);
        if kind == "diffusion" {
            let again = run("resumed", &[(composed, 2), (composed, 5), (composed, usize::MAX)]);
            assert!(got.model == again.model, "a run is not the same when it is resumed");
            let moved = run("moved", &[(kernels, 2), (composed, 2), (kernels, 4), (composed, usize::MAX)]);
            moved.assert_like(&expected, "moved");
        }
    }
}
