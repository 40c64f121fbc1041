//! Settings of a distillation.

use diffae_infer::DistilledChain;
use serde::{Deserialize, Serialize};

/// Distillation of a decoder: the steps of the student, and the chain of its teacher.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillationSettings {
    /// Chain of the student.
    pub chain: DistilledChain,
    /// Number of steps of the teacher's chain: DPM-Solver++(2M), even in log-SNR. The student's timesteps are added to them.
    pub teacher_steps: usize,
    /// Weight of the perceptual term: the relative square distance of the last step's picture and the teacher's in the semantic
    /// code of the frozen encoder; 0 or more, beside the mean absolute difference of pixels. Needs an encoder unless it is 0.
    #[serde(default)]
    pub semantic_weight: f64,
}
