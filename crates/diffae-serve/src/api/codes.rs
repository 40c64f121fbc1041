//! Routes of codes: pictures in, and what is known of them.

use std::io::Cursor;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use candle_core::Tensor;
use diffae_data::{Fingerprint, picture_from_bytes, rgb_from_tensor, tensor_from_rgb};
use diffae_infer::Codes;
use image::{ImageReader, RgbImage};
use serde::{Deserialize, Serialize};

use super::{App, Client, one, png};
use crate::error::{Error, Result};
use crate::store::Entry;
use crate::worker::Lane;

/// Maximum number of pixels of a picture.
const MAX_PIXELS: u64 = 50_000_000;

/// Codes as the API names them.
#[derive(Debug, Serialize)]
pub(super) struct Described {
    /// Id of the codes.
    codes: String,
    /// Name of the picture.
    name: String,
    /// Whether the codes are of a picture, not of a sample.
    has_original: bool,
    /// Whether the codes decode to the same picture everywhere: not of a sample whose sampler adds noise.
    is_repeatable: bool,
    /// PSNR of the reconstruction in dB; null if there is no original, or nothing differs.
    psnr: Option<f64>,
    /// Warning that the model was not made for such pictures.
    warning: Option<String>,
}

impl Described {
    pub(super) fn new(codes: String, entry: &Entry) -> Self {
        let Entry { name, original, psnr, warning, .. } = entry;
        let (has_original, is_repeatable) = (original.is_some(), !entry.codes.is_noisy_sample());
        Self { codes, name: name.clone(), has_original, is_repeatable, psnr: *psnr, warning: warning.clone() }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Upload {
    #[serde(flatten)]
    client: Client,
    #[serde(default)]
    name: String,
}

pub(super) async fn encode(
    State(app): State<App>,
    Query(upload): Query<Upload>,
    body: Bytes,
) -> Result<Json<Described>> {
    let stem = FilePath::new(&upload.name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = stem.filter(|stem| !stem.is_empty()).unwrap_or_else(|| "picture".to_owned());
    if body.is_empty() {
        return Err(Error::Request { problem: "the body is empty, expected a picture".to_owned() });
    }
    check_pixels(&body)?;
    let id = id_of(&app, &name, &body);
    // Decoding takes the time of a step; the worker does not wait for it.
    let (label, format) = (name.clone(), app.pipeline.model().picture_format());
    let decode = move || picture_from_bytes(&body, FilePath::new(&label), format, None);
    let x_0 = tokio::task::spawn_blocking(decode).await.map_or(Err(Error::Fault), |decoded| Ok(decoded?))?;
    encode_picture(&app, upload.client.lane("encode"), (id, name), x_0).await
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

pub(super) async fn face(State(app): State<App>, Path(idx): Path<usize>) -> Result<Response> {
    png(&known_face(&app, idx)?.1)
}

pub(super) async fn encode_face(
    State(app): State<App>,
    Path(idx): Path<usize>,
    Query(client): Query<Client>,
) -> Result<Json<Described>> {
    let (name, picture) = known_face(&app, idx)?.clone();
    let x_0 = tensor_from_rgb(&picture, app.pipeline.model().picture_format())?;
    let id = id_of(&app, &name, picture.as_raw());
    encode_picture(&app, client.lane("encode"), (id, name), x_0).await
}

fn known_face(app: &App, idx: usize) -> Result<&(String, RgbImage)> {
    app.faces.get(idx).ok_or(Error::UnknownFace { idx, count: app.faces.len() })
}

/// Returns the id of a picture that is encoded with the settings of the server.
fn id_of(app: &App, name: &str, bytes: &[u8]) -> String {
    let known = format!("{} {:?} {name} {} ", app.pipeline.model().fingerprint(), app.settings, bytes.len());
    Fingerprint::of(&[known.as_bytes(), bytes].concat())
}

/// Encodes a picture `[C, H, W]` at the size of the model, unless its codes are there.
async fn encode_picture(
    app: &App,
    lane: Option<Lane>,
    (id, name): (String, String),
    x_0: Tensor,
) -> Result<Json<Described>> {
    if let Ok(known) = app.store.get(&id) {
        return Ok(Json(Described::new(id, &known)));
    }
    let settings = app.settings;
    let entry = app.worker.run(lane, move |pipeline, observer| {
        let original = rgb_from_tensor(&x_0)?;
        let x_0 =
            x_0.unsqueeze(0).map_err(|source| diffae_infer::Error::Tensor { part: "stacking pictures", source })?;
        let codes = pipeline.encode_tensor(&x_0, &settings, observer)?;
        let codes = Codes { names: vec![name.clone()], ..codes };
        let reconstruction = one(pipeline.decode(&codes, &settings, observer)?)?;
        let psnr = psnr(&original, &reconstruction);
        let warning = codes.z_sem.as_ref().map(|z_sem| pipeline.model().domain_warning([&name], &x_0, z_sem));
        let warning = warning.transpose()?.flatten();
        Ok(Entry { name, codes, original: Some(original), drawn: None, reconstruction, psnr, warning })
    });
    let entry = Arc::new(entry.await?);
    app.store.add(id.clone(), Arc::clone(&entry));
    Ok(Json(Described::new(id, &entry)))
}

pub(super) async fn codes(State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    let entry = app.store.get(&id)?;
    let bytes = entry.codes.to_bytes(&[])?;
    let disposition = format!("attachment; filename=\"{}.safetensors\"", ascii(&entry.name));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream"), (header::CONTENT_DISPOSITION, &disposition)], bytes)
        .into_response())
}

pub(super) async fn original(State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    let entry = app.store.get(&id)?;
    let missing = || Error::Request { problem: "the codes are of a sample, which has no original".to_owned() };
    png(entry.original.as_ref().ok_or_else(missing)?)
}

pub(super) async fn reconstruction(State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    png(&app.store.get(&id)?.reconstruction)
}

/// Computes the PSNR of a picture in dB; `None` if nothing differs.
fn psnr(x: &RgbImage, y: &RgbImage) -> Option<f64> {
    let squares = x.as_raw().iter().zip(y.as_raw()).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2));
    let mse = squares.sum::<f64>() / x.as_raw().len() as f64;
    (mse > 0.).then(|| 10. * (255_f64.powi(2) / mse).log10())
}

/// Replaces what a header cannot hold.
fn ascii(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}
