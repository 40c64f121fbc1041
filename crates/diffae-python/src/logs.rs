//! Warnings of the libraries, as messages of Python's `logging`.

use std::fmt;

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Hands warnings and remarks to the logger `diffae` of Python, unless the process has another subscriber.
pub(crate) fn install() {
    // A second module of the process finds the first one's.
    let _ = tracing_subscriber::registry().with(ToPython.with_filter(LevelFilter::INFO)).try_init();
}

struct ToPython;

impl<S: Subscriber> Layer<S> for ToPython {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !event.metadata().target().starts_with("diffae") {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        let method = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            _ => "info",
        };
        Python::attach(|py| {
            let log = || py.import("logging")?.call_method1("getLogger", ("diffae",));
            let logged = log().and_then(|logger| logger.call_method1(method, ("%s", &message.0)));
            if let Err(error) = logged {
                error.write_unraisable(py, None);
            }
        });
    }
}

/// The text of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
