//! `diffae demo`

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use base64::Engine;
use candle_core::Tensor;
use diffae_infer::{
    BUILT_IN_MODEL, Codes, ModelSource, NetworkCall, Pipeline, built_in_pictures, gif_bytes, keep_residual, png_bytes,
    rgb_from_tensor, tensor_from_rgb,
};
use image::RgbImage;

use crate::args::{DemoArgs, GlobalArgs, HintArgs};
use crate::drawing::{SheetRow, captioned_sheet};
use crate::output::{OutputDir, Provenance, say};
use crate::progress::{Job, Noun, Progress, Work};
use crate::session::{catch_interrupts, load_options};

/// Faces that are varied, each in so many ways.
const NUM_VARIED: usize = 2;
const NUM_VARIATIONS: usize = 6;
/// Faces on the way from one to another, ends included.
const NUM_FRAMES: usize = 9;
/// Which faces are blended into each other, by number.
const BLENDED: [(usize, usize); 2] = [(0, 1), (6, 7)];
const NUM_SAMPLES: usize = 16;
/// Steps of the diffusion that invents codes; they cost next to nothing.
const LATENT_STEPS: usize = 100;
const SAMPLES_PER_ROW: usize = 8;
/// How far edits go: parts of the way to pictures that have the attribute.
const PARTS: [f64; 5] = [0.25, 0.5, 0.75, 1., 1.5];
/// How long the animation shows each frame.
const MILLISECONDS_PER_FRAME: u32 = 120;
const ANIMATION: &str = "interpolation.gif";
const PAGE: &str = "index.html";
/// Files of the exhibits.
const FILES: [&str; 6] =
    ["reconstructions.png", "edits.png", "interpolations.png", ANIMATION, "variations.png", "samples.png"];

/// One picture of the page.
struct Exhibit {
    file: &'static str,
    title: &'static str,
    text: &'static str,
    bytes: Vec<u8>,
}

/// Shows everything that a model does, and lays it out as a page.
pub(crate) fn run(global: &GlobalArgs, args: &DemoArgs) -> Result<()> {
    let start = Instant::now();
    let names: Vec<String> = FILES.iter().chain([&PAGE]).map(|&name| name.to_owned()).collect();
    let output = OutputDir::new(&args.out, &names, args.force.overwrite())?;
    catch_interrupts();
    let options = load_options(global, &HintArgs::default())?;
    let model = ModelSource::built_in()?.build(&options)?;
    let provenance = Provenance::new(model.fingerprint()).with("steps", &args.steps).with("seed", &args.random.seed);
    let (faces, num_attributes) = (built_in_pictures()?, model.classifier()?.config().attributes.len());
    let num_decoded = 2 * faces.len()
        + num_attributes * PARTS.len()
        + BLENDED.len() * NUM_FRAMES
        + NUM_VARIED * NUM_VARIATIONS
        + NUM_SAMPLES;
    // An inversion takes as many steps as a picture, and counts as one.
    let num_pictures = faces.len() + num_decoded;
    let work =
        Work { encoder: faces.len(), decoder: num_pictures * args.steps, latent_net: NUM_SAMPLES * LATENT_STEPS };
    let job = Job { label: "demo", noun: Noun::Pictures, num_items: num_pictures, num_kept: 0, work };
    let progress = Arc::new(Mutex::new(Progress::of(job, &model)));
    let (shown, num_steps, num_calls) = (Arc::clone(&progress), args.steps, AtomicUsize::new(0));
    let pipeline = Pipeline::new(model)
        .with_steps(args.steps)
        .with_invert_steps(args.steps)
        .with_latent_steps(LATENT_STEPS)
        .with_seed(args.random.seed)
        .with_call_callback(move |call, count| {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            if call == NetworkCall::Decoder {
                let before = num_calls.fetch_add(count, Ordering::Relaxed);
                let whole = |calls: usize| calls.checked_div(num_steps).unwrap_or(0);
                shown.done(whole(before + count) - whole(before));
            }
            shown.call(call, count)
        });
    let pictures: Vec<RgbImage> = faces.into_iter().map(|(_, face)| face).collect();
    let exhibits = exhibits(&pipeline, &pictures, args, &provenance)?;
    drop(pipeline);
    if let Ok(progress) = Arc::try_unwrap(progress) {
        progress.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    }
    for Exhibit { file, bytes, .. } in &exhibits {
        output.write(file, bytes)?;
    }
    output.write(PAGE, page(&exhibits, args).as_bytes())?;
    output.commit()?;
    let seconds = start.elapsed().as_secs_f64();
    say(&format!("open {} ({} pictures, {seconds:.0} s)", args.out.join(PAGE).display(), exhibits.len()))
}

/// Everything on the page, in its order.
fn exhibits(
    pipeline: &Pipeline,
    pictures: &[RgbImage],
    args: &DemoArgs,
    provenance: &Provenance,
) -> Result<Vec<Exhibit>> {
    let codes = pipeline.encode(pictures)?;
    let decoded = pipeline.decode_tensor(&codes)?;
    let sheet = |columns: &[String], rows: &[SheetRow], file: &str| -> Result<Vec<u8>> {
        let path = args.out.join(file);
        Ok(png_bytes(&captioned_sheet(columns, rows)?, provenance.entries(), &path)?)
    };
    let [reconstructions, edits, blends, _, variations, samples] = FILES;
    let reconstruction_rows = reconstruct(pipeline, (&codes, &decoded), pictures)?;
    let (edit_columns, edit_rows) = edit(pipeline, (&codes, &decoded), pictures)?;
    let blend_rows = interpolate(pipeline, &codes)?;
    let frames = blend_rows.first().map(|row| forth_and_back(&row.pictures)).unwrap_or_default();
    let gif = gif_bytes(&frames, MILLISECONDS_PER_FRAME, &args.out.join(ANIMATION))?;
    Ok(vec![
        Exhibit {
            file: reconstructions,
            title: "Two codes hold a picture",
            text: "Faces that the model has not seen in training; decoded from z_sem and their own x_T; decoded from z_sem \
                   and random noise. What the last row keeps is what z_sem holds.",
            bytes: sheet(&[], &reconstruction_rows, reconstructions)?,
        },
        Exhibit {
            file: edits,
            title: "Edits",
            text: "z_sem moved along the direction of an attribute; x_T stays, and so does what decoding loses. 1 is the \
                   whole way to faces that have it; beyond, they become what the model does not know.",
            bytes: sheet(&edit_columns, &edit_rows, edits)?,
        },
        Exhibit {
            file: blends,
            title: "Interpolation",
            text: "z_sem on a straight line from one face to the other, x_T on an arc.",
            bytes: sheet(&[], &blend_rows, blends)?,
        },
        Exhibit { file: ANIMATION, title: "The same, moving", text: "", bytes: gif },
        Exhibit {
            file: variations,
            title: "Variations",
            text: "The first face of each row, then its z_sem with other x_T: what z_sem leaves open.",
            bytes: sheet(&[], &vary(pipeline, &codes, pictures)?, variations)?,
        },
        Exhibit {
            file: samples,
            title: "Invented faces",
            text: "z_sem from a diffusion of its own, x_T random.",
            bytes: sheet(&[], &sample(pipeline)?, samples)?,
        },
    ])
}

fn row(label: &str, pictures: Vec<RgbImage>) -> SheetRow {
    SheetRow { label: label.to_owned(), pictures }
}

fn reconstruct(
    pipeline: &Pipeline,
    (codes, decoded): (&Codes, &Tensor),
    pictures: &[RgbImage],
) -> Result<Vec<SheetRow>> {
    let decoded = (0..pictures.len()).map(|face| Ok(rgb_from_tensor(&decoded.get(face)?)?)).collect::<Result<_>>()?;
    let random = Codes { x_terminal: None, ..codes.clone() };
    Ok(vec![row("real", pictures.to_vec()), row("its x_T", decoded), row("random x_T", pipeline.decode(&random)?)])
}

/// A row an attribute: the face that lacks it most clearly, with more and more.
fn edit(
    pipeline: &Pipeline,
    (codes, decoded): (&Codes, &Tensor),
    pictures: &[RgbImage],
) -> Result<(Vec<String>, Vec<SheetRow>)> {
    let z_sem = codes.z_sem.as_ref().context("the model has no z_sem")?;
    let classifier = pipeline.model().classifier()?;
    let logits = classifier.forward(&pipeline.model().normalize(z_sem)?)?; // [N, attributes]
    let logits = logits.to_vec2::<f32>()?;
    let mut rows = vec![];
    for (attribute_idx, attribute) in pipeline.attributes().iter().enumerate() {
        let of = |face: &usize| logits.get(*face).and_then(|row| row.get(attribute_idx)).copied().unwrap_or_default();
        let face = (0..pictures.len()).min_by(|a, b| of(a).total_cmp(&of(b))).unwrap_or(0);
        let one = one_of(codes, face)?;
        let mut row_pictures = vec![pictures[face].clone()];
        let [channels, size, _] = pipeline.model().image_shape();
        let x_0 = tensor_from_rgb(&pictures[face], channels, size)?.unsqueeze(0)?.to_device(decoded.device())?;
        let decoded = decoded.narrow(0, face, 1)?;
        let whole_way = classifier.whole_way(attribute_idx)?.context("the model does not know how far to go")?;
        for strength in PARTS.map(|part| part * whole_way) {
            let edited = pipeline.decode_tensor(&pipeline.edit(&one, attribute, strength)?)?;
            row_pictures.push(rgb_from_tensor(&keep_residual(&edited, &x_0, &decoded)?.get(0)?)?);
        }
        rows.push(row(&attribute.replace('_', " "), row_pictures));
    }
    let columns = ["real".to_owned()].into_iter().chain(PARTS.iter().map(f64::to_string));
    Ok((columns.collect(), rows))
}

fn interpolate(pipeline: &Pipeline, codes: &Codes) -> Result<Vec<SheetRow>> {
    let blend = |&(from, to): &(usize, usize)| {
        let between = pipeline.interpolate(&one_of(codes, from)?, &one_of(codes, to)?, NUM_FRAMES)?;
        Ok(row("", pipeline.decode(&between)?))
    };
    BLENDED.iter().map(blend).collect()
}

fn forth_and_back(frames: &[RgbImage]) -> Vec<RgbImage> {
    let enlarged = |frame: &RgbImage| {
        let (width, height) = frame.dimensions();
        image::imageops::resize(frame, 3 * width, 3 * height, image::imageops::FilterType::CatmullRom)
    };
    let inner = frames.get(1..frames.len().saturating_sub(1)).unwrap_or_default();
    frames.iter().chain(inner.iter().rev()).map(enlarged).collect()
}

fn vary(pipeline: &Pipeline, codes: &Codes, pictures: &[RgbImage]) -> Result<Vec<SheetRow>> {
    let vary = |(face, picture): (usize, &RgbImage)| {
        let variations = pipeline.variations(&one_of(codes, face)?, NUM_VARIATIONS)?;
        Ok(row("", [vec![picture.clone()], variations].concat()))
    };
    pictures.iter().enumerate().take(NUM_VARIED).map(vary).collect()
}

fn sample(pipeline: &Pipeline) -> Result<Vec<SheetRow>> {
    let samples = pipeline.sample(NUM_SAMPLES)?;
    Ok(samples.chunks(SAMPLES_PER_ROW).map(|samples| row("", samples.to_vec())).collect())
}

/// The codes of one face.
fn one_of(codes: &Codes, face: usize) -> Result<Codes> {
    Ok(codes.select(&[face])?)
}

/// A page that needs no other file.
fn page(exhibits: &[Exhibit], args: &DemoArgs) -> String {
    const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
                         color:#222}img{max-width:100%}h2{margin:2rem 0 0}p{margin:.3rem 0 .8rem}code{background:#f2f2f2;\
                         padding:.1rem .3rem}";
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Diffusion Autoencoder: what it \
         does</title>\n<style>{STYLE}</style>\n<h1>What a Diffusion Autoencoder does</h1>\n<p>Made by <code>diffae \
         demo</code> {} with its built-in model, <code>--model {BUILT_IN_MODEL}</code>, in {} steps.</p>\n",
        env!("CARGO_PKG_VERSION"),
        args.steps,
    );
    for Exhibit { file, title, text, bytes } in exhibits {
        let kind = if *file == ANIMATION { "gif" } else { "png" };
        let data = base64::engine::general_purpose::STANDARD.encode(bytes);
        html.extend([
            format!("<h2>{title}</h2>\n<p>{text}</p>\n"),
            format!("<img alt=\"{title}\" src=\"data:image/{kind};base64,{data}\">\n"),
        ]);
    }
    html += "<p>The model has learnt from faces of the style ToonHead by Johan Melin, CC BY 4.0, with parts and colors drawn \
             at random.</p>\n</html>\n";
    html
}
