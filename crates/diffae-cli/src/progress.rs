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
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant },
    Nothing,
}

impl Progress {
    /// Starts. Nothing is shown with `--quiet`.
    pub(crate) fn start(label: &'static str, num_pictures: usize, calls_per_picture: usize) -> Self {
        let start = Instant::now();
        let display = if !tracing::enabled!(tracing::Level::WARN) {
            Display::Nothing
        } else if std::io::stderr().is_terminal() {
            Display::Bar(bar(label, num_pictures, calls_per_picture))
        } else {
            Display::Lines { last: start }
        };
        let state = RefCell::new(State { calls_done: 0, display });
        Self { label, num_pictures, calls_per_picture: calls_per_picture.max(1), start, state }
    }

    /// Notes that the network was called for `count` pictures; breaks after Ctrl-C.
    pub(crate) fn step(&self, count: usize) -> ControlFlow<()> {
        let mut state = self.state.borrow_mut();
        state.calls_done += count;
        let calls_done = state.calls_done;
        match &mut state.display {
            Display::Bar(bar) => bar.set_position(calls_done as u64),
            Display::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                eprintln!("{}", self.line(calls_done));
            }
            Display::Lines { .. } | Display::Nothing => {}
        }
        if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The same where an interruption is an error.
    pub(crate) fn check(&self, count: usize) -> Result<(), diffae_infer::Error> {
        if self.step(count).is_break() { Err(diffae_infer::Error::Interrupted) } else { Ok(()) }
    }

    /// Ends, and says how long it took.
    pub(crate) fn finish(self) {
        if let Display::Bar(bar) = self.state.into_inner().display {
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
