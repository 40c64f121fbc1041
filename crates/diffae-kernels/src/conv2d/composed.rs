//! A convolution and its gradients in Candle's operations, on any device, or by cuDNN on a card.
//!
//! Both gradients are convolutions themselves, which Candle has faster than its transposed ones: that w.r.t. the input with the
//! kernel turned by half a turn, that w.r.t. the weight with images and channels changing places.

use candle_core::{Result, Tensor};

use super::sizes::WeightSizes;
use crate::cuda::{self, Direction};

/// Computes `y[n, o] = bias[o] + residual[n, o] + sum over c of x[n, c] * weight[o, c]`.
///
/// # Errors
/// If shapes do not fit.
pub(super) fn convolve(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let (weight, kernel) = square(weight)?;
    let y = match cuda::convolution(Direction::Forward, kernel, [x, &weight])? {
        Some(y) => y,
        None => x.contiguous()?.conv2d(&weight, kernel >> 1, 1, 1, 1)?,
    };
    if let Some(y) = cuda::add_bias(&y, bias, residual)? {
        return Ok(y);
    }
    let y = y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?;
    residual.map_or_else(|| Ok(y.clone()), |residual| &y + residual)
}

/// Computes the gradient w.r.t. the input: `d_x[n, c] = sum over o of dy[n, o] * turned(weight[o, c])`.
///
/// # Errors
/// If shapes do not fit.
pub(super) fn input_gradient(weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (weight, kernel) = square(weight)?;
    if let Some(d_x) = cuda::convolution(Direction::Input, kernel, [&weight, dy])? {
        return Ok(d_x);
    }
    let turned = if kernel == 1 { weight } else { weight.flip(&[2, 3])? };
    let turned = turned.transpose(0, 1)?.contiguous()?; // [C, O, K, K]
    dy.contiguous()?.conv2d(&turned, kernel >> 1, 1, 1, 1)
}

/// Computes the gradient w.r.t. the weight: `d_weight[o, c] = sum over n of x[n, c] * dy[n, o]`, at all shifts of the kernel.
///
/// # Errors
/// If shapes do not fit.
pub(super) fn weight_gradient(x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let WeightSizes { kernel, .. } = WeightSizes::of_dims(weight.dims())?;
    if let Some(d_weight) = cuda::convolution(Direction::Weight, kernel, [x, dy])? {
        return d_weight.reshape(weight.shape());
    }
    let turned = |t: &Tensor| t.transpose(0, 1)?.contiguous();
    let d_weight = turned(x)?.conv2d(&turned(dy)?, kernel >> 1, 1, 1, 1)?; // [C, O, K, K]
    turned(&d_weight)?.reshape(weight.shape())
}

/// Computes the gradient w.r.t. the bias: the sum over images and pixels.
///
/// # Errors
/// If the device fails.
pub(super) fn bias_gradient(bias: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let sums = cuda::sum_channels(dy)?.map_or_else(|| dy.sum((0, 2, 3)), Ok)?;
    sums.reshape(bias.shape())
}

/// Returns a weight as `[O, C, K, K]`, and K.
fn square(weight: &Tensor) -> Result<(Tensor, usize)> {
    let WeightSizes { outputs, inputs, kernel } = WeightSizes::of_dims(weight.dims())?;
    Ok((weight.reshape((outputs, inputs, kernel, kernel))?, kernel))
}
