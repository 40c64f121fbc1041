//! The linear attribute classifier on normalized semantic codes.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;

use crate::config::ClassifierConfig;
use crate::linear::Linear;
use crate::precision::compute_dtype;

/// Linear classifier: one logit per attribute, `logits = W normalize(z_sem) + b`, and one edit direction per attribute.
///
/// The released checkpoints hold W twice: the average over training steps, which logits are computed with, and the
/// last value, whose rows are the directions of edits. So does this type.
///
/// Directions can be local: the direction of attribute k at a normalized code z is then
/// `w_k + U_k^T (tanh(M_k tanh(V_k z + b_k) + d_k) - c_k)`, a network of two small hidden layers; `c_k` centers it, so
/// that `w_k` is the mean direction. A beard has the color of the hair, so its direction depends on the code.
#[derive(Debug, Clone)]
pub struct AttributeClassifier {
    config: ClassifierConfig,
    linear: Linear,
    directions: Tensor, // [A, D]
    local: Option<Local>,
    dtype: DType,
}

/// Parameters by which directions depend on codes.
#[derive(Debug, Clone)]
struct Local {
    inputs: Tensor,      // [A, h, D]
    bias: Tensor,        // [A, h]
    hidden: Tensor,      // [A, h, h]
    hidden_bias: Tensor, // [A, h]
    center: Tensor,      // [A, h]
    outputs: Tensor,     // [A, h, D]
}

impl Local {
    fn new(config: &ClassifierConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (count, units, width) = (config.attributes.len(), config.local_units, config.z_channels);
        let (rows, vector) = ((count, units, width), (count, units));
        Ok(Self {
            inputs: vb.get(rows, "local_inputs")?,
            bias: vb.get(vector, "local_bias")?,
            hidden: vb.get((count, units, units), "local_hidden")?,
            hidden_bias: vb.get(vector, "local_hidden_bias")?,
            center: vb.get(vector, "local_center")?,
            outputs: vb.get(rows, "local_outputs")?,
        })
    }

    /// Returns the offset `U^T (tanh(M tanh(V z + b) + d) - c)` of the direction of attribute `idx`, `[N, D]`, f32.
    fn bend(&self, idx: usize, z_sem_normalized: &Tensor) -> Result<Tensor> {
        let of = |all: &Tensor| all.get(idx)?.to_dtype(DType::F32);
        let first = z_sem_normalized.matmul(&of(&self.inputs)?.t()?)?.broadcast_add(&of(&self.bias)?)?.tanh()?;
        let second = first.matmul(&of(&self.hidden)?.t()?)?.broadcast_add(&of(&self.hidden_bias)?)?.tanh()?;
        second.broadcast_sub(&of(&self.center)?)?.matmul(&of(&self.outputs)?)
    }
}

impl AttributeClassifier {
    /// Reads `weight` `[A, D]`, `bias` `[A]` and `directions` `[A, D]` below `vb`, and if directions are local `local_inputs`
    /// (V) and `local_outputs` (U), `[A, h, D]`, `local_hidden` (M) `[A, h, h]`, and `local_bias`, `local_hidden_bias` and
    /// `local_center` (b, d and c), `[A, h]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &ClassifierConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let num_attributes = config.attributes.len();
        let linear = Linear::new(config.z_channels, num_attributes, vb)?;
        let directions = vb.get((num_attributes, config.z_channels), "directions")?;
        let local = (config.local_units > 0).then(|| Local::new(config, vb)).transpose()?;
        Ok(Self { config: config.clone(), linear, directions, local, dtype: compute_dtype(vb.dtype(), vb.device()) })
    }

    /// Returns the sizes and attribute names of the classifier.
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

    /// Returns the unit edit direction of attribute `idx` at each code:
    /// `(w_k + U_k^T (tanh(M_k tanh(V_k z + b_k) + d_k) - c_k)) / |w_k|`, `w_k` being row k of the directions; the unit
    /// vector `w_k / |w_k|` everywhere if directions are fixed.
    ///
    /// # Shapes
    /// - `z_sem_normalized`, result: `[N, D]`, f32.
    /// # Errors
    /// If there is no such attribute, its row is zero, or the width differs.
    pub fn directions_at(&self, idx: usize, z_sem_normalized: &Tensor) -> Result<Tensor> {
        let (row, norm) = self.row(idx)?;
        if norm == 0. {
            bail!("attribute {idx} has no direction: its weights are all zero")
        }
        let directions = match &self.local {
            None => row.broadcast_as(z_sem_normalized.shape())?,
            Some(local) => local.bend(idx, z_sem_normalized)?.broadcast_add(&row)?,
        };
        directions / norm
    }

    /// Returns the calibrated full-edit strength of attribute `idx`, `|w_k| / sqrt(D)`, which takes codes without
    /// the attribute to those with it.
    ///
    /// `None` where the direction is not a difference of codes but a classifier's weights, or is zero.
    ///
    /// # Errors
    /// If there is no such attribute.
    pub fn whole_way(&self, idx: usize) -> Result<Option<f64>> {
        let (_, norm) = self.row(idx)?;
        let is_known = norm > 0. && self.config.known_ways.contains(&idx);
        Ok(is_known.then(|| norm / (self.config.z_channels as f64).sqrt()))
    }

    /// Returns row `idx` of the directions, `[D]`, f32, and its length.
    fn row(&self, idx: usize) -> Result<(Tensor, f64)> {
        let row = self.directions.get(idx)?.to_dtype(DType::F32)?;
        let norm = row.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        Ok((row, f64::from(norm)))
    }
}
