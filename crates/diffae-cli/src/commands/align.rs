//! `diffae align PICTURE.. --landmarks FILE --box LEFT,TOP,WIDTH,HEIGHT --out DIR`

use anyhow::{Context, Result, bail};
use diffae_data::{AlignedFace, FaceBoxes, FacePlace, Input, ShapePredictor, align_face, list_inputs_with};
use serde::Serialize;

use crate::args::{AlignArgs, FacePlaceArgs, ReadingArgs};
use crate::interrupt::catch_interrupts;
use crate::output::{OutputDir, Provenance, say, say_json};
use crate::pictures::list_readable;
use crate::progress::Progress;

/// Face found in an image.
#[derive(Debug, Serialize)]
struct Found {
    name: String,
    /// Face box: left, top, width, height.
    #[serde(rename = "box")]
    face_box: [i64; 4],
    landmarks: Vec<[f64; 2]>,
    /// Corners of the crop: upper left, lower left, lower right, upper right.
    corners: [[f64; 2]; 4],
}

/// Crops a face out of each picture. A picture that is unfit does not stop the others, but the command fails in the
/// end; with `--skip-broken` not because of those that cannot be read.
pub(crate) fn run(args: &AlignArgs) -> Result<()> {
    let place = place(&args.place)?;
    catch_interrupts();
    let paths = &args.pictures.input;
    let inputs = match &args.pictures.reading {
        skipping @ ReadingArgs { skip_broken: true, .. } => list_readable(paths, skipping, None)?.inputs,
        reading => list_inputs_with(paths, &reading.picture_key)?,
    };
    let files: Vec<String> = inputs.iter().map(|input| format!("{}.png", input.name)).collect();
    let output = OutputDir::new(&args.out.out, &files, args.out.force.overwrite())?;
    let predictor = ShapePredictor::open(&args.landmarks)?;
    let provenance = Provenance::without_model().with("size", &args.size);
    let progress = Progress::start("align", inputs.len(), 1);
    let (mut found, mut failed, mut hint) = (Vec::new(), Vec::new(), "");
    for (input, file) in inputs.iter().zip(&files) {
        match align(input, &place, &predictor, args.size) {
            Ok(face) => {
                output.write_png(file, &face.picture, &provenance)?;
                found.push(Found {
                    name: input.name.clone(),
                    face_box: face.face_box.numbers(),
                    landmarks: face.landmarks,
                    corners: face.crop.corners(),
                });
            }
            Err(error) if inputs.len() == 1 => return Err(error),
            Err(error) => {
                tracing::warn!("{error:#}");
                failed.push(input.name.as_str());
                if is_unreadable(&error) {
                    hint = "; --skip-broken leaves out those that cannot be read";
                }
            }
        }
        progress.check(1)?;
    }
    progress.finish();
    if !found.is_empty() {
        output.commit()?;
    }
    if args.json {
        say_json(&found)?;
    } else {
        let faces = if found.len() == 1 { "face" } else { "faces" };
        say(&format!("wrote {} {faces} to {}", found.len(), args.out.out.display()))?;
    }
    if !failed.is_empty() {
        bail!("{} of {} images could not be aligned: {}{hint}", failed.len(), inputs.len(), failed.join(", "))
    }
    Ok(())
}

/// Returns whether the picture itself cannot be read.
fn is_unreadable(error: &anyhow::Error) -> bool {
    use diffae_data::Error::{DamagedPicture, Image, Io, UnreadPicture};
    matches!(error.downcast_ref(), Some(DamagedPicture { .. } | Image { .. } | Io { .. } | UnreadPicture { .. }))
}

fn place(args: &FacePlaceArgs) -> Result<FacePlace> {
    match args {
        FacePlaceArgs { face_box: Some(face_box), .. } => Ok(FacePlace::Given(*face_box)),
        FacePlaceArgs { boxes: Some(path), .. } => Ok(FacePlace::Listed(FaceBoxes::open(path)?)),
        FacePlaceArgs { whole: true, .. } => Ok(FacePlace::Middle),
        _ => bail!(
            "the position of the face is unknown: give --box LEFT,TOP,WIDTH,HEIGHT, --boxes FILE for many images, or \
             --whole if they show head and shoulders"
        ),
    }
}

fn align(input: &Input, place: &FacePlace, predictor: &ShapePredictor, size: u32) -> Result<AlignedFace> {
    let aligned = || -> diffae_data::Result<AlignedFace> {
        let photograph = input.read_rgb()?;
        align_face(predictor, &photograph, place.face_box(&input.name, &photograph)?, size)
    };
    aligned().with_context(|| format!("cannot align {}", input.name))
}
