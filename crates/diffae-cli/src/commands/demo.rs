//! `diffae demo`

mod page;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Tensor;
use diffae_data::{png_bytes, rgb_from_tensor, tensor_from_rgb};
use diffae_infer::{
    CallEvent, Codes, ModelSource, NetworkCall, Pipeline, PipelineSettings, Sheet, XTerminalSource, built_in_pictures,
    gif_bytes, keep_residual,
};
use image::RgbImage;
use serde_json::json;

use self::page::{Exhibit, former_results, page};
use super::say_either;
use crate::args::{BatchArgs, DemoArgs, GlobalArgs, HintArgs};
use crate::interrupt::catch_interrupts;
use crate::output::{OutputDir, Provenance};
use crate::progress::{Job, Noun, Progress, Work};
use crate::session::load_options;

/// Number of faces that are varied, and of variations of each.
const NUM_VARIED: usize = 2;
const NUM_VARIATIONS: usize = 6;
/// Number of frames from one face to another, ends included.
const NUM_FRAMES: usize = 9;
/// Pairs of faces that are interpolated, by index.
const BLENDED: [(usize, usize); 2] = [(0, 1), (6, 7)];
const NUM_SAMPLES: usize = 16;
const SAMPLES_PER_ROW: usize = 8;
/// Edit strengths, as shares of the calibrated full-edit strength.
const PARTS: [f64; 5] = [0.25, 0.5, 0.75, 1., 1.5];
/// Duration of each frame of the animation.
const MILLISECONDS_PER_FRAME: u32 = 120;
/// Width of sheets on the page, beside text: rows stand below each other.
const SHEET_WIDTH: u32 = 1180;
const ANIMATION: &str = "interpolation.gif";
const PAGE: &str = "index.html";
/// File names of the exhibits.
const FILES: [&str; 6] =
    ["reconstructions.png", "edits.png", "interpolations.png", ANIMATION, "variations.png", "samples.png"];

/// Demonstrates everything that a model does, and lays it out as a page.
pub(crate) fn run(global: &GlobalArgs, args: &DemoArgs) -> Result<()> {
    let start = Instant::now();
    let names: Vec<String> = FILES.iter().chain([&PAGE]).map(|&name| name.to_owned()).collect();
    let overwrite = former_results(&args.out, &names, args.force.overwrite())?;
    let output = OutputDir::new(&args.out, &names, overwrite)?;
    catch_interrupts();
    let options = load_options(global, &HintArgs::default())?;
    let model = ModelSource::built_in()?.build(&options)?;
    let batch = BatchArgs { batch_size: None };
    let settings = args.decoding.settings(&batch, model.config())?;
    let num_invert_steps = settings.num_steps;
    let settings = PipelineSettings { num_invert_steps, seed: args.random.seed, ..settings };
    let provenance = Provenance::new(model.fingerprint())
        .with("steps", &settings.num_steps)
        .with("sampler", &settings.sampler)
        .with("spacing", &settings.spacing)
        .with("seed", &args.random.seed);
    let (faces, num_attributes) = (built_in_pictures()?, model.classifier()?.config().attributes.len());
    let num_decoded = 2 * faces.len()
        + num_attributes * PARTS.len()
        + BLENDED.len() * NUM_FRAMES
        + NUM_VARIED * NUM_VARIATIONS
        + NUM_SAMPLES;
    // An inversion takes as many steps as a picture, and counts as one.
    let num_pictures = faces.len() + num_decoded;
    let pipeline = Pipeline::new(model);
    let decoder = faces.len() * pipeline.num_inversion_calls(&settings) + num_decoded * settings.num_steps;
    let work = Work { encoder: faces.len(), decoder, latent_net: NUM_SAMPLES * settings.num_latent_steps };
    let job = Job { label: "demo", noun: Noun::Pictures, num_items: num_pictures, num_kept: 0, work };
    let progress = Progress::of(job, pipeline.model());
    let pictures: Vec<RgbImage> = faces.into_iter().map(|(_, face)| face).collect();
    let demo = Demo { pipeline, settings, progress: &progress, num_calls: Cell::new(0) };
    let exhibits = demo.exhibits(&pictures, args, &provenance)?;
    progress.finish();
    for Exhibit { file, bytes, .. } in &exhibits {
        output.write(file, bytes)?;
    }
    output.write(PAGE, page(&exhibits, settings.num_steps).as_bytes())?;
    output.commit()?;
    let (seconds, page) = (start.elapsed().as_secs_f64(), args.out.join(PAGE));
    let files: Vec<_> = exhibits.iter().map(|exhibit| args.out.join(exhibit.file)).chain([page.clone()]).collect();
    let report = json!({ "command": "demo", "out": args.out, "page": page, "files": files });
    let sentence = format!("open {} ({} exhibits, {seconds:.0} s)", page.display(), exhibits.len());
    say_either(&args.json, &report, &sentence)
}

/// A model to demonstrate.
struct Demo<'a> {
    pipeline: Pipeline,
    settings: PipelineSettings,
    progress: &'a Progress,
    /// Number of decoder calls so far, times pictures.
    num_calls: Cell<usize>,
}

impl Demo<'_> {
    /// Reports the progress of calls, and of pictures once all their steps are done.
    fn observer(&self) -> impl FnMut(&CallEvent<'_>) -> ControlFlow<()> + '_ {
        |event| {
            if event.call == NetworkCall::Decoder {
                let before = self.num_calls.get();
                self.num_calls.set(before + event.num_pictures);
                let whole = |calls: usize| calls.checked_div(self.settings.num_steps).unwrap_or(0);
                self.progress.done(whole(self.num_calls.get()) - whole(before));
            }
            self.progress.call(event.call, event.num_pictures)
        }
    }

    fn decode(&self, codes: &Codes) -> Result<Vec<RgbImage>> {
        Ok(self.pipeline.decode(codes, &self.settings, &mut self.observer())?)
    }

    fn decode_tensor(&self, codes: &Codes) -> Result<Tensor> {
        Ok(self.pipeline.decode_tensor(codes, &self.settings, &mut self.observer())?)
    }

    /// Computes everything on the page, in its order.
    fn exhibits(&self, pictures: &[RgbImage], args: &DemoArgs, provenance: &Provenance) -> Result<Vec<Exhibit>> {
        let codes = self.pipeline.encode(pictures, &self.settings, &mut self.observer())?;
        let decoded = self.decode_tensor(&codes)?;
        let drawn = |sheet: Sheet, file: &str| -> Result<Vec<u8>> {
            let page = sheet.with_max_width(SHEET_WIDTH).draw();
            Ok(png_bytes(&page, provenance.entries(), &args.out.join(file))?)
        };
        let [reconstructions, edits, blends, _, variations, samples] = FILES;
        let reconstructed = self.reconstruct((&codes, &decoded), pictures)?;
        let edited = self.edit((&codes, &decoded), pictures)?;
        let paths = self.interpolate(&codes)?;
        let frames = paths.first().map(|path| forth_and_back(path)).unwrap_or_default();
        let gif = gif_bytes(&frames, MILLISECONDS_PER_FRAME, &args.out.join(ANIMATION))?;
        let mut blended = Sheet::new();
        for path in paths {
            blended.push("", path);
        }
        Ok(vec![
            Exhibit {
                file: reconstructions,
                title: "Two codes hold an image",
                text: "Faces that the model has not seen in training (original); decoded from z_sem and their own x_T \
                   (inverted x_T); decoded from z_sem and random noise (random x_T). What the last row keeps is what z_sem \
                   holds.",
                bytes: drawn(reconstructed, reconstructions)?,
            },
            Exhibit {
                file: edits,
                title: "Edits",
                text: "z_sem moved along the direction of an attribute; x_T stays, and so does what decoding loses. At 1 a face \
                   should have the attribute; 1.5 overshoots on purpose: faces leave what the model knows.",
                bytes: drawn(edited, edits)?,
            },
            Exhibit {
                file: blends,
                title: "Interpolation",
                text: "z_sem on a straight line from one face to the other, x_T on an arc.",
                bytes: drawn(blended, blends)?,
            },
            Exhibit {
                file: ANIMATION,
                title: "The same, moving",
                text: "The first row from left to right and back. Every frame is a face: codes between two faces are codes of \
                   faces.",
                bytes: gif,
            },
            Exhibit {
                file: variations,
                title: "Variations",
                text: "The z_sem of one face with six random x_T. They look alike, and that is no fault: in these drawings z_sem \
                   decides nearly everything, so little is left for x_T. With photographs, hair and background would differ.",
                bytes: drawn(self.vary(&codes, pictures)?, variations)?,
            },
            Exhibit {
                file: samples,
                title: "New faces",
                text: "z_sem sampled by the latent diffusion, x_T random: faces that no one has drawn.",
                bytes: drawn(self.sample()?, samples)?,
            },
        ])
    }

    fn reconstruct(&self, (codes, decoded): (&Codes, &Tensor), pictures: &[RgbImage]) -> Result<Sheet> {
        let decoded =
            (0..pictures.len()).map(|face| Ok(rgb_from_tensor(&decoded.get(face)?)?)).collect::<Result<_>>()?;
        let random = Codes { x_terminal: None, chain: None, ..codes.clone() };
        let mut sheet = Sheet::new();
        sheet.push("original", pictures.to_vec());
        sheet.push("inverted x_T", decoded);
        let label = match self.settings.x_terminal {
            XTerminalSource::Random => "random x_T",
            XTerminalSource::Endpoint => "endpoint x_T",
        };
        sheet.push(label, self.decode(&random)?);
        Ok(sheet)
    }

    /// Lays out a row per attribute: the face that lacks it most clearly, edited with growing strength.
    fn edit(&self, (codes, decoded): (&Codes, &Tensor), pictures: &[RgbImage]) -> Result<Sheet> {
        let pipeline = &self.pipeline;
        let z_sem = codes.z_sem.as_ref().context("the model has no z_sem")?;
        let classifier = pipeline.model().classifier()?;
        let logits = classifier.forward(&pipeline.model().normalize(z_sem)?)?; // [N, attributes]
        let logits = logits.to_vec2::<f32>()?;
        let columns = ["original".to_owned()].into_iter().chain(PARTS.iter().map(f64::to_string));
        let mut sheet = Sheet::new().with_columns(columns);
        for (attribute_idx, attribute) in pipeline.attributes().iter().enumerate() {
            let of =
                |face: &usize| logits.get(*face).and_then(|row| row.get(attribute_idx)).copied().unwrap_or_default();
            let face = (0..pictures.len()).min_by(|a, b| of(a).total_cmp(&of(b))).unwrap_or(0);
            let one = codes.select(&[face])?;
            let mut row = vec![pictures[face].clone()];
            let x_0 = tensor_from_rgb(&pictures[face], pipeline.model().picture_format())?
                .unsqueeze(0)?
                .to_device(decoded.device())?;
            let decoded = decoded.narrow(0, face, 1)?;
            let full_strength =
                classifier.full_strength(attribute_idx)?.context("the model does not know how far to go")?;
            for strength in PARTS.map(|part| part * full_strength) {
                let edited = self.decode_tensor(&pipeline.edit(&one, attribute, strength)?)?;
                row.push(rgb_from_tensor(&keep_residual(&edited, &x_0, &decoded)?.get(0)?)?);
            }
            sheet.push(attribute.replace('_', " "), row);
        }
        Ok(sheet)
    }

    /// Decodes the faces of each path.
    fn interpolate(&self, codes: &Codes) -> Result<Vec<Vec<RgbImage>>> {
        let blend = |&(from, to): &(usize, usize)| {
            let between = self.pipeline.interpolate(&codes.select(&[from])?, &codes.select(&[to])?, NUM_FRAMES)?;
            self.decode(&between)
        };
        BLENDED.iter().map(blend).collect()
    }

    fn vary(&self, codes: &Codes, pictures: &[RgbImage]) -> Result<Sheet> {
        let titles = (1..=NUM_VARIATIONS).map(|number| format!("x_T {number}"));
        let mut sheet = Sheet::new().with_columns(["original".to_owned()].into_iter().chain(titles));
        for (face, picture) in pictures.iter().enumerate().take(NUM_VARIED) {
            let variations = self.pipeline.variations(
                &codes.select(&[face])?,
                NUM_VARIATIONS,
                &self.settings,
                &mut self.observer(),
            )?;
            sheet.push("", [vec![picture.clone()], variations].concat());
        }
        Ok(sheet)
    }

    fn sample(&self) -> Result<Sheet> {
        let mut sheet = Sheet::new();
        let samples = self.pipeline.sample(NUM_SAMPLES, &self.settings, &mut self.observer())?;
        samples.chunks(SAMPLES_PER_ROW).for_each(|samples| sheet.push("", samples.to_vec()));
        Ok(sheet)
    }
}

fn forth_and_back(frames: &[RgbImage]) -> Vec<RgbImage> {
    let inner = frames.get(1..frames.len().saturating_sub(1)).unwrap_or_default();
    frames.iter().chain(inner.iter().rev()).cloned().collect()
}
