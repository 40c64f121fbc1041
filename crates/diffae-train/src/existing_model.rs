//! Configs of runs that go on with the networks of a model.

use diffae_infer::{ChainsConfig, ModelConfig};
use diffae_nets::{RawUnetConfig, SemanticConfig, UnetConfig};

use crate::config::{Kind, LossWeight, ModelSettings, ObjectiveSettings, TrainConfig};
use crate::data_settings::DataSettings;
use crate::distillation_settings::DistillationSettings;
use crate::error::{Error, Result};
use crate::polish_settings::PolishSettings;
use crate::presets;

impl TrainConfig {
    /// Returns a config with the networks and the diffusion of a model whose decoder takes steps; `name` stands for the model in
    /// messages.
    pub(crate) fn of_networks(networks: &ModelConfig, name: &'static str) -> Result<Self> {
        let base = presets::config("small64", &[])?;
        if networks.spatial().is_some() {
            let expected = "a model on pictures";
            return Err(Error::Setting { key: name, got: "one on latents".to_owned(), expected });
        }
        let (Some(unet), Some(diffusion)) = (networks.unet(), networks.diffusion()) else {
            let expected = "a model whose decoder takes steps";
            return Err(Error::Setting { key: name, got: "a one-shot autoencoder".to_owned(), expected });
        };
        let encoder = match networks.encoder() {
            Some(SemanticConfig::Frozen(frozen)) => {
                let expected = "a model whose encoder was trained with the decoder";
                return Err(Error::Setting {
                    key: name,
                    got: format!("one whose encoder is {}", frozen.network),
                    expected,
                });
            }
            other => other.and_then(SemanticConfig::trained),
        };
        Ok(Self {
            model: ModelSettings {
                kind: if encoder.is_some() { Kind::Autoencoder } else { Kind::Ddpm },
                image_size: unet.image_size,
                image_channels: unet.in_channels,
                model_channels: unet.model_channels,
                channel_mult: unet.channel_mult.clone(),
                num_res_blocks: unet.num_res_blocks,
                encoder_channel_mult: encoder
                    .map_or_else(|| base.model.encoder_channel_mult.clone(), |encoder| encoder.channel_mult.clone()),
                encoder_res_blocks: encoder.map_or(base.model.encoder_res_blocks, |encoder| encoder.num_res_blocks),
                z_channels: unet.embed_channels,
                z_levels: unet.z_levels.clone(),
                attention_resolutions: unet.attention_resolutions.clone(),
                num_heads: unet.num_heads,
                dropout: 0.,
                ..base.model
            },
            diffusion: diffusion.clone(),
            // What the model was trained on is as it is given, for all that is known.
            data: DataSettings { flip: 0., window: networks.picture_format().window, ..base.data },
            objective: ObjectiveSettings { loss_weight: LossWeight::Uniform, ..base.objective },
            ..base
        })
    }

    /// Fails unless the networks of this config are those of a model, dropout apart.
    pub(crate) fn check_architecture(&self, model: &ModelConfig) -> Result<()> {
        let plain = |unet: &UnetConfig| RawUnetConfig { dropout: 0., ..(**unet).clone() };
        let own = self.model_config()?;
        if own.unet().map(plain) == model.unet().map(plain) && own.encoder() == model.encoder() {
            return Ok(());
        }
        let problem = "the model has sizes that a config of training cannot name".to_owned();
        Err(Error::OtherNetworks { problem })
    }

    /// Returns whether the run trains the decoder of a model that keeps its later stages.
    pub(crate) fn is_of_decoder(&self) -> bool {
        self.distillation.is_some() || self.polish.is_some()
    }

    /// Returns the chains of the model: that which its decoder was trained for alone, where there is one.
    pub(crate) fn chains(&self) -> ChainsConfig {
        let distilled = self.distillation.as_ref().map(DistillationSettings::chains);
        distilled.or_else(|| self.polish.as_ref().map(PolishSettings::chains)).unwrap_or_default()
    }
}
