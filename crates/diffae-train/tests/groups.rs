//! Groups of processes, here threads with a thread pool each, train the model of a single one, to the bit.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;

use candle_core::{Device, Tensor};
use diffae_train::{
    Error, Group, Notes, Outcome, Reduction, Result, RunFolder, StepReport, Threads, TrainConfig, TrainOptions,
    Trainer, Work, presets, train_in_group,
};
use image::{Rgb, RgbImage};

/// Thirty pictures of 16 pixels with their labels.
fn pictures(folder: &Path) -> Notes {
    let data = folder.join("pictures");
    fs::create_dir(&data).unwrap();
    let mut labels = "file,Bright\n".to_owned();
    for i in 0..30u8 {
        let color = |x: u32, y: u32| [x * 16, y * 16, u32::from(i) * 8].map(|value| u8::try_from(value).unwrap());
        let name = format!("{i:02}.png");
        RgbImage::from_fn(16, 16, |x, y| Rgb(color(x, y))).save(data.join(&name)).unwrap();
        writeln!(labels, "{name},{}", u8::from(i >= 15)).unwrap();
    }
    let file = folder.join("labels.csv");
    fs::write(&file, labels).unwrap();
    Notes { data, labels: Some(file), ..Notes::default() }
}

fn config(settings: &[&str]) -> TrainConfig {
    let short = [
        "autoencoder.images=96",
        "autoencoder.batch_size=16",
        "autoencoder.accumulate=4",
        "latent.images=64",
        "latent.batch_size=16",
        "latent.accumulate=2",
        "classifier.images=64",
        "classifier.batch_size=16",
        "run.preview_every_images=0",
        "run.save_every_secs=0",
        "run.log_every_steps=1",
    ];
    let all: Vec<String> = short.iter().chain(settings).map(|&text| text.to_owned()).collect();
    presets::config("smoke", &all).unwrap()
}

/// A run in a folder of its own.
struct Run {
    folder: PathBuf,
    config: TrainConfig,
    notes: Notes,
    reduction: Reduction,
    shards_state: bool,
}

impl Run {
    fn new(parent: &Path, name: &str, (config, notes): (&TrainConfig, &Notes)) -> Self {
        let (config, notes) = (config.clone(), notes.clone());
        Self { folder: parent.join(name), config, notes, reduction: Reduction::Ordered, shards_state: false }
    }

    /// Trains with so many processes, each of one thread, until one of them wants to stop.
    fn train(&self, size: usize, stops: impl Fn(usize, &StepReport) -> bool + Sync) -> Vec<Result<Outcome>> {
        let one = |member: Threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            pool.install(|| {
                let group = Group::new(Box::new(member), self.reduction);
                let mut group = if self.shards_state { group.with_sharded_state() } else { group };
                let open = || RunFolder::open_or_create(&self.folder, &self.config, &self.notes);
                let mut folder = RunFolder::open_in_group(&mut group, open)?;
                let (rank, options) = (group.rank(), TrainOptions { resume: true, ..TrainOptions::default() });
                train_in_group(&mut folder, &options, &mut group, &mut |report| {
                    if stops(rank, report) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
            })
        };
        thread::scope(|scope| {
            let handles: Vec<_> = Threads::group(size).into_iter().map(|member| scope.spawn(|| one(member))).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        })
    }

    fn finish(&self, size: usize) -> Vec<u8> {
        for outcome in self.train(size, |_, _| false) {
            assert_eq!(outcome.unwrap(), Outcome::Finished);
        }
        fs::read(self.folder.join("model.safetensors")).unwrap()
    }

    fn losses(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.join("metrics.jsonl")).unwrap();
        let loss = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {} {} {}", line["stage"], line["step"], line["loss"], line["grad_norm"])
        };
        log.lines().map(loss).collect()
    }
}

#[test]
fn any_number_of_processes_trains_the_same_model() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    for (kind, settings) in [
        ("diffusion", &["objective.adversarial_weight=0.1", "objective.adversarial_timesteps=400"][..]),
        ("checkpointed", &["objective.checkpoint_blocks=true", "objective.activations=bf16"]),
        ("compact", &["model.kind=compact"]),
    ] {
        let config = config(settings);
        let run = |size: usize| {
            let run = Run::new(parent.path(), &format!("{kind}-{size}"), (&config, &notes));
            (run.finish(size), run.losses())
        };
        let alone = run(1);
        for size in [2, 3, 4] {
            let (model, losses) = run(size);
            assert_eq!(losses, alone.1, "{kind} in {size} processes");
            assert!(model == alone.0, "{kind} in {size} processes");
        }
    }
}

#[test]
fn a_run_goes_on_in_another_number_of_processes() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let config = config(&[]);
    let expected = Run::new(parent.path(), "alone", (&config, &notes)).finish(1);
    let run = Run::new(parent.path(), "run", (&config, &notes));
    // The last process of each group asks to stop, and all do.
    for (size, last) in [(1, 1), (4, 3), (2, 4)] {
        let stops =
            |rank: usize, report: &StepReport| rank + 1 == size && report.work == Work::Training && report.step == last;
        for outcome in run.train(size, stops) {
            assert_eq!(outcome.unwrap(), Outcome::Stopped);
        }
    }
    assert!(run.finish(3) == expected);
}

#[test]
fn divided_optimizer_state_changes_no_bit_of_model_log_or_checkpoint() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    for (kind, settings, sizes) in [
        ("diffusion", &["objective.adversarial_weight=0.1", "run.preview_every_images=64"][..], &[2, 4][..]),
        ("compact", &["model.kind=compact", "autoencoder.weight_decay=0.1", "autoencoder.clip_norm=0.1"], &[3]),
    ] {
        let config = config(settings);
        let alone = Run::new(parent.path(), &format!("{kind}-alone"), (&config, &notes));
        let model = alone.finish(1);
        let checkpoint = |run: &Run| {
            let newest = fs::read_dir(run.folder.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).max();
            fs::read(newest.unwrap().join("state.safetensors")).unwrap()
        };
        for &size in sizes {
            let run = Run::new(parent.path(), &format!("{kind}-{size}"), (&config, &notes));
            let run = Run { shards_state: true, ..run };
            assert!(run.finish(size) == model, "{kind} in {size} processes");
            assert_eq!(run.losses(), alone.losses(), "{kind} in {size} processes");
            assert!(checkpoint(&run) == checkpoint(&alone), "{kind} in {size} processes");
        }
        // Divided or not, a run goes on.
        let run = Run::new(parent.path(), &format!("{kind}-changing"), (&config, &notes));
        for (size, shards_state, last) in [(3, true, 1), (2, false, 2), (4, true, 4)] {
            let run =
                Run { shards_state, folder: run.folder.clone(), ..Run::new(parent.path(), "", (&config, &notes)) };
            let stops = |rank: usize, report: &StepReport| {
                rank + 1 == size && report.work == Work::Training && report.step == last
            };
            for outcome in run.train(size, stops) {
                assert_eq!(outcome.unwrap(), Outcome::Stopped);
            }
        }
        assert!(run.finish(1) == model, "{kind}");
    }
}

#[test]
fn divided_state_follows_the_fast_order_and_the_end_of_all() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let whole = config(&[]);
    let run = |name: &str, config: &TrainConfig, shards_state| Run {
        reduction: Reduction::Fast,
        shards_state,
        ..Run::new(parent.path(), name, (config, &notes))
    };
    assert!(run("whole", &whole, false).finish(2) == run("divided", &whole, true).finish(2));
    let diverging = config(&["autoencoder.lr=1e30", "autoencoder.clip_norm=0"]);
    let run = Run { reduction: Reduction::Ordered, ..run("diverging", &diverging, true) };
    for error in run.train(2, |_, _| false).into_iter().map(|outcome| outcome.unwrap_err().to_string()) {
        assert!(error.contains("is NaN at step") || error.contains("is inf at step"), "{error}");
    }
}

#[test]
fn encoding_is_shared_and_stops_in_all() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let config = config(&[]);
    let run = Run::new(parent.path(), "run", (&config, &notes));
    let stops = |rank: usize, report: &StepReport| rank == 1 && report.work == Work::Encoding;
    for outcome in run.train(2, stops) {
        assert_eq!(outcome.unwrap(), Outcome::Stopped);
    }
    let alone = Run::new(parent.path(), "alone", (&config, &notes));
    assert!(run.finish(2) == alone.finish(1));
}

#[test]
fn codes_that_cannot_be_written_are_named_in_all_processes() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let run = Run::new(parent.path(), "run", (&config(&[]), &notes));
    run.train(2, |_, report| report.work == Work::Encoding);
    // The file of codes cannot replace a folder.
    fs::remove_file(run.folder.join("codes.safetensors")).ok();
    fs::create_dir_all(run.folder.join("codes.safetensors/taken")).unwrap();
    let errors = run.train(3, |_, _| false).into_iter().map(|outcome| outcome.unwrap_err().to_string());
    let errors: Vec<_> = errors.collect();
    assert!(errors[0].contains("codes.safetensors"), "{errors:?}");
    for told in &errors[1..] {
        assert!(told.starts_with("process 0 of 3 has failed: ") && told.contains("codes.safetensors"), "{errors:?}");
    }
}

#[test]
fn a_run_that_diverges_ends_in_all_processes() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let run = Run::new(parent.path(), "run", (&config(&["autoencoder.lr=1e30", "autoencoder.clip_norm=0"]), &notes));
    for error in run.train(2, |_, _| false).into_iter().map(|outcome| outcome.unwrap_err().to_string()) {
        assert!(error.contains("is NaN at step") || error.contains("is inf at step"), "{error}");
    }
}

#[test]
fn a_micro_batch_that_fails_in_one_process_changes_nothing_in_any() {
    let config = config(&["autoencoder.accumulate=2"]);
    let x_0 = |value: f32| Ok(Tensor::full(value, (2, 3, 16, 16), &Device::Cpu)?);
    let unreadable = || Err(Error::Setting { key: "a picture", got: "broken".to_owned(), expected: "a whole one" });
    let one = |member: Threads| {
        let mut group = Group::new(Box::new(member), Reduction::Ordered);
        let mut trainer = Trainer::new(&config, HashMap::new()).unwrap();
        let is_second = group.rank() == 1;
        let before = values(&trainer);
        let mut errors = vec![];
        for kind in ["NaN", "unreadable"] {
            let outcome = trainer.step_in_group(&mut group, &mut || match (is_second, kind) {
                (false, _) => x_0(0.5),
                (true, "NaN") => x_0(f32::NAN),
                (true, _) => unreadable(),
            });
            errors.push(group.agree(outcome).unwrap_err());
        }
        assert!(values(&trainer) == before);
        trainer.step_in_group(&mut group, &mut || x_0(0.5)).unwrap();
        (errors, values(&trainer))
    };
    let in_pool = |member| rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| one(member));
    let [first, second] = Threads::group(2).try_into().unwrap();
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| in_pool(second));
        (in_pool(first), second.join().unwrap())
    });
    assert!(matches!(second.0[..], [Error::Diverged { .. }, Error::Setting { .. }]), "{:?}", second.0);
    for (told, own) in first.0.iter().zip(&second.0) {
        assert_eq!(told.to_string(), format!("process 1 of 2 has failed: {own}"));
    }
    assert!(first.1 == second.1);
}

/// All parameters under training.
fn values(trainer: &Trainer) -> Vec<f32> {
    let tensors = trainer.parameters().unwrap();
    tensors.values().flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[test]
fn pictures_that_cannot_be_read_end_all_processes_with_the_reason() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    for i in 0..20 {
        fs::write(notes.data.join(format!("{i:02}.png")), "no picture").unwrap();
    }
    let run = Run::new(parent.path(), "run", (&config(&[]), &notes));
    for error in run.train(2, |_, _| false).into_iter().map(|outcome| outcome.unwrap_err().to_string()) {
        assert!(error.contains("pictures could not be read") && error.contains("it is text"), "{error}");
    }
}

#[test]
fn processes_without_a_micro_batch_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let run = Run::new(parent.path(), "run", (&config(&["autoencoder.accumulate=1"]), &notes));
    for error in run.train(2, |_, _| false).into_iter().map(|outcome| outcome.unwrap_err().to_string()) {
        assert!(error.contains("autoencoder.accumulate is 1 with 2 processes"), "{error}");
    }
}

#[test]
fn the_fast_order_trains_nearly_the_same_model() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let config = config(&[]);
    let ordered = Run::new(parent.path(), "ordered", (&config, &notes));
    let fast = Run { reduction: Reduction::Fast, ..Run::new(parent.path(), "fast", (&config, &notes)) };
    let again = Run { reduction: Reduction::Fast, ..Run::new(parent.path(), "again", (&config, &notes)) };
    let (ordered_model, fast_model) = (ordered.finish(2), fast.finish(2));
    assert!(fast_model == again.finish(2) && fast_model.len() == ordered_model.len());
    let last_loss = |run: &Run| {
        let losses = run.losses();
        let of_stage = losses.iter().rfind(|line| line.starts_with("\"autoencoder\"")).unwrap();
        of_stage.split(' ').nth(2).unwrap().parse::<f64>().unwrap()
    };
    assert!((last_loss(&ordered) - last_loss(&fast)).abs() < 1e-4);
}
