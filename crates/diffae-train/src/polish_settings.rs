//! Settings of a run that polishes a decoder.

use diffae_infer::{ChainsConfig, DistilledChain};
use diffae_nets::{EndpointConfig, RawEndpointConfig};
use serde::{Deserialize, Serialize};

use crate::config::{ModelSettings, only_pictures};
use crate::error::Result;

/// Polishing of a decoder and its endpoint network: the chain that both are trained through, and the loss of its pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolishSettings {
    /// Chain of the polished decoder.
    pub chain: DistilledChain,
    /// Channels of the endpoint network's largest maps; see [`RawEndpointConfig::model_channels`].
    pub endpoint_channels: usize,
    /// Weight of the mean square difference of pixels, in `[-1, 1]`, beside LPIPS; 0 or more.
    pub pixel_weight: f64,
    /// Number of validations in a row without a lower loss after which the run ends; 0 for none.
    pub patience: usize,
}

impl PolishSettings {
    /// Returns the chains of the model.
    pub(crate) fn chains(&self) -> ChainsConfig {
        ChainsConfig { distilled: Some(self.chain), tuned: vec![] }
    }

    /// Returns the config of the endpoint network.
    pub(crate) fn endpoint(&self, model: &ModelSettings) -> Result<EndpointConfig> {
        Ok(EndpointConfig::new(RawEndpointConfig {
            image_size: only_pictures("an endpoint network", model.image_size)?,
            image_channels: model.image_channels,
            z_channels: model.z_channels,
            model_channels: self.endpoint_channels,
        })?)
    }
}
