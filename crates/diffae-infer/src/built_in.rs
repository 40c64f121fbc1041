//! The built-in model, and pictures to try it on.

use std::path::Path;

use image::RgbImage;

use crate::error::Result;
use crate::model_dir::ModelSource;

/// Name of the built-in model: cartoon faces of 64 pixels. Any model path may be this name.
///
/// Its card, `models/toonheads/README.md` in the crate, says how it was trained, what was measured, and whose artwork it
/// has seen.
pub const BUILT_IN_MODEL: &str = "toonheads";

const CONFIG: &str = include_str!("../models/toonheads/config.json");
static WEIGHTS: &[u8] = include_bytes!("../models/toonheads/model.safetensors");

/// Faces that the model was not trained on, each with its name.
const PICTURES: [(&str, &[u8]); 8] = [
    ("face_1", include_bytes!("../models/toonheads/faces/1.png")),
    ("face_2", include_bytes!("../models/toonheads/faces/2.png")),
    ("face_3", include_bytes!("../models/toonheads/faces/3.png")),
    ("face_4", include_bytes!("../models/toonheads/faces/4.png")),
    ("face_5", include_bytes!("../models/toonheads/faces/5.png")),
    ("face_6", include_bytes!("../models/toonheads/faces/6.png")),
    ("face_7", include_bytes!("../models/toonheads/faces/7.png")),
    ("face_8", include_bytes!("../models/toonheads/faces/8.png")),
];

impl ModelSource {
    /// Opens the built-in model.
    ///
    /// # Errors
    /// None that can be brought about; the parts of the program fit together.
    pub fn built_in() -> Result<Self> {
        Self::from_static(BUILT_IN_MODEL, CONFIG, WEIGHTS)
    }
}

/// Decodes eight 64-pixel faces held out from the built-in model's training, with their names.
///
/// # Errors
/// None that can be brought about.
pub fn built_in_pictures() -> Result<Vec<(String, RgbImage)>> {
    let decode = |&(name, bytes): &(&str, &[u8])| {
        let picture = image::load_from_memory(bytes)
            .map_err(|source| diffae_data::Error::Image { path: Path::new(name).into(), source })?;
        Ok((name.to_owned(), picture.to_rgb8()))
    };
    PICTURES.iter().map(decode).collect()
}
