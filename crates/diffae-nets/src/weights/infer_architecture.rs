//! Inference of an architecture: from hyper-parameters, from the shapes of tensors, and from options of the user where
//! these are silent.

use serde_json::Value;

use crate::error::Result;
use crate::weights::architecture::{Architecture, ArchitectureHints, Parts};
use crate::weights::hyper_parameters::HyperParameters;
use crate::weights::shapes::architecture_from_shapes;
use crate::weights::source::TensorSource;

impl Architecture {
    /// Infers the architecture of a set of parameters. `x_terminal_shape` is that of the `x_T` that training
    /// checkpoints hold.
    /// # Errors
    /// [`Error::Contradiction`](crate::Error::Contradiction) if hints and hyper-parameters differ; others if the
    /// architecture is not one of a Diffusion Autoencoder, or cannot be inferred.
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
