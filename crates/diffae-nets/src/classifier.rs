//! The linear attribute classifier on normalized semantic codes.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use crate::config::ClassifierConfig;
use crate::linear::Linear;
use crate::precision::compute_dtype;

/// One logit an attribute, `logits = W normalize(z_sem) + b`, and one direction an attribute.
///
/// The released checkpoints hold W twice: the average over training steps, which logits are computed with, and the
/// last value, whose rows are the directions of edits. So does this type.
#[derive(Debug, Clone)]
pub struct AttributeClassifier {
    config: ClassifierConfig,
    linear: Linear,
    directions: Tensor, // [A, D]
    dtype: candle_core::DType,
}

impl AttributeClassifier {
    /// Reads `weight` `[A, D]`, `bias` `[A]` and `directions` `[A, D]` below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &ClassifierConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let num_attributes = config.attributes.len();
        let linear = Linear::new(config.z_channels, num_attributes, vb)?;
        let directions = vb.get((num_attributes, config.z_channels), "directions")?;
        Ok(Self { config: config.clone(), linear, directions, dtype: compute_dtype(vb.dtype(), vb.device()) })
    }

    /// The sizes and attribute names it was built with.
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

    /// The unit vector along which attribute `idx` grows: `w_k / |w_k|`, `w_k` being row k of the
    /// directions.
    ///
    /// # Shapes
    /// - result: `[D]`, f32.
    /// # Errors
    /// If there is no such attribute, or its row is zero.
    pub fn direction(&self, idx: usize) -> Result<Tensor> {
        let row = self.directions.get(idx)?.to_dtype(candle_core::DType::F32)?;
        let norm = row.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        if norm == 0. {
            bail!("attribute {idx} has no direction: its weights are all zero")
        }
        row / f64::from(norm)
    }
}
