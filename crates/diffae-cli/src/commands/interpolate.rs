//! `diffae interpolate --model MODEL A B --out FILE`

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::Tensor;
use diffae_infer::{gif_bytes, lerp, list_inputs, png_bytes, rgb_from_tensor, sheet, slerp, write_atomically};
use image::RgbImage;

use crate::args::{GlobalArgs, InterpolateArgs};
use crate::output::{OutputDir, Provenance, refuse_existing, say};
use crate::progress::Progress;
use crate::session::Session;

/// How long an animation shows each frame.
const MILLISECONDS_PER_FRAME: u32 = 100;

/// Where the frames go.
enum FrameOutput {
    Strip,
    Animation,
    Folder(OutputDir),
}

/// Encodes two pictures and decodes codes between theirs.
pub(crate) fn run(global: &GlobalArgs, args: &InterpolateArgs) -> Result<()> {
    let overwrite = args.out.force.overwrite();
    let names: Vec<String> = (0..args.frames).map(|frame| format!("frame_{frame:04}.png")).collect();
    let output = frame_output(&args.out.out, &names, overwrite)?;
    let inputs = list_inputs(&[args.from.clone(), args.to.clone()])?;
    if inputs.len() != 2 {
        bail!("expected two pictures, got {}", inputs.len())
    }
    let session = Session::open(global, &args.model, &args.batch)?;
    session.check_steps("--steps", args.decoding.steps)?;
    session.check_steps("--invert-steps", args.inversion.invert_steps)?;
    let progress = Progress::start("interpolate", args.frames, args.decoding.steps);
    let frames = frames(&session, &session.read(&inputs)?, args, &progress)?;
    progress.finish();
    let provenance = Provenance::new(session.model.fingerprint())
        .with("steps", &args.decoding.steps)
        .with("invert_steps", &args.inversion.invert_steps);
    let path = &args.out.out;
    match output {
        FrameOutput::Strip => {
            let strip = sheet(&[frames]);
            write_atomically(path, &png_bytes(&strip, provenance.entries(), path)?, overwrite)?;
        }
        FrameOutput::Animation => {
            write_atomically(path, &gif_bytes(&frames, MILLISECONDS_PER_FRAME, path)?, overwrite)?;
        }
        FrameOutput::Folder(folder) => {
            for (name, frame) in names.iter().zip(&frames) {
                folder.write_png(name, frame, &provenance)?;
            }
            folder.commit()?;
        }
    }
    say(&format!("wrote {} frames to {}", args.frames, path.display()))
}

fn frame_output(path: &Path, names: &[String], overwrite: diffae_infer::Overwrite) -> Result<FrameOutput> {
    let extension = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    match extension.as_ref().and_then(|extension| extension.to_str()) {
        Some("png") => refuse_existing(path, overwrite).map(|()| FrameOutput::Strip),
        Some(other @ ("safetensors" | "jpg" | "jpeg" | "webp" | "bmp" | "mp4")) => {
            bail!("--out ends in .{other}, expected .png for a strip, .gif for an animation, or a folder")
        }
        Some("gif") => refuse_existing(path, overwrite).map(|()| FrameOutput::Animation),
        _ => OutputDir::new(path, names, overwrite).map(FrameOutput::Folder),
    }
}

/// Decodes codes between those of the two pictures `x_0` `[2, C, H, W]`.
fn frames(session: &Session, x_0: &Tensor, args: &InterpolateArgs, progress: &Progress) -> Result<Vec<RgbImage>> {
    let z_sem = session.encode_semantic(x_0)?;
    let inversion = Progress::start("invert", 2, args.inversion.invert_steps);
    let x_terminal = session.invert(x_0, z_sem.as_ref(), args.inversion.invert_steps, &inversion)?;
    inversion.finish();
    let (from, to) = (x_terminal.get(0)?, x_terminal.get(1)?);
    let last = args.frames.saturating_sub(1).max(1) as f64;
    let alphas: Vec<f64> = (0..args.frames).map(|frame| frame as f64 / last).collect();
    let mut frames = Vec::with_capacity(args.frames);
    for alphas in alphas.chunks(session.batch_size()) {
        let each = |between: &dyn Fn(f64) -> candle_core::Result<Tensor>| {
            Tensor::stack(&alphas.iter().map(|&alpha| between(alpha)).collect::<candle_core::Result<Vec<_>>>()?, 0)
        };
        let x_terminals = each(&|alpha| slerp(&from, &to, alpha))?;
        let z_sems =
            z_sem.as_ref().map(|z_sem| each(&|alpha| lerp(&z_sem.get(0)?, &z_sem.get(1)?, alpha))).transpose()?;
        let decoded = session.decode(&x_terminals, z_sems.as_ref(), args.decoding.steps, progress)?;
        for idx in 0..alphas.len() {
            frames.push(rgb_from_tensor(&decoded.get(idx)?)?);
        }
    }
    Ok(frames)
}
