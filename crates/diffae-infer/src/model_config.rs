//! The `config.json` of a model: everything but the weights.

use std::path::Path;

use diffae_data::{MAX_CHANNELS, PictureFormat, Window};
use diffae_nets::weights::{Architecture, DiffusionFacts};
use diffae_nets::{
    AutoencoderConfig, Check, ClassifierConfig, CompactConfig, EncoderConfig, EndpointConfig, FrozenEncoderConfig,
    ImageShape, ImageSize, LatentNetConfig, SemanticConfig, SpatialConfig, UnetConfig, Valid, ZLevels,
};
use diffae_schedule::{BetaSchedule, NoiseSchedule, PredictionTarget, Sampler, Spacing};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::PictureDomain;
use crate::error::{Error, Result};
use crate::stochastic_code::{read_text, write_text};

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

/// Chains that belong to a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainsConfig {
    /// The chain that decodes where nothing else is asked for, if the decoder was distilled or polished for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distilled: Option<DistilledChain>,
    /// Chains of [`Spacing::Tuned`], one for each number of steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuned: Vec<TunedChain>,
}

/// Timesteps that were tuned for a sampler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TunedChain {
    /// The timesteps, strictly increasing.
    pub timesteps: Vec<usize>,
    /// The sampler that takes the steps unless another one is asked for; one that adds no noise.
    #[serde(serialize_with = "write_text")]
    pub sampler: Sampler,
}

impl<'de> Deserialize<'de> for TunedChain {
    /// Reads timesteps with their sampler, or the list of timesteps alone, which are those of DPM-Solver++(2M).
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            timesteps: Vec<usize>,
            #[serde(deserialize_with = "read_text")]
            sampler: Sampler,
        }

        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = TunedChain;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("timesteps, or timesteps and sampler")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<TunedChain, A::Error> {
                let timesteps = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(TunedChain { timesteps, sampler: Sampler::DpmSolverPp2M })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<TunedChain, A::Error> {
                let Fields { timesteps, sampler } = Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(TunedChain { timesteps, sampler })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// The chain of DDIM steps that a distilled or polished decoder was trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistilledChain {
    /// Number of steps.
    pub steps: usize,
    /// Spacing of the timesteps.
    #[serde(serialize_with = "write_text", deserialize_with = "read_text")]
    pub spacing: Spacing,
}

impl ChainsConfig {
    /// Returns the tuned chain of so many steps.
    #[must_use]
    pub fn tuned(&self, num_steps: usize) -> Option<&TunedChain> {
        self.tuned.iter().find(|chain| chain.timesteps.len() == num_steps)
    }

    /// Sets the tuned chain for as many steps as it has timesteps.
    pub fn set_tuned(&mut self, chain: TunedChain) {
        self.tuned.retain(|other| other.timesteps.len() != chain.timesteps.len());
        self.tuned.push(chain);
        self.tuned.sort_by_key(|chain| chain.timesteps.len());
    }

    fn check(&self, diffusion: &DiffusionConfig) -> diffae_nets::Result<()> {
        let is_valid = |TunedChain { timesteps, sampler }: &TunedChain| {
            sampler.is_deterministic()
                && timesteps.is_sorted_by(|a, b| a < b)
                && timesteps.last().is_some_and(|&last| last < diffusion.num_train_timesteps)
        };
        let distilled = self.distilled.map_or(1, |chain| chain.steps);
        if self.tuned.iter().all(is_valid) && (1..=diffusion.num_train_timesteps).contains(&distilled) {
            Ok(())
        } else {
            Err(diffae_nets::Error::NotAChain { num_train_timesteps: diffusion.num_train_timesteps })
        }
    }
}

/// Everything about a model but its weights, by kind; serialized, the contents of a `config.json`.
pub type ModelConfig = Valid<RawModelConfig>;

/// Parts of a model by kind, as written. [`ModelConfig`] holds one whose parts fit together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ConfigFile", into = "ConfigFile")]
#[expect(clippy::large_enum_variant, reason = "there is one config per model")]
pub enum RawModelConfig {
    /// A plain DDPM, which has no semantic code.
    Ddpm {
        /// Config of the `UNet`, which is conditioned on time alone.
        unet: UnetConfig,
        /// The diffusion over pictures.
        diffusion: DiffusionConfig,
        /// Chains that belong to the model.
        chains: ChainsConfig,
        /// Window of the values of pictures, if they are numbers without a scale.
        window: Option<Window>,
    },
    /// A diffusion autoencoder.
    Autoencoder {
        /// Configs of the semantic encoder and the conditioned `UNet`, and of a spatial autoencoder where the diffusion runs
        /// on latents.
        networks: AutoencoderConfig,
        /// The diffusion over pictures.
        diffusion: DiffusionConfig,
        /// Chains that belong to the model.
        chains: ChainsConfig,
        /// The network that computes an `x_T` from `z_sem`, if there is one.
        endpoint: Option<EndpointConfig>,
        /// Parts on top of `z_sem`.
        z_sem: ZSemConfig,
        /// Window of the values of pictures, if they are numbers without a scale.
        window: Option<Window>,
    },
    /// A compact autoencoder, which decodes in one shot.
    OneShot {
        /// Sizes of encoder and decoder.
        networks: CompactConfig,
        /// Parts on top of `z_sem`.
        z_sem: ZSemConfig,
        /// Window of the values of pictures, if they are numbers without a scale.
        window: Option<Window>,
    },
}

/// Parts of a model on top of its semantic code.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ZSemConfig {
    /// The diffusion over `z_sem`.
    pub latent: Option<LatentConfig>,
    /// The attribute classifier.
    pub classifier: Option<ClassifierConfig>,
    /// The pictures that the model is for, if they are of one kind only.
    pub domain: Option<PictureDomain>,
}

impl RawModelConfig {
    /// Returns the kind of the model.
    #[must_use]
    pub fn kind(&self) -> ModelKind {
        match self {
            Self::Ddpm { .. } => ModelKind::Ddpm,
            Self::OneShot { .. } => ModelKind::OneShot,
            Self::Autoencoder { z_sem, .. } if z_sem.latent.is_some() => ModelKind::AutoencoderWithLatentNet,
            Self::Autoencoder { .. } => ModelKind::Autoencoder,
        }
    }

    /// Returns the shape of pictures, `[C, H, W]`, or of volumes, `[C, D, H, W]`.
    #[must_use]
    pub fn image_shape(&self) -> ImageShape {
        match self {
            Self::Ddpm { unet, .. } => unet.image_size.with_channels(unet.in_channels),
            Self::Autoencoder { networks, .. } => {
                networks.encoder().image_size().with_channels(networks.encoder().in_channels())
            }
            Self::OneShot { networks, .. } => {
                ImageSize::from(networks.image_size).with_channels(networks.image_channels)
            }
        }
    }

    /// Returns the form in which pictures are read: their shape, and the window of their values.
    #[must_use]
    pub fn picture_format(&self) -> PictureFormat {
        let (Self::Ddpm { window, .. } | Self::Autoencoder { window, .. } | Self::OneShot { window, .. }) = self;
        PictureFormat { window: *window, ..self.image_shape().into() }
    }

    /// Returns the shape of the states of the diffusion over pictures: that of pictures, or of latents where there is a spatial
    /// autoencoder. A one-shot autoencoder has none.
    #[must_use]
    pub fn state_shape(&self) -> Option<ImageShape> {
        self.unet().map(|unet| unet.image_size.with_channels(unet.in_channels))
    }

    /// Returns the width of `z_sem`, if the model has one.
    #[must_use]
    pub fn z_channels(&self) -> Option<usize> {
        match self {
            Self::Ddpm { .. } => None,
            Self::Autoencoder { networks, .. } => Some(networks.encoder().out_channels()),
            Self::OneShot { networks, .. } => Some(networks.z_channels),
        }
    }

    /// Returns the parts of a hierarchical `z_sem`; none if it is one code for all resolutions.
    #[must_use]
    pub fn z_levels(&self) -> &ZLevels {
        static ONE_CODE: ZLevels = ZLevels::NONE;
        self.unet().map_or(&ONE_CODE, |unet| &unet.z_levels)
    }

    /// Returns the width of the maps of the `UNet` that see each level of a hierarchical `z_sem`, in pixels; none without levels.
    #[must_use]
    pub fn z_resolutions(&self) -> Vec<usize> {
        let width = self.unet().map_or(0, |unet| unet.image_size.width());
        (0..self.z_levels().len()).map(|level| width >> level).collect()
    }

    /// Returns the config of the `UNet`; a one-shot autoencoder has none.
    #[must_use]
    pub fn unet(&self) -> Option<&UnetConfig> {
        match self {
            Self::Ddpm { unet, .. } => Some(unet),
            Self::Autoencoder { networks, .. } => Some(networks.unet()),
            Self::OneShot { .. } => None,
        }
    }

    /// Returns the config of the semantic encoder of a diffusion autoencoder.
    #[must_use]
    pub fn encoder(&self) -> Option<&SemanticConfig> {
        match self {
            Self::Autoencoder { networks, .. } => Some(networks.encoder()),
            Self::Ddpm { .. } | Self::OneShot { .. } => None,
        }
    }

    /// Returns the sizes of the spatial autoencoder, if the diffusion runs on latents.
    #[must_use]
    pub fn spatial(&self) -> Option<&SpatialConfig> {
        match self {
            Self::Autoencoder { networks, .. } => networks.spatial(),
            Self::Ddpm { .. } | Self::OneShot { .. } => None,
        }
    }

    /// Returns the network that computes an `x_T` from `z_sem`, if there is one.
    #[must_use]
    pub fn endpoint(&self) -> Option<&EndpointConfig> {
        match self {
            Self::Autoencoder { endpoint, .. } => endpoint.as_ref(),
            Self::Ddpm { .. } | Self::OneShot { .. } => None,
        }
    }

    /// Returns the diffusion over pictures; a one-shot autoencoder has none.
    #[must_use]
    pub fn diffusion(&self) -> Option<&DiffusionConfig> {
        match self {
            Self::Ddpm { diffusion, .. } | Self::Autoencoder { diffusion, .. } => Some(diffusion),
            Self::OneShot { .. } => None,
        }
    }

    /// Returns the chains that belong to the model; a one-shot autoencoder has none.
    #[must_use]
    pub fn chains(&self) -> Option<&ChainsConfig> {
        match self {
            Self::Ddpm { chains, .. } | Self::Autoencoder { chains, .. } => Some(chains),
            Self::OneShot { .. } => None,
        }
    }

    /// Returns the config with other chains.
    ///
    /// # Errors
    /// [`diffae_nets::Error::NotAChain`] if they do not fit the schedule, or the model has none.
    pub fn with_chains(&self, new: ChainsConfig) -> diffae_nets::Result<ModelConfig> {
        let mut config = self.clone();
        match &mut config {
            Self::Ddpm { chains, .. } | Self::Autoencoder { chains, .. } => *chains = new,
            Self::OneShot { .. } => return Err(diffae_nets::Error::NotAChain { num_train_timesteps: 0 }),
        }
        ModelConfig::new(config)
    }

    /// Returns the config with another network that computes an `x_T` from `z_sem`, or with none.
    ///
    /// # Errors
    /// [`diffae_nets::Error::NotOneModel`] if there is a network and the model is no diffusion autoencoder;
    /// [`diffae_nets::Error::WidthMismatch`] if the network is for other pictures or codes.
    pub fn with_endpoint(&self, new: Option<EndpointConfig>) -> diffae_nets::Result<ModelConfig> {
        let mut config = self.clone();
        match &mut config {
            Self::Autoencoder { endpoint, .. } => *endpoint = new,
            Self::Ddpm { .. } | Self::OneShot { .. } if new.is_some() => return Err(diffae_nets::Error::NotOneModel),
            Self::Ddpm { .. } | Self::OneShot { .. } => {}
        }
        ModelConfig::new(config)
    }

    /// Returns the config of a one-shot autoencoder.
    #[must_use]
    pub fn one_shot(&self) -> Option<&CompactConfig> {
        match self {
            Self::OneShot { networks, .. } => Some(networks),
            Self::Ddpm { .. } | Self::Autoencoder { .. } => None,
        }
    }

    /// Returns the diffusion over `z_sem`, if there is one.
    #[must_use]
    pub fn latent(&self) -> Option<&LatentConfig> {
        self.z_sem().and_then(|z_sem| z_sem.latent.as_ref())
    }

    /// Returns the attribute classifier, if there is one.
    #[must_use]
    pub fn classifier(&self) -> Option<&ClassifierConfig> {
        self.z_sem().and_then(|z_sem| z_sem.classifier.as_ref())
    }

    /// Returns the pictures that the model is for, if they are of one kind only.
    #[must_use]
    pub fn domain(&self) -> Option<&PictureDomain> {
        self.z_sem().and_then(|z_sem| z_sem.domain.as_ref())
    }

    /// Returns the parts on top of `z_sem`; a plain DDPM has none.
    #[must_use]
    pub fn z_sem(&self) -> Option<&ZSemConfig> {
        match self {
            Self::Ddpm { .. } => None,
            Self::Autoencoder { z_sem, .. } | Self::OneShot { z_sem, .. } => Some(z_sem),
        }
    }

    /// Returns the config with another diffusion over `z_sem`.
    ///
    /// # Errors
    /// [`diffae_nets::Error::NeedsZSem`] in a plain DDPM; [`diffae_nets::Error::WidthMismatch`] if the width is another
    /// than that of `z_sem`.
    pub fn with_latent(&self, latent: LatentConfig) -> diffae_nets::Result<ModelConfig> {
        self.with_z_sem("latent net", |z_sem| z_sem.latent = Some(latent))
    }

    /// Returns the config with another attribute classifier.
    ///
    /// # Errors
    /// As [`with_latent`](Self::with_latent).
    pub fn with_classifier(&self, classifier: ClassifierConfig) -> diffae_nets::Result<ModelConfig> {
        self.with_z_sem("classifier", |z_sem| z_sem.classifier = Some(classifier))
    }

    fn with_z_sem(&self, part: &'static str, change: impl FnOnce(&mut ZSemConfig)) -> diffae_nets::Result<ModelConfig> {
        let mut config = self.clone();
        match &mut config {
            Self::Ddpm { .. } => return Err(diffae_nets::Error::NeedsZSem { part }),
            Self::Autoencoder { z_sem, .. } | Self::OneShot { z_sem, .. } => change(z_sem),
        }
        ModelConfig::new(config)
    }

    /// Converts the architecture of the released checkpoint `path` to a config.
    ///
    /// # Errors
    /// [`Error::Schedule`] if it names an unknown noise schedule; [`Error::Weights`] if its parts do not fit together.
    pub(crate) fn from_architecture(path: &Path, architecture: &Architecture) -> Result<ModelConfig> {
        let latent = match &architecture.latent {
            Some(latent) => {
                let diffusion = DiffusionConfig::from_facts(&latent.diffusion)?;
                Some(LatentConfig { net: latent.net.clone(), diffusion })
            }
            None => None,
        };
        let file = ConfigFile {
            unet: Some(architecture.unet.clone()),
            encoder: architecture.encoder.clone(),
            diffusion: Some(DiffusionConfig::from_facts(&architecture.diffusion)?),
            latent,
            ..ConfigFile::default()
        };
        let config = file.try_into().and_then(ModelConfig::new);
        config.map_err(|source| Error::Weights { path: path.to_owned(), source })
    }
}

impl Check for RawModelConfig {
    fn check(&self) -> diffae_nets::Result<()> {
        if let Self::Ddpm { unet, .. } = self
            && unet.has_z_sem()
        {
            return Err(diffae_nets::Error::NoEncoder);
        }
        if let (Some(chains), Some(diffusion)) = (self.chains(), self.diffusion()) {
            chains.check(diffusion)?;
        }
        let channels = self.image_shape().channels;
        if channels > MAX_CHANNELS {
            let (network, field) = ("model", "number of channels of pictures");
            return Err(diffae_nets::Error::FieldTooLarge { network, field, got: channels, most: MAX_CHANNELS });
        }
        let Some(width) = self.z_channels() else { return Ok(()) };
        let fits = |what, got: Option<usize>| match got {
            Some(got) if got != width => {
                Err(diffae_nets::Error::WidthMismatch { what, got, of: "the width of z_sem", expected: width })
            }
            _ => Ok(()),
        };
        fits("z_channels of the latent net", self.latent().map(|latent| latent.net.z_channels))?;
        fits("z_channels of the classifier", self.classifier().map(|classifier| classifier.z_channels))?;
        let Some(endpoint) = self.endpoint() else { return Ok(()) };
        fits("z_channels of the endpoint network", Some(endpoint.z_channels))?;
        let ImageShape { channels, size } = self.state_shape().unwrap_or_else(|| self.image_shape());
        let part = "an endpoint network";
        let size = size.square().ok_or(diffae_nets::Error::NotForVolumes { part, got: size })?;
        for (what, got, of, expected) in [
            ("image_channels of the endpoint network", endpoint.image_channels, "the channels of x_T", channels),
            ("image_size of the endpoint network", endpoint.image_size, "the size of x_T", size),
        ] {
            if got != expected {
                return Err(diffae_nets::Error::WidthMismatch { what, got, of, expected });
            }
        }
        Ok(())
    }
}

/// The contents of a `config.json`, in which any mixture of parts can be written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    format_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unet: Option<UnetConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoder: Option<EncoderConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frozen_encoder: Option<FrozenEncoderConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spatial: Option<SpatialConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    diffusion: Option<DiffusionConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chains: Option<ChainsConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<EndpointConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compact: Option<CompactConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latent: Option<LatentConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    classifier: Option<ClassifierConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<PictureDomain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
}

impl Default for ConfigFile {
    /// Returns a file of the current version without parts.
    fn default() -> Self {
        Self {
            format_version: FORMAT_VERSION,
            unet: None,
            encoder: None,
            frozen_encoder: None,
            spatial: None,
            diffusion: None,
            chains: None,
            endpoint: None,
            compact: None,
            latent: None,
            classifier: None,
            domain: None,
            window: None,
        }
    }
}

impl TryFrom<ConfigFile> for RawModelConfig {
    type Error = diffae_nets::Error;

    fn try_from(file: ConfigFile) -> diffae_nets::Result<Self> {
        let ConfigFile { unet, encoder, frozen_encoder, spatial, diffusion, chains, endpoint, compact, latent, .. } =
            file;
        let (classifier, domain, window) = (file.classifier, file.domain, file.window);
        let encoder = match (encoder, frozen_encoder) {
            (Some(_), Some(_)) => return Err(diffae_nets::Error::NotOneModel),
            (trained, frozen) => trained.map(SemanticConfig::from).or(frozen.map(SemanticConfig::from)),
        };
        let needs_encoder = endpoint.is_some() || spatial.is_some();
        if compact.is_some() && chains.is_some() || encoder.is_none() && needs_encoder {
            return Err(diffae_nets::Error::NotOneModel);
        }
        let chains = chains.unwrap_or_default();
        let z_sem = ZSemConfig { latent, classifier, domain };
        match (unet, encoder, diffusion, compact) {
            (Some(unet), None, Some(_), None) if unet.has_z_sem() => Err(diffae_nets::Error::NoEncoder),
            (Some(_), None, Some(_), None) if z_sem != ZSemConfig::default() => {
                Err(diffae_nets::Error::NeedsZSem { part: "latent net, a classifier or a domain" })
            }
            (Some(unet), None, Some(diffusion), None) => Ok(Self::Ddpm { unet, diffusion, chains, window }),
            (Some(unet), Some(encoder), Some(diffusion), None) => {
                let networks = match spatial {
                    Some(spatial) => AutoencoderConfig::on_latents(encoder, spatial, unet)?,
                    None => AutoencoderConfig::new(encoder, unet)?,
                };
                Ok(Self::Autoencoder { networks, diffusion, chains, endpoint, z_sem, window })
            }
            (None, None, None, Some(networks)) => Ok(Self::OneShot { networks, z_sem, window }),
            _ => Err(diffae_nets::Error::NotOneModel),
        }
    }
}

impl From<RawModelConfig> for ConfigFile {
    fn from(config: RawModelConfig) -> Self {
        let ZSemConfig { latent, classifier, domain } = config.z_sem().cloned().unwrap_or_default();
        Self {
            unet: config.unet().cloned(),
            encoder: config.encoder().and_then(SemanticConfig::trained).cloned(),
            frozen_encoder: config.encoder().and_then(SemanticConfig::frozen).cloned(),
            spatial: config.spatial().cloned(),
            diffusion: config.diffusion().cloned(),
            chains: config.chains().filter(|chains| **chains != ChainsConfig::default()).cloned(),
            endpoint: config.endpoint().cloned(),
            compact: config.one_shot().cloned(),
            latent,
            classifier,
            domain,
            window: config.picture_format().window,
            ..Self::default()
        }
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
