//! A pretrained network as the semantic encoder: `z_sem` are its features, and it is not trained.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{Winograd, no_gradients, run_in_pool};
use serde::{Deserialize, Serialize};

use crate::config::{Check, EncoderConfig, Valid};
use crate::encoder::SemanticEncoder;
use crate::error::{Error, Result as NetsResult};
use crate::features::{Dino, DinoSizes, VisionTransformer};
use crate::image_size::ImageSize;
use crate::plan::{at_most, positive};
use crate::weights::{TensorMap, Weights};

const NETWORK: &str = "frozen encoder";
const MAX_SIZE: usize = 1 << 14;

/// A pretrained network whose features may be `z_sem`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrozenNetwork {
    /// `DINOv2` with a small vision transformer (`dinov2_vits14_pretrain.pth`): 384 features.
    #[serde(rename = "dinov2-s")]
    DinoV2Small,
    /// `DINOv2` with the base vision transformer (`dinov2_vitb14_pretrain.pth`): 768 features.
    #[serde(rename = "dinov2-b")]
    DinoV2Base,
    /// `DINOv2` with a large vision transformer (`dinov2_vitl14_pretrain.pth`): 1024 features.
    #[serde(rename = "dinov2-l")]
    DinoV2Large,
}

impl FrozenNetwork {
    /// All networks.
    pub const ALL: [Self; 3] = [Self::DinoV2Small, Self::DinoV2Base, Self::DinoV2Large];

    /// Returns the name in configs: `dinov2-s` and the like.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DinoV2Small => "dinov2-s",
            Self::DinoV2Base => "dinov2-b",
            Self::DinoV2Large => "dinov2-l",
        }
    }

    /// Returns D, the number of features.
    #[must_use]
    pub fn width(self) -> usize {
        self.sizes().width
    }

    fn sizes(self) -> DinoSizes {
        let (width, depth) = match self {
            Self::DinoV2Small => (384, 12),
            Self::DinoV2Base => (768, 12),
            Self::DinoV2Large => (1024, 24),
        };
        DinoSizes { width, depth, num_positions: DinoSizes::NUM_POSITIONS }
    }

    /// Returns the parameters of released weights under the names that they have in a model below `encoder.`, f32.
    ///
    /// # Errors
    /// [`Error::OtherFeatures`] if they are of a network of other sizes; others if they are of none, or a number is not finite.
    pub fn parameters(self, released: &Weights) -> NetsResult<TensorMap> {
        let [got, expected] = [DinoSizes::of(released)?, self.sizes()].map(|sizes| (sizes.width, sizes.depth));
        if got != expected {
            return Err(Error::OtherFeatures { network: self.name(), got, expected });
        }
        // Every layer is there, and nothing else.
        Dino::load(&released.unread(), &Device::Cpu)?;
        let names = released.source().names();
        let read = |name: String| {
            let tensor = released.tensor(&name, DType::F32, &Device::Cpu)?;
            let tensor = if name == Dino::POSITIONS { Dino::positions_of_input(&tensor)? } else { tensor };
            Ok((name, tensor))
        };
        let is_used = |name: &String| name != Dino::UNUSED;
        Ok(TensorMap(names.into_iter().filter(is_used).map(read).collect::<NetsResult<_>>()?))
    }
}

impl std::fmt::Display for FrozenNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Unvalidated config of a [`FrozenEncoder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFrozenEncoderConfig {
    /// Network whose features are `z_sem`.
    pub network: FrozenNetwork,
    /// Height and width of pictures; they are resized to what the network takes.
    pub image_size: usize,
    /// Channels of pictures: 3, or 1 for gray ones.
    pub in_channels: usize,
}

/// Validated config of a [`FrozenEncoder`].
pub type FrozenEncoderConfig = Valid<RawFrozenEncoderConfig>;

impl RawFrozenEncoderConfig {
    /// Describes the network.
    #[must_use]
    pub fn transformer(&self) -> VisionTransformer {
        self.network.sizes().described()
    }

    /// Returns the multiply-adds of one call for one picture, counted as plain sums of products.
    #[must_use]
    pub fn num_multiply_adds(&self) -> u64 {
        self.network.sizes().num_multiply_adds()
    }
}

impl Check for RawFrozenEncoderConfig {
    fn check(&self) -> NetsResult<()> {
        positive(NETWORK, "image_size", self.image_size)?;
        at_most(NETWORK, "image_size", self.image_size, MAX_SIZE)?;
        match self.in_channels {
            1 | 3 => Ok(()),
            got => Err(Error::NoColor { network: NETWORK, got }),
        }
    }
}

/// A semantic encoder whose code is the class token of a pretrained vision transformer: what its features tell apart, an edit can
/// change, and the decoder learns the rest. It has no gradient.
///
/// # Source
/// Oquab et al. 2023 (arXiv:2304.07193).
#[derive(Debug, Clone)]
pub struct FrozenEncoder {
    config: FrozenEncoderConfig,
    network: Dino,
}

impl FrozenEncoder {
    /// Reads the parameters below `vb`, as [`FrozenNetwork::parameters`] names them.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &FrozenEncoderConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { config: config.clone(), network: Dino::new(config.network.sizes(), vb)? })
    }

    /// Encodes pictures, without gradients.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]` in `[-1, 1]`, H and W the configured image size; result: `z_sem` `[N, D]`, dtype of `x_0`.
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x_0: &Tensor) -> Result<Tensor> {
        crate::unet::check_images(x_0, self.config.in_channels, self.config.image_size)?;
        run_in_pool(x_0.device(), || {
            no_gradients(|| {
                let unit = x_0.to_dtype(DType::F32)?.affine(0.5, 0.5)?;
                let colored = if self.config.in_channels == 1 { unit.repeat((1, 3, 1, 1))? } else { unit };
                self.network.forward(&colored.contiguous()?)?.to_dtype(x_0.dtype())
            })
        })
    }
}

/// Config of the network that computes `z_sem`: one that is trained with the decoder, or a pretrained one.
#[derive(Debug, Clone, PartialEq)]
pub enum SemanticConfig {
    /// The encoder of the paper.
    Trained(EncoderConfig),
    /// A pretrained network, which stays as it is.
    Frozen(FrozenEncoderConfig),
}

impl SemanticConfig {
    /// Returns height and width of pictures.
    #[must_use]
    pub fn image_size(&self) -> ImageSize {
        match self {
            Self::Trained(config) => config.image_size,
            Self::Frozen(config) => config.image_size.into(),
        }
    }

    /// Returns the channels of pictures.
    #[must_use]
    pub fn in_channels(&self) -> usize {
        match self {
            Self::Trained(config) => config.in_channels,
            Self::Frozen(config) => config.in_channels,
        }
    }

    /// Returns the width of `z_sem`, D.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        match self {
            Self::Trained(config) => config.out_channels,
            Self::Frozen(config) => config.network.width(),
        }
    }

    /// Returns the multiply-adds of one call for one picture, counted as plain sums of products.
    #[must_use]
    pub fn num_multiply_adds(&self) -> u64 {
        match self {
            Self::Trained(config) => config.num_multiply_adds(),
            Self::Frozen(config) => config.num_multiply_adds(),
        }
    }

    /// Returns the config of the encoder of the paper, if it is that.
    #[must_use]
    pub fn trained(&self) -> Option<&EncoderConfig> {
        match self {
            Self::Trained(config) => Some(config),
            Self::Frozen(_) => None,
        }
    }

    /// Returns the config of a pretrained network, if it is one.
    #[must_use]
    pub fn frozen(&self) -> Option<&FrozenEncoderConfig> {
        match self {
            Self::Trained(_) => None,
            Self::Frozen(config) => Some(config),
        }
    }
}

impl From<EncoderConfig> for SemanticConfig {
    fn from(config: EncoderConfig) -> Self {
        Self::Trained(config)
    }
}

impl From<FrozenEncoderConfig> for SemanticConfig {
    fn from(config: FrozenEncoderConfig) -> Self {
        Self::Frozen(config)
    }
}

/// The network that computes `z_sem`, of either kind.
#[derive(Debug, Clone)]
pub enum SemanticNetwork {
    /// The encoder of the paper.
    Trained(Box<SemanticEncoder>),
    /// A pretrained network, which stays as it is.
    Frozen(Box<FrozenEncoder>),
}

impl SemanticNetwork {
    /// Reads the parameters below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &SemanticConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        match config {
            SemanticConfig::Trained(config) => Ok(Self::Trained(Box::new(SemanticEncoder::new(config, vb)?))),
            SemanticConfig::Frozen(config) => Ok(Self::Frozen(Box::new(FrozenEncoder::new(config, vb)?))),
        }
    }

    /// Encodes pictures.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`, H and W the configured image size; result: `z_sem` `[N, D]`, dtype of `x_0`.
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x_0: &Tensor) -> Result<Tensor> {
        match self {
            Self::Trained(encoder) => encoder.forward(x_0),
            Self::Frozen(encoder) => encoder.forward(x_0),
        }
    }

    /// Freezes the network for inference: no gradients may be requested afterwards; see
    /// [`Unet::freeze`](crate::Unet::freeze).
    pub fn freeze(&mut self, winograd: Winograd) {
        match self {
            Self::Trained(encoder) => encoder.freeze(winograd),
            // It never has gradients.
            Self::Frozen(_) => {}
        }
    }
}
