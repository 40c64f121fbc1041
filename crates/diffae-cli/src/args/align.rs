//! Arguments of `diffae align`.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

use std::path::PathBuf;

use clap::Args;
use diffae_infer::FaceBox;

use super::{OutArgs, PictureArgs};

#[derive(Debug, Args)]
pub(crate) struct AlignArgs {
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    /// dlib's model of 68 landmarks, shape_predictor_68_face_landmarks.dat; Debian has it in libdlib-data
    #[arg(long, value_name = "FILE")]
    pub(crate) landmarks: PathBuf,
    #[command(flatten)]
    pub(crate) place: FacePlaceArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Height and width of the results
    #[arg(long, default_value_t = 256, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub(crate) size: u32,
    /// Print boxes, landmarks and corners as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the face of a picture is.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct FacePlaceArgs {
    /// The face, from the brows to the chin, in pixels; the same in all pictures
    #[arg(long = "box", value_name = "LEFT,TOP,WIDTH,HEIGHT", allow_hyphen_values = true)]
    pub(crate) face_box: Option<FaceBox>,
    /// CSV of lines NAME,LEFT,TOP,WIDTH,HEIGHT: a box for each picture, as a face detector found it
    #[arg(long, value_name = "FILE")]
    pub(crate) boxes: Option<PathBuf>,
    /// Pictures show head and shoulders: the face is the middle, 0.6 of the shorter side
    #[arg(long)]
    pub(crate) whole: bool,
}
