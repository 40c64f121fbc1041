//! Settings of the calls of a pipeline, with their defaults.

use diffae_schedule::{Clip, Sampler};

use crate::decode::DecodeOptions;
use crate::model_config::ModelConfig;
use crate::partial::Settings;

/// Settings by which a [`Pipeline`](crate::Pipeline) encodes, decodes and samples. The program and the crate share
/// these defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PipelineSettings {
    /// The sampler for decoding. Default: deterministic DDIM, as in the paper.
    pub sampler: Sampler,
    /// Decoding steps. More are slower and closer to the picture. Default: 20; [`EDITS`](Self::EDITS): 100.
    pub num_steps: usize,
    /// Inversion steps. Fewer give an `x_T` that decodes less exactly. Default: 250, as in the paper.
    pub num_invert_steps: usize,
    /// Steps of the latent diffusion that samples `z_sem`. Default: 200.
    pub num_latent_steps: usize,
    /// Clamping of the estimate of `x_0` to `[-1, 1]` at each step while decoding. Default: on.
    pub clip: Clip,
    /// Seed of all noise: the same seed, the same pictures. Default: 0.
    pub seed: u64,
    /// Pictures per batch; memory grows with it, results do not depend on it. Default: by the size of the model, at most 32.
    pub batch_size: Option<usize>,
}

impl PipelineSettings {
    /// The defaults, as a constant.
    pub const DEFAULT: Self = Self {
        sampler: Sampler::DDIM,
        num_steps: 20,
        num_invert_steps: 250,
        num_latent_steps: 200,
        clip: Clip::UnitRange,
        seed: 0,
        batch_size: None,
    };

    /// The defaults of edits: 100 decoding steps, since edited codes are off the paths along which 20 do.
    pub const EDITS: Self = Self { num_steps: 100, ..Self::DEFAULT };

    /// Returns the settings of decoding.
    #[must_use]
    pub const fn decode_options(&self) -> DecodeOptions {
        DecodeOptions { num_steps: self.num_steps, sampler: self.sampler, clip: self.clip }
    }

    /// Returns the sampler as settings of a result: `sampler`, and `eta` of DDIM.
    #[must_use]
    pub fn sampler_settings(&self) -> Settings {
        let mut settings = Settings::from([("sampler".to_owned(), self.sampler.to_string().into())]);
        if let Sampler::Ddim { eta } = self.sampler {
            settings.insert("eta".to_owned(), eta.into());
        }
        settings
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
    let [_, height, width] = config.image_shape();
    let unet = config.unet();
    let widest = unet.map_or(1, |unet| unet.channel_mult.first().copied().unwrap_or(1) * unet.model_channels);
    let bytes_per_picture = 12 * 4 * widest * height * width;
    (1_usize << 30).checked_div(bytes_per_picture).unwrap_or(1).clamp(1, 32)
}
