//! The linear attribute classifier on normalized semantic codes.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;

use crate::config::ClassifierConfig;
use crate::edit_direction::EditDirection;
use crate::linear::Linear;
use crate::precision::compute_dtype;

/// Linear classifier: one logit per attribute, `logits = W normalize(z_sem) + b`, and one [`EditDirection`] per attribute.
///
/// The released checkpoints hold W twice: the average over training steps, which logits are computed with, and the
/// last value, whose rows are the directions of edits. So does this type.
#[derive(Debug, Clone)]
pub struct AttributeClassifier {
    config: ClassifierConfig,
    linear: Linear,
    directions: Vec<EditDirection>,
    dtype: DType,
}

impl AttributeClassifier {
    /// Reads `weight` `[A, D]` and `bias` `[A]` below `vb`, and the directions with [`EditDirection::read_all`].
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &ClassifierConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let linear = Linear::new(config.z_channels, config.attributes.len(), vb)?;
        let directions = EditDirection::read_all(config, vb)?;
        Ok(Self { config: config.clone(), linear, directions, dtype: compute_dtype(vb.dtype(), vb.device()) })
    }

    /// Returns the config of the classifier, with its attribute names.
    #[must_use]
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// Computes logits; an attribute is present where its logit is positive.
    ///
    /// # Shapes
    /// - `z_sem_normalized`: `[N, D]`, `(z_sem - mean) / std`; result: `[N, A]`, dtype of the input.
    /// # Errors
    /// If the width differs.
    pub fn forward(&self, z_sem_normalized: &Tensor) -> Result<Tensor> {
        let logits = self.linear.forward(&z_sem_normalized.to_dtype(self.dtype)?)?;
        logits.to_dtype(z_sem_normalized.dtype())
    }

    /// Returns the edit direction of attribute `idx`.
    ///
    /// # Errors
    /// If there is no such attribute.
    pub fn direction(&self, idx: usize) -> Result<&EditDirection> {
        let missing = || candle_core::Error::Msg(format!("there is no attribute {idx}"));
        self.directions.get(idx).ok_or_else(missing)
    }

    /// Returns the edit direction of attribute `idx` at each code in units of its mean, `d(z) / |w|`: the unit vector
    /// `w / |w|` everywhere if the direction is fixed.
    ///
    /// # Shapes
    /// - `z_sem_normalized`, result: `[N, D]`, f32.
    /// # Errors
    /// If there is no such attribute, its mean direction is zero, or the width differs.
    pub fn directions_at(&self, idx: usize, z_sem_normalized: &Tensor) -> Result<Tensor> {
        let direction = self.direction(idx)?;
        let norm = direction.norm()?;
        if norm == 0. {
            bail!("attribute {idx} has no direction: its weights are all zero")
        }
        direction.forward(z_sem_normalized)? / norm
    }

    /// Returns the calibrated full-edit strength of attribute `idx`, `|w| / sqrt(D)`, which takes codes without
    /// the attribute to those with it.
    ///
    /// `None` where the direction is not a difference of codes but a classifier's weights, or is zero.
    ///
    /// # Errors
    /// If there is no such attribute.
    pub fn full_strength(&self, idx: usize) -> Result<Option<f64>> {
        let norm = self.direction(idx)?.norm()?;
        let is_calibrated = norm > 0. && self.config.calibrated.contains(&idx);
        Ok(is_calibrated.then(|| norm / (self.config.z_channels as f64).sqrt()))
    }
}
