//! Optimizer steps: forward and backward passes that sum up gradients, and the update that ends them.

use candle_core::Tensor;
use diffae_kernels::{ActivationStorage, Gradients, record_with, run_in_pool};

use crate::checkpoint::Checkpoints;
use crate::config::StageSettings;
use crate::error::Result;
use crate::parameters::{Norms, Parameters, Part, require_finite};

/// Parameters with their optimizer state, and the number of steps made: all that a checkpoint holds.
#[derive(Debug)]
pub(crate) struct TrainState {
    pub(crate) parameters: Parameters,
    /// Number of optimizer steps made.
    pub(crate) step: usize,
}

/// Gradients and loss of one optimizer step, summed over the losses that were differentiated for it.
#[derive(Debug, Default)]
pub(crate) struct Backpropagation {
    gradients: Gradients,
    /// Sum of the losses.
    pub(crate) loss: f64,
    /// Bytes of activations saved for the last backward pass.
    pub(crate) activation_bytes: usize,
}

/// The outcome of one optimizer step, as the training loop logs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stepped {
    /// Loss before the step.
    pub(crate) loss: f64,
    /// Norm of the gradient before clipping.
    pub(crate) grad_norm: f64,
    /// Number of samples in the batch.
    pub(crate) num_samples: usize,
}

impl TrainState {
    /// Starts at step 0.
    pub(crate) fn new(parameters: Parameters) -> Self {
        Self { parameters, step: 0 }
    }

    /// Makes one optimizer step on a loss of `num_samples` samples; `forward` is recorded.
    ///
    /// # Errors
    /// [`Error::Diverged`](crate::Error::Diverged) if the loss or the gradient is not finite; as `forward`.
    pub(crate) fn minimize(
        &mut self,
        settings: &StageSettings,
        num_samples: usize,
        forward: impl FnOnce() -> Result<Tensor> + Send,
    ) -> Result<Stepped> {
        // The tape belongs to the thread that records it, so the whole step runs on one of the pool.
        run_in_pool(|| {
            let mut backpropagation = Backpropagation::default();
            backpropagation.add(ActivationStorage::F32, self.step, || Ok((forward()?, ())))?;
            let loss = backpropagation.loss;
            let norms = backpropagation.update(self, Part::Model, settings)?;
            self.step += 1;
            Ok(Stepped { loss, grad_norm: norms.whole, num_samples })
        })
    }

    /// Loads the newest whole checkpoint.
    pub(crate) fn load_newest(&mut self, checkpoints: &Checkpoints) -> Result<()> {
        self.step = checkpoints.load_newest(&mut self.parameters)?;
        Ok(())
    }

    /// Saves a checkpoint.
    pub(crate) fn save(&self, checkpoints: &Checkpoints) -> Result<()> {
        checkpoints.save(&self.parameters, self.step)
    }
}

impl Backpropagation {
    /// Records `forward`, whose first result is a scalar loss, and adds the gradients of that loss.
    ///
    /// # Errors
    /// [`Error::Diverged`](crate::Error::Diverged) if the loss is not finite; as `forward`.
    pub(crate) fn add<T>(
        &mut self,
        storage: ActivationStorage,
        step: usize,
        forward: impl FnOnce() -> Result<(Tensor, T)>,
    ) -> Result<T> {
        let ((loss, rest), tape) = record_with(storage, forward)?;
        self.loss += f64::from(loss.to_scalar::<f32>()?);
        require_finite("loss", self.loss, step)?;
        self.activation_bytes = tape.num_kept_bytes();
        tape.backward(&loss, &mut self.gradients)?;
        Ok(rest)
    }

    /// Clips the gradients and updates one part of the parameters. The step is not counted yet: other parts may follow.
    ///
    /// # Errors
    /// [`Error::Diverged`](crate::Error::Diverged) if a gradient is not finite.
    pub(crate) fn update(self, state: &mut TrainState, part: Part, settings: &StageSettings) -> Result<Norms> {
        state.parameters.update(part, &self.gradients, settings, state.step)
    }
}
