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
