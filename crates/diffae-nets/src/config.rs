//! Configs of the networks, unvalidated (`Raw...`) and validated ([`Valid`]).
//!
//! A `Raw...` config is plain data, read from JSON or TOML with unknown keys rejected. [`Valid`] holds one that was
//! checked for everything that construction relies on.

use std::ops::Deref;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::frozen_encoder::SemanticConfig;
use crate::image_size::ImageSize;
use crate::plan::{InputPlan, OutputStage, Trunk, at_most, output_blocks, positive};
use crate::spatial::SpatialConfig;
use crate::z_levels::ZLevels;

/// Maximum of channel counts and widths that are not multiples of `model_channels`.
const MAX_CHANNELS: usize = 1 << 16;
/// Maximum number of blocks or layers in a row.
const MAX_LAYERS: usize = 1 << 8;

/// A validated config, which derefs to its fields and cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Valid<Raw>(Raw);

/// Validation of a config.
pub trait Check {
    /// Finds what is wrong with the config.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn check(&self) -> Result<()>;
}

impl<Raw: Check> Valid<Raw> {
    /// Checks `raw`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn new(raw: Raw) -> Result<Self> {
        raw.check()?;
        Ok(Self(raw))
    }
}

impl<Raw> Deref for Valid<Raw> {
    type Target = Raw;

    fn deref(&self) -> &Raw {
        &self.0
    }
}

impl<Raw: Serialize> Serialize for Valid<Raw> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, Raw: Check + Deserialize<'de>> Deserialize<'de> for Valid<Raw> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(Raw::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Conditioning of a `UNet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditioning {
    /// The timestep alone: a plain DDPM.
    Time,
    /// The timestep and a semantic code whose width is `embed_channels`.
    TimeAndZSem,
}

/// Unvalidated config of a [`Unet`](crate::Unet).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawUnetConfig {
    /// Height and width of pictures, or depth, height and width of volumes.
    pub image_size: ImageSize,
    /// Channels of `x_t`.
    pub in_channels: usize,
    /// Channels of `eps`.
    pub out_channels: usize,
    /// Base number of channels, M; channels are multiples of it.
    pub model_channels: usize,
    /// Channels of each level in units of M; the resolution halves from level to level.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level, R; the upsampling half has one more.
    pub num_res_blocks: usize,
    /// Residual blocks per level of the downsampling half, if not R.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_input_res_blocks: Option<usize>,
    /// Width of the time embedding and of `z_sem`, E.
    pub embed_channels: usize,
    /// Resolutions at which blocks are followed by attention.
    pub attention_resolutions: Vec<usize>,
    /// Number of heads of every attention block.
    pub num_heads: usize,
    /// Dropout probability in training, in `[0, 1)`.
    pub dropout: f64,
    /// Conditioning: the timestep alone, or also a semantic code.
    pub conditioning: Conditioning,
    /// Width of the part of `z_sem` that the blocks of each level see, E together; none if all see the whole code.
    #[serde(default, skip_serializing_if = "ZLevels::is_empty")]
    pub z_levels: ZLevels,
}

/// Validated config of a [`Unet`](crate::Unet).
pub type UnetConfig = Valid<RawUnetConfig>;

impl RawUnetConfig {
    /// Returns whether the model has a semantic code.
    #[must_use]
    pub fn has_z_sem(&self) -> bool {
        self.conditioning == Conditioning::TimeAndZSem
    }

    pub(crate) fn trunk(&self) -> Trunk<'_> {
        Trunk {
            network: "unet",
            image_size: self.image_size,
            model_channels: self.model_channels,
            channel_mult: &self.channel_mult,
            num_res_blocks: self.num_input_res_blocks.unwrap_or(self.num_res_blocks),
            attention_resolutions: &self.attention_resolutions,
            num_heads: self.num_heads,
        }
    }

    /// Returns the plan of the descending half of a [`Valid`] config.
    #[must_use]
    pub fn input_plan(&self) -> InputPlan {
        self.trunk().input_plan()
    }

    /// Returns the plan of the ascending half of a [`Valid`] config.
    #[must_use]
    pub fn output_plan(&self) -> Vec<OutputStage> {
        let trunk = self.trunk();
        trunk.output_plan(&trunk.input_plan(), self.num_res_blocks)
    }
}

impl Check for RawUnetConfig {
    fn check(&self) -> Result<()> {
        let trunk = self.trunk();
        trunk.check()?;
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("embed_channels", self.embed_channels),
            ("num_res_blocks", self.num_res_blocks),
        ] {
            positive("unet", field, value)?;
            at_most("unet", field, value, MAX_CHANNELS)?;
        }
        at_most("unet", "num_res_blocks", self.num_res_blocks, MAX_LAYERS)?;
        check_dropout("unet", self.dropout)?;
        self.z_levels.check("unet", self.channel_mult.len(), self.embed_channels)?;
        let smallest_part = self.z_levels.widths().iter().copied().min().unwrap_or(1);
        positive("unet", "smallest z_levels entry", smallest_part)?;
        if !self.z_levels.is_empty() && !self.has_z_sem() {
            return Err(Error::NeedsZSem { part: "hierarchy of codes (z_levels)" });
        }
        let input = trunk.input_plan();
        let output = trunk.output_plan(&input, self.num_res_blocks);
        trunk.check_blocks(input.blocks().chain(output_blocks(&output)))
    }
}

/// Unvalidated config of a [`SemanticEncoder`](crate::SemanticEncoder).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEncoderConfig {
    /// Height and width of pictures, or depth, height and width of volumes.
    pub image_size: ImageSize,
    /// Channels of `x_0`.
    pub in_channels: usize,
    /// Width of `z_sem`, D.
    pub out_channels: usize,
    /// Base number of channels, M; channels are multiples of it.
    pub model_channels: usize,
    /// Channels of each level in units of M; the resolution halves from level to level.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level.
    pub num_res_blocks: usize,
    /// Resolutions at which blocks are followed by attention.
    pub attention_resolutions: Vec<usize>,
    /// Number of heads of every attention block.
    pub num_heads: usize,
    /// Width of the part of `z_sem` that is computed from the features of each level, D together, 0 where there is none; the last
    /// from those behind the middle blocks. Empty if all of `z_sem` is.
    #[serde(default, skip_serializing_if = "ZLevels::is_empty")]
    pub z_levels: ZLevels,
}

/// Validated config of a [`SemanticEncoder`](crate::SemanticEncoder).
pub type EncoderConfig = Valid<RawEncoderConfig>;

impl RawEncoderConfig {
    /// Returns the plan of the blocks of a [`Valid`] config.
    #[must_use]
    pub fn input_plan(&self) -> InputPlan {
        self.trunk().input_plan()
    }

    pub(crate) fn trunk(&self) -> Trunk<'_> {
        Trunk {
            network: "encoder",
            image_size: self.image_size,
            model_channels: self.model_channels,
            channel_mult: &self.channel_mult,
            num_res_blocks: self.num_res_blocks,
            attention_resolutions: &self.attention_resolutions,
            num_heads: self.num_heads,
        }
    }
}

impl Check for RawEncoderConfig {
    fn check(&self) -> Result<()> {
        let trunk = self.trunk();
        trunk.check()?;
        for (field, value) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            positive("encoder", field, value)?;
            at_most("encoder", field, value, MAX_CHANNELS)?;
        }
        self.z_levels.check("encoder", self.channel_mult.len(), self.out_channels)?;
        let last_part = self.z_levels.widths().last().copied().unwrap_or(1);
        positive("encoder", "last z_levels entry", last_part)?;
        trunk.check_blocks(trunk.input_plan().blocks())
    }
}

/// Sizes of a [`DiffusionAutoencoder`](crate::DiffusionAutoencoder): two configs that fit together, and that of the spatial
/// autoencoder between pictures and the states of the diffusion, if there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoencoderConfig {
    encoder: SemanticConfig,
    spatial: Option<SpatialConfig>,
    unet: UnetConfig,
}

impl AutoencoderConfig {
    /// Joins an encoder and a `UNet`.
    ///
    /// # Errors
    /// [`Error::WidthMismatch`] if the width of `z_sem`, the image size or the channels of pictures differ;
    /// [`Error::NoZSem`] if the `UNet` has no semantic code.
    pub fn new(encoder: impl Into<SemanticConfig>, unet: UnetConfig) -> Result<Self> {
        let encoder = encoder.into();
        check_size("image size of the encoder", encoder.image_size(), "that of the unet", unet.image_size)?;
        check_width("in_channels of the encoder", encoder.in_channels(), "that of the unet", unet.in_channels)?;
        Self::joined(encoder, None, unet)
    }

    /// Joins an encoder of pictures and a `UNet` on the latents that a spatial autoencoder makes of them.
    ///
    /// # Errors
    /// [`Error::WidthMismatch`] if the width of `z_sem`, the size or the channels of pictures or of latents differ;
    /// [`Error::NoZSem`] if the `UNet` has no semantic code.
    pub fn on_latents(encoder: impl Into<SemanticConfig>, spatial: SpatialConfig, unet: UnetConfig) -> Result<Self> {
        let (encoder, [channels, size, _]) = (encoder.into(), spatial.latent_shape());
        let of = "that of the spatial autoencoder";
        check_size("image size of the encoder", encoder.image_size(), of, spatial.image_size.into())?;
        check_width("in_channels of the encoder", encoder.in_channels(), of, spatial.image_channels)?;
        check_size("image size of the unet", unet.image_size, "that of latents", size.into())?;
        check_width("in_channels of the unet", unet.in_channels, "the number of channels of latents", channels)?;
        Self::joined(encoder, Some(spatial), unet)
    }

    fn joined(encoder: SemanticConfig, spatial: Option<SpatialConfig>, unet: UnetConfig) -> Result<Self> {
        if !unet.has_z_sem() {
            return Err(Error::NoZSem);
        }
        check_width("width of z_sem", encoder.out_channels(), "embed_channels of the unet", unet.embed_channels)?;
        check_width("out_channels of the unet", unet.out_channels, "its in_channels", unet.in_channels)?;
        check_levels(&encoder, &unet)?;
        Ok(Self { encoder, spatial, unet })
    }

    /// Returns the config of the encoder.
    #[must_use]
    pub fn encoder(&self) -> &SemanticConfig {
        &self.encoder
    }

    /// Returns the sizes of the `UNet`.
    #[must_use]
    pub fn unet(&self) -> &UnetConfig {
        &self.unet
    }

    /// Returns the sizes of the spatial autoencoder, if the diffusion runs on its latents.
    #[must_use]
    pub fn spatial(&self) -> Option<&SpatialConfig> {
        self.spatial.as_ref()
    }
}

/// Unvalidated config of a [`LatentNet`](crate::LatentNet).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLatentNetConfig {
    /// Width of `z_sem`, D.
    pub z_channels: usize,
    /// Width of the hidden layers, H.
    pub hidden_channels: usize,
    /// Number of layers, K, the last included.
    pub num_layers: usize,
    /// Indices of the layers whose input is concatenated with `z_t` (skip connections); each in `1..K`.
    pub skip_layers: Vec<usize>,
    /// Number of sinusoids of the time embedding.
    pub time_embed_channels: usize,
}

/// Validated config of a [`LatentNet`](crate::LatentNet).
pub type LatentNetConfig = Valid<RawLatentNetConfig>;

impl RawLatentNetConfig {
    /// Returns the input width of layer `layer`.
    pub(crate) fn layer_width(&self, layer: usize) -> usize {
        match (layer, self.skip_layers.contains(&layer)) {
            (0, _) => self.z_channels,
            (_, true) => self.hidden_channels + self.z_channels,
            (_, false) => self.hidden_channels,
        }
    }
}

impl Check for RawLatentNetConfig {
    fn check(&self) -> Result<()> {
        for (field, value) in [
            ("z_channels", self.z_channels),
            ("hidden_channels", self.hidden_channels),
            ("num_layers", self.num_layers.saturating_sub(1)),
            ("time_embed_channels", self.time_embed_channels),
        ] {
            positive("latent_net", field, value)?;
            at_most("latent_net", field, value, MAX_CHANNELS)?;
        }
        at_most("latent_net", "num_layers", self.num_layers, MAX_LAYERS)?;
        match self.skip_layers.iter().find(|&&k| k == 0 || k >= self.num_layers) {
            Some(&layer) => Err(Error::SkipLayerOutOfRange { layer, num_layers: self.num_layers }),
            None => Ok(()),
        }
    }
}

/// Unvalidated config of an [`AttributeClassifier`](crate::AttributeClassifier).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawClassifierConfig {
    /// Width of `z_sem`, D.
    pub z_channels: usize,
    /// Names of the attributes.
    pub attributes: Vec<String>,
    /// Number of hidden units, h, by which the direction of an attribute depends on the code that is edited; 0 for
    /// fixed directions.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub local_units: usize,
    /// Indices of the attributes with a calibrated full-edit strength: their direction is the mean difference of codes
    /// with and without the attribute. The others have weights of a classifier, whose length is no strength.
    #[serde(default, alias = "known_ways", skip_serializing_if = "Vec::is_empty")]
    pub calibrated: Vec<usize>,
}

impl RawClassifierConfig {
    /// Maximum of `local_units`. More would be no small correction of a direction, but a network of its own.
    pub const MAX_LOCAL_UNITS: usize = 1024;
}

/// Validated config of an [`AttributeClassifier`](crate::AttributeClassifier).
pub type ClassifierConfig = Valid<RawClassifierConfig>;

impl Check for RawClassifierConfig {
    fn check(&self) -> Result<()> {
        positive("classifier", "z_channels", self.z_channels)?;
        positive("classifier", "number of attributes", self.attributes.len())?;
        at_most("classifier", "local_units", self.local_units, Self::MAX_LOCAL_UNITS)?;
        for &idx in &self.calibrated {
            at_most("classifier", "number in calibrated", idx, self.attributes.len() - 1)?;
        }
        let duplicate = self.attributes.iter().enumerate().find(|(i, name)| self.attributes[..*i].contains(name));
        match duplicate {
            Some((_, name)) => Err(Error::DuplicateAttribute { name: name.clone() }),
            None => Ok(()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

fn check_dropout(network: &'static str, dropout: f64) -> Result<()> {
    if (0. ..1.).contains(&dropout) { Ok(()) } else { Err(Error::DropoutOutOfRange { network, got: dropout }) }
}

/// Checks that two sizes that must agree do.
pub(crate) fn check_width(what: &'static str, got: usize, of: &'static str, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::WidthMismatch { what, got, of, expected }) }
}

/// Checks that each part of `z_sem` is computed at the resolution of the blocks that see it; the last at the end of the encoder.
fn check_levels(encoder: &SemanticConfig, unet: &UnetConfig) -> Result<()> {
    let levels = match encoder {
        SemanticConfig::Trained(encoder) => encoder.z_levels.clone(),
        SemanticConfig::Frozen(_) => ZLevels::NONE,
    };
    let offset = ZLevels::first_level(encoder.image_size(), unet.image_size);
    if levels == unet.z_levels.at_levels_of(offset, levels.len().max(offset + unet.z_levels.len()))? {
        return Ok(());
    }
    Err(Error::ZLevelsDiffer { encoder: levels.to_string(), unet: unet.z_levels.to_string() })
}

/// Checks that the sizes of pictures of two parts agree.
fn check_size(what: &'static str, got: ImageSize, of: &'static str, expected: ImageSize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::SizeMismatch { what, got, of, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unet() -> RawUnetConfig {
        RawUnetConfig {
            image_size: 32.into(),
            in_channels: 3,
            out_channels: 3,
            model_channels: 32,
            channel_mult: vec![1, 2],
            num_res_blocks: 1,
            num_input_res_blocks: None,
            embed_channels: 48,
            attention_resolutions: vec![16],
            num_heads: 2,
            dropout: 0.1,
            conditioning: Conditioning::TimeAndZSem,
            z_levels: ZLevels::NONE,
        }
    }

    fn encoder() -> RawEncoderConfig {
        RawEncoderConfig {
            image_size: 32.into(),
            in_channels: 3,
            out_channels: 48,
            model_channels: 32,
            channel_mult: vec![1, 2, 2],
            num_res_blocks: 1,
            attention_resolutions: vec![8],
            num_heads: 1,
            z_levels: ZLevels::NONE,
        }
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_channel_count_that_the_groups_do_not_divide_is_rejected() {
        let text = message(UnetConfig::new(RawUnetConfig { model_channels: 36, ..unet() }));
        assert!(text.contains("36 channels") && text.contains("32 groups"), "{text}");
    }

    #[test]
    fn a_concatenation_that_the_groups_do_not_divide_is_rejected() {
        // 24 and 48 channels are divided by min(32, C) groups only in part: 48 % 32 != 0.
        let text = message(UnetConfig::new(RawUnetConfig { model_channels: 24, ..unet() }));
        assert!(text.contains("48 channels"), "{text}");
    }

    #[test]
    fn heads_must_divide_the_channels() {
        let text = message(UnetConfig::new(RawUnetConfig { num_heads: 5, ..unet() }));
        assert!(text.contains("5 heads"), "{text}");
    }

    #[test]
    fn an_attention_resolution_that_never_occurs_is_rejected() {
        let text = message(UnetConfig::new(RawUnetConfig { attention_resolutions: vec![16, 10], ..unet() }));
        assert!(text.contains("resolution 10") && text.contains("[32, 16]"), "{text}");
    }

    #[test]
    fn an_image_that_cannot_be_halved_often_enough_is_rejected() {
        let text = message(UnetConfig::new(RawUnetConfig { image_size: 33.into(), ..unet() }));
        assert!(text.contains("33"), "{text}");
    }

    #[test]
    fn zero_and_enormous_fields_are_rejected() {
        assert!(message(UnetConfig::new(RawUnetConfig { embed_channels: 0, ..unet() })).contains("embed_channels"));
        let huge = RawUnetConfig { num_res_blocks: 1 << 20, ..unet() };
        assert!(message(UnetConfig::new(huge)).contains("num_res_blocks"));
        assert!(message(UnetConfig::new(RawUnetConfig { channel_mult: vec![], ..unet() })).contains("channel_mult"));
        assert!(message(UnetConfig::new(RawUnetConfig { dropout: f64::NAN, ..unet() })).contains("dropout"));
    }

    #[test]
    fn widths_of_encoder_and_unet_must_agree() {
        let unet = UnetConfig::new(unet()).unwrap();
        let encoder = EncoderConfig::new(RawEncoderConfig { out_channels: 40, ..encoder() }).unwrap();
        let text = message(AutoencoderConfig::new(encoder, unet));
        assert!(text.contains("40") && text.contains("48"), "{text}");
    }

    #[test]
    fn an_unconditioned_unet_has_no_encoder() {
        let unet = UnetConfig::new(RawUnetConfig { conditioning: Conditioning::Time, ..unet() }).unwrap();
        let encoder = EncoderConfig::new(encoder()).unwrap();
        assert!(matches!(AutoencoderConfig::new(encoder, unet), Err(Error::NoZSem)));
    }

    #[test]
    fn skip_layers_lie_inside_the_latent_net() {
        let raw = RawLatentNetConfig {
            z_channels: 8,
            hidden_channels: 16,
            num_layers: 3,
            skip_layers: vec![1, 3],
            time_embed_channels: 64,
        };
        assert!(message(LatentNetConfig::new(raw)).contains("skip layer 3"));
    }

    #[test]
    fn classifiers_that_cannot_be_are_refused() {
        let raw = RawClassifierConfig {
            z_channels: 4,
            attributes: vec!["Smiling".into()],
            local_units: 0,
            calibrated: vec![0],
        };
        assert!(ClassifierConfig::new(raw.clone()).is_ok());
        let twice = RawClassifierConfig { attributes: vec!["Smiling".into(), "Smiling".into()], ..raw.clone() };
        assert!(message(ClassifierConfig::new(twice)).contains("Smiling"));
        let many = RawClassifierConfig { local_units: 5000, ..raw.clone() };
        assert!(message(ClassifierConfig::new(many)).contains("local_units"));
        let unheard_of = RawClassifierConfig { calibrated: vec![1], ..raw };
        assert!(message(ClassifierConfig::new(unheard_of)).contains("calibrated"));
    }

    #[test]
    fn json_round_trips_and_unknown_keys_are_rejected() {
        let config = UnetConfig::new(unet()).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<UnetConfig>(&json).unwrap(), config);
        let json = json.replacen('{', "{\"dropuot\":0.1,", 1);
        assert!(serde_json::from_str::<UnetConfig>(&json).unwrap_err().to_string().contains("dropuot"));
    }
}
