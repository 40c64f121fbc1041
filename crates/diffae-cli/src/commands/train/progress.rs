//! Progress of a training stage: a bar on a terminal, plain lines elsewhere.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use diffae_train::{Stage, StepReport, Work};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::note;
use super::times::in_words;
use crate::session::interrupted;

/// Minimum time between two lines where the output is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress of the stages of a run.
pub(crate) struct StepProgress {
    /// True if the user expects the first stage to resume from a checkpoint, and is told if there is none.
    expects_checkpoint: Cell<bool>,
    has_trained: Cell<bool>,
    shown: RefCell<Option<Shown>>,
}

struct Shown {
    stage: Stage,
    work: Work,
    start: Instant,
    first: usize,
    last_line: Instant,
    bar: Option<ProgressBar>,
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

/// Names the work in progress.
fn label(report: &StepReport) -> String {
    match report.work {
        Work::Encoding => format!("{}, encoding", report.stage.name()),
        Work::Starting | Work::Training => report.stage.name().to_owned(),
    }
}

impl Shown {
    fn new(report: &StepReport) -> Self {
        let loud = tracing::enabled!(tracing::Level::WARN);
        let bar = (loud && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(report.num_steps as u64), ProgressDrawTarget::stderr());
            let template = "{prefix} {wide_bar} {pos}/{len} steps, {msg}";
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
        let secs = self.start.elapsed().as_secs_f64().max(1e-9);
        let steps = report.step.saturating_sub(self.first);
        let loss = if self.work == Work::Training { format!("loss {:.4}, ", self.loss) } else { String::new() };
        let rate = (steps * report.batch) as f64 / secs;
        let left = if steps > 0 {
            let eta_secs = (report.num_steps - report.step) as f64 * secs / steps as f64;
            format!(", ETA {}", in_words(eta_secs))
        } else {
            String::new()
        };
        let message = format!("{loss}{rate:.1} pictures/s{left}");
        if let Some(bar) = &self.bar {
            bar.set_position(report.step as u64);
            bar.set_message(message);
        } else if tracing::enabled!(tracing::Level::WARN) && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}: step {} of {}, {message}", label(report), report.step, report.num_steps);
        }
    }
}
