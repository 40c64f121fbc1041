//! `diffae align PICTURE.. --landmarks FILE --box LEFT,TOP,WIDTH,HEIGHT --out DIR`

use anyhow::{Context, Result, bail};
use diffae_infer::{AlignedFace, FaceBox, Input, ShapePredictor, align_face, list_inputs};
use serde::Serialize;

use crate::args::{AlignArgs, FacePlaceArgs};
use crate::output::{OutputDir, Provenance, say, say_json};
use crate::progress::Progress;
use crate::session::catch_interrupts;

/// What was found in a picture.
#[derive(Debug, Serialize)]
struct Found {
    name: String,
    /// Left, top, width, height.
    #[serde(rename = "box")]
    face_box: [i64; 4],
    landmarks: Vec<[f64; 2]>,
    /// Upper left, lower left, lower right, upper right.
    corners: [[f64; 2]; 4],
}

/// Cuts a face out of each picture. A picture that is unfit does not stop the others, but the command fails in the end.
pub(crate) fn run(args: &AlignArgs) -> Result<()> {
    if args.place.face_box.is_none() && !args.place.whole {
        bail!(
            "this program has no face detector: give --box LEFT,TOP,WIDTH,HEIGHT around the face, or --whole if the \
             pictures show head and shoulders"
        )
    }
    catch_interrupts();
    let inputs = list_inputs(&args.pictures.input)?;
    let files: Vec<String> = inputs.iter().map(|input| format!("{}.png", input.name)).collect();
    let output = OutputDir::new(&args.out.out, &files, args.out.force.overwrite())?;
    let predictor = ShapePredictor::open(&args.landmarks)?;
    let provenance = Provenance::without_model().with("size", &args.size);
    let progress = Progress::start("align", inputs.len(), 1);
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for (input, file) in inputs.iter().zip(&files) {
        match align(input, &predictor, args) {
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
        say(&format!("wrote {} faces to {}", found.len(), args.out.out.display()))?;
    }
    if !failed.is_empty() {
        bail!("{} of {} pictures could not be aligned: {}", failed.len(), inputs.len(), failed.join(", "))
    }
    Ok(())
}

fn align(input: &Input, predictor: &ShapePredictor, args: &AlignArgs) -> Result<AlignedFace> {
    let aligned = || -> diffae_infer::Result<AlignedFace> {
        let photograph = input.read_rgb()?;
        let face_box = match args.place {
            FacePlaceArgs { face_box: Some(face_box), .. } => face_box,
            FacePlaceArgs { face_box: None, .. } => FaceBox::middle_of(&photograph)?,
        };
        align_face(predictor, &photograph, face_box, args.size)
    };
    aligned().with_context(|| format!("cannot align {}", input.name))
}
