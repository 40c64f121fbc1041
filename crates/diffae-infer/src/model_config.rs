//! The `config.json` of a model: everything but the weights.

use diffae_nets::weights::{Architecture, DiffusionFacts};
use diffae_nets::{AutoencoderConfig, ClassifierConfig, CompactConfig, EncoderConfig, LatentNetConfig, UnetConfig};
use diffae_schedule::{BetaSchedule, NoiseSchedule, PredictionTarget};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::PictureDomain;
use crate::error::{Error, Result};

/// The version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Maximum number of training timesteps; a file that claims more is damaged, and its tables are never computed.
const MAX_TRAIN_TIMESTEPS: usize = 1_000_000;

/// The kind of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Semantic encoder and conditioned `UNet`.
    Autoencoder,
    /// An autoencoder with a diffusion over `z_sem` for sampling.
    AutoencoderWithLatentNet,
    /// A `UNet` without semantic code.
    Ddpm,
    /// A compact autoencoder, which decodes in one shot.
    OneShot,
}

/// A noise schedule and its length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Number of training timesteps, T.
    pub num_train_timesteps: usize,
    /// Beta schedule: `"linear"`, `"cosine"` or `"const0.008"` and the like.
    #[serde(serialize_with = "write_schedule", deserialize_with = "read_schedule")]
    pub beta_schedule: BetaSchedule,
    /// Prediction target of the network: `"eps"`, as in released models, `"v"` or `"x_0"`.
    #[serde(default, serialize_with = "write_target", deserialize_with = "read_target")]
    pub prediction: PredictionTarget,
}

impl DiffusionConfig {
    /// Builds the noise schedule.
    ///
    /// # Errors
    /// [`Error::Schedule`] if the schedule has no such length, [`Error::OutOfRange`] if it is beyond a million.
    pub fn noise_schedule(&self) -> Result<NoiseSchedule> {
        if self.num_train_timesteps > MAX_TRAIN_TIMESTEPS {
            let got = self.num_train_timesteps.to_string();
            return Err(Error::OutOfRange { what: "the number of timesteps", got, expected: "at most a million" });
        }
        Ok(NoiseSchedule::new(&self.beta_schedule, self.num_train_timesteps)?)
    }

    fn from_facts(facts: &DiffusionFacts) -> Result<Self> {
        let beta_schedule = facts.beta_schedule.parse()?;
        Ok(Self { num_train_timesteps: facts.num_train_timesteps, beta_schedule, prediction: PredictionTarget::Eps })
    }
}

/// The latent net and its diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentConfig {
    /// Sizes of the network.
    pub net: LatentNetConfig,
    /// Noise schedule of the latent diffusion.
    pub diffusion: DiffusionConfig,
}

/// The contents of a `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// [`FORMAT_VERSION`] of the program that wrote the file.
    pub format_version: u32,
    /// Sizes of the `UNet`; absent in a one-shot autoencoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet: Option<UnetConfig>,
    /// Sizes of the semantic encoder; absent in a plain DDPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderConfig>,
    /// The diffusion over pictures; present together with the `UNet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diffusion: Option<DiffusionConfig>,
    /// Sizes of a one-shot autoencoder, which takes the place of `UNet`, encoder and diffusion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compact: Option<CompactConfig>,
    /// The diffusion over `z_sem`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentConfig>,
    /// The attribute classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<ClassifierConfig>,
    /// The pictures that the model is for, if they are of one kind only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<PictureDomain>,
}

impl ModelConfig {
    /// Returns the kind of the model.
    #[must_use]
    pub fn kind(&self) -> ModelKind {
        if self.compact.is_some() {
            return ModelKind::OneShot;
        }
        match (&self.encoder, &self.latent) {
            (None, _) => ModelKind::Ddpm,
            (Some(_), None) => ModelKind::Autoencoder,
            (Some(_), Some(_)) => ModelKind::AutoencoderWithLatentNet,
        }
    }

    /// Returns the shape of pictures, `[C, H, W]`.
    #[must_use]
    pub fn image_shape(&self) -> [usize; 3] {
        match (&self.unet, &self.compact) {
            (Some(unet), _) => [unet.in_channels, unet.image_size, unet.image_size],
            (None, Some(compact)) => [compact.image_channels, compact.image_size, compact.image_size],
            (None, None) => [0; 3],
        }
    }

    /// Returns the width of `z_sem`, if the model has one.
    #[must_use]
    pub fn z_channels(&self) -> Option<usize> {
        let compact = self.compact.as_ref().map(|compact| compact.z_channels);
        compact.or_else(|| self.encoder.as_ref().map(|encoder| encoder.out_channels))
    }

    /// Converts the architecture of a released checkpoint to a config.
    ///
    /// # Errors
    /// [`Error::Schedule`] if it names an unknown noise schedule.
    pub fn from_architecture(architecture: &Architecture) -> Result<Self> {
        let latent = match &architecture.latent {
            Some(latent) => {
                let diffusion = DiffusionConfig::from_facts(&latent.diffusion)?;
                Some(LatentConfig { net: latent.net.clone(), diffusion })
            }
            None => None,
        };
        let diffusion = DiffusionConfig::from_facts(&architecture.diffusion)?;
        let config = Self::diffusion(architecture.unet.clone(), architecture.encoder.clone(), diffusion);
        Ok(Self { latent, ..config })
    }

    /// Returns the config of a diffusion over pictures: a diffusion autoencoder, or a plain DDPM without an encoder.
    #[must_use]
    pub fn diffusion(unet: UnetConfig, encoder: Option<EncoderConfig>, diffusion: DiffusionConfig) -> Self {
        Self { unet: Some(unet), encoder, diffusion: Some(diffusion), ..Self::empty() }
    }

    /// Returns the config of a one-shot autoencoder.
    #[must_use]
    pub fn one_shot(compact: CompactConfig) -> Self {
        Self { compact: Some(compact), ..Self::empty() }
    }

    /// Returns a config without parts, which is no model yet.
    const fn empty() -> Self {
        Self {
            format_version: FORMAT_VERSION,
            unet: None,
            encoder: None,
            diffusion: None,
            compact: None,
            latent: None,
            classifier: None,
            domain: None,
        }
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> std::result::Result<(), diffae_nets::Error> {
        match (&self.unet, &self.encoder, &self.diffusion, &self.compact) {
            (Some(unet), None, Some(_), None) if unet.has_z_sem() => return Err(diffae_nets::Error::NoEncoder),
            (Some(unet), Some(encoder), Some(_), None) => {
                AutoencoderConfig::new(encoder.clone(), unet.clone())?;
            }
            (Some(_), None, Some(_), None) | (None, None, None, Some(_)) => {}
            _ => return Err(diffae_nets::Error::NotOneModel),
        }
        let Some(width) = self.z_channels() else { return Ok(()) };
        let fits = |what, got: Option<usize>| match got {
            Some(got) if got != width => {
                Err(diffae_nets::Error::WidthMismatch { what, got, of: "the width of z_sem", expected: width })
            }
            _ => Ok(()),
        };
        fits("z_channels of the latent net", self.latent.as_ref().map(|latent| latent.net.z_channels))?;
        fits("z_channels of the classifier", self.classifier.as_ref().map(|classifier| classifier.z_channels))
    }
}

fn write_schedule<S: Serializer>(schedule: &BetaSchedule, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(schedule)
}

fn read_schedule<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<BetaSchedule, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn write_target<S: Serializer>(target: &PredictionTarget, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(target)
}

fn read_target<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<PredictionTarget, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}
