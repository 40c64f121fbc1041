//! Routes of pictures that are made of codes.

use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use diffae_data::Fingerprint;
use diffae_infer::{Codes, FrameRate, Observer, Pipeline, PipelineSettings, XTerminalSource, animation_bytes, sheet};
use diffae_schedule::Spacing;
use image::RgbImage;
use indexmap::IndexMap;
use serde::Deserialize;

use super::codes::Described;
use super::{App, Body, Client, one, png};
use crate::error::{Error, Result};
use crate::store::Entry;

/// Maximum numbers of frames of an animation, and of strengths of a strip.
const MAX_FRAMES: usize = 60;
/// Maximum number of steps of a chain.
const MAX_STEPS: usize = 1000;
/// Seed of variations and samples that name none.
const SEED: u64 = 0;

#[derive(Debug, Deserialize)]
pub(super) struct EditRequest {
    #[serde(flatten)]
    client: Client,
    /// Id of the codes.
    codes: String,
    /// Strength of each attribute by its name.
    edits: IndexMap<String, f64>,
    /// Levels of a hierarchical `z_sem` to edit; absent for all.
    levels: Option<Vec<usize>>,
}

pub(super) async fn edit(State(app): State<App>, Body(request): Body<EditRequest>) -> Result<Response> {
    let (entry, settings) = (app.store.get(&request.codes)?, app.settings);
    let edited = app.worker.run(request.client.lane("picture"), move |pipeline, observer| {
        let edited = edited(pipeline, &entry.codes, &request.edits)?;
        let edited = at_levels(pipeline, (&entry.codes, edited), request.levels.as_deref())?;
        decode_one(pipeline, (&edited, entry.drawn), &settings, observer)
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

/// Takes some levels of `z_sem` alone from changed codes, where they are given.
fn at_levels(pipeline: &Pipeline, (codes, changed): (&Codes, Codes), levels: Option<&[usize]>) -> Result<Codes> {
    match levels {
        None => Ok(changed),
        Some(levels) => Ok(pipeline.with_levels_of(codes, &changed, levels)?),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct StripRequest {
    #[serde(flatten)]
    client: Client,
    codes: String,
    attribute: String,
    /// Strength of each picture, in a row.
    strengths: Vec<f64>,
    /// Levels of a hierarchical `z_sem` to edit; absent for all.
    levels: Option<Vec<usize>>,
}

pub(super) async fn strip(State(app): State<App>, Body(request): Body<StripRequest>) -> Result<Response> {
    let StripRequest { client, codes, attribute, strengths, levels } = request;
    check_count("strengths", strengths.len())?;
    let (entry, settings) = (app.store.get(&codes)?, app.settings);
    let row = app.worker.run(client.lane("strip"), move |pipeline, observer| {
        let of = |&strength: &f64| {
            let edited = pipeline.edit(&entry.codes, &attribute, strength)?;
            let codes = at_levels(pipeline, (&entry.codes, edited), levels.as_deref())?;
            decode_one(pipeline, (&codes, entry.drawn), &settings, observer)
        };
        strengths.iter().map(of).collect::<Result<Vec<_>>>()
    });
    png(&sheet(&[row.await?]))
}

#[derive(Debug, Deserialize)]
pub(super) struct BlendRequest {
    #[serde(flatten)]
    client: Client,
    /// Ids of the codes of both pictures.
    from: String,
    to: String,
    /// Place between them, 0 to 1.
    alpha: f64,
    /// Levels of a hierarchical `z_sem` to blend, while all else stays that of the first; absent for all.
    levels: Option<Vec<usize>>,
}

pub(super) async fn blend(State(app): State<App>, Body(request): Body<BlendRequest>) -> Result<Response> {
    let BlendRequest { client, from, to, alpha, levels } = request;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::Request { problem: format!("alpha is {alpha}, expected 0 to 1") });
    }
    let (from, to, settings) = (app.store.get(&from)?, app.store.get(&to)?, app.settings);
    let blended = app.worker.run(client.lane("picture"), move |pipeline, observer| {
        let blended = pipeline.blend(&from.codes, &to.codes, alpha)?;
        let codes = at_levels(pipeline, (&from.codes, blended), levels.as_deref())?;
        decode_one(pipeline, (&codes, from.drawn), &settings, observer)
    });
    png(&blended.await?)
}

#[derive(Debug, Deserialize)]
pub(super) struct FilmRequest {
    #[serde(flatten)]
    client: Client,
    from: String,
    to: String,
    frames: usize,
    /// Levels of a hierarchical `z_sem` to blend, while all else stays that of the first; absent for all.
    levels: Option<Vec<usize>>,
}

pub(super) async fn film(State(app): State<App>, Body(request): Body<FilmRequest>) -> Result<Response> {
    let FilmRequest { client, from, to, frames, levels } = request;
    check_count("frames", frames)?;
    let (from, to, settings) = (app.store.get(&from)?, app.store.get(&to)?, app.settings);
    let frames = app.worker.run(client.lane("film"), move |pipeline, observer| {
        let between = pipeline.interpolate(&from.codes, &to.codes, frames)?;
        let codes = at_levels(pipeline, (&from.codes.first_repeated(frames)?, between), levels.as_deref())?;
        Ok(pipeline.decode(&codes, &settings.along(&codes), observer)?)
    });
    let bytes = animation_bytes(&frames.await?, FrameRate::new(12.0)?, FilePath::new("film.gif"))?;
    Ok(([(header::CONTENT_TYPE, "image/gif")], bytes).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct VariationRequest {
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
pub(super) struct ChainRequest {
    seed: Option<u64>,
    steps: Option<usize>,
    sampler: Option<String>,
    spacing: Option<String>,
}

impl ChainRequest {
    fn settings(&self, app: &App) -> Result<PipelineSettings> {
        let usual = app.settings;
        let wrong = |error: diffae_schedule::Error| Error::Request { problem: error.to_string() };
        let num_steps = self.steps.unwrap_or(usual.num_steps);
        if !(1..=MAX_STEPS).contains(&num_steps) {
            return Err(Error::Request { problem: format!("steps is {num_steps}, expected 1 to {MAX_STEPS}") });
        }
        let sampler = self.sampler.as_deref().map(str::parse).transpose().map_err(wrong)?;
        let spacing = self.spacing.as_deref().map(str::parse).transpose().map_err(wrong)?.unwrap_or(usual.spacing);
        let tuned = (spacing == Spacing::Tuned)
            .then(|| PipelineSettings::tuned_sampler(app.pipeline.model().config(), num_steps));
        let sampler = sampler.or(tuned.flatten()).unwrap_or(usual.sampler);
        Ok(PipelineSettings { num_steps, sampler, spacing, seed: self.seed.unwrap_or(SEED), ..usual })
    }
}

pub(super) async fn variation(State(app): State<App>, Body(request): Body<VariationRequest>) -> Result<Response> {
    let VariationRequest { client, codes, index, chain } = request;
    let (entry, settings) = (app.store.get(&codes)?, chain.settings(&app)?);
    let settings = PipelineSettings { x_terminal: XTerminalSource::Random, ..settings };
    // Variations are drawn together, each in a lane of its own.
    let lane = client.lane(&format!("variation {index}"));
    let varied = app.worker.run(lane, move |pipeline, observer| {
        let codes = Codes { x_terminal: None, chain: None, ..entry.codes.clone() };
        one(pipeline.decode_at(&codes, &[index], &settings, observer)?)
    });
    png(&varied.await?)
}

#[derive(Debug, Deserialize)]
pub(super) struct SampleRequest {
    #[serde(flatten)]
    client: Client,
    /// Index in the sequence of the seed.
    index: u64,
    #[serde(flatten)]
    chain: ChainRequest,
}

pub(super) async fn sample(State(app): State<App>, Body(request): Body<SampleRequest>) -> Result<Json<Described>> {
    let SampleRequest { client, index, chain } = request;
    let settings = chain.settings(&app)?;
    let known = format!("{} {settings:?} sample {index}", app.pipeline.model().fingerprint());
    let id = Fingerprint::of(known.as_bytes());
    if let Ok(known) = app.store.get(&id) {
        return Ok(Json(Described::new(id, &known)));
    }
    let entry = app.worker.run(client.lane("sample"), move |pipeline, observer| {
        let name = format!("sample_{index:05}");
        let codes = Codes { names: vec![name.clone()], ..pipeline.sample_codes(&[index], &settings, observer)? };
        let reconstruction = one(pipeline.decode_at(&codes, &[index], &settings, observer)?)?;
        let drawn = Some((settings.seed, index));
        Ok(Entry { name, codes, original: None, drawn, reconstruction, psnr: None, warning: None })
    });
    let entry = Arc::new(entry.await?);
    app.store.add(id.clone(), Arc::clone(&entry));
    Ok(Json(Described::new(id, &entry)))
}

/// Decodes the codes of one picture; samples as they were decoded, with the noise of their seed and number.
fn decode_one(
    pipeline: &Pipeline,
    (codes, drawn): (&Codes, Option<(u64, u64)>),
    settings: &PipelineSettings,
    observer: &mut Observer<'_>,
) -> Result<RgbImage> {
    let (seed, number) = drawn.unwrap_or((settings.seed, 0));
    let settings = PipelineSettings { seed, ..settings.along(codes) };
    one(pipeline.decode_at(codes, &[number], &settings, observer)?)
}

fn check_count(what: &str, count: usize) -> Result<()> {
    if !(2..=MAX_FRAMES).contains(&count) {
        return Err(Error::Request { problem: format!("the number of {what} is {count}, expected 2 to {MAX_FRAMES}") });
    }
    Ok(())
}
