//! `diffae train --preset PRESET --data DIR --out RUN`

use std::cell::RefCell;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use diffae_infer::BUILT_IN_MODEL;
use diffae_train::{
    FOLDER_LABELS, Notes, Outcome, Pictures, RunFolder, Split, Stage, StepReport, TrainConfig, TrainOptions, Trainer,
    Work, presets, train,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{GlobalArgs, NumberType, StageChoice, TrainArgs};
use crate::output::say;
use crate::session::{catch_interrupts, interrupted};

/// Lines on something that is no terminal are at least this far apart.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Pictures of the step that a dry run measures, at most.
const MOST_MEASURED: usize = 8;

/// Trains what is missing in a run folder, or says what would be done.
pub(crate) fn run(global: &GlobalArgs, args: &TrainArgs) -> Result<()> {
    check_device(global)?;
    if args.dry_run {
        return dry_run(&config(args)?, args.data.as_deref());
    }
    catch_interrupts();
    let out = args.out.as_deref().context("--out is missing")?;
    let mut folder = if args.resume { RunFolder::open(out)? } else { begin(args, out)? };
    if let Some(labels) = args.labels.as_deref().filter(|_| args.resume) {
        folder.set_labels(labels_path(labels)?)?;
    }
    let stage = args.stage.map(|stage| match stage {
        StageChoice::Autoencoder => Stage::Autoencoder,
        StageChoice::Latent => Stage::Latent,
        StageChoice::Classifier => Stage::Classifier,
    });
    let progress = Progress::default();
    let options = TrainOptions { stage, resume: args.resume };
    let outcome = train(&mut folder, options, &mut |report| progress.step(report))?;
    progress.finish();
    match outcome {
        Outcome::Finished => say(&format!("the model is in {}", out.display())),
        Outcome::Stopped => {
            let stage = stage.map(|stage| format!(" --stage {}", stage.name())).unwrap_or_default();
            say(&format!("stopped and saved; go on with: diffae train --out {} --resume{stage}", out.display()))
        }
    }
}

/// Refuses what training would not follow.
fn check_device(global: &GlobalArgs) -> Result<()> {
    ensure!(
        ["auto", "cpu"].contains(&global.device.as_str()),
        "training runs on the CPU only, not on --device {}",
        global.device
    );
    ensure!(
        global.dtype == NumberType::F32,
        "training computes in f32; --set objective.activations=bf16 keeps what the way back needs in half the memory"
    );
    Ok(())
}

fn begin(args: &TrainArgs, out: &Path) -> Result<RunFolder> {
    let data = args.data.as_deref().context("--data is missing: the folder of pictures")?;
    let notes = Notes {
        data: absolute(data)?,
        labels: args.labels.as_deref().map(labels_path).transpose()?,
        init_from: args.init_from.as_deref().map(model_path).transpose()?,
        freeze: args.freeze.clone(),
        ..Notes::default()
    };
    Ok(RunFolder::open_or_create(out, &config(args)?, &notes)?)
}

/// A run may be resumed from anywhere.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is not a path", path.display()))
}

/// The same of a model, which may be the built-in one.
fn model_path(model: &Path) -> Result<PathBuf> {
    if model == Path::new(BUILT_IN_MODEL) { Ok(model.to_owned()) } else { absolute(model) }
}

fn labels_path(labels: &Path) -> Result<PathBuf> {
    if labels == Path::new(FOLDER_LABELS) { Ok(labels.to_owned()) } else { absolute(labels) }
}

fn config(args: &TrainArgs) -> Result<TrainConfig> {
    match (&args.preset, &args.config) {
        (Some(preset), None) => Ok(presets::config(preset, &args.set)?),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            TrainConfig::from_toml_with(&text, &args.set).with_context(|| format!("{} is no config", path.display()))
        }
        _ => bail!("name a preset (--preset; `diffae presets` lists them) or a config file (--config)"),
    }
}

/// Prints the config and what a run of it would take.
fn dry_run(config: &TrainConfig, data: Option<&Path>) -> Result<()> {
    say(&config.to_toml())?;
    let mut trainer = Trainer::new(config, std::collections::HashMap::new())?;
    let stage = &config.autoencoder;
    let num_parameters = trainer.num_parameters();
    let (parameters, per_parameter) = (num_parameters as f64 / 1e6, 20.); // value, gradient, two moments, average
    say(&format!("parameters of encoder and UNet: {num_parameters} ({parameters:.1} million)"))?;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let state_mib = mib(num_parameters as f64 * per_parameter);
    say(&format!("memory of parameters, gradients, moments and averages: {state_mib:.0} MiB"))?;
    say(&format!("steps: {} of {} pictures", stage.num_steps(), stage.batch_size))?;
    if let Some(data) = data {
        let count = Pictures::find(data, &config.data, Split::Train)?.len();
        say(&format!("epochs: {:.2} over {count} pictures", stage.images as f64 / count.max(1) as f64))?;
    }
    let count = stage.batch_size.min(MOST_MEASURED.max(stage.accumulate)).next_multiple_of(stage.accumulate);
    let size = config.model.image_size;
    let x_0 = Tensor::zeros((count, config.model.image_channels, size, size), DType::F32, &Device::Cpu)?;
    let kept = trainer.step(&x_0)?.activation_bytes; // what a first step takes longer
    let per_image = (kept * stage.accumulate).checked_div(count).unwrap_or(0);
    let at_once = stage.batch_size.checked_div(stage.accumulate).unwrap_or(0);
    let (activations, per_image) = (mib((per_image * at_once) as f64), mib(per_image as f64));
    say(&format!(
        "memory of activations kept for the way back: {activations:.0} MiB, {per_image:.1} MiB a picture; a step takes \
         at least {:.0} MiB",
        activations + state_mib
    ))?;
    let start = Instant::now();
    trainer.step(&x_0)?;
    let per_image = start.elapsed().as_secs_f64() / count as f64;
    let hours = per_image * stage.images as f64 / 3600.;
    say(&format!(
        "measured on {count} pictures: {:.2} pictures/s, so the autoencoder stage takes {hours:.2} h",
        per_image.recip()
    ))
}

/// How far a stage is.
#[derive(Default)]
struct Progress(RefCell<Option<Shown>>);

struct Shown {
    stage: Stage,
    work: Work,
    start: Instant,
    first: usize,
    last_line: Instant,
    bar: Option<ProgressBar>,
    /// A mean over the last steps.
    loss: f64,
}

impl Progress {
    /// Breaks after Ctrl-C.
    fn step(&self, report: &StepReport) -> ControlFlow<()> {
        let mut shown = self.0.borrow_mut();
        if shown.as_ref().is_none_or(|shown| (shown.stage, shown.work) != (report.stage, report.work)) {
            if let Some(bar) = shown.take().and_then(|shown| shown.bar) {
                bar.finish_and_clear();
            }
            *shown = Some(Shown::new(report));
        }
        if let Some(shown) = shown.as_mut() {
            shown.update(report);
        }
        if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(self) {
        if let Some(bar) = self.0.into_inner().and_then(|shown| shown.bar) {
            bar.finish_and_clear();
        }
    }
}

/// What is under way.
fn label(report: &StepReport) -> String {
    match report.work {
        Work::Training => report.stage.name().to_owned(),
        Work::Encoding => format!("{}, encoding", report.stage.name()),
    }
}

impl Shown {
    fn new(report: &StepReport) -> Self {
        let loud = tracing::enabled!(tracing::Level::WARN);
        let bar = (loud && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(report.num_steps as u64), ProgressDrawTarget::stderr());
            let template = "{prefix} {wide_bar} {pos}/{len} steps, {msg}, ETA {eta}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(label(report));
            bar
        });
        let start = Instant::now();
        let (stage, work) = (report.stage, report.work);
        Self { stage, work, start, first: report.step, last_line: start, bar, loss: report.loss }
    }

    fn update(&mut self, report: &StepReport) {
        self.loss += (report.loss - self.loss) * 0.05;
        let elapsed = self.start.elapsed().as_secs_f64().max(1e-9);
        let rate = ((report.step - self.first) * report.batch) as f64 / elapsed;
        let loss = if self.work == Work::Training { format!("loss {:.4}, ", self.loss) } else { String::new() };
        let message = format!("{loss}{rate:.1} pictures/s");
        if let Some(bar) = &self.bar {
            bar.set_position(report.step as u64);
            bar.set_message(message);
        } else if tracing::enabled!(tracing::Level::WARN) && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let left = (report.num_steps - report.step) * report.batch;
            let eta_secs = left as f64 / rate.max(1e-9);
            let (name, step, num_steps) = (label(report), report.step, report.num_steps);
            eprintln!("{name}: step {step} of {num_steps}, {message}, ETA {eta_secs:.0} s");
        }
    }
}
