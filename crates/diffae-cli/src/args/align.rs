//! Arguments of `diffae align`.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

use std::path::PathBuf;

use clap::Args;
use diffae_data::FaceBox;

use super::{OutArgs, PictureArgs};

#[derive(Debug, Args)]
pub(crate) struct AlignArgs {
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    /// dlib's model of 68 landmarks, shape_predictor_68_face_landmarks.dat; on Debian in the package libdlib-data
    #[arg(long, value_name = "FILE")]
    pub(crate) landmarks: PathBuf,
    #[command(flatten)]
    pub(crate) place: FacePlaceArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Height and width of the aligned images
    #[arg(long, default_value_t = 256, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub(crate) size: u32,
    /// Print boxes, landmarks and corners as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Position of the face in an image.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct FacePlaceArgs {
    /// Face box from the brows to the chin, in pixels, for all images
    #[arg(long = "box", value_name = "LEFT,TOP,WIDTH,HEIGHT", allow_hyphen_values = true)]
    pub(crate) face_box: Option<FaceBox>,
    /// CSV with lines NAME,LEFT,TOP,WIDTH,HEIGHT: a box for each image, as face detectors report them
    #[arg(long, value_name = "FILE")]
    pub(crate) boxes: Option<PathBuf>,
    /// For head-and-shoulders images: a face in the middle, 0.6 of the shorter side
    #[arg(long)]
    pub(crate) whole: bool,
}
