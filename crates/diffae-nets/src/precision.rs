//! Number types of stored weights and of arithmetic.

use candle_core::{DType, Device, Tensor};
use diffae_kernels::{KernelSet, cast, kernel_set};

/// Returns the dtype of activations for weights of `weight_dtype` on `device`.
///
/// CPUs have no fast half-precision arithmetic that Candle could use, so there half-precision weights are
/// widened to f32 where they are used; elsewhere activations have the dtype of the weights. f16, which Candle multiplies on a CPU,
/// is arithmetic there, too, with the kernel set `candle`: as on a GPU, to see what it costs.
#[must_use]
pub fn compute_dtype(weight_dtype: DType, device: &Device) -> DType {
    let is_composed = weight_dtype == DType::F16 && kernel_set() == KernelSet::Candle;
    if device.is_cpu() && !is_composed { statistics_dtype(weight_dtype) } else { weight_dtype }
}

/// Returns the dtype of norm statistics and softmax for activations of `dtype`: f32, or f64 for f64.
pub(crate) fn statistics_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// Converts `weight` to the dtype of `x`, with gradients in its own; free when it has that dtype already.
pub(crate) fn like(weight: &Tensor, x: &Tensor) -> candle_core::Result<Tensor> {
    cast(weight, x.dtype())
}
