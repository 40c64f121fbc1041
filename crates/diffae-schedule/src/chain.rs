//! The short chain: the noise schedule at the timesteps that a sampler visits.

use crate::{Error, NoiseSchedule, Posterior, Result, Spacing, StepIdx, StepSequence, Timestep};

/// A noise schedule over some of the training timesteps, for the samplers.
///
/// With `t_i` the timestep of step `i`, `alpha_bar_i = alpha_bar(t_i)`: the noise levels are those of the training
/// grid, and `beta_i = 1 - alpha_bar_i / alpha_bar_prev_i` follows from them. The network always receives `t_i`, never
/// `i`.
/// # Source
/// Nichol and Dhariwal 2021 (arXiv:2102.09672), Section 4.
#[derive(Debug, Clone, PartialEq)]
pub struct StepChain {
    timesteps: Vec<Timestep>,
    betas: Vec<f64>,
    alpha_bars: Vec<f64>,
    posteriors: Vec<Posterior>,
}

/// Noise level of a node of a chain: `x = alpha x_0 + sigma eps`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Level {
    pub(crate) alpha: f64,
    pub(crate) sigma: f64,
}

impl Level {
    pub(crate) const DATA: Self = Self { alpha: 1.0, sigma: 0.0 };

    fn new(alpha_bar: f64) -> Self {
        Self { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt() }
    }

    /// Returns the noise-to-signal ratio, `s`.
    pub(crate) fn ratio(self) -> f64 {
        self.sigma / self.alpha
    }
}

#[expect(clippy::len_without_is_empty, reason = "a chain has at least one step")]
impl StepChain {
    /// Selects the timesteps of a sequence from a schedule.
    ///
    /// # Errors
    /// As [`StepSequence::timesteps`].
    pub fn new(schedule: &NoiseSchedule, sequence: &StepSequence) -> Result<Self> {
        Self::from_timesteps(schedule, sequence.timesteps(schedule.num_train_timesteps())?)
    }

    /// Selects `num_steps` timesteps from a schedule by a spacing.
    ///
    /// # Errors
    /// As [`Spacing::timesteps`].
    pub fn spaced(schedule: &NoiseSchedule, spacing: Spacing, num_steps: usize) -> Result<Self> {
        Self::from_timesteps(schedule, spacing.timesteps(schedule, num_steps)?)
    }

    /// Selects timesteps from a schedule.
    ///
    /// # Errors
    /// [`Error::TimestepsNotIncreasing`] if there are none, or one is not above the one before;
    /// [`Error::TimestepOutOfRange`].
    pub fn from_timesteps(schedule: &NoiseSchedule, timesteps: Vec<Timestep>) -> Result<Self> {
        if timesteps.is_empty() || !timesteps.is_sorted_by(|a, b| a < b) {
            return Err(Error::TimestepsNotIncreasing);
        }
        let alpha_bars: Vec<f64> =
            timesteps.iter().map(|&timestep| schedule.alpha_bar(timestep)).collect::<Result<_>>()?;
        let alpha_bars_prev = std::iter::once(1.0).chain(alpha_bars.iter().copied());
        let betas: Vec<f64> =
            alpha_bars.iter().zip(alpha_bars_prev).map(|(alpha_bar, prev)| 1.0 - alpha_bar / prev).collect();
        let posteriors = Posterior::table(&betas, &alpha_bars);
        Ok(Self { timesteps, betas, alpha_bars, posteriors })
    }

    /// Returns the number of steps, at least 1.
    #[must_use]
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Iterates over all steps from the least noisy: the order of inversion. Samplers visit them in reverse.
    #[must_use]
    pub fn indices(&self) -> impl DoubleEndedIterator<Item = StepIdx> + ExactSizeIterator + use<> {
        (0..self.len()).map(StepIdx::new)
    }

    /// Returns the noise level of node `i`: 0 is the clean picture, others are step i - 1 of the chain.
    pub(crate) fn level(&self, node: usize) -> Result<Level> {
        node.checked_sub(1).map_or(Ok(Level::DATA), |idx| Ok(Level::new(self.alpha_bar(StepIdx::new(idx))?)))
    }

    /// Returns the training timesteps of all steps, strictly increasing.
    #[must_use]
    pub fn timesteps(&self) -> &[Timestep] {
        &self.timesteps
    }

    /// Returns the training timestep of a step.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`].
    pub fn timestep(&self, idx: StepIdx) -> Result<Timestep> {
        self.at(&self.timesteps, idx)
    }

    /// Returns beta of a step, in `(0, 1)`; unlike beta on the training grid, it spans the timesteps that were left
    /// out.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`].
    pub fn beta(&self, idx: StepIdx) -> Result<f64> {
        self.at(&self.betas, idx)
    }

    /// Returns `alpha_bar` of a step, in `(0, 1)`.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`].
    pub fn alpha_bar(&self, idx: StepIdx) -> Result<f64> {
        self.at(&self.alpha_bars, idx)
    }

    /// Returns `alpha_bar` of the step before, towards the data; 1 at the first step, which ends in clean data.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`].
    pub fn alpha_bar_prev(&self, idx: StepIdx) -> Result<f64> {
        self.alpha_bar(idx)?;
        Ok(idx.get().checked_sub(1).map_or(1.0, |prev| self.alpha_bars[prev]))
    }

    /// Returns `alpha_bar` of the step after, towards the noise; 0 at the last step, which ends in pure noise.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`].
    pub fn alpha_bar_next(&self, idx: StepIdx) -> Result<f64> {
        self.alpha_bar(idx)?;
        Ok(self.alpha_bars.get(idx.get() + 1).copied().unwrap_or(0.0))
    }

    /// Returns the posterior of the step from one position in the chain to the one before.
    ///
    /// # Errors
    /// [`Error::StepIdxOutOfRange`].
    pub fn posterior(&self, idx: StepIdx) -> Result<Posterior> {
        self.at(&self.posteriors, idx)
    }

    fn at<V: Copy>(&self, table: &[V], idx: StepIdx) -> Result<V> {
        table.get(idx.get()).copied().ok_or(Error::StepIdxOutOfRange { got: idx, num_sampling_steps: self.len() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BetaSchedule;

    fn schedule() -> NoiseSchedule {
        // alpha_bar = 0.5, 0.375, 0.28125, 0.140625
        NoiseSchedule::from_betas(vec![0.5, 0.25, 0.25, 0.5]).unwrap()
    }

    fn each<V>(chain: &StepChain, value: impl Fn(&StepChain, StepIdx) -> Result<V>) -> Vec<V> {
        chain.indices().map(|idx| value(chain, idx).unwrap()).collect()
    }

    #[test]
    fn two_of_four_steps_have_the_values_of_the_formulas() {
        let chain = StepChain::new(&schedule(), &StepSequence::Ddim(2)).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(chain.timesteps(), [0, 2].map(Timestep::new));
        assert_eq!(each(&chain, StepChain::timestep), [0, 2].map(Timestep::new));
        assert_eq!(each(&chain, StepChain::alpha_bar), [0.5, 0.281_25]);
        assert_eq!(each(&chain, StepChain::alpha_bar_prev), [1.0, 0.5]);
        assert_eq!(each(&chain, StepChain::alpha_bar_next), [0.281_25, 0.0]);
        assert_eq!(each(&chain, StepChain::beta), [0.5, 0.4375]);
        let variance = each(&chain, StepChain::posterior)[1].variance;
        assert!((variance - 0.4375 * 0.5 / 0.718_75).abs() < 1e-15, "{variance}");
    }

    #[test]
    fn all_steps_are_the_training_grid() {
        let chain = StepChain::new(&schedule(), &StepSequence::All).unwrap();
        assert_eq!(each(&chain, StepChain::alpha_bar), schedule().alpha_bars());
        assert_eq!(each(&chain, StepChain::beta), schedule().betas());
        for (t, posterior) in each(&chain, StepChain::posterior).into_iter().enumerate() {
            assert_eq!(posterior, schedule().posterior(Timestep::new(t)).unwrap());
        }
    }

    #[test]
    fn a_step_beyond_the_chain_is_rejected() {
        let chain = StepChain::new(&schedule(), &StepSequence::Ddim(2)).unwrap();
        let beyond = StepIdx::new(2);
        for error in [
            chain.timestep(beyond).unwrap_err(),
            chain.beta(beyond).unwrap_err(),
            chain.alpha_bar(beyond).unwrap_err(),
            chain.alpha_bar_prev(beyond).unwrap_err(),
            chain.alpha_bar_next(beyond).unwrap_err(),
            chain.posterior(beyond).unwrap_err(),
        ] {
            let Error::StepIdxOutOfRange { got, num_sampling_steps } = error else { panic!("{error}") };
            assert_eq!((got, num_sampling_steps), (beyond, 2));
        }
    }

    #[test]
    fn a_sequence_that_does_not_exist_is_rejected() {
        let error = StepChain::new(&schedule(), &StepSequence::Ddim(3)).unwrap_err();
        assert!(matches!(error, Error::StepCountUnavailable { below: Some(2), above: Some(4), .. }), "{error}");
    }

    proptest! {
        #[test]
        fn a_chain_strictly_decreases_and_its_betas_are_in_range(
            num_train_timesteps in 21..1500_usize,
            fraction in 0.0..1.0,
        ) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a usize")]
            let num_steps = 1 + (fraction * (num_train_timesteps - 1) as f64) as usize;
            for schedule in [BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Constant { value: 0.008 }] {
                let schedule = NoiseSchedule::new(&schedule, num_train_timesteps).unwrap();
                let chain = StepChain::new(&schedule, &StepSequence::Sections(vec![num_steps])).unwrap();
                prop_assert_eq!(chain.len(), num_steps);
                for idx in chain.indices() {
                    let alpha_bar = chain.alpha_bar(idx).unwrap();
                    prop_assert!(chain.alpha_bar_prev(idx).unwrap() > alpha_bar);
                    prop_assert!(chain.alpha_bar_next(idx).unwrap() < alpha_bar);
                    prop_assert!(chain.beta(idx).unwrap() > 0.0 && chain.beta(idx).unwrap() < 1.0);
                }
            }
        }
    }
}
