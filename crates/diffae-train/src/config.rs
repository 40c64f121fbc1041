//! The config of a run, in TOML; unknown keys are refused.

use diffae_data::{MAX_CHANNELS, PictureFormat};
use diffae_infer::{DiffusionConfig, LatentConfig, ModelConfig, RawModelConfig, ZSemConfig};
use diffae_nets::{
    AutoencoderConfig, CompactConfig, Conditioning, EncoderConfig, FrozenEncoderConfig, ImageSize, LatentNetConfig,
    RawCompactConfig, RawEncoderConfig, RawFrozenEncoderConfig, RawLatentNetConfig, RawUnetConfig, SemanticConfig,
    UnetConfig, ZLevels,
};
use diffae_schedule::{PredictionTarget, StepChain, StepSequence};
use serde::{Deserialize, Serialize};

use crate::assignment::assign;
use crate::data_settings::DataSettings;
use crate::distillation_settings::DistillationSettings;
use crate::error::{Error, Result};
use crate::frozen::EncoderKind;
use crate::polish_settings::PolishSettings;
use crate::spatial_settings::SpatialSettings;

/// Width of the latent net's sinusoidal time embedding, as in the reference and its released weights.
const LATENT_TIME_CHANNELS: usize = 64;

/// All settings of a run except its paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, order of pictures, flips, timesteps, noise and dropout.
    pub seed: u64,
    /// Computation of edit directions from labels.
    #[serde(default)]
    pub edit_directions: EditDirections,
    /// Sizes of the networks.
    pub model: ModelSettings,
    /// Diffusion over pictures.
    pub diffusion: DiffusionConfig,
    /// Selection and reading of pictures.
    pub data: DataSettings,
    /// Loss of the first stage, and memory of its backward pass.
    pub objective: ObjectiveSettings,
    /// Sizes and loss of the spatial autoencoder of a model on latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spatial_net: Option<SpatialSettings>,
    /// The stage that trains the spatial autoencoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spatial: Option<StageSettings>,
    /// Distillation of a decoder, in place of the objective of the first stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<DistillationSettings>,
    /// Polishing of a decoder, in place of the objective of the first stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub polish: Option<PolishSettings>,
    /// The stage that trains encoder and `UNet`.
    pub autoencoder: StageSettings,
    /// Sizes and diffusion of the latent net.
    pub latent_net: LatentNetSettings,
    /// The stage that trains the diffusion over `z_sem`.
    pub latent: StageSettings,
    /// The stage that trains the attribute classifier.
    pub classifier: StageSettings,
    /// Checkpoints, logging and previews.
    pub run: RunSettings,
}

/// The computation of edit directions from labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditDirections {
    /// Classifier weights, as in the paper: the direction that best indicates the attribute.
    #[default]
    Weights,
    /// Difference of the mean codes with and without the attribute, including all that correlates with it.
    ClassMeans,
}

/// Sizes of encoder and `UNet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Kind of model.
    pub kind: Kind,
    /// Height and width of pictures, or `[depth, height, width]` of volumes.
    pub image_size: ImageSize,
    /// Channels of pictures, 1 to 32.
    pub image_channels: usize,
    /// M, the base number of channels.
    pub model_channels: usize,
    /// Channels of the `UNet`'s levels in units of M.
    pub channel_mult: Vec<usize>,
    /// R, the number of residual blocks per level of the `UNet`.
    pub num_res_blocks: usize,
    /// Encoder: the one that is trained with the decoder, of the following sizes, or a pretrained network.
    #[serde(default)]
    pub encoder: EncoderKind,
    /// Channels of the encoder's levels in units of M.
    pub encoder_channel_mult: Vec<usize>,
    /// Number of residual blocks per level of the encoder.
    pub encoder_res_blocks: usize,
    /// D, the width of `z_sem` and of the time embedding.
    pub z_channels: usize,
    /// Hierarchical `z_sem`: the width of its part for each level of `channel_mult`, D together, computed and used at the
    /// resolution of the level. Empty for one code that all levels use.
    #[serde(default)]
    pub z_levels: ZLevels,
    /// Resolutions that have attention blocks.
    pub attention_resolutions: Vec<usize>,
    /// Number of heads in each attention block.
    pub num_heads: usize,
    /// Dropout probability in the residual blocks of the `UNet`.
    pub dropout: f64,
    /// Width of the noise of a compact autoencoder.
    #[serde(default = "default_noise_channels")]
    pub noise_channels: usize,
    /// Number of noise levels of a compact autoencoder.
    #[serde(default = "default_noise_levels")]
    pub noise_levels: usize,
}

fn default_noise_channels() -> usize {
    32
}

fn default_noise_levels() -> usize {
    1000
}

/// The kind of model that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A diffusion autoencoder: semantic encoder and conditioned `UNet`.
    Autoencoder,
    /// A diffusion autoencoder whose `UNet` runs on the latents of a spatial autoencoder: for large pictures. The sizes of the
    /// `UNet` count from those of latents.
    #[serde(rename = "latent-autoencoder", alias = "latent_autoencoder")]
    LatentAutoencoder,
    /// A plain DDPM: a `UNet` without an encoder.
    Ddpm,
    /// A compact autoencoder, which decodes in one shot. It uses only `image_size`, `image_channels`,
    /// `model_channels`, `z_channels`, `noise_channels` and `noise_levels` of the sizes.
    Compact,
}

/// Length and optimizer of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSettings {
    /// Number of pictures (or codes) that training sees, repeats included.
    pub images: usize,
    /// Number of pictures (or codes) per step.
    pub batch_size: usize,
    /// Number of micro-batches per step, whose gradients are accumulated: less memory, the same step.
    pub accumulate: usize,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment of the gradient.
    #[serde(default = "default_beta_1")]
    pub beta_1: f64,
    /// Decoupled weight decay, of `adamw` only.
    pub weight_decay: f64,
    /// Number of pictures over which the learning rate rises linearly from zero.
    pub warmup_images: usize,
    /// Maximum norm of the whole gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Decay of the moving average of the parameters, per step.
    pub ema_decay: f64,
    /// Warm-up of the decay: `min(ema_decay, (1 + t) / (10 + t))` at step t.
    pub ema_warmup: bool,
}

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam (Kingma and Ba 2015).
    Adam,
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    Adamw,
}

/// Loss of the first stage, and memory of its backward pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveSettings {
    /// Images of the warm-up phase trained at t = T - 1 only: a plain autoencoder first, as in arXiv:2504.21368.
    pub terminal_images: usize,
    /// Share of later images trained at t = T - 1 as well, where `z_sem` alone determines the picture: more
    /// of it teaches the encoder sooner.
    #[serde(default)]
    pub terminal_share: f64,
    /// Weighting of timesteps in the loss.
    pub loss_weight: LossWeight,
    /// Region of the picture, `[left, top, right, bottom]` from 0 to 1, whose pixels weigh more; see `focus_weight`.
    #[serde(default = "default_focus")]
    pub focus: [f64; 4],
    /// Loss weight of a pixel in `focus`, relative to one outside. 1 turns it off. Each pixel's best
    /// prediction stays the same: a weight decides only what is learned sooner and where errors remain.
    #[serde(default = "default_focus_weight")]
    pub focus_weight: f64,
    /// Activation checkpointing: blocks save only their inputs for the backward pass. Less memory, more time.
    pub checkpoint_blocks: bool,
    /// Number type of activations saved for the backward pass: bf16 halves the memory. Parameters stay f32.
    #[serde(default)]
    pub activations: Activations,
    /// Weight of the adversarial term, in which a discriminator sees the `x_0` estimate of each prediction. 0 turns it off.
    #[serde(default)]
    pub adversarial_weight: f64,
    /// Timestep limit of the adversarial term in a diffusion: only items below it are shown to the discriminator.
    #[serde(default = "default_adversarial_timesteps")]
    pub adversarial_timesteps: usize,
    /// Channels of the discriminator's first layer.
    #[serde(default = "default_discriminator_channels")]
    pub discriminator_channels: usize,
    /// Weight of the mean absolute error of pixels; of a compact autoencoder only.
    #[serde(default = "default_pixel_weight")]
    pub pixel_weight: f64,
}

fn default_focus() -> [f64; 4] {
    [0., 0., 1., 1.]
}

fn default_focus_weight() -> f64 {
    1.
}

fn default_adversarial_timesteps() -> usize {
    250
}

fn default_discriminator_channels() -> usize {
    64
}

fn default_pixel_weight() -> f64 {
    1.
}

/// The number type of activations saved for the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// Saves them as computed.
    #[default]
    F32,
    /// Rounds them to bf16.
    Bf16,
}

/// The weighting of timesteps in the loss; `snr = alpha_bar / (1 - alpha_bar)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeight {
    /// Weights all timesteps equally.
    Uniform,
    /// Weights by `min(snr, 5) / snr`; over `snr + 1` if v is predicted, over 1 if `x_0` is (Hang et al. 2023,
    /// arXiv:2303.09556).
    MinSnr,
    /// Weights by `1 / (1 + snr)`, for predicted noise only (Choi et al. 2022, arXiv:2204.00227, with k = 1, gamma = 1).
    P2,
}

/// Sizes and diffusion of the latent net.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentNetSettings {
    /// H, the width of the hidden layers.
    pub hidden_channels: usize,
    /// K, the number of layers.
    pub num_layers: usize,
    /// Diffusion over `z_sem`.
    pub diffusion: DiffusionConfig,
}

/// Checkpoints, logging and previews.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// Number of seconds between checkpoints.
    pub save_every_secs: f64,
    /// Number of checkpoints that are kept.
    pub keep: usize,
    /// Number of steps between lines of `metrics.jsonl`.
    pub log_every_steps: usize,
    /// Number of pictures between validations, each with a preview sheet; 0 turns both off.
    pub preview_every_images: usize,
    /// Number of sampling steps in previews.
    pub preview_steps: usize,
}

impl TrainConfig {
    /// Reads a whole config.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not TOML, or a key is unknown or missing; [`Error::Setting`] or [`Error::Nets`] if a
    /// value is out of range.
    pub fn from_toml(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|source| Error::Config(Box::new(source)))?;
        config.check()?;
        Ok(config)
    }

    /// Reads a config, and changes settings: `key=value`, such as `autoencoder.lr=2e-4`. A value that is not TOML is
    /// taken for text.
    ///
    /// # Errors
    /// As [`TrainConfig::from_toml`]; [`Error::UnknownKey`] and [`Error::NotAnAssignment`].
    pub fn from_toml_with(text: &str, assignments: &[String]) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|source| Error::Config(Box::new(source)))?;
        config.with(assignments)
    }

    /// Reads a config from a table of settings, and changes some; see [`TrainConfig::from_toml_with`].
    pub(crate) fn from_table_with(table: toml::Table, assignments: &[String]) -> Result<Self> {
        let config: Self = toml::Value::Table(table).try_into().map_err(|source| Error::Config(Box::new(source)))?;
        config.with(assignments)
    }

    /// Changes settings, also those that were left to their defaults, and checks the result.
    pub(crate) fn with(&self, assignments: &[String]) -> Result<Self> {
        let mut table: toml::Table =
            toml::from_str(&self.to_toml()).map_err(|source| Error::Config(Box::new(source)))?;
        for assignment in assignments {
            assign(&mut table, assignment)?;
        }
        let config = toml::Value::Table(table).try_into::<Self>().map_err(|source| Error::Config(Box::new(source)))?;
        config.check()?;
        Ok(config)
    }

    /// Writes the config as TOML, with every key.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Plain data: there is nothing in it that TOML could not hold.
        toml::to_string(self).unwrap_or_default()
    }

    /// Builds the config of the model, without latent net and classifier.
    ///
    /// # Errors
    /// [`Error::Nets`] if the sizes do not fit.
    pub fn model_config(&self) -> Result<ModelConfig> {
        let ModelSettings { kind, image_size, image_channels, model_channels, z_channels, num_heads, .. } = self.model;
        let model = &self.model;
        let window = self.data.window;
        if kind == Kind::Compact {
            let compact = CompactConfig::new(RawCompactConfig {
                image_size: only_pictures("a compact autoencoder", image_size)?,
                image_channels,
                model_channels,
                z_channels,
                noise_channels: model.noise_channels,
                noise_levels: model.noise_levels,
            })?;
            let config = RawModelConfig::OneShot { networks: compact, z_sem: ZSemConfig::default(), window };
            return Ok(ModelConfig::new(config)?);
        }
        let with_encoder = kind != Kind::Ddpm;
        let spatial = self.spatial_config()?;
        let (state_channels, state_size) = spatial.as_ref().map_or((image_channels, image_size), |spatial| {
            let [channels, size, _] = spatial.latent_shape();
            (channels, size.into())
        });
        let [of_unet, of_encoder] = self.attention_resolutions(state_size.width());
        let unet = UnetConfig::new(RawUnetConfig {
            image_size: state_size,
            in_channels: state_channels,
            out_channels: state_channels,
            model_channels,
            channel_mult: model.channel_mult.clone(),
            num_res_blocks: model.num_res_blocks,
            num_input_res_blocks: None,
            embed_channels: z_channels,
            attention_resolutions: of_unet,
            num_heads,
            dropout: model.dropout,
            conditioning: if with_encoder { Conditioning::TimeAndZSem } else { Conditioning::Time },
            z_levels: model.z_levels.clone(),
        })?;
        let encoder = with_encoder.then(|| -> diffae_nets::Result<SemanticConfig> {
            if let Some(network) = model.encoder.frozen() {
                let image_size = only_pictures("a pretrained encoder", image_size)?;
                let frozen = RawFrozenEncoderConfig { network, image_size, in_channels: image_channels };
                return Ok(FrozenEncoderConfig::new(frozen)?.into());
            }
            let offset = ZLevels::first_level(image_size, state_size);
            let trained = EncoderConfig::new(RawEncoderConfig {
                image_size,
                in_channels: image_channels,
                out_channels: z_channels,
                model_channels,
                channel_mult: model.encoder_channel_mult.clone(),
                num_res_blocks: model.encoder_res_blocks,
                attention_resolutions: of_encoder,
                num_heads,
                z_levels: model.z_levels.at_levels_of(offset, model.encoder_channel_mult.len())?,
            })?;
            Ok(trained.into())
        });
        let (diffusion, chains) = (self.diffusion.clone(), self.chains());
        let config = match encoder.transpose()? {
            Some(encoder) => {
                let networks = match spatial {
                    Some(spatial) => AutoencoderConfig::on_latents(encoder, spatial, unet)?,
                    None => AutoencoderConfig::new(encoder, unet)?,
                };
                let endpoint = self.polish.as_ref().map(|polish| polish.endpoint(model)).transpose()?;
                let z_sem = ZSemConfig::default();
                RawModelConfig::Autoencoder { networks, diffusion, chains, endpoint, z_sem, window }
            }
            None => RawModelConfig::Ddpm { unet, diffusion, chains, window },
        };
        Ok(ModelConfig::new(config)?)
    }

    /// Returns the form in which pictures are read.
    #[must_use]
    pub fn picture_format(&self) -> PictureFormat {
        let shape = self.model.image_size.with_channels(self.model.image_channels);
        PictureFormat { window: self.data.window, ..shape.into() }
    }

    /// Builds the config of the latent net.
    ///
    /// # Errors
    /// [`Error::Nets`] if the sizes do not fit.
    pub fn latent_config(&self) -> Result<LatentConfig> {
        let net = LatentNetConfig::new(RawLatentNetConfig {
            z_channels: self.model.z_channels,
            hidden_channels: self.latent_net.hidden_channels,
            num_layers: self.latent_net.num_layers,
            skip_layers: (1..self.latent_net.num_layers).collect(),
            time_embed_channels: LATENT_TIME_CHANNELS,
        })?;
        Ok(LatentConfig { net, diffusion: self.latent_net.diffusion.clone() })
    }

    fn check(&self) -> Result<()> {
        self.check_spatial()?;
        self.check_encoder()?;
        self.check_distillation()?;
        self.check_polish()?;
        self.model_config()?;
        self.latent_config()?;
        self.diffusion.noise_schedule()?;
        self.latent_net.diffusion.noise_schedule()?;
        let DataSettings { flip, validation_share, max_broken_share, workers, .. } = self.data;
        for (key, share) in [
            ("objective.terminal_share", self.objective.terminal_share),
            ("data.flip", flip),
            ("data.validation_share", validation_share),
            ("data.max_broken_share", max_broken_share),
        ] {
            require((0. ..=1.).contains(&share), key, share, "a share from 0 to 1")?;
        }
        let weights = [
            ("objective.adversarial_weight", self.objective.adversarial_weight),
            ("objective.pixel_weight", self.objective.pixel_weight),
        ];
        let [left, top, right, bottom] = self.objective.focus;
        let inside = 0. <= left && left < right && right <= 1. && 0. <= top && top < bottom && bottom <= 1.;
        let focus = format!("{:?}", self.objective.focus);
        require(inside, "objective.focus", focus, "[left, top, right, bottom], from 0 to 1, the lesser first")?;
        let weight = self.objective.focus_weight;
        require(weight > 0. && weight.is_finite(), "objective.focus_weight", weight, "a positive number")?;
        for (key, weight) in weights {
            require(weight >= 0. && weight.is_finite(), key, weight, "a weight of at least 0")?;
        }
        if self.objective.adversarial_weight > 0. {
            let size = self.model.image_size;
            require(
                size.square().is_some_and(|size| size >= 8 && size.is_power_of_two()),
                "model.image_size",
                size,
                "a power of two, 8 at least, for the discriminator",
            )?;
            let channels = self.objective.discriminator_channels;
            require((1..=8192).contains(&channels), "objective.discriminator_channels", channels, "1 to 8192")?;
        }
        require(workers > 0, "data.workers", workers, "at least 1")?;
        require(self.run.keep > 0, "run.keep", self.run.keep, "at least 1")?;
        let channels = self.model.image_channels;
        require((1..=MAX_CHANNELS).contains(&channels), "model.image_channels", channels, "1 to 32")?;
        let secs = self.run.save_every_secs;
        require((0. ..=1e9).contains(&secs), "run.save_every_secs", secs, "seconds from 0 to 1e9")?;
        self.check_previews()?;
        require(self.run.log_every_steps > 0, "run.log_every_steps", self.run.log_every_steps, "at least 1")?;
        let p2_fits =
            self.objective.loss_weight != LossWeight::P2 || self.diffusion.prediction == PredictionTarget::Eps;
        require(p2_fits, "objective.loss_weight", "p2", "another one, or diffusion.prediction=eps")?;
        for (key, diffusion) in [
            ("diffusion.prediction", &self.diffusion),
            ("latent_net.diffusion.beta_schedule", &self.latent_net.diffusion),
        ] {
            let learns =
                diffusion.prediction != PredictionTarget::Eps || !diffusion.beta_schedule.ends_without_signal();
            require(learns, key, "eps", "v or x_0 with a schedule that ends without signal")?;
        }
        let latent = self.latent_net.diffusion.prediction;
        require(latent == PredictionTarget::Eps, "latent_net.diffusion.prediction", latent, "eps")?;
        for stage in [&self.autoencoder, &self.latent, &self.classifier] {
            stage.check()?;
        }
        Ok(())
    }
}

impl TrainConfig {
    /// Checks that the schedules have as many steps as previews take.
    fn check_previews(&self) -> Result<()> {
        if self.run.preview_every_images == 0 || self.model.kind == Kind::Compact || self.is_of_decoder() {
            return Ok(());
        }
        let latent = (self.model.kind != Kind::Ddpm).then_some(&self.latent_net.diffusion);
        for diffusion in [Some(&self.diffusion), latent].into_iter().flatten() {
            let steps = StepSequence::Ddim(self.run.preview_steps);
            StepChain::new(&diffusion.noise_schedule()?, &steps)
                .map_err(|source| Error::Chain { key: "run.preview_steps", source })?;
        }
        Ok(())
    }
}

fn default_beta_1() -> f64 {
    0.9
}

impl StageSettings {
    /// Computes the number of samples in a micro-batch.
    #[must_use]
    pub fn part_size(&self) -> usize {
        self.batch_size.checked_div(self.accumulate).unwrap_or(0)
    }

    /// Computes the number of steps.
    #[must_use]
    pub fn num_steps(&self) -> usize {
        self.images.div_ceil(self.batch_size.max(1))
    }

    /// Computes the learning rate of a step, counted from 0.
    #[must_use]
    pub fn lr_at(&self, step: usize) -> f64 {
        let seen = ((step + 1) * self.batch_size) as f64;
        if self.warmup_images == 0 { self.lr } else { self.lr * (seen / self.warmup_images as f64).min(1.) }
    }

    /// Computes the decay of the moving average at a step, counted from 0.
    #[must_use]
    pub fn ema_decay_at(&self, step: usize) -> f64 {
        let t = step as f64;
        if self.ema_warmup { self.ema_decay.min((1. + t) / (10. + t)) } else { self.ema_decay }
    }

    pub(crate) fn check(&self) -> Result<()> {
        require(self.batch_size > 0, "batch_size", self.batch_size, "at least 1")?;
        let divides = self.accumulate > 0 && self.batch_size.is_multiple_of(self.accumulate);
        require(divides, "accumulate", self.accumulate, "a divisor of batch_size")?;
        require(self.lr > 0. && self.lr.is_finite(), "lr", self.lr, "a positive number")?;
        require(self.clip_norm >= 0., "clip_norm", self.clip_norm, "a positive number, or 0")?;
        require((0. ..1.).contains(&self.beta_1), "beta_1", self.beta_1, "a number in [0, 1)")?;
        require((0. ..1.).contains(&self.ema_decay), "ema_decay", self.ema_decay, "a number in [0, 1)")?;
        require(self.weight_decay >= 0., "weight_decay", self.weight_decay, "a number of at least 0")
    }
}

#[expect(
    clippy::fn_params_excessive_bools,
    clippy::needless_pass_by_value,
    reason = "reads as a sentence at every call"
)]
pub(crate) fn require(holds: bool, key: &'static str, got: impl ToString, expected: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Setting { key, got: got.to_string(), expected }) }
}

/// Returns the side of pictures, for a part that knows no volumes.
pub(crate) fn only_pictures(part: &'static str, size: ImageSize) -> diffae_nets::Result<usize> {
    size.square().ok_or(diffae_nets::Error::NotForVolumes { part, got: size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;
    use diffae_data::Crop;

    fn smoke(assignments: &[&str]) -> Result<TrainConfig> {
        let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
        TrainConfig::from_toml_with(&presets::text("smoke").unwrap(), &assignments)
    }

    #[test]
    fn settings_can_be_changed_by_name() {
        let config = smoke(&["autoencoder.lr=1", "model.channel_mult=[1, 2]", "data.crop=celeba"]).unwrap();
        assert_eq!((config.autoencoder.lr, config.data.crop), (1., Crop::Celeba));
        assert_eq!(config.model.channel_mult, [1, 2]);
        assert_eq!(TrainConfig::from_toml(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn what_does_not_exist_or_fit_is_refused() {
        let message = |assignment| smoke(&[assignment]).unwrap_err().to_string();
        assert!(message("autoencoder.learning_rate=1").contains("there are"));
        assert!(message("seed").contains("key=value"));
        assert!(message("autoencoder.accumulate=3").contains("divisor"));
        assert!(message("autoencoder.ema_decay=1").contains("ema_decay"));
        assert!(message("diffusion.beta_schedule=linear-zsnr").contains("v or x_0"));
        assert!(smoke(&["diffusion.beta_schedule=linear-zsnr", "diffusion.prediction=v"]).is_ok());
        assert!(smoke(&["model.model_channels=31"]).is_err());
        assert!(smoke(&["model.image_channels=33"]).is_err() && smoke(&["model.image_channels=32"]).is_ok());
        assert!(message("run.save_every_secs=inf").contains("save_every_secs"));
        assert!(message("run.preview_steps=60").contains("run.preview_steps"));
        assert!(smoke(&["run.preview_steps=60", "run.preview_every_images=0"]).is_ok());
        assert!(TrainConfig::from_toml("seed = 1\nnonsense = 2").is_err());
    }

    #[test]
    fn warm_ups_end_where_they_should() {
        let stage = smoke(&["autoencoder.warmup_images=64", "autoencoder.ema_warmup=true"]).unwrap().autoencoder;
        assert!(stage.lr_at(0) < stage.lr && (stage.lr_at(1000) - stage.lr).abs() < 1e-12);
        assert!((stage.ema_decay_at(0) - 0.1).abs() < 1e-12);
    }
}
