//! Group and layer normalization with statistics in f32.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{Activation, ConvInput, NORM_EPS, cast, conditional_affine, differentiable, group_norm};

use crate::conv::Conv;
use crate::init;
use crate::precision::{like, statistics_dtype};

/// Returns the number of groups of a norm over `channels` channels: 32, or `channels` if there are fewer.
#[must_use]
pub fn num_groups(channels: usize) -> usize {
    channels.min(32)
}

/// Group normalization with a learned scale and shift for each channel.
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
    weight: Tensor, // [C]
    bias: Tensor,   // [C]
    num_groups: usize,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, both `[C]`, below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(channels: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::with_groups((channels, num_groups(channels)), vb)
    }

    /// Reads the same parameters, for a norm with a number of groups that divides the channels; with none, nothing is normalized,
    /// and the scale and shift are left.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn with_groups((channels, num_groups): (usize, usize), vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get_with_hints(channels, "weight", init::ONE)?;
        let bias = vb.get_with_hints(channels, "bias", init::ZERO)?;
        Ok(Self { weight, bias, num_groups })
    }

    /// Computes `activation(x_hat * weight + bias)`, `x_hat` being `x` with zero mean and unit variance in each group.
    ///
    /// # Shapes
    /// - `x`: `[N, C, H, W]`; result: the same, dtype of `x`.
    /// # Errors
    /// If the channel count differs.
    pub(crate) fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.plain().forward(x, activation)
    }

    /// Returns the norm with the learned scale and shift alone.
    pub(crate) fn plain(&self) -> AffineNorm {
        AffineNorm { scale: self.weight.clone(), shift: self.bias.clone(), num_groups: self.num_groups }
    }

    /// Returns the adaptive group norm `((x_hat * weight + bias) * (1 + scale_t) + shift_t) * (1 + scale_z)`.
    ///
    /// The three affine maps are folded into one per image and channel before they meet the picture.
    ///
    /// # Shapes
    /// - `modulation`: as its fields say.
    /// # Errors
    /// If shapes do not fit.
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), Eq. 7, with the `1 +` of the released weights.
    pub(crate) fn modulated(&self, modulation: &Modulation<'_>) -> Result<AffineNorm> {
        let Modulation { time, scale_z } = *modulation;
        if let Some([scale, shift]) = conditional_affine(time, scale_z, [&self.weight, &self.bias])? {
            return Ok(AffineNorm { scale, shift, num_groups: self.num_groups });
        }
        let channels = self.weight.dim(0)?;
        let gain_t = |time: &Tensor| time.narrow(1, 0, channels)? + 1.;
        let fold_scale = |time: &Tensor, weight: &Tensor| gain_t(time)?.broadcast_mul(&like(weight, time)?); // [M, C]
        let fold_shift = |time: &Tensor, bias: &Tensor| {
            gain_t(time)?.broadcast_mul(&like(bias, time)?)? + time.narrow(1, channels, channels)? // [M, C]
        };
        let (scale, shift) = match scale_z {
            None => (
                differentiable([time, &self.weight], |[time, weight]| fold_scale(time, weight))?,
                differentiable([time, &self.bias], |[time, bias]| fold_shift(time, bias))?,
            ),
            Some(z) => (
                differentiable([time, &self.weight, z], |[time, weight, z]| {
                    (z + 1.)?.broadcast_mul(&fold_scale(time, weight)?)
                })?,
                differentiable([time, &self.bias, z], |[time, bias, z]| {
                    (z + 1.)?.broadcast_mul(&fold_shift(time, bias)?)
                })?,
            ),
        };
        Ok(AffineNorm { scale, shift, num_groups: self.num_groups })
    }
}

/// Group norm with the affine map of one call.
#[derive(Debug, Clone)]
pub(crate) struct AffineNorm {
    scale: Tensor, // [N or 1, C], or [C]
    shift: Tensor, // the same
    num_groups: usize,
}

impl AffineNorm {
    /// Calls `f` with the norm in the form of the kernels, in the number type of `x`'s statistics.
    fn with<R>(
        &self,
        x: &Tensor,
        activation: Activation,
        f: impl FnOnce(&diffae_kernels::GroupNorm<'_>) -> Result<R>,
    ) -> Result<R> {
        let dtype = statistics_dtype(x.dtype());
        let (scale, shift) = (cast(&self.scale, dtype)?, cast(&self.shift, dtype)?);
        f(&diffae_kernels::GroupNorm { num_groups: self.num_groups, scale: &scale, shift: &shift, activation })
    }

    /// Computes `activation(x_hat * scale + shift)`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.with(x, activation, |norm| group_norm(x, norm))
    }

    /// Computes `conv(activation(x_hat * scale + shift)) + residual` of `x` and the skip connection `skip`,
    /// concatenated.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn then(&self, conv: &Conv, input: &ConvInput<'_>, activation: Activation) -> Result<Tensor> {
        self.with(input.x, activation, |norm| conv.apply(&ConvInput { norm: Some(norm), ..*input }))
    }
}

/// Conditioning of a norm: scale and shift from the timestep, scale from `z_sem`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Modulation<'a> {
    /// Scale and shift from the timestep, `scale_t` and `shift_t` side by side: `[N, 2C]` or `[1, 2C]`.
    pub(crate) time: &'a Tensor,
    /// Scale from `z_sem`, `[N, C]` or `[1, C]`; absent in a model without `z_sem`.
    pub(crate) scale_z: Option<&'a Tensor>,
}

/// Layer normalization over the last axis with a learned scale and shift.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor, // [H]
    bias: Tensor,   // [H]
}

impl LayerNorm {
    /// Reads `weight` and `bias`, both `[width]`, below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(width: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get_with_hints(width, "weight", init::ONE)?;
        let bias = vb.get_with_hints(width, "bias", init::ZERO)?;
        Ok(Self { weight, bias })
    }

    /// Computes `x_hat * weight + bias`, `x_hat` being `x` with zero mean and unit variance in each row.
    ///
    /// # Shapes
    /// - `x`: `[N, width]`; result: the same.
    /// # Errors
    /// If the width differs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        differentiable([x, &self.weight, &self.bias], |[x, weight, bias]| {
            let x_hat = standardize(&x.to_dtype(statistics_dtype(x.dtype()))?)?;
            let y = x_hat.broadcast_mul(&like(weight, &x_hat)?)?;
            y.broadcast_add(&like(bias, &x_hat)?)?.to_dtype(x.dtype())
        })
    }
}

/// Computes `(x - mean) / sqrt(variance + 1e-5)` over the last axis, with the biased variance.
fn standardize(x: &Tensor) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered.broadcast_div(&(variance + NORM_EPS)?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use std::collections::HashMap;

    fn norm(channels: usize) -> GroupNorm {
        let weight = Tensor::arange(1f32, 1. + channels as f32, &Device::Cpu).unwrap();
        let tensors =
            HashMap::from([("weight".to_owned(), weight.clone()), ("bias".to_owned(), (weight * 0.5).unwrap())]);
        GroupNorm::new(channels, &VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap()
    }

    fn ramp(dims: (usize, usize, usize, usize)) -> Tensor {
        let values = (0..dims.0 * dims.1 * dims.2 * dims.3).map(|i| (i as f32 * 1.7).cos()).collect::<Vec<_>>();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn folding_equals_the_steps_one_after_the_other() {
        let (norm, x) = (norm(6), ramp((2, 6, 3, 2)));
        let modulation = ramp((3, 2, 6, 1)).reshape((3, 2, 6)).unwrap();
        let part = |i: usize| modulation.get(i).unwrap();
        let (scale_t, shift_t, scale_z) = (part(0), part(1), part(2));
        let pixel = |t: &Tensor| t.reshape((2, 6, 1, 1)).unwrap();
        let time = Tensor::cat(&[&scale_t, &shift_t], 1).unwrap();
        let modulation = Modulation { time: &time, scale_z: Some(&scale_z) };
        let got = norm.modulated(&modulation).unwrap().forward(&x, Activation::Silu).unwrap();
        let h = norm.forward(&x, Activation::Identity).unwrap();
        let h = h.broadcast_mul(&(pixel(&scale_t) + 1.).unwrap()).unwrap().broadcast_add(&pixel(&shift_t)).unwrap();
        let expected = h.broadcast_mul(&(pixel(&scale_z) + 1.).unwrap()).unwrap().silu().unwrap();
        assert!(largest_difference(&got, &expected) < 1e-5);
    }

    #[test]
    fn a_group_has_zero_mean_and_unit_variance() {
        let x = (ramp((1, 64, 4, 4)) * 3.).unwrap();
        let x_hat = standardize(&x.reshape((1, num_groups(64), ())).unwrap()).unwrap();
        let mean = x_hat.mean_keepdim(D::Minus1).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let variance = x_hat.sqr().unwrap().mean_keepdim(D::Minus1).unwrap().flatten_all().unwrap();
        assert!(mean.to_scalar::<f32>().unwrap() < 1e-6);
        assert!(variance.to_vec1::<f32>().unwrap().iter().all(|v| (v - 1.).abs() < 1e-3));
    }
}
