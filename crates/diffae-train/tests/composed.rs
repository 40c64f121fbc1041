//! Training on the composed backend, which GPUs use, here on the CPU: parameters, optimizer state and arithmetic are tensors of
//! Candle's. One test, since the backend is selected for the whole process.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use diffae_kernels::{KernelSet, force_kernel_set, kernel_set};
use diffae_train::{Notes, Outcome, RunFolder, TrainOptions, Work, presets, train};
use image::{Rgb, RgbImage};

/// Maximum relative difference of the loss and the norm of the first step, and of later ones: Adam divides small gradients by
/// their size, which amplifies the rounding of the steps before.
const TOLERANCES: [f64; 2] = [1e-5, 5e-3];

/// Twenty pictures of 16 pixels with their labels.
fn pictures(folder: &Path) -> Notes {
    let data = folder.join("pictures");
    fs::create_dir(&data).unwrap();
    let mut labels = "file,Bright\n".to_owned();
    for i in 0..20u8 {
        let color = |x: u32, y: u32| [x * 16, y * 16, u32::from(i) * 12].map(|value| u8::try_from(value).unwrap());
        let name = format!("{i:02}.png");
        RgbImage::from_fn(16, 16, |x, y| Rgb(color(x, y))).save(data.join(&name)).unwrap();
        writeln!(labels, "{name},{}", u8::from(i >= 10)).unwrap();
    }
    let file = folder.join("labels.csv");
    fs::write(&file, labels).unwrap();
    Notes { data, labels: Some(file), ..Notes::default() }
}

/// Trains a run, stopping after the given numbers of training steps and going on with the next backend each time.
fn trained(
    folder: &Path,
    notes: &Notes,
    settings: &[&str],
    backends: &[(KernelSet, usize)],
) -> (Vec<u8>, Vec<[f64; 2]>) {
    let short = [
        "autoencoder.images=32",
        "autoencoder.batch_size=8",
        "autoencoder.accumulate=2",
        "latent.images=24",
        "latent.batch_size=8",
        "classifier.images=24",
        "classifier.batch_size=8",
        "run.preview_every_images=32",
        "run.preview_steps=2",
        "run.save_every_secs=0",
        "run.log_every_steps=1",
    ];
    let all: Vec<String> = short.iter().chain(settings).map(|&text| text.to_owned()).collect();
    let config = presets::config("smoke", &all).unwrap();
    let mut outcome = Outcome::Stopped;
    for &(set, num_steps) in backends {
        force_kernel_set(set).unwrap();
        let mut run = RunFolder::open_or_create(folder, &config, notes).unwrap();
        let (mut made, options) = (0, TrainOptions { resume: true, ..TrainOptions::default() });
        outcome = train(&mut run, &options, &mut |report| {
            made += usize::from(report.work == Work::Training);
            if made >= num_steps { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    }
    assert_eq!(outcome, Outcome::Finished);
    let log = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let figures = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        Some([line["loss"].as_f64()?, line["grad_norm"].as_f64()?])
    };
    (fs::read(folder.join("model.safetensors")).unwrap(), log.lines().filter_map(figures).collect())
}

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
            trained(&parent.path().join(format!("{kind}-{name}")), &notes, settings, backends)
        };
        let (_, expected) = run("kernels", &[(kernels, usize::MAX)]);
        let (model, got) = run("composed", &[(composed, usize::MAX)]);
        let mut others = vec![("composed", got)];
        if kind == "diffusion" {
            let (again, _) = run("resumed", &[(composed, 2), (composed, 5), (composed, usize::MAX)]);
            assert!(model == again, "a run is not the same when it is resumed");
            let moved = run("moved", &[(kernels, 2), (composed, 2), (kernels, 4), (composed, usize::MAX)]);
            others.push(("moved", moved.1));
        }
        for (name, figures) in others {
            assert_eq!(figures.len(), expected.len(), "{kind} {name}");
            for (step, (got, expected)) in figures.iter().flatten().zip(expected.iter().flatten()).enumerate() {
                let error = (got - expected).abs() / expected.abs();
                let tolerance = TOLERANCES[usize::from(step >= 2)];
                assert!(error < tolerance, "{kind} {name}, figure {step}: {got} against {expected}");
            }
        }
    }
}
