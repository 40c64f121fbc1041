//! Errors of this crate.

use candle_core::DType;

use crate::{ExactWeights, Sampler, Spacing, StepIdx, Timestep};

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Every failure of this crate, with the facts that explain it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An unknown beta schedule.
    #[error("unknown beta schedule {got:?}, expected {expected}", expected = crate::beta::NAMES)]
    UnknownBetaSchedule {
        /// The text.
        got: String,
    },
    /// An unknown prediction target.
    #[error("unknown prediction {got:?}, expected `eps`, `v` or `x_0`")]
    UnknownPredictionTarget {
        /// The text.
        got: String,
    },
    /// An unknown sampler.
    #[error("unknown sampler {got:?}, expected {expected}", expected = Sampler::names().collect::<Vec<_>>().join(", "))]
    UnknownSampler {
        /// The text.
        got: String,
    },
    /// An invalid step sequence.
    #[error(
        "unknown step sequence {got:?}, expected `all`, `ddimN` as in `ddim20`, or section counts as in `10,15,20`"
    )]
    UnknownStepSequence {
        /// The text.
        got: String,
    },
    /// A schedule without timesteps.
    #[error("num_train_timesteps is 0, expected at least 1")]
    NoTrainTimesteps,
    /// A beta that is not a variance between 0 and 1, or not a number.
    #[error("beta at timestep {timestep} is {got}, expected 0 < beta < 1")]
    BetaOutOfRange {
        /// The timestep of the beta.
        timestep: Timestep,
        /// The beta.
        got: f64,
    },
    /// The betas are so small or so many that `alpha_bar` stops decreasing or underflows to 0 in f64.
    #[error("alpha_bar at timestep {timestep} is {got}, expected 0 < alpha_bar < {previous}, its predecessor")]
    AlphaBarNotDecreasing {
        /// The timestep of the `alpha_bar`.
        timestep: Timestep,
        /// The `alpha_bar`.
        got: f64,
        /// The `alpha_bar` of the timestep before, or 1 for the first.
        previous: f64,
    },
    /// An `alpha_bar` from which `x_0` or `eps` cannot be computed, or not a number.
    #[error("alpha_bar is {got}, expected 0 < alpha_bar < 1")]
    AlphaBarOutOfRange {
        /// The `alpha_bar`.
        got: f64,
    },
    /// No constant stride has this number of steps.
    #[error(
        "no stride over {num_train_timesteps} timesteps has exactly {got} steps, \
        the nearest numbers of steps are {nearest}; the spacings {others} take any number",
        nearest = nearest(*below, *above),
        others = Spacing::names().filter(|name| !["leading", "tuned"].contains(name)).collect::<Vec<_>>().join(", ")
    )]
    StepCountUnavailable {
        /// The requested number of steps.
        got: usize,
        /// The length of the training grid.
        num_train_timesteps: usize,
        /// The largest number of steps below that a stride has.
        below: Option<usize>,
        /// The smallest number of steps above that a stride has.
        above: Option<usize>,
    },
    /// A number of steps whose timesteps were not tuned.
    #[error("the model has no timesteps tuned for {got} steps{have}; `diffae tune-steps --steps {got}` finds them", have = match &tuned[..] {
        [] => String::new(),
        tuned => format!(", only for {}", tuned.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    })]
    NotTuned {
        /// The requested number of steps.
        got: usize,
        /// The numbers of steps that were tuned.
        tuned: Vec<usize>,
    },
    /// More steps than training timesteps, or none.
    #[error("the number of steps is {got}, expected 1 to {num_train_timesteps}")]
    StepCountOutOfRange {
        /// The requested number of steps.
        got: usize,
        /// The length of the training grid.
        num_train_timesteps: usize,
    },
    /// Timesteps of a chain are not strictly increasing, or there are none.
    #[error("the timesteps of a chain must be one or more and increase strictly")]
    TimestepsNotIncreasing,
    /// An unknown spacing.
    #[error("unknown spacing {got:?}, expected {expected}", expected = Spacing::names().collect::<Vec<_>>().join(", "))]
    UnknownSpacing {
        /// The text.
        got: String,
    },
    /// An unknown choice of weights of an exact chain.
    #[error("unknown weights {got:?}, expected {expected}", expected = ExactWeights::names().collect::<Vec<_>>().join(", "))]
    UnknownExactWeights {
        /// The text.
        got: String,
    },
    /// A step sequence of no sections.
    #[error("step sequence has 0 sections, expected at least 1")]
    NoSections,
    /// A section with no steps, or with more steps than timesteps.
    #[error(
        "section {section_idx} has {num_timesteps} timesteps and is to have {got} steps, expected 1 to {num_timesteps}"
    )]
    SectionCountOutOfRange {
        /// The section, from 0.
        section_idx: usize,
        /// The requested number of steps.
        got: usize,
        /// The number of timesteps in this section.
        num_timesteps: usize,
    },
    /// A timestep beyond the training grid.
    #[error("timestep is {got}, expected less than {num_train_timesteps}")]
    TimestepOutOfRange {
        /// The timestep.
        got: Timestep,
        /// The length of the training grid.
        num_train_timesteps: usize,
    },
    /// A step beyond the short chain.
    #[error("step index is {got}, expected less than {num_sampling_steps}")]
    StepIdxOutOfRange {
        /// The step.
        got: StepIdx,
        /// The length of the chain.
        num_sampling_steps: usize,
    },
    /// The number of timesteps differs from the number of batch items.
    #[error("got {got} timesteps, expected one for each of {expected} batch items")]
    NumTimestepsMismatch {
        /// The number of timesteps.
        got: usize,
        /// The length of the batch axis.
        expected: usize,
    },
    /// A scalar where a batch was expected.
    #[error("tensor {name} has no axes, expected a batch axis")]
    NoBatchAxis {
        /// The name of the tensor.
        name: &'static str,
    },
    /// A tensor whose dtype is too coarse for the arithmetic of a chain.
    #[error("tensor {name} has dtype {got:?}, expected F32 or F64")]
    UnsupportedDtype {
        /// The name of the tensor.
        name: &'static str,
        /// The dtype of the tensor.
        got: DType,
    },
    /// Two tensors of one formula have different dtypes.
    #[error("tensor {name} has dtype {got:?}, expected {expected:?}")]
    DtypeMismatch {
        /// The name of the tensor.
        name: &'static str,
        /// The dtype of the tensor.
        got: DType,
        /// The dtype of the tensor it is combined with.
        expected: DType,
    },
    /// Two tensors of one formula have different shapes.
    #[error("tensor {name} has shape {got:?}, expected {expected:?}")]
    ShapeMismatch {
        /// The name of the tensor.
        name: &'static str,
        /// The shape of the tensor.
        got: Vec<usize>,
        /// The shape of the tensor it is combined with.
        expected: Vec<usize>,
    },
    /// A stochasticity outside its range, or not a number.
    #[error("eta is {got}, expected 0 <= eta <= 1")]
    EtaOutOfRange {
        /// The eta.
        got: f64,
    },
    /// A stochasticity for a sampler without that setting.
    #[error("eta is for ddim, the sampler is {sampler}")]
    EtaUnused {
        /// The sampler.
        sampler: Sampler,
    },
    /// Inversion with a sampler that adds noise: only the deterministic path runs backwards.
    #[error("eta is {eta}, expected 0 for inversion")]
    StochasticInversion {
        /// The eta of the sampler.
        eta: f64,
    },
    /// A step that adds noise received none.
    #[error("step index {idx} adds noise, got none")]
    NoiseMissing {
        /// The step.
        idx: StepIdx,
    },
    /// A step that adds no noise received some.
    #[error("step index {idx} adds no noise, got some")]
    NoiseUnused {
        /// The step.
        idx: StepIdx,
    },
    /// The denoiser failed.
    #[error("denoiser failed at timestep {timestep}")]
    Denoiser {
        /// The timestep of the failed call.
        timestep: Timestep,
        /// The cause.
        #[source]
        source: candle_core::Error,
    },
    /// The source of noise failed.
    #[error("noise source failed at timestep {timestep}")]
    NoiseSource {
        /// The timestep of the failed call.
        timestep: Timestep,
        /// The cause.
        #[source]
        source: candle_core::Error,
    },
    /// The callback asked the sampler to stop.
    #[error("cancelled after {after_steps} steps")]
    Cancelled {
        /// The number of steps that were completed.
        after_steps: usize,
    },
    /// A tensor operation failed, for example because two tensors are on different devices.
    #[error("tensor operation failed")]
    Tensor {
        /// The cause.
        #[from]
        source: candle_core::Error,
    },
}

fn nearest(below: Option<usize>, above: Option<usize>) -> String {
    match (below, above) {
        (Some(below), Some(above)) => format!("{below} and {above}"),
        (Some(only), None) | (None, Some(only)) => only.to_string(),
        (None, None) => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_message_holds_the_facts() {
        let error =
            Error::StepCountUnavailable { got: 60, num_train_timesteps: 1000, below: Some(59), above: Some(63) };
        let expected = "no stride over 1000 timesteps has exactly 60 steps, the nearest numbers of steps are 59 and 63; \
                 the spacings trailing, linspace, log-snr, interior, karras take any number";
        assert_eq!(error.to_string(), expected);
        let error = Error::UnknownBetaSchedule { got: "sigmoid".to_owned() };
        assert!(error.to_string().contains("\"sigmoid\""), "{error}");
        assert!(error.to_string().contains("cosine"), "{error}");
    }

    #[test]
    fn a_cause_is_the_source_and_not_in_the_message() {
        let source = candle_core::Error::Msg("device lost".to_owned());
        let error = Error::Denoiser { timestep: Timestep::new(7), source };
        assert_eq!(error.to_string(), "denoiser failed at timestep 7");
        assert_eq!(error.source().map(ToString::to_string), Some("device lost".to_owned()));
    }

    #[test]
    fn a_tensor_error_converts() {
        let error = Error::from(candle_core::Error::Msg("device lost".to_owned()));
        assert!(matches!(error, Error::Tensor { .. }));
    }

    #[test]
    fn an_error_can_cross_threads() {
        fn assert_send_and_sync<E: std::error::Error + Send + Sync + 'static>() {}
        assert_send_and_sync::<Error>();
    }
}
