//! Pretrained networks whose activations describe pictures: for measures, perceptual losses and frozen encoders.

mod dino;
mod efficientnet_lite;
mod inception;
mod layers;
mod lpips;

pub(crate) use dino::DinoSizes;
pub use dino::{Dino, VisionTransformer};
pub use efficientnet_lite::EfficientNetLite;
pub use inception::{Inception, InceptionInput};
pub use lpips::{LpipsBackbone, LpipsNetwork};
