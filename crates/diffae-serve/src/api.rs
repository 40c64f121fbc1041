//! The routes: a page, and the JSON API that it uses. `openapi.json` describes them.

use std::convert::Infallible;
use std::io::Cursor;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use diffae_data::{png_bytes, rgb_from_bytes};
use diffae_infer::{Codes, FrameRate, Observer, Pipeline, PipelineSettings, animation_bytes, sheet};
use image::{ImageReader, RgbImage};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

use crate::error::{Error, Result};
use crate::events::Events;
use crate::guard::{self, Guard};
use crate::store::{Entry, Store};
use crate::worker::{Lane, Worker};

/// Maximum number of bytes of a request.
const MAX_BODY: usize = 32 << 20;
/// Maximum number of pixels of a picture.
const MAX_PIXELS: u64 = 50_000_000;
/// Maximum numbers of frames of an animation, and of variations and strengths of a request.
const MAX_FRAMES: usize = 60;
/// Maximum number of steps of a chain.
const MAX_STEPS: usize = 1000;
/// Seed of variations and samples that name none.
const SEED: u64 = 0;

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
        .route("/api/faces/{idx}", get(face))
        .route("/api/faces/{idx}/codes", post(encode_face))
        .route("/api/codes", post(encode))
        .route("/api/codes/{id}", get(codes))
        .route("/api/codes/{id}/original", get(original))
        .route("/api/codes/{id}/reconstruction", get(reconstruction))
        .route("/api/edit", post(edit))
        .route("/api/strip", post(strip))
        .route("/api/blend", post(blend))
        .route("/api/film", post(film))
        .route("/api/variation", post(variation))
        .route("/api/sample", post(sample))
        .layer(DefaultBodyLimit::max(MAX_BODY))
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
        "image_shape": model.image_shape(),
        "attributes": attributes.collect::<Result<Vec<_>>>()?,
        "has_z_sem": model.has_z_sem(),
        "can_sample": !model.has_z_sem() || model.latent_net().is_ok(),
        "faces": app.faces.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "steps": settings.num_steps,
        "sampler": settings.sampler.to_string(),
        "spacing": settings.spacing.to_string(),
        "samplers": diffae_schedule::Sampler::names().collect::<Vec<_>>(),
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
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    Sse::new(until(mine, end)).keep_alive(KeepAlive::default())
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

/// Codes as the API names them.
#[derive(Debug, Serialize)]
struct Described {
    /// Id of the codes.
    codes: String,
    /// Name of the picture.
    name: String,
    /// PSNR of the reconstruction in dB; null if there is no original, or nothing differs.
    psnr: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Upload {
    #[serde(flatten)]
    client: Client,
    #[serde(default)]
    name: String,
}

async fn encode(State(app): State<App>, Query(upload): Query<Upload>, body: Bytes) -> Result<Json<Described>> {
    let stem = FilePath::new(&upload.name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = stem.filter(|stem| !stem.is_empty()).unwrap_or_else(|| "picture".to_owned());
    if body.is_empty() {
        return Err(Error::Request { problem: "the body is empty, expected a picture".to_owned() });
    }
    check_pixels(&body)?;
    // Decoding takes the time of a step; the worker does not wait for it.
    let label = name.clone();
    let decoded = tokio::task::spawn_blocking(move || rgb_from_bytes(&body, FilePath::new(&label)));
    let picture = decoded.await.map_err(|error| Error::Request { problem: error.to_string() })??;
    encode_picture(&app, upload.client.lane("encode"), name, picture).await
}

/// Fails if a picture says of itself that it has too many pixels; what cannot be read is left to the decoder.
fn check_pixels(bytes: &[u8]) -> Result<()> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let Ok((width, height)) = reader.map_err(image::ImageError::from).and_then(ImageReader::into_dimensions) else {
        return Ok(());
    };
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::TooManyPixels { width, height, max: MAX_PIXELS });
    }
    Ok(())
}

async fn face(State(app): State<App>, Path(idx): Path<usize>) -> Result<Response> {
    png(&known_face(&app, idx)?.1)
}

async fn encode_face(
    State(app): State<App>,
    Path(idx): Path<usize>,
    Query(client): Query<Client>,
) -> Result<Json<Described>> {
    let (name, picture) = known_face(&app, idx)?.clone();
    encode_picture(&app, client.lane("encode"), name, picture).await
}

fn known_face(app: &App, idx: usize) -> Result<&(String, RgbImage)> {
    app.faces.get(idx).ok_or(Error::UnknownFace { idx, count: app.faces.len() })
}

async fn encode_picture(app: &App, lane: Option<Lane>, name: String, picture: RgbImage) -> Result<Json<Described>> {
    let (settings, fingerprint) = (app.settings, app.pipeline.model().fingerprint().to_owned());
    let (width, height) = picture.dimensions();
    let described = format!("{fingerprint} {settings:?} {name} {width} {height} ");
    let id = diffae_data::Fingerprint::of(&[described.as_bytes(), picture.as_raw()].concat());
    if let Ok(known) = app.store.get(&id) {
        return Ok(Json(Described { codes: id, name, psnr: known.psnr }));
    }
    let label = name.clone();
    let entry = app.worker.run(lane, move |pipeline, observer| {
        let x_0 = pipeline.tensor_of(&[picture])?;
        let codes = pipeline.encode_tensor(&x_0, &settings, observer)?;
        let reconstruction = one(pipeline.decode(&codes, &settings, observer)?)?;
        let original = diffae_data::rgb_from_tensor(&x_0.get(0).map_err(candle)?)?;
        let psnr = psnr(&original, &reconstruction);
        Ok(Entry { name: label, codes, original: Some(original), reconstruction, psnr })
    });
    let entry = Arc::new(entry.await?);
    app.store.add(id.clone(), Arc::clone(&entry));
    Ok(Json(Described { codes: id, name, psnr: entry.psnr }))
}

async fn codes(State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    let entry = app.store.get(&id)?;
    let bytes = entry.codes.to_bytes(&[])?;
    let disposition = format!("attachment; filename=\"{}.safetensors\"", ascii(&entry.name));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream"), (header::CONTENT_DISPOSITION, &disposition)], bytes)
        .into_response())
}

async fn original(State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    let entry = app.store.get(&id)?;
    let missing = || Error::Request { problem: "the codes are of a sample, which has no original".to_owned() };
    png(entry.original.as_ref().ok_or_else(missing)?)
}

async fn reconstruction(State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    png(&app.store.get(&id)?.reconstruction)
}

#[derive(Debug, Deserialize)]
struct EditRequest {
    #[serde(flatten)]
    client: Client,
    /// Id of the codes.
    codes: String,
    /// Strength of each attribute by its name.
    edits: IndexMap<String, f64>,
}

async fn edit(State(app): State<App>, Body(request): Body<EditRequest>) -> Result<Response> {
    let (entry, settings) = (app.store.get(&request.codes)?, app.settings);
    let edited = app.worker.run(request.client.lane("picture"), move |pipeline, observer| {
        decode_one(pipeline, &edited(pipeline, &entry.codes, &request.edits)?, &settings, observer)
    });
    png(&edited.await?)
}

fn edited(pipeline: &Pipeline, codes: &Codes, edits: &IndexMap<String, f64>) -> Result<Codes> {
    if edits.is_empty() {
        return Ok(codes.clone());
    }
    let edits: Vec<(&str, f64)> = edits.iter().map(|(name, strength)| (name.as_str(), *strength)).collect();
    Ok(pipeline.edit_many(codes, &edits)?)
}

#[derive(Debug, Deserialize)]
struct StripRequest {
    #[serde(flatten)]
    client: Client,
    codes: String,
    attribute: String,
    /// Strength of each picture, in a row.
    strengths: Vec<f64>,
}

async fn strip(State(app): State<App>, Body(request): Body<StripRequest>) -> Result<Response> {
    let StripRequest { client, codes, attribute, strengths } = request;
    check_count("strengths", strengths.len())?;
    let (entry, settings) = (app.store.get(&codes)?, app.settings);
    let row = app.worker.run(client.lane("strip"), move |pipeline, observer| {
        let of = |&strength: &f64| {
            decode_one(pipeline, &pipeline.edit(&entry.codes, &attribute, strength)?, &settings, observer)
        };
        strengths.iter().map(of).collect::<Result<Vec<_>>>()
    });
    png(&sheet(&[row.await?]))
}

#[derive(Debug, Deserialize)]
struct BlendRequest {
    #[serde(flatten)]
    client: Client,
    /// Ids of the codes of both pictures.
    from: String,
    to: String,
    /// Place between them, 0 to 1.
    alpha: f64,
}

async fn blend(State(app): State<App>, Body(request): Body<BlendRequest>) -> Result<Response> {
    let BlendRequest { client, from, to, alpha } = request;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::Request { problem: format!("alpha is {alpha}, expected 0 to 1") });
    }
    let (from, to, settings) = (app.store.get(&from)?, app.store.get(&to)?, app.settings);
    let blended = app.worker.run(client.lane("picture"), move |pipeline, observer| {
        let codes = pipeline.blend(&from.codes, &to.codes, alpha)?;
        decode_one(pipeline, &codes, &settings, observer)
    });
    png(&blended.await?)
}

#[derive(Debug, Deserialize)]
struct FilmRequest {
    #[serde(flatten)]
    client: Client,
    from: String,
    to: String,
    frames: usize,
}

async fn film(State(app): State<App>, Body(request): Body<FilmRequest>) -> Result<Response> {
    let FilmRequest { client, from, to, frames } = request;
    check_count("frames", frames)?;
    let (from, to, settings) = (app.store.get(&from)?, app.store.get(&to)?, app.settings);
    let frames = app.worker.run(client.lane("film"), move |pipeline, observer| {
        let codes = pipeline.interpolate(&from.codes, &to.codes, frames)?;
        Ok(pipeline.decode(&codes, &settings, observer)?)
    });
    let bytes = animation_bytes(&frames.await?, FrameRate::new(12.0)?, FilePath::new("film.gif"))?;
    Ok(([(header::CONTENT_TYPE, "image/gif")], bytes).into_response())
}

#[derive(Debug, Deserialize)]
struct VariationRequest {
    #[serde(flatten)]
    client: Client,
    codes: String,
    /// Index of the variation.
    index: u64,
    #[serde(flatten)]
    chain: ChainRequest,
}

/// Decoding of random `x_T`; the model's defaults where nothing is said.
#[derive(Debug, Default, Deserialize)]
struct ChainRequest {
    seed: Option<u64>,
    steps: Option<usize>,
    sampler: Option<String>,
    spacing: Option<String>,
}

impl ChainRequest {
    fn settings(&self, usual: PipelineSettings) -> Result<PipelineSettings> {
        let wrong = |error: diffae_schedule::Error| Error::Request { problem: error.to_string() };
        let num_steps = self.steps.unwrap_or(usual.num_steps);
        if !(1..=MAX_STEPS).contains(&num_steps) {
            return Err(Error::Request { problem: format!("steps is {num_steps}, expected 1 to {MAX_STEPS}") });
        }
        let sampler = self.sampler.as_deref().map(str::parse).transpose().map_err(wrong)?.unwrap_or(usual.sampler);
        let spacing = self.spacing.as_deref().map(str::parse).transpose().map_err(wrong)?.unwrap_or(usual.spacing);
        Ok(PipelineSettings { num_steps, sampler, spacing, seed: self.seed.unwrap_or(SEED), ..usual })
    }
}

async fn variation(State(app): State<App>, Body(request): Body<VariationRequest>) -> Result<Response> {
    let VariationRequest { client, codes, index, chain } = request;
    let (entry, settings) = (app.store.get(&codes)?, chain.settings(app.settings)?);
    // Variations are drawn together, each in a lane of its own.
    let lane = client.lane(&format!("variation {index}"));
    let varied = app.worker.run(lane, move |pipeline, observer| {
        let codes = Codes { x_terminal: None, chain: None, ..entry.codes.clone() };
        one(pipeline.decode_at(&codes, &[index], &settings, observer)?)
    });
    png(&varied.await?)
}

#[derive(Debug, Deserialize)]
struct SampleRequest {
    #[serde(flatten)]
    client: Client,
    /// Index in the sequence of the seed.
    index: u64,
    #[serde(flatten)]
    chain: ChainRequest,
}

async fn sample(State(app): State<App>, Body(request): Body<SampleRequest>) -> Result<Json<Described>> {
    let SampleRequest { client, index, chain } = request;
    let settings = chain.settings(app.settings)?;
    let name = format!("sample_{index:05}");
    let id = diffae_data::Fingerprint::of(
        format!("{} {settings:?} sample {index}", app.pipeline.model().fingerprint()).as_bytes(),
    );
    if app.store.get(&id).is_err() {
        let label = name.clone();
        let entry = app.worker.run(client.lane("picture"), move |pipeline, observer| {
            let codes = pipeline.sample_codes(&[index], &settings, observer)?;
            let reconstruction = one(pipeline.decode_at(&codes, &[index], &settings, observer)?)?;
            Ok(Entry { name: label, codes, original: None, reconstruction, psnr: None })
        });
        app.store.add(id.clone(), Arc::new(entry.await?));
    }
    Ok(Json(Described { codes: id, name, psnr: None }))
}

fn decode_one(
    pipeline: &Pipeline,
    codes: &Codes,
    settings: &PipelineSettings,
    observer: &mut Observer<'_>,
) -> Result<RgbImage> {
    one(pipeline.decode(codes, settings, observer)?)
}

fn one(mut pictures: Vec<RgbImage>) -> Result<RgbImage> {
    pictures.pop().ok_or_else(|| Error::Request { problem: "no picture was made".to_owned() })
}

fn candle(source: candle_core::Error) -> diffae_infer::Error {
    diffae_infer::Error::Tensor { part: "reading a picture", source }
}

fn check_count(what: &str, count: usize) -> Result<()> {
    if !(2..=MAX_FRAMES).contains(&count) {
        return Err(Error::Request { problem: format!("the number of {what} is {count}, expected 2 to {MAX_FRAMES}") });
    }
    Ok(())
}

/// Computes the PSNR of a picture in dB; `None` if nothing differs.
fn psnr(x: &RgbImage, y: &RgbImage) -> Option<f64> {
    let squares = x.as_raw().iter().zip(y.as_raw()).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2));
    let mse = squares.sum::<f64>() / x.as_raw().len() as f64;
    (mse > 0.).then(|| 10. * (255_f64.powi(2) / mse).log10())
}

fn png(picture: &RgbImage) -> Result<Response> {
    let bytes = png_bytes(picture, &[], FilePath::new("picture.png"))?;
    let headers = [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers.map(|(name, value)| (name, HeaderValue::from_static(value))), bytes).into_response())
}

/// Replaces what a header cannot hold.
fn ascii(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body as HttpBody, to_bytes};
    use axum::http::{Request, StatusCode};
    use diffae_infer::{built_in_pictures, no_observer};
    use tower::ServiceExt;

    use super::*;

    const SETTINGS: PipelineSettings =
        PipelineSettings { num_steps: 2, num_latent_steps: 2, ..PipelineSettings::DEFAULT };

    struct Api {
        router: Router,
        pipeline: Pipeline,
    }

    impl Api {
        fn new() -> Self {
            let (pipeline, events) = (Pipeline::from_built_in().unwrap(), Events::new());
            let app = App {
                pipeline: pipeline.clone(),
                settings: SETTINGS,
                model: "toonheads".into(),
                faces: built_in_pictures().unwrap().into(),
                worker: Worker::start(pipeline.clone(), events.clone()),
                events,
                store: Arc::default(),
            };
            Self { router: router(app, Guard { token: None, is_loopback: true }), pipeline }
        }

        async fn ask(&self, method: &str, path: &str, body: impl Into<HttpBody>) -> (StatusCode, Bytes) {
            let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
            let request = request.header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap();
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            (status, to_bytes(response.into_body(), MAX_BODY).await.unwrap())
        }

        async fn json(&self, method: &str, path: &str, body: &Value) -> Value {
            let (status, bytes) = self.ask(method, path, body.to_string()).await;
            assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
            serde_json::from_slice(&bytes).unwrap()
        }

        async fn picture(&self, method: &str, path: &str, body: &Value) -> RgbImage {
            let (status, bytes) = self.ask(method, path, body.to_string()).await;
            assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
            image::load_from_memory(&bytes).unwrap().into_rgb8()
        }

        async fn refused(&self, method: &str, path: &str, body: impl Into<HttpBody>) -> (u16, String) {
            let (status, bytes) = self.ask(method, path, body).await;
            let said: Value = serde_json::from_slice(&bytes).unwrap();
            (status.as_u16(), said["error"].as_str().unwrap().to_owned())
        }
    }

    #[tokio::test]
    async fn pictures_are_those_of_the_pipeline() {
        let api = Api::new();
        let model = api.json("GET", "/api/model", &Value::Null).await;
        assert_eq!(model["faces"].as_array().unwrap().len(), 8);
        let smiling = model["attributes"].as_array().unwrap().iter().find(|one| one["name"] == "Smiling").unwrap();
        let strength = smiling["full_strength"].as_f64().unwrap();
        let face = built_in_pictures().unwrap()[2].1.clone();
        let codes = api.pipeline.encode(std::slice::from_ref(&face), &SETTINGS, &mut no_observer).unwrap();
        let described = api.json("POST", "/api/faces/2/codes", &Value::Null).await;
        let id = described["codes"].as_str().unwrap();
        assert_eq!(api.picture("GET", &format!("/api/codes/{id}/original"), &Value::Null).await, face);
        let expected = |codes: &Codes| api.pipeline.decode(codes, &SETTINGS, &mut no_observer).unwrap().remove(0);
        let reconstruction = api.picture("GET", &format!("/api/codes/{id}/reconstruction"), &Value::Null).await;
        assert_eq!(reconstruction, expected(&codes));
        let edits = json!({ "codes": id, "edits": { "Smiling": strength, "Beard": 0.1 } });
        let edited = api.pipeline.edit_many(&codes, &[("Smiling", strength), ("Beard", 0.1)]).unwrap();
        assert_eq!(api.picture("POST", "/api/edit", &edits).await, expected(&edited));
        let other = api.json("POST", "/api/faces/3/codes", &Value::Null).await;
        let blend = json!({ "from": id, "to": other["codes"], "alpha": 1.0 });
        let there = format!("/api/codes/{}/reconstruction", other["codes"].as_str().unwrap());
        assert_eq!(api.picture("POST", "/api/blend", &blend).await, api.picture("GET", &there, &Value::Null).await);
        let varied = api.pipeline.variations(&codes, 2, &SETTINGS, &mut no_observer).unwrap();
        let variation = json!({ "codes": id, "index": 1 });
        assert_eq!(api.picture("POST", "/api/variation", &variation).await, varied[1]);
        let sampled = api.json("POST", "/api/sample", &json!({ "index": 5 })).await;
        let path = format!("/api/codes/{}/reconstruction", sampled["codes"].as_str().unwrap());
        let expected = api.pipeline.sample_at(&[5], &SETTINGS, &mut no_observer).unwrap().remove(0);
        assert_eq!(api.picture("GET", &path, &Value::Null).await, expected);
        let strip = json!({ "codes": id, "attribute": "Smiling", "strengths": [0.0, strength] });
        assert!(api.picture("POST", "/api/strip", &strip).await.width() > 2 * 64);
        let film = json!({ "from": id, "to": other["codes"], "frames": 3 });
        assert!(api.ask("POST", "/api/film", film.to_string()).await.1.starts_with(b"GIF89a"));
        let (_, bytes) = api.ask("GET", &format!("/api/codes/{id}"), "").await;
        let folder = std::env::temp_dir().join(format!("diffae-serve-{}.safetensors", std::process::id()));
        std::fs::write(&folder, bytes).unwrap();
        let read = Codes::read(&folder).unwrap();
        std::fs::remove_file(&folder).unwrap();
        assert_eq!((read.names, read.fingerprint), (codes.names.clone(), codes.fingerprint.clone()));
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_a_sentence_with_its_status() {
        let api = Api::new();
        let ask = |path: &'static str, body: &'static str| api.refused("POST", path, body);
        assert_eq!(ask("/api/codes", "").await, (400, "the body is empty, expected a picture".to_owned()));
        let (status, said) = ask("/api/codes?name=notes.txt", "no picture").await;
        assert!(status == 400 && said.contains("notes"), "{said}");
        let (status, said) = ask("/api/edit", r#"{"codes": "0", "edits": {}}"#).await;
        assert!(status == 404 && said.contains("upload the picture again"), "{said}");
        assert_eq!(ask("/api/edit", "{").await.0, 400);
        assert_eq!(ask("/api/edit", "{}").await.0, 400);
        assert_eq!(ask("/api/faces/8/codes", "").await, (404, "there is no face 8; the model has 8".to_owned()));
        for (body, expected) in [
            (r#"{"index": 0, "steps": 0}"#, "steps is 0, expected 1 to 1000"),
            (r#"{"index": 0, "sampler": "euler"}"#, "unknown sampler"),
            (r#"{"index": -1}"#, "-1"),
        ] {
            let (status, said) = ask("/api/sample", body).await;
            assert!(status == 400 && said.contains(expected), "{said}");
        }
        let id = api.json("POST", "/api/faces/0/codes", &Value::Null).await["codes"].clone();
        let refused = |path: &'static str, body: Value| api.refused("POST", path, body.to_string());
        let (status, said) = refused("/api/edit", json!({ "codes": id, "edits": { "Halo": 1.0 } })).await;
        assert!(status == 422 && said.contains("Smiling"), "{said}");
        let (status, said) = refused("/api/blend", json!({ "from": id, "to": id, "alpha": 1.5 })).await;
        assert!(status == 400 && said.contains("alpha is 1.5"), "{said}");
        assert_eq!(refused("/api/film", json!({ "from": id, "to": id, "frames": 61 })).await.0, 400);
    }

    #[tokio::test]
    async fn large_pictures_are_refused_by_what_they_say_of_themselves() {
        let api = Api::new();
        let mut header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        header.extend([0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10, 8, 2, 0, 0, 0]);
        let checksum = crc(&header[12..]);
        header.extend(checksum.to_be_bytes());
        header.extend(b"\0\0\0\0IDAT");
        header.extend(crc(b"IDAT").to_be_bytes());
        let (status, said) = api.refused("POST", "/api/codes", header).await;
        assert!(status == 413 && said.contains("10000 by 10000 pixels"), "{status} {said}");
        let (status, _) = api.ask("POST", "/api/codes", vec![0; MAX_BODY + 1]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    /// Computes the CRC-32 of a PNG chunk.
    fn crc(bytes: &[u8]) -> u32 {
        let shift = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc: u32, &byte| (0..8).fold(crc ^ u32::from(byte), shift))
    }

    #[tokio::test]
    async fn progress_comes_as_events_to_the_client_that_asked() {
        let api = Api::new();
        let request = Request::builder().uri("/api/events?client=me").header(header::HOST, "localhost");
        let response = api.router.clone().oneshot(request.body(HttpBody::empty()).unwrap()).await.unwrap();
        let mut events = response.into_body().into_data_stream();
        api.json("POST", "/api/faces/0/codes?client=other", &Value::Null).await;
        api.json("POST", "/api/faces/1/codes?client=me", &Value::Null).await;
        let event = String::from_utf8(events.next().await.unwrap().unwrap().to_vec()).unwrap();
        assert_eq!(event, "data: {\"purpose\":\"encode\",\"done\":1,\"total\":3}\n\n");
    }

    #[test]
    fn the_description_names_every_route() {
        let described: Value = serde_json::from_str(OPENAPI).unwrap();
        let routes = include_str!("api.rs").lines().filter_map(|line| line.trim().strip_prefix(".route(\"/api/"));
        let routes: Vec<&str> = routes.filter_map(|rest| rest.split('"').next()).collect();
        assert!(routes.len() > 10);
        for route in routes.into_iter().filter(|&route| route != "openapi.json") {
            assert!(described["paths"].get(format!("/api/{route}")).is_some(), "{route}");
            assert!(PAGE.contains(route.split('/').next().unwrap()), "the page uses {route}");
        }
    }
}
