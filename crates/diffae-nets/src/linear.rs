//! Fully connected layer.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::init;
use crate::precision::like;

/// Fully connected layer, `y = x W^T + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor, // [out, in]
    bias: Tensor,   // [out]
}

impl Linear {
    /// Reads `weight` `[out, in]` and `bias` `[out]` below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(in_features: usize, out_features: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::with_init(in_features, out_features, vb, init::uniform_by_fan_in(in_features))
    }

    /// Reads the layer like [`Linear::new`], with Kaiming-normal weights (gain of `ReLU`) where there are none
    /// to read yet.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn kaiming(in_features: usize, out_features: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::with_init(in_features, out_features, vb, init::KAIMING_NORMAL)
    }

    fn with_init(in_features: usize, out_features: usize, vb: &VarBuilder<'_>, weight_init: Init) -> Result<Self> {
        let weight = vb.get_with_hints((out_features, in_features), "weight", weight_init)?;
        let bias = vb.get_with_hints(out_features, "bias", init::uniform_by_fan_in(in_features))?;
        Ok(Self { weight, bias })
    }

    /// Applies the layer to each row.
    ///
    /// # Shapes
    /// - `x`: `[N, in]`; result: `[N, out]`, dtype of `x`.
    /// # Errors
    /// If the width differs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        diffae_kernels::linear(x, &like(&self.weight, x)?, &like(&self.bias, x)?)
    }
}
