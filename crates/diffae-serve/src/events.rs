//! Progress and previews of requests, as server-sent events.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use diffae_data::{png_bytes, rgb_from_tensor};
use diffae_infer::{CallEvent, Model, NetworkCall};
use serde::Serialize;
use tokio::sync::broadcast;

use crate::worker::Lane;

/// Minimum time between two previews.
const PREVIEW_INTERVAL: Duration = Duration::from_millis(150);
/// Number of events that a slow client may lag behind before it loses some.
const BACKLOG: usize = 256;

/// Progress of a request.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Event {
    #[serde(skip)]
    pub(crate) client: String,
    /// Purpose of the request.
    purpose: String,
    /// Number of steps that are done.
    done: usize,
    /// Number of steps in all; as many as are done at the end.
    total: usize,
    /// Estimate of the picture, as the address of a PNG; missing between previews.
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<String>,
}

/// Channel of all events.
#[derive(Debug, Clone)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

/// Reporter of one request.
pub(crate) struct Progress {
    events: Events,
    lane: Lane,
    last_preview: Instant,
    preview_took: Duration,
    total: usize,
}

impl Progress {
    pub(crate) fn new(events: Events, lane: Lane) -> Self {
        Self { events, lane, last_preview: Instant::now(), preview_took: Duration::ZERO, total: 0 }
    }

    /// Reports a step of a chain, now and then with a preview of the first picture.
    pub(crate) fn note(&mut self, event: &CallEvent<'_>, model: &Model) {
        let Some(step) = event.step else { return };
        // A preview from latents takes a while: it may take a fourth of the time.
        let interval = PREVIEW_INTERVAL.max(4 * self.preview_took);
        let wants_preview = event.call == NetworkCall::Decoder && self.last_preview.elapsed() >= interval;
        let start = Instant::now();
        let preview = wants_preview.then(|| preview(model, step.x_0)).flatten();
        if preview.is_some() {
            self.last_preview = Instant::now();
            self.preview_took = start.elapsed();
        }
        self.total = step.num_steps;
        self.send(step.number, step.num_steps, preview);
    }

    /// Reports the end.
    pub(crate) fn finish(self) {
        self.send(self.total, self.total, None);
    }

    fn send(&self, done: usize, total: usize, preview: Option<String>) {
        let Lane { client, purpose } = self.lane.clone();
        // Nobody may be listening.
        let _ = self.events.0.send(Event { client, purpose, done, total, preview });
    }
}

/// Returns the first picture of a batch of states as the address of a PNG.
fn preview(model: &Model, x_0: &candle_core::Tensor) -> Option<String> {
    let pictures = model.pictures(&x_0.narrow(0, 0, 1).ok()?).ok()?;
    let picture = rgb_from_tensor(&pictures.get(0).ok()?).ok()?;
    let bytes = png_bytes(&picture, &[], std::path::Path::new("preview")).ok()?;
    Some(format!("data:image/png;base64,{}", STANDARD.encode(bytes)))
}
