//! Settings of the calls of a pipeline, with their defaults.

use diffae_nets::ImageShape;
use diffae_schedule::{Clip, ExactWeights, Sampler, Spacing};

use crate::codes::Codes;
use crate::decode::DecodeOptions;
use crate::model_config::{DistilledChain, ModelConfig};
use crate::partial::Settings;
use crate::stochastic_code::{ChainSettings, ExactSettings, FixedPointSettings, Inversion, SampledSettings};

/// Sampler and spacing of the latent diffusion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentMethod {
    /// The sampler.
    pub sampler: Sampler,
    /// Spacing of its timesteps.
    pub spacing: Spacing,
}

/// The `x_T` of codes that have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XTerminalSource {
    /// Standard normal noise, by seed and number of the picture.
    #[default]
    Random,
    /// Endpoint: computed from `z_sem` by the model's network.
    Endpoint,
}

/// Settings by which a [`Pipeline`](crate::Pipeline) encodes, decodes and samples. The program and the crate share
/// these defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PipelineSettings {
    /// The inversion of pictures to `x_T`. Default: exact. Codes are decoded along the chain that made them, whatever the
    /// sampler.
    pub inversion: Inversion,
    /// The sampler that decodes other `x_T`, such as random ones. Default: DDIM, whose samples in few steps are the
    /// best by Frechet distance for the built-in model; DPM-Solver++(2M) is nearer to the exact solution.
    pub sampler: Sampler,
    /// Spacing of the timesteps of decoding, and of inversions but DDIM in reverse. Default: even in log-SNR.
    pub spacing: Spacing,
    /// Decoding steps, and steps of inversions but DDIM in reverse. More are slower and closer to the exact solution. Default: 10.
    pub num_steps: usize,
    /// Steps of [`Inversion::Ddim`], evenly spaced. Fewer give an `x_T` that decodes less exactly. Default: 250.
    pub num_invert_steps: usize,
    /// Steps of the latent diffusion that samples `z_sem`. Default: 20; 200 in the reference.
    pub num_latent_steps: usize,
    /// Method of the latent diffusion, with DDIM in place of samplers that add noise; `None` for that of decoding. Default:
    /// DPM-Solver++(2M), even in log-SNR.
    pub latent_method: Option<LatentMethod>,
    /// The `x_T` of codes that have none. Default: random; of a model with an endpoint network, which was trained for it,
    /// that of the network.
    pub x_terminal: XTerminalSource,
    /// Clamping of the estimate of `x_0` to `[-1, 1]` at each step while decoding; in a model on latents, of pictures at the end.
    /// Default: on.
    pub clip: Clip,
    /// Seed of all noise: the same seed, the same pictures. Default: 0.
    pub seed: u64,
    /// Pictures per batch; memory grows with it, results do not depend on it. Default: by the size of the model, at most 32.
    pub batch_size: Option<usize>,
}

impl PipelineSettings {
    /// The default settings, as a constant.
    pub const DEFAULT: Self = Self {
        inversion: Inversion::Exact(ExactWeights::Balanced),
        sampler: Sampler::DDIM,
        spacing: Spacing::LogSnr,
        num_steps: 10,
        num_invert_steps: 250,
        num_latent_steps: 20,
        latent_method: Some(LatentMethod { sampler: Sampler::DpmSolverPp2M, spacing: Spacing::LogSnr }),
        x_terminal: XTerminalSource::Random,
        clip: Clip::UnitRange,
        seed: 0,
        batch_size: None,
    };

    /// The chains of the paper and its released code: evenly spaced DDIM, 250 inversion and 20 decoding steps.
    pub const REFERENCE: Self = Self {
        inversion: Inversion::Ddim,
        sampler: Sampler::DDIM,
        spacing: Spacing::Leading,
        num_steps: 20,
        num_latent_steps: 200,
        latent_method: None,
        ..Self::DEFAULT
    };

    /// [`REFERENCE`](Self::REFERENCE) for edits: 100 decoding steps, since 20 are too few for edited codes.
    pub const REFERENCE_EDITS: Self = Self { num_steps: 100, ..Self::REFERENCE };

    /// Returns the defaults for a model: [`DEFAULT`](Self::DEFAULT), but for a distilled decoder along the chain that it was
    /// trained for, and from the `x_T` of its endpoint network where there is one.
    #[must_use]
    pub fn of_model(config: &ModelConfig) -> Self {
        let x_terminal = config.endpoint().map_or(XTerminalSource::Random, |_| XTerminalSource::Endpoint);
        Self { x_terminal, ..Self::along_chain_of(config) }
    }

    fn along_chain_of(config: &ModelConfig) -> Self {
        match config.chains().and_then(|chains| chains.distilled) {
            Some(DistilledChain { steps, spacing }) => {
                Self { sampler: Sampler::DDIM, num_steps: steps, spacing, ..Self::DEFAULT }
            }
            None => Self::DEFAULT,
        }
    }

    /// Returns the sampler for which so many timesteps of a model are tuned; `None` where they are not.
    #[must_use]
    pub fn tuned_sampler(config: &ModelConfig, num_steps: usize) -> Option<Sampler> {
        Some(config.chains()?.tuned(num_steps)?.sampler)
    }

    /// Returns the chain of inversion and decoding, unless pictures are inverted by DDIM in reverse.
    #[must_use]
    pub const fn chain(&self) -> Option<ChainSettings> {
        let Self { num_steps: steps, spacing, .. } = *self;
        match self.inversion {
            Inversion::Exact(weights) => Some(ChainSettings::Exact(ExactSettings { steps, spacing, weights })),
            Inversion::FixedPoint => Some(ChainSettings::FixedPoint(FixedPointSettings { steps, spacing })),
            Inversion::Ddim => None,
        }
    }

    /// Returns the settings with the chain of codes: of inversion and decoding, or of samples.
    #[must_use]
    pub const fn with_chain(self, chain: ChainSettings) -> Self {
        let (inversion, sampler) = match chain {
            ChainSettings::Exact(ExactSettings { weights, .. }) => (Inversion::Exact(weights), self.sampler),
            ChainSettings::FixedPoint(_) => (Inversion::FixedPoint, self.sampler),
            // Nothing is inverted along it.
            ChainSettings::Sampled(SampledSettings { sampler, .. }) => (Inversion::Ddim, sampler),
        };
        Self { inversion, sampler, num_steps: chain.steps(), spacing: chain.spacing(), ..self }
    }

    /// Returns the settings with the chain of codes, if they have one: those that decode samples as they were decoded.
    #[must_use]
    pub fn along(self, codes: &Codes) -> Self {
        codes.chain.as_ref().map_or(self, |chain| self.with_chain(chain.settings))
    }

    /// Returns the chain by which these settings decode random `x_T`.
    #[must_use]
    pub const fn sampled(&self) -> SampledSettings {
        SampledSettings { steps: self.num_steps, spacing: self.spacing, sampler: self.sampler }
    }

    /// Returns the settings of decoding.
    #[must_use]
    pub const fn decode_options(&self) -> DecodeOptions {
        DecodeOptions { num_steps: self.num_steps, spacing: self.spacing, sampler: self.sampler, clip: self.clip }
    }

    /// Returns the settings of the latent diffusion.
    #[must_use]
    pub fn latent_options(&self) -> DecodeOptions {
        let of_decoding = LatentMethod { sampler: self.sampler, spacing: self.spacing };
        let LatentMethod { sampler, spacing } = self.latent_method.unwrap_or(of_decoding);
        DecodeOptions { spacing, sampler, ..self.decode_options() }.latent(self.num_latent_steps)
    }

    /// Returns the sampler as settings of a result: `sampler`, `spacing`, and `eta` of DDIM.
    #[must_use]
    pub fn sampler_settings(&self) -> Settings {
        let mut settings = Settings::from([
            ("sampler".to_owned(), self.sampler.to_string().into()),
            ("spacing".to_owned(), self.spacing.to_string().into()),
        ]);
        if let Sampler::Ddim { eta } = self.sampler {
            settings.insert("eta".to_owned(), eta.into());
        }
        settings
    }

    /// Returns the inversion as settings of codes: `steps`, `inversion` and `spacing`.
    #[must_use]
    pub fn inversion_settings(&self) -> Settings {
        let (spacing, steps) = match self.chain() {
            Some(chain) => (chain.spacing(), chain.steps()),
            None => (Spacing::Leading, self.num_invert_steps),
        };
        Settings::from([
            ("steps".to_owned(), steps.into()),
            ("inversion".to_owned(), self.inversion.to_string().into()),
            ("spacing".to_owned(), spacing.to_string().into()),
        ])
    }

    /// Returns the number of pictures per batch for a model: as set, or as many as keep the activations of a step below
    /// about a gigabyte.
    #[must_use]
    pub fn batch_size_for(&self, config: &ModelConfig) -> usize {
        self.batch_size.map_or_else(|| default_batch_size(config), |batch_size| batch_size.max(1))
    }
}

impl Default for PipelineSettings {
    /// Returns [`PipelineSettings::DEFAULT`].
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Returns the batch size for which about twelve activations of the widest level fit in memory.
fn default_batch_size(config: &ModelConfig) -> usize {
    let first = |channel_mult: &[usize], model_channels| channel_mult.first().copied().unwrap_or(1) * model_channels;
    let values = |channels: usize, shape: ImageShape| channels * shape.size.num_pixels();
    let of_unet = config.unet().zip(config.state_shape());
    let of_unet = of_unet.map(|(unet, shape)| values(first(&unet.channel_mult, unet.model_channels), shape));
    // Pictures are larger than the states of a diffusion on latents.
    let of_encoder =
        config.encoder().and_then(diffae_nets::SemanticConfig::trained).filter(|_| config.spatial().is_some());
    let of_encoder = of_encoder.map(|net| values(first(&net.channel_mult, net.model_channels), config.image_shape()));
    let widest = of_unet.max(of_encoder).unwrap_or_else(|| values(1, config.image_shape()));
    let bytes_per_picture = 12 * 4 * widest;
    (1_usize << 30).checked_div(bytes_per_picture).unwrap_or(1).clamp(1, 32)
}
