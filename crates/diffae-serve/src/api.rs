//! The routes: a page, and the JSON API that it uses. `openapi.json` describes them.

mod codes;
mod pictures;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use diffae_data::png_bytes;
use diffae_infer::{Pipeline, PipelineSettings};
use image::RgbImage;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

use crate::error::{Error, Result};
use crate::events::Events;
use crate::guard::{self, Guard};
use crate::store::Store;
use crate::worker::{Lane, Worker};

/// Maximum number of bytes of a request.
const MAX_BODY: usize = 32 << 20;
/// Maximum number of bytes of a sentence that axum answers with.
const MAX_SENTENCE: usize = 4096;
/// Time after which a page tries again to hear of events, once the server is gone.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

const PAGE: &str = include_str!("../page/index.html");
const OPENAPI: &str = include_str!("../page/openapi.json");

/// Everything that requests share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) pipeline: Pipeline,
    pub(crate) settings: PipelineSettings,
    pub(crate) model: Arc<str>,
    pub(crate) faces: Arc<[(String, RgbImage)]>,
    pub(crate) worker: Worker,
    pub(crate) events: Events,
    pub(crate) store: Arc<Store>,
}

/// Returns the routes behind the guard.
pub(crate) fn router(app: App, guard: Guard) -> Router {
    Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/api/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)))
        .route("/api/model", get(model))
        .route("/api/events", get(events))
        .route("/api/faces/{idx}", get(codes::face))
        .route("/api/faces/{idx}/codes", post(codes::encode_face))
        .route("/api/codes", post(codes::encode))
        .route("/api/codes/{id}", get(codes::codes))
        .route("/api/codes/{id}/original", get(codes::original))
        .route("/api/codes/{id}/reconstruction", get(codes::reconstruction))
        .route("/api/edit", post(pictures::edit))
        .route("/api/strip", post(pictures::strip))
        .route("/api/blend", post(pictures::blend))
        .route("/api/film", post(pictures::film))
        .route("/api/variation", post(pictures::variation))
        .route("/api/sample", post(pictures::sample))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::map_response(with_sentence))
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(app)
}

/// A JSON body, whose errors are sentences.
struct Body<T>(T);

impl<T, S> FromRequest<S> for Body<T>
where
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self> {
        let parsed = Json::from_request(request, state).await;
        parsed.map(|Json(body)| Self(body)).map_err(|error| Error::Request { problem: error.body_text() })
    }
}

/// Puts a sentence into what axum itself refuses: unknown addresses, other methods, bodies that are too long.
async fn with_sentence(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, MAX_SENTENCE).await.unwrap_or_default();
    let sentence = match status {
        StatusCode::PAYLOAD_TOO_LARGE => format!("the request has more than {MAX_BODY} bytes"),
        StatusCode::NOT_FOUND => "there is nothing at this address; /api/openapi.json lists those there are".to_owned(),
        StatusCode::METHOD_NOT_ALLOWED => {
            "this address answers to other methods, which /api/openapi.json lists".to_owned()
        }
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    };
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    (status, parts.headers, Json(json!({ "error": sentence }))).into_response()
}

/// The client that asks: its newest request of a purpose replaces the older ones, and its events go to it.
#[derive(Debug, Clone, Default, Deserialize)]
struct Client {
    /// Any name that no other client has; without one, nothing is replaced and no events are sent.
    #[serde(default)]
    client: String,
}

impl Client {
    fn lane(&self, purpose: &str) -> Option<Lane> {
        let lane = || Lane { client: self.client.clone(), purpose: purpose.to_owned() };
        (!self.client.is_empty()).then(lane)
    }
}

async fn model(State(app): State<App>) -> Result<Json<Value>> {
    let (model, settings) = (app.pipeline.model(), &app.settings);
    let attributes = app.pipeline.attributes().iter().map(|name| {
        let full_strength = app.pipeline.full_edit_strength(name)?;
        Ok(json!({ "name": name, "full_strength": full_strength }))
    });
    Ok(Json(json!({
        "model": app.model.as_ref(),
        "fingerprint": model.fingerprint(),
        "image_shape": model.image_shape().dims(),
        "attributes": attributes.collect::<Result<Vec<_>>>()?,
        "has_z_sem": model.has_z_sem(),
        "z_resolutions": model.config().z_resolutions(),
        "can_sample": !model.has_z_sem() || model.latent_net().is_ok(),
        "faces": app.faces.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "steps": settings.num_steps,
        "sampler": settings.sampler.to_string(),
        "spacing": settings.spacing.to_string(),
        "samplers": diffae_schedule::Sampler::names().collect::<Vec<_>>(),
        "max_request_bytes": MAX_BODY,
        "version": env!("CARGO_PKG_VERSION"),
    })))
}

async fn events(
    State(app): State<App>,
    Query(Client { client }): Query<Client>,
) -> Sse<impl Stream<Item = std::result::Result<SseEvent, Infallible>>> {
    let worker = app.worker.clone();
    let mine = BroadcastStream::new(app.events.subscribe()).filter_map(move |event| {
        let event = event.ok().filter(|event| event.client == client)?;
        SseEvent::default().json_data(event).ok().map(Ok)
    });
    // The stream ends with the server, which waits for all that are open.
    let end = async move {
        while !worker.is_stopping() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let retry = tokio_stream::once(Ok(SseEvent::default().retry(RETRY_INTERVAL)));
    Sse::new(until(retry.chain(mine), end)).keep_alive(KeepAlive::default())
}

/// Ends a stream when a future does.
fn until<T: Send + 'static>(
    stream: impl Stream<Item = T> + Send + 'static,
    end: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = T> {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let forward = async {
            let mut stream = std::pin::pin!(stream);
            while let Some(item) = stream.next().await {
                if sender.send(item).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = forward => {}
            () = end => {}
            () = sender.closed() => {}
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

fn one(mut pictures: Vec<RgbImage>) -> Result<RgbImage> {
    pictures.pop().ok_or_else(|| Error::Request { problem: "no picture was made".to_owned() })
}

fn png(picture: &RgbImage) -> Result<Response> {
    let bytes = png_bytes(picture, &[], FilePath::new("picture.png"))?;
    let headers = [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers.map(|(name, value)| (name, HeaderValue::from_static(value))), bytes).into_response())
}
