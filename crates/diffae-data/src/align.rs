//! Crops faces out of photographs as the pictures of FFHQ were cropped.
//!
//! | step | by |
//! |---|---|
//! | a photograph -> a box around the face | [`FacePlace::face_box`]; detectors are programs of their own |
//! | a photograph and a box around the face -> 68 landmarks | [`ShapePredictor::landmarks`] |
//! | landmarks -> an oriented square | [`FaceCrop::from_landmarks`] |
//! | photograph and square -> a picture | [`FaceCrop::cut`] |

mod border;
mod dlib_stream;
mod face_box;
mod face_boxes;
mod face_crop;
mod resampling;
mod shape_predictor;

use image::RgbImage;

pub use self::face_box::FaceBox;
pub use self::face_boxes::FaceBoxes;
pub use self::face_crop::FaceCrop;
pub use self::shape_predictor::ShapePredictor;
use crate::error::{Error, Result};

/// Where the face of a photograph is.
#[derive(Debug)]
pub enum FacePlace {
    /// In this box.
    Given(FaceBox),
    /// In the middle, see [`FaceBox::middle_of`].
    Middle,
    /// In the box that a file gives each photograph.
    Listed(FaceBoxes),
}

impl FacePlace {
    /// The box of the face in the photograph of a name.
    ///
    /// # Errors
    /// [`Error::NoFaceBox`] if the file has none for it; [`Error::OutOfRange`] if the photograph is too small.
    pub fn face_box(&self, name: &str, photograph: &RgbImage) -> Result<FaceBox> {
        match self {
            Self::Given(face_box) => Ok(*face_box),
            Self::Middle => FaceBox::middle_of(photograph),
            Self::Listed(boxes) => boxes.of(name).ok_or_else(|| Error::NoFaceBox { name: name.to_owned() }),
        }
    }
}

/// A face that was found and cut out.
#[derive(Debug)]
pub struct AlignedFace {
    /// Where it was looked for.
    pub face_box: FaceBox,
    /// Its landmarks, x and y in pixels of the photograph.
    pub landmarks: Vec<[f64; 2]>,
    /// The square in the photograph.
    pub crop: FaceCrop,
    /// The square as a picture.
    pub picture: RgbImage,
}

/// Finds the landmarks of the face in a box and cuts the face out, at `size` x `size` pixels.
///
/// # Errors
/// [`Error::OutOfRange`] if the box lies beside the picture, or `size` is not in 1..=2048;
/// [`Error::Landmarks`] if the model has no 68 points, or finds no face.
pub fn align_face(
    predictor: &ShapePredictor,
    photograph: &RgbImage,
    face_box: FaceBox,
    size: u32,
) -> Result<AlignedFace> {
    let landmarks = predictor.landmarks(photograph, face_box)?;
    let crop = FaceCrop::from_landmarks(&landmarks)?;
    let picture = crop.cut(photograph, size)?;
    Ok(AlignedFace { face_box, landmarks, crop, picture })
}

/// What `xtask/peer/align_fixtures.py` recorded.
#[cfg(test)]
mod fixtures {
    use std::fs;
    use std::path::Path;

    use image::RgbImage;
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub(crate) struct Record {
        pub(crate) small_68: Vec<Landmarks>,
        pub(crate) aligned: Vec<Aligned>,
    }

    #[derive(Deserialize)]
    pub(crate) struct Landmarks {
        pub(crate) r#box: (i32, i32, u32, u32),
        pub(crate) landmarks: Vec<[f64; 2]>,
    }

    #[derive(Deserialize)]
    pub(crate) struct Aligned {
        pub(crate) name: String,
        pub(crate) size: u32,
        pub(crate) landmarks: Vec<[f64; 2]>,
        pub(crate) corners: [[f64; 2]; 4],
    }

    pub(crate) fn bytes(name: &str) -> Vec<u8> {
        fs::read(Path::new("../../tests/fixtures/align").join(name)).unwrap()
    }

    pub(crate) fn json() -> Record {
        serde_json::from_slice(&bytes("align.json")).unwrap()
    }

    pub(crate) fn picture(name: &str) -> RgbImage {
        image::load_from_memory(&bytes(name)).unwrap().into_rgb8()
    }

    pub(crate) fn photograph() -> RgbImage {
        picture("astronaut.png")
    }
}
