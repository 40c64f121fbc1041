//! Progress of a training stage: a bar on a terminal, plain lines elsewhere.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use diffae_train::{Group, Outcome, RunFolder, Stage, StepReport, TrainOptions, Work, train_in_group};
use indicatif::ProgressBar;

use super::note;
use crate::group::follow;
use crate::interrupt::interrupted;
use crate::progress::{LINE_INTERVAL, Noun, View, bar_of, plain_line};

/// Progress of the stages of a run.
pub(crate) struct StepProgress {
    /// True if the user expects the first stage to resume from a checkpoint, and is told if there is none.
    expects_checkpoint: Cell<bool>,
    has_trained: Cell<bool>,
    shown: RefCell<Option<Shown>>,
}

/// The work that is shown: a stage, or the encoding before it.
struct Shown {
    stage: Stage,
    work: Work,
    start: Instant,
    first: usize,
    last_line: Instant,
    bar: Option<ProgressBar>,
    view: Arc<Mutex<View>>,
    /// Mean loss over the last steps.
    loss: f64,
}

impl StepProgress {
    pub(crate) fn new() -> Self {
        Self { expects_checkpoint: Cell::new(false), has_trained: Cell::new(false), shown: RefCell::default() }
    }

    /// Starts over a run that is resumed.
    pub(crate) fn going_on() -> Self {
        let progress = Self::new();
        progress.expects_checkpoint.set(true);
        progress
    }

    /// Trains in a group, and shows the steps in its first process.
    pub(crate) fn train(&self, folder: &mut RunFolder, options: &TrainOptions, group: &mut Group) -> Result<Outcome> {
        let is_shown = group.is_first();
        let mut on_step = |report: &StepReport| if is_shown { self.step(report) } else { follow(report) };
        Ok(train_in_group(folder, options, group, &mut on_step)?)
    }

    /// Shows a step; breaks after Ctrl-C.
    pub(crate) fn step(&self, report: &StepReport) -> ControlFlow<()> {
        let mut shown = self.shown.borrow_mut();
        if shown.as_ref().is_none_or(|shown| (shown.stage, shown.work) != (report.stage, report.work)) {
            clear(shown.take());
        }
        if report.work == Work::Starting {
            self.say_where_it_begins(report);
        } else {
            shown.get_or_insert_with(|| Shown::new(report)).update(report);
        }
        self.has_trained.set(self.has_trained.get() || report.work == Work::Training);
        if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn say_where_it_begins(&self, report: &StepReport) {
        let &StepReport { stage, step, num_steps, .. } = report;
        let name = stage.name();
        match step {
            0 if self.expects_checkpoint.get() => {
                note(&format!("{name}: there is no checkpoint yet, so it begins with the first of {num_steps} steps"));
            }
            0 => {}
            step => note(&format!("{name}: going on from step {step} of {num_steps}")),
        }
        self.expects_checkpoint.set(false);
    }

    /// Ends the display; returns whether anything was trained.
    pub(crate) fn finish(self) -> bool {
        clear(self.shown.into_inner());
        self.has_trained.get()
    }
}

fn clear(shown: Option<Shown>) {
    if let Some(bar) = shown.and_then(|shown| shown.bar) {
        bar.finish_and_clear();
    }
}

impl Shown {
    fn new(report: &StepReport) -> Self {
        let (stage, work, start) = (report.stage, report.work, Instant::now());
        let view = Arc::new(Mutex::new(view(report, Duration::ZERO, report.step, report.loss)));
        let loud = tracing::enabled!(tracing::Level::WARN);
        let bar = (loud && std::io::stderr().is_terminal()).then(|| {
            let shown = Arc::clone(&view);
            bar_of(move || shown.lock().unwrap_or_else(PoisonError::into_inner).clone())
        });
        Self { stage, work, start, first: report.step, last_line: start, bar, view, loss: report.loss }
    }

    fn update(&mut self, report: &StepReport) {
        self.loss += (report.loss - self.loss) * 0.05;
        let view = view(report, self.start.elapsed(), self.first, self.loss);
        let is_due = self.bar.is_none() && self.last_line.elapsed() >= LINE_INTERVAL;
        if is_due && tracing::enabled!(tracing::Level::WARN) {
            self.last_line = Instant::now();
            eprintln!("{}", plain_line(&view));
        }
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

/// Describes the work after a step: `first` steps had been made when it began.
fn view(report: &StepReport, elapsed: Duration, first: usize, loss: f64) -> View {
    let &StepReport { stage, work, step, num_steps, batch, .. } = report;
    let name = stage.name();
    let label = if work == Work::Encoding { format!("{name}, encoding") } else { name.to_owned() };
    let (steps, secs) = (step.saturating_sub(first), elapsed.as_secs_f64());
    let remaining = (steps > 0).then(|| elapsed.mul_f64((num_steps - step) as f64 / steps as f64));
    let items = if work == Work::Encoding || stage <= Stage::Autoencoder { Noun::Pictures } else { Noun::Codes };
    let rate = (steps * batch) as f64 / secs.max(1e-9);
    let rate = (steps > 0).then(|| format!("{rate:.1} {}/s", items.after(2)));
    let loss = (work == Work::Training).then(|| format!("loss {loss:.4}"));
    let figures = [loss, rate].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let fraction = step as f64 / num_steps.max(1) as f64;
    View { label, noun: Noun::Steps, num_items: num_steps, num_done: step, fraction, remaining, figures }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_counts_what_it_sees() {
        let report = |stage, work| StepReport { stage, work, step: 6, num_steps: 8, loss: 0.5, batch: 32 };
        let text = |stage, work| plain_line(&view(&report(stage, work), Duration::from_secs(2), 2, 0.25));
        let expected = "autoencoder: 6 of 8 steps, 75%, loss 0.2500, 64.0 pictures/s, ETA 1s";
        assert_eq!(text(Stage::Autoencoder, Work::Training), expected);
        let expected = "latent: 6 of 8 steps, 75%, loss 0.2500, 64.0 codes/s, ETA 1s";
        assert_eq!(text(Stage::Latent, Work::Training), expected);
        let expected = "latent, encoding: 6 of 8 steps, 75%, 64.0 pictures/s, ETA 1s";
        assert_eq!(text(Stage::Latent, Work::Encoding), expected);
        let first = view(&report(Stage::Latent, Work::Encoding), Duration::ZERO, 6, 0.);
        assert_eq!(plain_line(&first), "latent, encoding: 6 of 8 steps, 75%, ETA --");
    }
}
