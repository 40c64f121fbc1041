//! The architecture of a released checkpoint: from its hyper-parameters, from the shapes of its tensors, and from what
//! its user says where these are silent.

use serde_json::Value;

use crate::config::{EncoderConfig, LatentNetConfig, UnetConfig};
use crate::error::{Error, Result};
use crate::weights::hyper_parameters::HyperParameters;
use crate::weights::parameter_sets::ParameterSet;
use crate::weights::shapes::architecture_from_shapes;
use crate::weights::source::TensorSource;

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The noise predictor.
    pub unet: UnetConfig,
    /// The semantic encoder; absent in a plain DDPM.
    pub encoder: Option<EncoderConfig>,
    /// The diffusion over pictures.
    pub diffusion: DiffusionFacts,
    /// The diffusion over `z_sem`, where there is one.
    pub latent: Option<LatentArchitecture>,
}

/// The diffusion over `z_sem` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentArchitecture {
    /// Its network.
    pub net: LatentNetConfig,
    /// Its noise schedule.
    pub diffusion: DiffusionFacts,
}

/// A noise schedule by name; this crate does not interpret it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffusionFacts {
    /// T
    pub num_train_timesteps: usize,
    /// `"linear"`, `"const0.008"`, ..
    pub beta_schedule: String,
}

/// Facts that a file of weights may leave open. Where its hyper-parameters state one of them too, both must agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchitectureHints {
    /// The set of parameters to read.
    pub parameters: ParameterSet,
    /// Height and width of pictures; not needed if the checkpoint holds an `x_T`.
    pub image_size: Option<usize>,
    /// Heads of attention blocks; 1 if not given.
    pub num_heads: Option<usize>,
    /// Blocks a level of the encoder; needed only if several numbers fit.
    pub encoder_res_blocks: Option<usize>,
    /// T; 1000 if not given.
    pub num_train_timesteps: Option<usize>,
    /// Noise schedule of pictures; `linear` if not given.
    pub beta_schedule: Option<String>,
    /// Noise schedule of `z_sem`; `const0.008` if not given.
    pub latent_beta_schedule: Option<String>,
}

impl ArchitectureHints {
    /// The diffusion over pictures: as told, or as in released models.
    pub(super) fn diffusion(&self) -> DiffusionFacts {
        self.facts(self.beta_schedule.as_deref().unwrap_or("linear"))
    }

    /// The diffusion over `z_sem`: as told, or as in released models.
    pub(super) fn latent_diffusion(&self) -> DiffusionFacts {
        self.facts(self.latent_beta_schedule.as_deref().unwrap_or("const0.008"))
    }

    fn facts(&self, beta_schedule: &str) -> DiffusionFacts {
        let num_train_timesteps = self.num_train_timesteps.unwrap_or(1000);
        DiffusionFacts { num_train_timesteps, beta_schedule: beta_schedule.to_owned() }
    }

    /// The image size, which no shapes of parameters tell.
    /// # Errors
    /// [`Error::CannotInfer`] if it was not told.
    pub(super) fn known_image_size(&self) -> Result<usize> {
        let problem = "the file holds no x_T, so the size of its pictures must be given: --image-size";
        self.image_size.ok_or_else(|| Error::CannotInfer { problem: problem.to_owned() })
    }
}

/// Which parts a set of parameters has.
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

impl Architecture {
    /// Works out what a set of parameters is. `x_terminal_shape` is that of the `x_T` that training checkpoints hold.
    /// # Errors
    /// [`Error::Contradiction`](crate::Error::Contradiction) if hints and hyper-parameters differ; others if the
    /// architecture is not one of a Diffusion Autoencoder, or cannot be told.
    pub(crate) fn of(
        source: &dyn TensorSource,
        x_terminal_shape: Option<&[usize]>,
        hyper_parameters: Option<&Value>,
        hints: &ArchitectureHints,
    ) -> Result<Self> {
        let held = match x_terminal_shape {
            Some(&[_, _, size, _]) => Some(size),
            _ => None,
        };
        let Some(hyper_parameters) = hyper_parameters.filter(|value| value.is_object()) else {
            return architecture_from_shapes(source, held, hints);
        };
        let parts = Parts::of(source);
        let told = HyperParameters::new(hyper_parameters);
        told.reject_unsupported(parts)?;
        let hints = told.join(hints, parts)?;
        if told.describes_networks(parts, &hints) {
            let image_size = hints.image_size.or(held);
            return told.architecture(parts, &ArchitectureHints { image_size, ..hints });
        }
        let architecture = architecture_from_shapes(source, held, &hints)?;
        told.check_against(&architecture)?;
        Ok(architecture)
    }
}
