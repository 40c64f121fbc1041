//! The kind of pictures that a model was made for.

use serde::{Deserialize, Serialize};

/// The image domain of a model, if it is narrow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureDomain {
    /// The pictures in words, plural, such as `cartoon faces`.
    pub pictures: String,
    /// The [`psnr_of_z_sem`](crate::Model::psnr_of_z_sem), in dB, below which a picture is of another kind.
    pub min_psnr: f64,
}

impl PictureDomain {
    /// Returns a warning, as one sentence, that the model was not made for pictures such as those named.
    #[must_use]
    pub fn warning(&self, names: &str) -> String {
        let pictures = &self.pictures;
        format!(
            "the model was made for {pictures}, not for pictures like {names}: edits and interpolations of these will \
             look like blurred {pictures}; use a model trained on such pictures"
        )
    }
}
