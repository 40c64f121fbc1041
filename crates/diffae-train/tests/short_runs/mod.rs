//! Runs of a few steps on pictures of 16 pixels.

use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::DType;
use diffae_kernels::{KernelSet, force_kernel_set};
use diffae_train::{Compute, Notes, Outcome, RunFolder, TrainOptions, Work, presets, train};
use image::{Rgb, RgbImage};

/// Returns the maximum relative difference of the loss and the norm of the first step, and of later ones: Adam divides small gradients
/// by their size, which amplifies the rounding of the steps before.
fn tolerances(dtype: DType) -> [f64; 2] {
    // f16 has eleven bits of mantissa.
    if dtype == DType::F16 { [5e-3, 5e-2] } else { [1e-5, 5e-3] }
}

/// Makes twenty pictures with their labels.
pub(crate) fn pictures(folder: &Path) -> Notes {
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

/// Results of a run.
pub(crate) struct Trained {
    /// The bytes of the model's file.
    pub(crate) model: Vec<u8>,
    /// Number type of activations.
    dtype: DType,
    /// Loss and norm of the gradient of each step.
    pub(crate) figures: Vec<[f64; 2]>,
}

impl Trained {
    /// Fails if losses or norms differ from those of another run by more than the rounding of either.
    pub(crate) fn assert_like(&self, expected: &Self, name: &str) {
        let tolerances = tolerances(if self.dtype == DType::F16 { self.dtype } else { expected.dtype });
        assert_eq!(self.figures.len(), expected.figures.len(), "{name}");
        let pairs = self.figures.iter().flatten().zip(expected.figures.iter().flatten());
        for (step, (got, expected)) in pairs.enumerate() {
            let error = (got - expected).abs() / expected.abs();
            let tolerance = tolerances[usize::from(step >= 2)];
            assert!(error < tolerance, "{name}, figure {step}: {got} against {expected}");
        }
    }
}

/// Trains a run, stopping after the given numbers of training steps and going on with the next kernels each time.
pub(crate) fn trained(
    folder: &Path,
    notes: &Notes,
    settings: &[&str],
    compute: &Compute,
    legs: &[(KernelSet, usize)],
) -> Trained {
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
    let is_on_latents = settings.iter().any(|setting| setting.starts_with("spatial."));
    let config = presets::config(if is_on_latents { "smoke_latent" } else { "smoke" }, &all).unwrap();
    let options = TrainOptions { resume: true, compute: compute.clone(), ..TrainOptions::default() };
    let mut outcome = Outcome::Stopped;
    for &(set, num_steps) in legs {
        force_kernel_set(set).unwrap();
        let mut run = RunFolder::open_or_create(folder, &config, notes).unwrap();
        let mut made = 0;
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
    let model = fs::read(folder.join("model.safetensors")).unwrap();
    Trained { model, dtype: compute.dtype, figures: log.lines().filter_map(figures).collect() }
}
