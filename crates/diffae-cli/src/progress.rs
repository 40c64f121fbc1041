//! How far the work is: a bar on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::session::interrupted;

/// Lines on something that is no terminal are at least this far apart.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one command over many pictures, each of which takes the same number of network calls.
pub(crate) struct Progress {
    label: &'static str,
    num_pictures: usize,
    calls_per_picture: usize,
    start: Instant,
    state: RefCell<State>,
}

struct State {
    calls_done: usize,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts. Nothing is shown with `--quiet` (when warnings are not logged).
    pub(crate) fn start(label: &'static str, num_pictures: usize, calls_per_picture: usize) -> Self {
        let start = Instant::now();
        let shown = tracing::enabled!(tracing::Level::WARN);
        let bar = (shown && std::io::stderr().is_terminal()).then(|| bar(label, num_pictures, calls_per_picture));
        // A line is due at once only where there is no bar and work is long enough to wait for.
        let state = RefCell::new(State { calls_done: 0, last_line: start, bar });
        Self { label, num_pictures, calls_per_picture: calls_per_picture.max(1), start, state }
    }

    /// Notes that the network was called for `count` pictures; breaks after Ctrl-C.
    pub(crate) fn step(&self, count: usize) -> ControlFlow<()> {
        let mut state = self.state.borrow_mut();
        state.calls_done += count;
        if let Some(bar) = &state.bar {
            bar.set_position(state.calls_done as u64);
        } else if state.last_line.elapsed() >= LINE_INTERVAL {
            state.last_line = Instant::now();
            tracing::warn!(target: "progress", "{}", self.line(state.calls_done));
        }
        if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Ends, and says how long it took.
    pub(crate) fn finish(self) {
        let state = self.state.into_inner();
        if let Some(bar) = state.bar {
            bar.finish_and_clear();
        }
        let elapsed_secs = self.start.elapsed().as_secs_f64();
        let rate = self.num_pictures as f64 / elapsed_secs.max(1e-9);
        tracing::info!("{}: {} pictures in {elapsed_secs:.1} s, {rate:.3} a second", self.label, self.num_pictures);
    }

    fn line(&self, calls_done: usize) -> String {
        let done = calls_done as f64 / self.calls_per_picture as f64;
        let elapsed_secs = self.start.elapsed().as_secs_f64();
        let eta_secs = elapsed_secs * (self.num_pictures as f64 / done.max(1e-9) - 1.).max(0.);
        let rate = done / elapsed_secs.max(1e-9);
        let (label, num_pictures) = (self.label, self.num_pictures);
        format!("{label}: {done:.1} of {num_pictures} pictures, {rate:.3} pictures/s, ETA {eta_secs:.0} s")
    }
}

fn bar(label: &'static str, num_pictures: usize, calls_per_picture: usize) -> ProgressBar {
    let length = num_pictures * calls_per_picture;
    let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::stderr());
    let calls_per_picture = calls_per_picture.max(1) as f64;
    let pictures = move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        // A bar that cannot be drawn is no reason to stop.
        let _ = write!(text, "{:.1}/{num_pictures} pictures", state.pos() as f64 / calls_per_picture);
    };
    let rate = move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        let _ = write!(text, "{:.3} pictures/s", state.per_sec() / calls_per_picture);
    };
    let template = "{prefix} {wide_bar} {pictures}, {rate}, ETA {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("pictures", pictures).with_key("rate", rate));
    bar.set_prefix(label);
    bar
}
