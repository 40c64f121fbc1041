//! Progress of a command: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diffae_infer::{CallEvent, Model, NetworkCall};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::estimate::{Estimator, PlannedCalls};
use crate::interrupt::interrupted;

/// Minimum time between two lines where the output is no terminal.
pub(crate) const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval at which the remaining time is redrawn while a call runs.
const TICK: Duration = Duration::from_millis(500);
/// Columns of a terminal that does not report its width.
const USUAL_WIDTH: usize = 80;
/// Minimum columns of a line with a bar.
const MIN_WIDTH_OF_BAR: usize = 60;
/// Minimum columns of a line with figures.
const MIN_WIDTH_OF_FIGURES: usize = 90;
/// Time of a multiply-add of the latent net relative to one of a convolution: its weights are read for only a few rows
/// each time. Measured on the built-in model.
const LATENT_NET_SLOWNESS: f64 = 6.5;

/// Items that a command counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noun {
    Pictures,
    Frames,
    Steps,
    Codes,
}

impl Noun {
    /// Returns the word that follows a number of items.
    pub(crate) fn after(self, count: usize) -> &'static str {
        match (self, count) {
            (Self::Pictures, 1) => "picture",
            (Self::Pictures, _) => "pictures",
            (Self::Frames, 1) => "frame",
            (Self::Frames, _) => "frames",
            (Self::Steps, 1) => "step",
            (Self::Steps, _) => "steps",
            (Self::Codes, 1) => "code",
            (Self::Codes, _) => "codes",
        }
    }

    /// Returns the count with its word: `1 picture`, `2 pictures`.
    pub(crate) fn counted(self, count: usize) -> String {
        format!("{count} {}", self.after(count))
    }
}

/// Network calls of a command, each kind in calls times pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) encoder: usize,
    pub(crate) decoder: usize,
    pub(crate) latent_net: usize,
}

impl Work {
    fn count(self, call: NetworkCall) -> usize {
        match call {
            NetworkCall::Encoder => self.encoder,
            NetworkCall::Decoder => self.decoder,
            NetworkCall::LatentNet => self.latent_net,
        }
    }
}

/// The work that a command is going to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) label: &'static str,
    pub(crate) noun: Noun,
    /// Number of items asked for.
    pub(crate) num_items: usize,
    /// Number of items that an interrupted run has kept.
    pub(crate) num_kept: usize,
    /// Network calls that the remaining items take.
    pub(crate) work: Work,
}

/// The progress of one command.
pub(crate) struct Progress {
    label: &'static str,
    start: Instant,
    state: Arc<Mutex<State>>,
    display: Mutex<Display>,
}

struct State {
    noun: Noun,
    num_items: usize,
    num_kept: usize,
    num_done: usize,
    counting: Counting,
    estimator: Estimator,
}

/// Method of counting finished items.
#[derive(Debug, Clone, Copy)]
enum Counting {
    /// The command reports each finished item.
    Told,
    /// Items follow from the number of calls, all of which are alike.
    ByCalls { per_item: usize, so_far: usize },
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant },
    Nothing,
}

/// Content of a progress line.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) label: String,
    pub(crate) noun: Noun,
    pub(crate) num_items: usize,
    pub(crate) num_done: usize,
    /// Share of the work that is done, 0 to 1.
    pub(crate) fraction: f64,
    pub(crate) remaining: Option<Duration>,
    /// Figures in words, such as `1.50 pictures/s`; empty where there are none yet.
    pub(crate) figures: String,
}

impl Progress {
    /// Starts over pictures that each take the same number of calls, all alike. Nothing is shown with `--quiet`.
    pub(crate) fn start(label: &'static str, num_pictures: usize, calls_per_picture: usize) -> Self {
        Self::start_counting(label, Noun::Pictures, num_pictures, calls_per_picture)
    }

    /// Starts over items that each take the same number of calls, all alike.
    pub(crate) fn start_counting(label: &'static str, noun: Noun, num_items: usize, calls_per_item: usize) -> Self {
        let per_item = calls_per_item.max(1);
        let state = State {
            noun,
            num_items,
            num_kept: 0,
            num_done: 0,
            counting: Counting::ByCalls { per_item, so_far: 0 },
            estimator: Estimator::new(&[PlannedCalls { count: num_items * per_item, cost: 1. }]),
        };
        Self::show(label, state)
    }

    /// Starts over work whose calls are weighted by their cost in a model.
    pub(crate) fn of(job: Job, model: &Model) -> Self {
        let planned = NetworkCall::ALL.map(|call| {
            let slowness = if call == NetworkCall::LatentNet { LATENT_NET_SLOWNESS } else { 1. };
            PlannedCalls { count: job.work.count(call), cost: model.multiply_adds(call) as f64 * slowness }
        });
        let state = State {
            noun: job.noun,
            num_items: job.num_items,
            num_kept: job.num_kept,
            num_done: job.num_kept,
            counting: Counting::Told,
            estimator: Estimator::new(&planned),
        };
        Self::show(job.label, state)
    }

    fn show(label: &'static str, state: State) -> Self {
        let start = Instant::now();
        let state = Arc::new(Mutex::new(state));
        let display = if !tracing::enabled!(tracing::Level::WARN) {
            Display::Nothing
        } else if std::io::stderr().is_terminal() {
            Display::Bar(bar(label, start, Arc::clone(&state)))
        } else {
            Display::Lines { last: start }
        };
        Self { label, start, state, display: Mutex::new(display) }
    }

    /// Returns an observer that notes every network call, and breaks after Ctrl-C.
    pub(crate) fn observer(&self) -> impl FnMut(&CallEvent<'_>) -> ControlFlow<()> + '_ {
        |event| self.call(event.call, event.num_pictures)
    }

    /// Notes that a network was called for `count` pictures; breaks after Ctrl-C.
    pub(crate) fn call(&self, call: NetworkCall, count: usize) -> ControlFlow<()> {
        let kind = NetworkCall::ALL.iter().position(|known| *known == call).unwrap_or_default();
        let now = self.start.elapsed();
        tracing::trace!(?call, count, secs = now.as_secs_f64());
        let view = locked(&self.state).note(kind, count, now).view(self.label, now);
        match &mut *self.display.lock().unwrap_or_else(PoisonError::into_inner) {
            Display::Bar(bar) => bar.tick(),
            Display::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                eprintln!("{}", plain_line(&view));
            }
            Display::Lines { .. } | Display::Nothing => {}
        }
        if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Notes one of several calls that are all alike, for `count` pictures; see [`Progress::call`].
    pub(crate) fn step(&self, count: usize) -> ControlFlow<()> {
        self.call(NetworkCall::Decoder, count)
    }

    /// Notes a call as [`Progress::step`] does, but reports an interruption as an error.
    pub(crate) fn check(&self, count: usize) -> Result<(), diffae_infer::Error> {
        if self.step(count).is_break() { Err(diffae_infer::Error::Cancelled) } else { Ok(()) }
    }

    /// Notes that `count` more items are finished.
    pub(crate) fn done(&self, count: usize) {
        locked(&self.state).num_done += count;
    }

    /// Ends the display, and reports the time taken.
    pub(crate) fn finish(self) {
        if let Display::Bar(bar) = self.display.into_inner().unwrap_or_else(PoisonError::into_inner) {
            bar.finish_and_clear();
        }
        let elapsed_secs = self.start.elapsed().as_secs_f64();
        let state = locked(&self.state);
        let made = state.num_items.saturating_sub(state.num_kept);
        let (made, rate) = (state.noun.counted(made), made as f64 / elapsed_secs.max(1e-9));
        tracing::info!("{}: {made} in {elapsed_secs:.1} s, {rate:.3} a second", self.label);
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn note(&mut self, kind_idx: usize, count: usize, now: Duration) -> &Self {
        match &mut self.counting {
            Counting::Told => self.estimator.note(kind_idx, count, now),
            Counting::ByCalls { per_item, so_far } => {
                *so_far += count;
                self.num_done = so_far.checked_div(*per_item).unwrap_or(0).min(self.num_items);
                self.estimator.note(0, count, now);
            }
        }
        self
    }

    fn view(&self, label: &'static str, now: Duration) -> View {
        let made = self.num_done.saturating_sub(self.num_kept);
        let per_second = made as f64 / now.as_secs_f64().max(1e-9);
        // There is no rate before a picture is whole.
        let has_rate = made > 0;
        View {
            label: label.to_owned(),
            noun: self.noun,
            num_items: self.num_items,
            num_done: self.num_done,
            fraction: self.estimator.fraction(),
            remaining: self.estimator.remaining(now),
            figures: if has_rate { format!("{per_second:.2} {}/s", self.noun.after(2)) } else { String::new() },
        }
    }
}

/// Creates a bar that reads the state whenever it is drawn.
fn bar(label: &'static str, start: Instant, state: Arc<Mutex<State>>) -> ProgressBar {
    bar_of(move || locked(&state).view(label, start.elapsed()))
}

/// Creates a bar that shows a view, which is asked for whenever it is drawn.
pub(crate) fn bar_of(view: impl Fn() -> View + Send + Sync + Clone + 'static) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let terminal = console::Term::stderr();
    let text = move |_: &ProgressState, text: &mut dyn std::fmt::Write| {
        let view = view();
        let width = terminal.size_checked().map_or(USUAL_WIDTH, |(_, columns)| usize::from(columns));
        // A bar that cannot be drawn is no reason to stop.
        let _ = text.write_str(&terminal_line(width, &view));
    };
    let style = ProgressStyle::with_template("{line}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("line", text));
    bar.enable_steady_tick(TICK);
    bar
}

/// Formats one line for a terminal of `width` columns, and leaves the last one free.
fn terminal_line(width: usize, view: &View) -> String {
    let View { label, figures, .. } = view;
    let &View { noun, num_items, num_done, fraction, .. } = view;
    let room = width.saturating_sub(1);
    let percent = format!("{}%", percent(fraction));
    let eta = format!("ETA {}", remaining_text(view.remaining));
    let counted = format!("{num_done}/{num_items}");
    let nouns = noun.after(num_items);
    if width >= MIN_WIDTH_OF_BAR {
        let is_wide = width >= MIN_WIDTH_OF_FIGURES && !figures.is_empty();
        let figures = if is_wide { format!(", {figures}") } else { String::new() };
        let tail = format!("{percent}, {counted} {nouns}{figures}, {eta}");
        let cells = room.saturating_sub(label.len() + tail.len() + 2);
        if cells >= 8 {
            return format!("{label} {} {tail}", cells_text(cells, fraction));
        }
    }
    let shorter = [
        format!("{label} {percent} {counted} {nouns}, {eta}"),
        format!("{label} {percent} {counted}, {eta}"),
        format!("{percent} {counted}, {eta}"),
        format!("{percent} {eta}"),
        percent,
    ];
    shorter.into_iter().find(|line| line.chars().count() <= room).unwrap_or_default()
}

fn cells_text(cells: usize, fraction: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the number of cells")]
    let full = (fraction.clamp(0., 1.) * cells as f64) as usize;
    format!("{}{}", "#".repeat(full), "-".repeat(cells.saturating_sub(full)))
}

/// Formats one line for output that is no terminal.
pub(crate) fn plain_line(view: &View) -> String {
    let View { label, noun, num_items, num_done, fraction, remaining, figures } = view;
    let (nouns, percent, remaining) = (noun.after(*num_items), percent(*fraction), remaining_text(*remaining));
    let figures = if figures.is_empty() { String::new() } else { format!(", {figures}") };
    format!("{label}: {num_done} of {num_items} {nouns}, {percent}%{figures}, ETA {remaining}")
}

/// Returns whole percents, rounded down: 100 is done.
fn percent(fraction: f64) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    let percent = (fraction.clamp(0., 1.) * 100.) as u8;
    percent
}

/// Formats the remaining time: `45s`, `3m20s`, `2h05m`, `3d04h`.
fn remaining_text(remaining: Option<Duration>) -> String {
    let Some(remaining) = remaining else { return "--".to_owned() };
    let secs = remaining.as_secs_f64().round();
    let units = [(86_400., "d", 3600., "h"), (3600., "h", 60., "m"), (60., "m", 1., "s")];
    for (unit, name, part, part_name) in units {
        if secs >= unit {
            let (whole, rest) = ((secs / unit).floor(), ((secs % unit) / part).floor());
            return format!("{whole}{name}{rest:02}{part_name}");
        }
    }
    format!("{secs}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            label: "interpolate".to_owned(),
            noun: Noun::Pictures,
            num_items: 5000,
            num_done: 1234,
            fraction: 0.5,
            remaining: Some(Duration::from_secs(3750)),
            figures: "1.50 pictures/s".to_owned(),
        }
    }

    #[test]
    fn a_line_fits_every_terminal() {
        for width in 20..=120 {
            for num_items in [1, 16, 100_000] {
                for remaining in [None, Some(Duration::from_secs(5)), Some(Duration::from_secs(400_000))] {
                    let view = View { num_items, num_done: num_items - 1, remaining, ..view() };
                    let line = terminal_line(width, &view);
                    assert!(line.chars().count() < width, "{width}: {line}");
                    assert!(line.contains("50%") && line.contains("ETA "), "{width}: {line}");
                    assert_eq!(line.contains('#'), width >= MIN_WIDTH_OF_BAR, "{width}: {line}");
                }
            }
        }
        let line = |width| terminal_line(width, &view());
        assert_eq!(line(60), "interpolate ######------ 50%, 1234/5000 pictures, ETA 1h02m");
        assert_eq!(line(40), "interpolate 50% 1234/5000, ETA 1h02m");
        assert_eq!(line(20), "50% ETA 1h02m");
    }

    #[test]
    fn times_are_in_units_that_people_use() {
        let text = |secs| remaining_text(Some(Duration::from_secs(secs)));
        assert_eq!([text(0), text(59), text(60), text(200)], ["0s", "59s", "1m00s", "3m20s"]);
        assert_eq!([text(7500), text(86_400 * 3 + 4 * 3600)], ["2h05m", "3d04h"]);
    }

    #[test]
    fn one_is_a_picture() {
        assert_eq!(Noun::Pictures.counted(1), "1 picture");
        assert_eq!(Noun::Frames.counted(2), "2 frames");
    }
}
