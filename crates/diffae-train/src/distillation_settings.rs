//! Settings of a distillation.

use diffae_infer::{ChainsConfig, DistilledChain, TunedChain};
use diffae_schedule::{NoiseSchedule, Sampler, Spacing, Timestep};
use serde::{Deserialize, Serialize};

/// Distillation of a decoder: the steps of the student, and the chain of its teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillationSettings {
    /// Chain of the student.
    pub chain: DistilledChain,
    /// Timesteps of the student, strictly increasing, where the spacing of its chain is [`Spacing::Tuned`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<Vec<usize>>,
    /// Number of steps of the teacher's chain: DPM-Solver++(2M), even in log-SNR. The student's timesteps are added to them.
    pub teacher_steps: usize,
    /// Weight of the perceptual term: the relative square distance of the last step's picture and the teacher's in the semantic
    /// code of the frozen encoder; 0 or more, beside the mean absolute difference of pixels. Needs an encoder unless it is 0.
    #[serde(default)]
    pub semantic_weight: f64,
}

impl DistillationSettings {
    /// Returns the timesteps of the student.
    ///
    /// # Errors
    /// As [`Spacing::timesteps`]; [`diffae_schedule::Error::NotTuned`] of a tuned chain without as many timesteps as steps.
    pub(crate) fn timesteps(&self, schedule: &NoiseSchedule) -> diffae_schedule::Result<Vec<Timestep>> {
        let DistilledChain { steps, spacing } = self.chain;
        match &self.timesteps {
            Some(tuned) if spacing == Spacing::Tuned && tuned.len() == steps => {
                Ok(tuned.iter().copied().map(Timestep::new).collect())
            }
            _ => spacing.timesteps(schedule, steps),
        }
    }

    /// Returns the chains of the student.
    pub(crate) fn chains(&self) -> ChainsConfig {
        let tuned =
            self.timesteps.iter().map(|timesteps| TunedChain { timesteps: timesteps.clone(), sampler: Sampler::DDIM });
        ChainsConfig { distilled: Some(self.chain), tuned: tuned.collect() }
    }
}
