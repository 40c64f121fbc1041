//! A pretrained network as the semantic encoder of a run.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use diffae_data::{Overwrite, write_atomically};
use diffae_infer::ModelSource;
use diffae_nets::weights::{ArchitectureHints, TensorMap, Weights, read_state_dict, safetensors_bytes};
use diffae_nets::{FrozenEncoder, FrozenEncoderConfig, FrozenNetwork, SemanticConfig};
use serde::{Deserialize, Serialize};

use crate::compute::Compute;
use crate::config::{Kind, TrainConfig, require};
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::run::{Notes, RunFolder};

/// File of a run with the parameters of its pretrained encoder.
const FILE: &str = "encoder.safetensors";
/// Prefix of them in a model.
const PREFIX: &str = "encoder.";

/// The encoder of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", expecting = "expected trained, dinov2-s, dinov2-b or dinov2-l")]
pub enum EncoderKind {
    /// The encoder of the paper, trained with the decoder.
    #[default]
    Trained,
    /// A pretrained network, whose weights a run is given and whose features are `z_sem`; only the decoder is trained.
    #[serde(untagged)]
    Frozen(FrozenNetwork),
}

impl EncoderKind {
    /// Returns the pretrained network, if it is one.
    #[must_use]
    pub fn frozen(self) -> Option<FrozenNetwork> {
        match self {
            Self::Trained => None,
            Self::Frozen(network) => Some(network),
        }
    }
}

impl TrainConfig {
    /// Checks that a pretrained encoder fits the rest.
    pub(crate) fn check_encoder(&self) -> Result<()> {
        let has_levels = !self.model.z_levels.is_empty();
        let expected = "none, unless model.kind is autoencoder or latent-autoencoder";
        let has_encoder = matches!(self.model.kind, Kind::Autoencoder | Kind::LatentAutoencoder);
        require(!has_levels || has_encoder, "model.z_levels", &self.model.z_levels, expected)?;
        let Some(network) = self.model.encoder.frozen() else { return Ok(()) };
        let expected = "none, where z_sem are the features of a pretrained network";
        require(!has_levels, "model.z_levels", &self.model.z_levels, expected)?;
        let expected = "trained, unless model.kind is autoencoder or latent-autoencoder";
        require(has_encoder, "model.encoder", network, expected)?;
        let expected = "trained, where a decoder is distilled or polished";
        require(!self.is_of_decoder(), "model.encoder", network, expected)?;
        let expected = match network {
            FrozenNetwork::DinoV2Small => "384, the number of features of dinov2-s",
            FrozenNetwork::DinoV2Base => "768, the number of features of dinov2-b",
            FrozenNetwork::DinoV2Large => "1024, the number of features of dinov2-l",
        };
        let width = self.model.z_channels;
        require(width == network.width(), "model.z_channels", width, expected)
    }
}

/// Reads the parameters of the pretrained encoder that a run was given, under their names in a model; none if its encoder is
/// trained.
pub(crate) fn given(config: &TrainConfig, notes: &Notes) -> Result<BTreeMap<String, Tensor>> {
    let Some(network) = config.model.encoder.frozen() else { return Ok(BTreeMap::new()) };
    match (&notes.encoder_weights, &notes.init_from) {
        (Some(path), _) => {
            let failed = |source| diffae_infer::Error::Weights { path: path.clone(), source };
            let released = Weights::new(Arc::new(read_state_dict(path).map_err(failed)?));
            let TensorMap(tensors) = network.parameters(&released).map_err(failed)?;
            Ok(tensors.into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect())
        }
        (None, Some(path)) => of_model(network, path),
        (None, None) => {
            let expected = "the path of the network's weights, or a model to begin with that has them";
            Err(Error::Setting { key: "encoder_weights", got: "nothing".to_owned(), expected })
        }
    }
}

/// Reads the pretrained encoder of a model.
fn of_model(network: FrozenNetwork, path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let model = ModelSource::open(path, &ArchitectureHints::default())?;
    let own = model.config().encoder().and_then(SemanticConfig::frozen);
    if own.is_none_or(|own| own.network != network) {
        let problem = format!("the encoder of {} is not {network}", path.display());
        return Err(Error::OtherNetworks { problem });
    }
    Ok(model.networks(DType::F32)?.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect())
}

/// Reads the pretrained encoder of a run, under its names in a model. A run that was begun has a copy of what it was given, and one
/// that was not may be given another.
pub(crate) fn of_run(folder: &RunFolder) -> Result<HashMap<String, Tensor>> {
    let config = folder.config();
    if config.model.encoder.frozen().is_none() {
        return Ok(HashMap::new());
    }
    let path = folder.path().join(FILE);
    if path.exists() && folder.is_begun() {
        let failed = |source| diffae_infer::Error::Weights { path: path.clone(), source };
        return Ok(read_state_dict(&path).map_err(failed)?.0.into_iter().collect());
    }
    let tensors = given(config, folder.notes())?;
    if !folder.is_followed() {
        let failed = |source| diffae_infer::Error::Weights { path: path.clone(), source };
        let bytes = safetensors_bytes(&tensors, &BTreeMap::new()).map_err(failed)?;
        write_atomically(&path, &bytes, Overwrite::Replace)?;
    }
    Ok(tensors.into_iter().collect())
}

/// Builds the pretrained encoder of a model of given parameters under the names of the model; without any of random ones, for a
/// trial. Also returns them on the CPU.
pub(crate) fn constant(
    config: &FrozenEncoderConfig,
    given: HashMap<String, Tensor>,
    (seed, compute): (u64, &Compute),
) -> Result<(FrozenEncoder, BTreeMap<String, Tensor>)> {
    let tensors = Parameters::constants(seed, given, |vb| Ok(FrozenEncoder::new(config, &vb.pp("encoder"))?))?;
    let vb = VarBuilder::from_tensors(tensors.clone().into_iter().collect(), DType::F32, &compute.device);
    Ok((FrozenEncoder::new(config, &vb.pp("encoder"))?, tensors))
}

/// Splits the parameters of the pretrained encoder of a model from others; none if its encoder is trained.
pub(crate) fn split(
    config: Option<&FrozenEncoderConfig>,
    parameters: HashMap<String, Tensor>,
) -> (HashMap<String, Tensor>, HashMap<String, Tensor>) {
    parameters.into_iter().partition(|(name, _)| config.is_some() && name.starts_with(PREFIX))
}
