//! Alignment of faces: crops photographs as the pictures of FFHQ were cropped.
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

/// The location of the face in a photograph.
#[derive(Debug)]
pub enum FacePlace {
    /// A known box around the face.
    Given(FaceBox),
    /// The middle of the photograph, see [`FaceBox::middle_of`].
    Middle,
    /// A box for each photograph, read from a file.
    Listed(FaceBoxes),
}

impl FacePlace {
    /// Returns the box of the face in the photograph with a name.
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

/// A face that was found and cropped.
#[derive(Debug)]
pub struct AlignedFace {
    /// The box in which landmarks were searched.
    pub face_box: FaceBox,
    /// The landmarks of the face, x and y in pixels of the photograph.
    pub landmarks: Vec<[f64; 2]>,
    /// The crop square in the photograph.
    pub crop: FaceCrop,
    /// The cropped picture.
    pub picture: RgbImage,
}

/// Finds the landmarks of the face in a box and crops the face, at `size` x `size` pixels.
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

/// Results that `xtask/peer/align_fixtures.py` recorded.
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
