//! Settings of the spatial autoencoder of a run on latents.

use diffae_nets::{RawSpatialConfig, SpatialConfig};
use serde::{Deserialize, Serialize};

use crate::config::{Kind, ModelSettings, ObjectiveSettings, TrainConfig, only_pictures, require};
use crate::error::Result;
use crate::run::{Notes, Stage};

/// Name of the network in messages.
pub(crate) const PART: &str = "a spatial autoencoder";

/// Sizes of a spatial autoencoder, and the loss that it is trained with:
/// `d(x_0, x) + p LPIPS(x_0, x) + k KL + a adversarial(x)`, where d is the mean [difference](PixelLoss), x is decoded from latents
/// that are drawn from their distribution, and KL is its divergence from the standard normal one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpatialSettings {
    /// Channels of latents.
    pub latent_channels: usize,
    /// Base number of channels.
    pub model_channels: usize,
    /// Channels of each level in units of the base; latents are smaller than pictures by 2 to the power of the number of levels
    /// less one.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Groups of norms; 0 turns their normalization off.
    pub num_groups: usize,
    /// Whether the networks compute what a reduced picture lacks, which goes around them.
    #[serde(default)]
    pub shortcut: bool,
    /// Whether there is self-attention at the resolution of latents.
    #[serde(default)]
    pub middle_attention: bool,
    /// Height and width of the random crops of pictures that it is trained on; 0 for whole pictures.
    #[serde(default)]
    pub crop_size: usize,
    /// Difference of pictures.
    #[serde(default)]
    pub pixel_loss: PixelLoss,
    /// Weight of the Kullback-Leibler divergence of latents from the standard normal distribution, a mean over all values.
    #[serde(default = "default_kl_weight")]
    pub kl_weight: f64,
    /// Weight of LPIPS of VGG-16, whose weights a run is given; 0 turns it off.
    #[serde(default)]
    pub perceptual_weight: f64,
    /// Weight of the adversarial term, in which a discriminator sees the decoded crops. 0 turns it off.
    #[serde(default)]
    pub adversarial_weight: f64,
    /// Memory for latents of training pictures, in MiB, so that they need not be computed anew in each pass; 0 computes them each
    /// time. It is used on a CPU.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: usize,
}

/// Difference of a decoded picture from the original, a mean over all values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PixelLoss {
    /// `|x_0 - x|`: sharp, and slow to learn where most of a picture is flat.
    #[default]
    L1,
    /// `(x_0 - x)^2`.
    L2,
}

fn default_cache_mib() -> usize {
    2048
}

fn default_kl_weight() -> f64 {
    1e-4
}

impl SpatialSettings {
    /// Returns the sizes of the network for pictures of a model.
    pub(crate) fn config(&self, model: &ModelSettings) -> Result<SpatialConfig> {
        Ok(SpatialConfig::new(RawSpatialConfig {
            image_size: only_pictures(PART, model.image_size)?,
            image_channels: model.image_channels,
            latent_channels: self.latent_channels,
            model_channels: self.model_channels,
            channel_mult: self.channel_mult.clone(),
            num_res_blocks: self.num_res_blocks,
            num_groups: self.num_groups,
            shortcut: self.shortcut,
            middle_attention: self.middle_attention,
        })?)
    }

    /// Returns the settings of a network of other weights, as `--set` takes them.
    pub(crate) fn assignments(config: &RawSpatialConfig) -> String {
        let RawSpatialConfig { latent_channels, model_channels, channel_mult, num_res_blocks, .. } = config;
        let RawSpatialConfig { num_groups, middle_attention, shortcut, .. } = config;
        format!(
            "--set spatial_net.latent_channels={latent_channels} --set spatial_net.model_channels={model_channels} --set \
             'spatial_net.channel_mult={channel_mult:?}' --set spatial_net.num_res_blocks={num_res_blocks} --set \
             spatial_net.num_groups={num_groups} --set spatial_net.shortcut={shortcut} --set \
             spatial_net.middle_attention={middle_attention}"
        )
    }

    /// Returns the maximum number of bytes of latents that are kept in memory.
    pub(crate) fn max_cached_bytes(&self) -> usize {
        self.cache_mib.saturating_mul(1 << 20)
    }

    /// Returns the side of the pictures that a step trains on.
    pub(crate) fn trained_size(&self, model: &ModelSettings) -> usize {
        if self.crop_size == 0 { model.image_size.width() } else { self.crop_size }
    }
}

impl TrainConfig {
    /// Returns the sizes of the spatial autoencoder, in a config of a model on latents.
    ///
    /// # Errors
    /// [`Error::Nets`](crate::Error::Nets) if they do not fit.
    pub fn spatial_config(&self) -> Result<Option<SpatialConfig>> {
        self.spatial_net.as_ref().map(|settings| settings.config(&self.model)).transpose()
    }

    /// Fails if a model of this config has no such stage.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting).
    pub fn check_stage(&self, stage: Stage) -> Result<()> {
        let expected = "a stage of this model: only one on latents has that";
        require(self.stages().contains(&stage), "stage", stage.name(), expected)
    }

    /// Fails if a run of this config has no use for files that it is given.
    pub(crate) fn check_uses(&self, notes: &Notes) -> Result<()> {
        let takes_lpips =
            self.polish.is_some() || self.spatial_net.as_ref().is_some_and(|settings| settings.perceptual_weight > 0.);
        for (key, path, is_used, expected) in [
            ("spatial_weights", &notes.spatial_weights, self.spatial_net.is_some(), "none, or a model on latents"),
            (
                "encoder_weights",
                &notes.encoder_weights,
                self.model.encoder.frozen().is_some(),
                "none, or model.encoder=dinov2-s or another pretrained network",
            ),
            ("lpips_weights", &notes.lpips_weights, takes_lpips, "none, or spatial_net.perceptual_weight above 0"),
        ] {
            if let Some(path) = path {
                require(is_used, key, path.display(), expected)?;
            }
        }
        Ok(())
    }

    /// Returns the config of the stage that trains the spatial autoencoder, as if it were the first stage of a model of its own;
    /// `None` for a model of pictures.
    pub(crate) fn of_spatial_stage(&self) -> Option<Self> {
        let (settings, stage) = (self.spatial_net.as_ref()?, self.spatial.clone()?);
        let objective = ObjectiveSettings { adversarial_weight: settings.adversarial_weight, ..self.objective.clone() };
        Some(Self { autoencoder: stage, objective, ..self.clone() })
    }

    /// Returns the resolutions with attention of the `UNet` and of the encoder. Of a model on latents, whose networks begin at
    /// different resolutions, each has those that occur in it; one that occurs in neither is left to the `UNet`, which refuses it.
    pub(crate) fn attention_resolutions(&self, state_size: usize) -> [Vec<usize>; 2] {
        let ModelSettings { attention_resolutions: all, image_size, .. } = &self.model;
        if self.model.kind != Kind::LatentAutoencoder {
            return [all.clone(), all.clone()];
        }
        let occurs =
            |size: usize, levels: &[usize], wanted: usize| (0..levels.len()).any(|level| size >> level == wanted);
        let in_encoder = |wanted: usize| occurs(image_size.width(), &self.model.encoder_channel_mult, wanted);
        let in_unet = |wanted: usize| occurs(state_size, &self.model.channel_mult, wanted) || !in_encoder(wanted);
        [
            all.iter().copied().filter(|&wanted| in_unet(wanted)).collect(),
            all.iter().copied().filter(|&wanted| in_encoder(wanted)).collect(),
        ]
    }

    /// Checks that a model on latents has a spatial autoencoder that fits it, and another one has none.
    pub(crate) fn check_spatial(&self) -> Result<()> {
        let kind = self.model.kind;
        let is_on_latents = kind == Kind::LatentAutoencoder;
        let (Some(settings), Some(stage), true) = (&self.spatial_net, &self.spatial, is_on_latents) else {
            let expected = if is_on_latents {
                "[spatial_net] and [spatial], for a latent-autoencoder"
            } else {
                "no [spatial_net] and no [spatial], or model.kind=latent-autoencoder"
            };
            let fits = !is_on_latents && self.spatial_net.is_none() && self.spatial.is_none();
            let given = match (&self.spatial_net, &self.spatial) {
                (None, None) => "neither of the two",
                (Some(_), None) => "[spatial_net] alone",
                (None, Some(_)) => "[spatial] alone",
                (Some(_), Some(_)) => "both",
            };
            return require(fits, "the spatial autoencoder", given, expected);
        };
        stage.check()?;
        let config = settings.config(&self.model)?;
        let (crop, size) = (settings.crop_size, self.model.image_size.width());
        require(
            crop <= size && crop.is_multiple_of(config.factor()),
            "spatial_net.crop_size",
            crop,
            "0, or a multiple of 2^(levels - 1) that is not above model.image_size",
        )?;
        let side = settings.trained_size(&self.model);
        for (key, weight) in [
            ("spatial_net.kl_weight", settings.kl_weight),
            ("spatial_net.perceptual_weight", settings.perceptual_weight),
            ("spatial_net.adversarial_weight", settings.adversarial_weight),
        ] {
            require(weight >= 0. && weight.is_finite(), key, weight, "a weight of at least 0")?;
        }
        let channels = self.model.image_channels;
        let is_seen = settings.perceptual_weight <= 0. || matches!(channels, 1 | 3);
        require(is_seen, "model.image_channels", channels, "1 or 3, for LPIPS")?;
        let is_large = settings.perceptual_weight <= 0. || side >= diffae_nets::features::LpipsNetwork::MIN_SIDE;
        require(is_large, "spatial_net.crop_size", side, "at least 32 pixels, for LPIPS")?;
        let suits = settings.adversarial_weight <= 0. || (side >= 8 && side.is_power_of_two());
        require(suits, "spatial_net.crop_size", side, "a power of two, 8 at least, for the discriminator")?;
        let channels = self.objective.discriminator_channels;
        let suits = settings.adversarial_weight <= 0. || (1..=8192).contains(&channels);
        require(suits, "objective.discriminator_channels", channels, "1 to 8192")?;
        let weight = self.objective.adversarial_weight;
        let expected = "0 for a model on latents; spatial_net.adversarial_weight is that of pictures";
        require(weight <= 0., "objective.adversarial_weight", weight, expected)
    }
}
