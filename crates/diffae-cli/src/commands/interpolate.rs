//! `diffae interpolate --model MODEL A B .. --out FILE`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use candle_core::Tensor;
use diffae_data::{Overwrite, check_writable, png_bytes, rgb_from_tensor};
use diffae_infer::{
    CodeChain, Codes, CodesBatch, CodesNeed, FrameRate, PathEnd, PathFrame, PipelineSettings, Settings, Subjects,
    animation_bytes, path_frames, sheet,
};
use image::RgbImage;
use serde_json::{Value, json};

use crate::args::{GlobalArgs, InterpolateArgs, LevelsArgs, chain_settings};
use crate::output::{OutputDir, Provenance, refuse_existing, say, say_json, write_file};
use crate::pictures::list_readable_subjects;
use crate::progress::{Job, Noun, Progress, Work};
use crate::session::Session;

const COMMAND: &str = "interpolate";
/// Frames per second of an animation, by default.
const USUAL_RATE: f64 = 10.;

/// Destination of the frames.
enum FrameOutput {
    Strip,
    Animation,
    Folder(OutputDir),
}

/// A picture of the path; where no picture file holds all numbers, with a file of these.
#[derive(Clone)]
struct Frame {
    picture: RgbImage,
    /// Ending and contents.
    numbers: Option<(&'static str, Vec<u8>)>,
}

/// A path through pictures.
struct Route<'a> {
    session: &'a Session,
    subjects: &'a Subjects,
    frames: &'a [PathFrame],
    settings: PipelineSettings,
    levels: &'a LevelsArgs,
    /// Ending of the files of numbers to write beside pictures.
    ending: Option<&'static str>,
}

/// Encodes pictures and decodes codes interpolated between theirs.
pub(crate) fn run(global: &GlobalArgs, args: &InterpolateArgs) -> Result<()> {
    let (path, overwrite) = (&args.out.out, args.out.force.overwrite());
    let rate = FrameRate::new(args.fps.unwrap_or(USUAL_RATE))?;
    let subjects = list_readable_subjects(&args.input.input, &args.input.reading)?;
    if subjects.len() < 2 {
        bail!("an interpolation needs two pictures or more, got {}", subjects.len())
    }
    let end = if args.is_loop { PathEnd::First } else { PathEnd::Last };
    let frames = path_frames(subjects.len(), args.frames, end)?;
    let names: Vec<String> = (0..frames.len()).map(|frame| format!("frame_{frame:04}.png")).collect();
    let output = frame_output(path, &names, overwrite)?;
    if args.fps.is_some() && !matches!(output, FrameOutput::Animation) {
        bail!("--fps is the speed of an animation, but --out is {}, expected a name that ends in .gif", path.display())
    }
    let session = Session::open(global, &args.model, &args.batch)?;
    subjects.check(session.model(), CodesNeed::Both)?;
    subjects.noise_warnings()?.iter().for_each(|warning| tracing::warn!("{warning}"));
    let bases = (session.config(), PipelineSettings::REFERENCE);
    let settings = args.decoding.with_inversion(&args.inversion, bases, &args.batch, Some(&subjects))?;
    let need = if subjects.num_pictures() > 0 { CodesNeed::Both } else { CodesNeed::ZSem };
    session.check_chains(&settings, need)?;
    args.levels.check(session.model())?;
    let is_folder = matches!(output, FrameOutput::Folder(_));
    let ending = session.model().picture_format().ending_of_numbers().filter(|_| is_folder);
    if let Some(ending) = ending {
        names.iter().try_for_each(|name| refuse_existing(&path.join(with_ending(name, ending)), overwrite))?;
    }
    let route =
        Route { session: &session, subjects: &subjects, frames: &frames, settings, levels: &args.levels, ending };
    let pictures = route.pictures()?;
    let mut public = Settings::from([("model".to_owned(), session.model().fingerprint().into())]);
    public.extend(args.levels.settings());
    public.extend(chain_settings(&settings, if settings.chain().is_some() { CodesNeed::Both } else { need }));
    let provenance = Provenance::without_model().with_all(&public);
    let files = Film { path, frames: &pictures, names: &names, provenance, rate }.write(output, overwrite)?;
    if args.json.json {
        let stops: Vec<&str> = subjects.all().iter().map(|subject| subject.name.as_str()).collect();
        let report =
            json!({ "command": COMMAND, "out": path, "files": files, "frames": frames.len(), "through": stops });
        let Value::Object(mut report) = report else { bail!("a report is an object") };
        report.extend(public);
        return say_json(&report);
    }
    say(&format!("wrote {} to {}", Noun::Frames.counted(frames.len()), path.display()))
}

/// Frames, with the settings of their display.
struct Film<'a> {
    path: &'a Path,
    frames: &'a [Frame],
    names: &'a [String],
    provenance: Provenance,
    rate: FrameRate,
}

impl Film<'_> {
    /// Writes the frames, and returns the files.
    fn write(&self, output: FrameOutput, overwrite: Overwrite) -> Result<Vec<PathBuf>> {
        let Self { path, frames, names, provenance, rate } = self;
        let pictures = || frames.iter().map(|frame| frame.picture.clone()).collect::<Vec<_>>();
        let bytes = match output {
            FrameOutput::Strip => png_bytes(&sheet(&[pictures()]), provenance.entries(), path)?,
            FrameOutput::Animation => animation_bytes(&pictures(), *rate, path)?,
            FrameOutput::Folder(folder) => {
                let mut files = vec![];
                for (name, Frame { picture, numbers }) in names.iter().zip(*frames) {
                    folder.write_png(name, picture, provenance)?;
                    files.push(path.join(name));
                    if let Some((ending, bytes)) = numbers {
                        folder.write(&with_ending(name, ending), bytes)?;
                        files.push(path.join(with_ending(name, ending)));
                    }
                }
                folder.commit()?;
                return Ok(files);
            }
        };
        write_file(path, &bytes, overwrite)?;
        Ok(vec![path.to_path_buf()])
    }
}

/// Returns the name of the file of numbers beside a PNG.
fn with_ending(name: &str, ending: &str) -> String {
    format!("{}.{ending}", name.trim_end_matches(".png"))
}

fn frame_output(path: &Path, names: &[String], overwrite: Overwrite) -> Result<FrameOutput> {
    let extension = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    let file = |output| {
        refuse_existing(path, overwrite)?;
        check_writable(path)?;
        Ok(output)
    };
    match extension.as_ref().and_then(|extension| extension.to_str()) {
        Some("png") => file(FrameOutput::Strip),
        Some(other @ ("safetensors" | "jpg" | "jpeg" | "webp" | "bmp" | "mp4")) => {
            bail!("--out ends in .{other}, expected .png for a strip, .gif for an animation, or a folder")
        }
        Some("gif") => file(FrameOutput::Animation),
        _ => OutputDir::new(path, names, overwrite).map(FrameOutput::Folder),
    }
}

impl Route<'_> {
    /// Decodes the pictures of all frames; frames that come twice are decoded once.
    fn pictures(&self) -> Result<Vec<Frame>> {
        let Self { session, subjects, settings, ending, .. } = *self;
        let pipeline = &session.pipeline;
        let mut distinct: Vec<PathFrame> = vec![];
        let mut places = vec![];
        for frame in self.frames {
            let place = distinct.iter().position(|known| known == frame).unwrap_or(distinct.len());
            if place == distinct.len() {
                distinct.push(*frame);
            }
            places.push(place);
        }
        let num_pictures = subjects.num_pictures();
        let decoder = num_pictures * pipeline.num_inversion_calls(&settings)
            + distinct.len() * pipeline.num_decoding_calls(&settings);
        let work = Work { encoder: session.encoder_calls(num_pictures), decoder, latent_net: 0 };
        let num_items = distinct.len();
        let progress = session.progress(Job { label: COMMAND, noun: Noun::Frames, num_items, num_kept: 0, work });
        let codes = self.codes(&progress)?;
        let format = session.model().picture_format();
        let mut decoded = Vec::with_capacity(distinct.len());
        for batch in pipeline.batches(0..distinct.len(), &settings) {
            let frames = &distinct[batch.clone()];
            let mut between = codes.at_frames(frames)?;
            if !self.levels.levels.is_empty() {
                // The first picture, but for what was asked for.
                let first = codes.first_repeated(frames.len())?;
                between = pipeline.with_levels_of(&first, &between, &self.levels.levels)?;
            }
            let missing = diffae_infer::Error::MissingPart { part: "x_T", hint: "it decides what frames look like" };
            let x_terminal = between.x_terminal.ok_or(missing)?;
            let numbers: Vec<u64> = (batch.start as u64..batch.end as u64).collect();
            let (chain, z_sem) = (between.chain.as_ref(), between.z_sem.as_ref());
            let codes = CodesBatch { x_terminal: &x_terminal, chain, z_sem, numbers: &numbers };
            let x_0 = pipeline.decode_batch(codes, &settings, &mut progress.observer())?;
            for idx in 0..frames.len() {
                let x = x_0.get(idx)?;
                let numbers = ending.map(|ending| Ok::<_, anyhow::Error>((ending, format.encode_numbers(&x, None)?)));
                decoded.push(Frame { picture: rgb_from_tensor(&x)?, numbers: numbers.transpose()? });
            }
            progress.done(frames.len());
        }
        progress.finish();
        Ok(places.into_iter().map(|place| decoded[place].clone()).collect())
    }

    /// Returns the codes of all pictures.
    fn codes(&self, progress: &Progress) -> Result<Codes> {
        let Self { session, subjects, settings, .. } = *self;
        let (mut z_sems, mut x_terminals, mut chains) = (vec![], vec![], vec![]);
        for batch in session.pipeline.batches(0..subjects.len(), &settings) {
            let encoded = session.encode(subjects, batch, CodesNeed::Both, &settings, progress)?;
            z_sems.extend(encoded.z_sem);
            x_terminals.extend(encoded.x_terminal);
            chains.push(encoded.chain);
        }
        let joined = |parts: &[Tensor]| if parts.is_empty() { Ok(None) } else { Tensor::cat(parts, 0).map(Some) };
        Ok(Codes {
            z_sem: joined(&z_sems)?,
            x_terminal: joined(&x_terminals)?,
            chain: CodeChain::joined(chains.iter().map(Option::as_ref))?,
            names: subjects.all().iter().map(|subject| subject.name.clone()).collect(),
            fingerprint: session.model().fingerprint().to_owned(),
        })
    }
}
