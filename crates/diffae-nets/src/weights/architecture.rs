//! The architecture of a released checkpoint, and the options of its user where the file is silent.

use crate::config::{EncoderConfig, LatentNetConfig, UnetConfig};
use crate::error::{Error, Result};
use crate::weights::parameter_sets::ParameterSet;
use crate::weights::source::TensorSource;

/// Networks and diffusions of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// Sizes of the noise predictor.
    pub unet: UnetConfig,
    /// Sizes of the semantic encoder; absent in a plain DDPM.
    pub encoder: Option<EncoderConfig>,
    /// Noise schedule of the diffusion over pictures.
    pub diffusion: DiffusionFacts,
    /// Diffusion over `z_sem`, where there is one.
    pub latent: Option<LatentArchitecture>,
}

/// Network and noise schedule of a checkpoint's diffusion over `z_sem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentArchitecture {
    /// Sizes of the network.
    pub net: LatentNetConfig,
    /// Noise schedule of the diffusion.
    pub diffusion: DiffusionFacts,
}

/// A noise schedule by name; this crate does not interpret it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffusionFacts {
    /// Number of training timesteps, T.
    pub num_train_timesteps: usize,
    /// Name of the schedule: `"linear"`, `"const0.008"`, ..
    pub beta_schedule: String,
}

/// Facts that a file of weights may leave open. Where its hyper-parameters state one of them too, both must agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchitectureHints {
    /// Set of parameters to read.
    pub parameters: ParameterSet,
    /// Height and width of pictures; not needed if the checkpoint holds an `x_T`.
    pub image_size: Option<usize>,
    /// Number of heads of attention blocks; 1 by default.
    pub num_heads: Option<usize>,
    /// Residual blocks per level of the encoder; needed only if several numbers fit.
    pub encoder_res_blocks: Option<usize>,
    /// Number of training timesteps, T; 1000 by default.
    pub num_train_timesteps: Option<usize>,
    /// Noise schedule of pictures; `linear` by default.
    pub beta_schedule: Option<String>,
    /// Noise schedule of `z_sem`; `const0.008` by default.
    pub latent_beta_schedule: Option<String>,
}

impl ArchitectureHints {
    /// Returns the diffusion over pictures: of the hints, or as in released models.
    pub(super) fn diffusion(&self) -> DiffusionFacts {
        self.facts(self.beta_schedule.as_deref().unwrap_or("linear"))
    }

    /// Returns the diffusion over `z_sem`: of the hints, or as in released models.
    pub(super) fn latent_diffusion(&self) -> DiffusionFacts {
        self.facts(self.latent_beta_schedule.as_deref().unwrap_or("const0.008"))
    }

    fn facts(&self, beta_schedule: &str) -> DiffusionFacts {
        let num_train_timesteps = self.num_train_timesteps.unwrap_or(1000);
        DiffusionFacts { num_train_timesteps, beta_schedule: beta_schedule.to_owned() }
    }

    /// Returns the image size, which follows from no shapes of parameters.
    /// # Errors
    /// [`Error::CannotInfer`] if the hints lack it.
    pub(super) fn known_image_size(&self) -> Result<usize> {
        let problem = "the file holds no x_T, so the size of its pictures must be given: --image-size";
        self.image_size.ok_or_else(|| Error::CannotInfer { problem: problem.to_owned() })
    }
}

/// Presence of the optional networks in a set of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) encoder: bool,
    pub(crate) latent_net: bool,
}

impl Parts {
    pub(crate) fn of(source: &dyn TensorSource) -> Self {
        let names = source.names();
        let any = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
        Self { encoder: any("encoder."), latent_net: any("latent_net.") }
    }
}
