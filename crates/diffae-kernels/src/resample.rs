//! Resampling of all axes but the first two by a factor of two: nearest-neighbor up, mean of neighbors down.
//!
//! The two are adjoint up to a factor of four, `<up(x), y> = 4 <x, down(y)>`, of eight in volumes, so each is the other's backward
//! pass. Slices of volumes are resampled as images, then doubled, or averaged in pairs.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::cuda::{self, Resample};
use crate::dispatch::{KernelSet, kernel_set};
use crate::storage::image_dims;
use crate::tape;

/// Upsamples images or volumes by a factor of two with nearest neighbors.
///
/// `y[.., 2i + a, 2j + b] = x[.., i, j]`, `a, b` in `{0, 1}`.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`, any float dtype; result: `[N, C, 2H, 2W]`, same dtype; or `[N, C, D, H, W]` and `[N, C, 2D, 2H, 2W]`.
/// # Errors
/// If `x` has neither four nor five axes or is not a float tensor.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let y = upsample(&x.detach(), None)?;
    tape::push(&[x], &y, |dy, _| Ok(vec![Some(pool(dy, Window::Sum)?)]))?;
    Ok(y)
}

/// Downsamples images or volumes by a factor of two with means over disjoint windows of 2x2 pixels or 2x2x2 voxels.
///
/// `y[.., i, j] = mean of x[.., 2i..2i+2, 2j..2j+2]`.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`, any float dtype, H and W even; result: `[N, C, H/2, W/2]`, same dtype; or `[N, C, D, H, W]`, D even too, and
///   `[N, C, D/2, H/2, W/2]`.
/// # Errors
/// If `x` has neither four nor five axes, is not a float tensor, or a side is odd.
pub fn average_pool_2x(x: &Tensor) -> Result<Tensor> {
    image_dims(x.dims())?;
    let sides = &x.dims()[2..];
    if sides.iter().any(|side| side % 2 != 0) {
        let sides: Vec<String> = sides.iter().map(usize::to_string).collect();
        bail!("a mean of neighbors needs even sides, got {}", sides.join("x"))
    }
    let factor = if sides.len() == 3 { 0.125 } else { 0.25 };
    let y = pool(&x.detach(), Window::Mean)?;
    tape::push(&[x], &y, move |dy, _| Ok(vec![Some(upsample(dy, Some(factor))?)]))?;
    Ok(y)
}

/// Returns whether the kernels below compute on a tensor: they take all number types of floats.
fn has_kernel(x: &Tensor) -> bool {
    x.device().is_cpu() && kernel_set() != KernelSet::Candle
}

/// Upsamples, and multiplies by a factor, without recording.
fn upsample(x: &Tensor, factor: Option<f32>) -> Result<Tensor> {
    let &[n, c, d, h, w] = x.dims() else { return upsample_images(x, factor) };
    let y = upsample_images(&x.reshape((n, c * d, h, w))?, factor)?; // [N, C D, 2H, 2W]
    let twice = y.reshape((n * c, d, 1, 4 * h * w))?.broadcast_as((n * c, d, 2, 4 * h * w))?;
    twice.contiguous()?.reshape((n, c, 2 * d, 2 * h, 2 * w))
}

/// Upsamples images, and multiplies by a factor, without recording.
fn upsample_images(x: &Tensor, factor: Option<f32>) -> Result<Tensor> {
    if let Some(y) = cuda::resample(x, Resample::Up(factor.unwrap_or(1.)))? {
        return Ok(y);
    }
    let y = if has_kernel(x) {
        x.contiguous()?.apply_op1_no_bwd(&Upsample)?
    } else {
        let (n, c, h, w) = x.dims4()?;
        let copies = x.reshape((n, c, h, 1, w, 1))?.broadcast_as((n, c, h, 2, w, 2))?;
        copies.contiguous()?.reshape((n, c, 2 * h, 2 * w))?
    };
    factor.map_or_else(|| Ok(y.clone()), |factor| &y * f64::from(factor))
}

/// Reduction of a window.
#[derive(Debug, Clone, Copy)]
enum Window {
    Mean,
    Sum,
}

/// Reduces windows, without recording.
fn pool(x: &Tensor, window: Window) -> Result<Tensor> {
    let &[n, c, d, h, w] = x.dims() else { return pool_images(x, window) };
    let y = pool_images(&x.contiguous()?.reshape((n, c * d, h, w))?, window)?; // [N, C D, H/2, W/2]
    let pairs = y.reshape((n * c, d >> 1, 2, ()))?;
    let sum = (pairs.narrow(2, 0, 1)? + pairs.narrow(2, 1, 1)?)?;
    let y = match window {
        Window::Mean => (sum * 0.5)?,
        Window::Sum => sum,
    };
    y.reshape((n, c, d >> 1, h >> 1, w >> 1))
}

/// Reduces 2x2 windows of images, without recording.
fn pool_images(x: &Tensor, window: Window) -> Result<Tensor> {
    let factor = match window {
        Window::Mean => 0.25,
        Window::Sum => 1.,
    };
    if let Some(y) = cuda::resample(x, Resample::Down(factor))? {
        return Ok(y);
    }
    let x = x.contiguous()?;
    let mean = if has_kernel(&x) { x.apply_op1_no_bwd(&AveragePool)? } else { x.avg_pool2d(2)? };
    match window {
        Window::Mean => Ok(mean),
        Window::Sum => mean * 4.,
    }
}

/// Nearest-neighbor upsampling.
struct Upsample;

/// 2x2 mean.
struct AveragePool;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-nearest-2x"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = layout.shape().dims4()?;
        let storage = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(upsample_planes(contiguous(x, layout)?, h, w)),
            CpuStorage::F64(x) => CpuStorage::F64(upsample_planes(contiguous(x, layout)?, h, w)),
            CpuStorage::F16(x) => CpuStorage::F16(upsample_planes(contiguous(x, layout)?, h, w)),
            CpuStorage::BF16(x) => CpuStorage::BF16(upsample_planes(contiguous(x, layout)?, h, w)),
            other => bail!("{} of {:?}", self.name(), candle_core::backend::BackendStorage::dtype(other)),
        };
        Ok((storage, Shape::from((n, c, 2 * h, 2 * w))))
    }
}

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        "average-pool-2x"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = layout.shape().dims4()?;
        let storage = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(average_planes(contiguous(x, layout)?, h, w)),
            CpuStorage::F64(x) => CpuStorage::F64(average_planes(contiguous(x, layout)?, h, w)),
            CpuStorage::F16(x) => CpuStorage::F16(average_planes(contiguous(x, layout)?, h, w)),
            CpuStorage::BF16(x) => CpuStorage::BF16(average_planes(contiguous(x, layout)?, h, w)),
            other => bail!("{} of {:?}", self.name(), candle_core::backend::BackendStorage::dtype(other)),
        };
        Ok((storage, Shape::from((n, c, h >> 1, w >> 1))))
    }
}

/// Returns the elements of a contiguous layout as one slice.
fn contiguous<'a, T>(storage: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage[start..end]),
        None => bail!("resampling by two needs a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// Upsamples planes, `[.., h, w]` to `[.., 2h, 2w]`.
fn upsample_planes<T: Copy + Default + Send + Sync>(x: &[T], h: usize, w: usize) -> Vec<T> {
    let mut y = vec![T::default(); 4 * x.len()];
    if x.is_empty() {
        return y;
    }
    y.par_chunks_mut(4 * h * w).zip(x.par_chunks(h * w)).for_each(|(y, x)| {
        for (y, x) in y.chunks_mut(4 * w).zip(x.chunks(w)) {
            let (first, second) = y.split_at_mut(2 * w);
            for (pair, &value) in first.chunks_mut(2).zip(x) {
                pair.fill(value);
            }
            second.copy_from_slice(first);
        }
    });
    y
}

/// Averages planes over 2x2 windows, `[.., h, w]` with even sides to `[.., h/2, w/2]`.
fn average_planes<T: WithDType + Default>(x: &[T], h: usize, w: usize) -> Vec<T> {
    let mut y = vec![T::default(); x.len() >> 2];
    if y.is_empty() {
        return y;
    }
    let quarter = T::from_f64(0.25);
    let plane = h * w;
    y.par_chunks_mut(plane >> 2).zip(x.par_chunks(plane)).for_each(|(y, x)| {
        for (y, x) in y.chunks_mut(w >> 1).zip(x.chunks(2 * w)) {
            let (first, second) = x.split_at(w);
            for ((mean, a), b) in y.iter_mut().zip(first.chunks(2)).zip(second.chunks(2)) {
                *mean = ((a[0] + a[1]) + (b[0] + b[1])) * quarter;
            }
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use proptest::prelude::*;

    use crate::{Gradients, differentiable, record};

    fn ramp(shape: (usize, usize, usize, usize)) -> Tensor {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let values = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Computes `sum(up(x) * a) + sum(x * b)`: x has two consumers, as in an up block.
    fn with_two_consumers(x: &Tensor, up: &Tensor) -> Result<Tensor> {
        let (a, b) = (ramp((1, 2, 4, 4)), ramp((1, 2, 2, 2)));
        // In this order the backward pass reaches the direct consumer first.
        (up * &a)?.sum_all()? + (x * &b)?.sum_all()?
    }

    fn expected_gradient() -> Vec<f32> {
        let (a, b) = (ramp((1, 2, 4, 4)), ramp((1, 2, 2, 2)));
        values(&((average_pool_2x(&a).unwrap() * 4.).unwrap() + b).unwrap())
    }

    #[test]
    fn upsampling_adds_to_the_gradient_of_another_consumer() {
        let x = Var::from_tensor(&ramp((1, 2, 2, 2))).unwrap();
        let forward = || {
            let up = upsample_nearest_2x(&x)?;
            differentiable([x.as_tensor(), &up], |[x, up]| with_two_consumers(x, up))
        };
        let (loss, tape) = record::<_, candle_core::Error>(forward).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        for (got, expected) in values(gradients.get(&x).unwrap()).iter().zip(expected_gradient()) {
            assert!((got - expected).abs() < 1e-6, "{got} != {expected}");
        }
    }

    /// Candle's fault that this module works around. When this test fails, Candle has fixed it.
    #[test]
    fn candle_upsampling_loses_the_gradient_of_another_consumer() {
        let x = Var::from_tensor(&ramp((1, 2, 2, 2))).unwrap();
        let loss = with_two_consumers(&x, &x.upsample_nearest2d(4, 4).unwrap()).unwrap();
        let got = values(loss.backward().unwrap().get(&x).unwrap());
        let expected = expected_gradient();
        let worst = got.iter().zip(&expected).map(|(g, e)| (g - e).abs()).fold(0f32, f32::max);
        assert!(worst > 0.1, "candle's gradient is right: worst difference {worst}");
    }

    #[test]
    fn odd_sides_cannot_be_halved() {
        let error = average_pool_2x(&ramp((1, 1, 3, 4))).unwrap_err().to_string();
        assert!(error.contains("got 3x4"), "{error}");
    }

    #[test]
    fn half_precision_keeps_its_dtype() {
        for dtype in [DType::F16, DType::BF16, DType::F64] {
            let x = ramp((1, 2, 2, 4)).to_dtype(dtype).unwrap();
            assert_eq!(upsample_nearest_2x(&x).unwrap().dtype(), dtype);
            let back = average_pool_2x(&upsample_nearest_2x(&x).unwrap()).unwrap();
            assert_eq!(values(&back), values(&x));
        }
    }

    proptest! {
        #[test]
        fn forward_equals_candle(n in 1usize..4, c in 1usize..5, h in 1usize..7, w in 1usize..7) {
            let x = ramp((n, c, h, w));
            let up = upsample_nearest_2x(&x).unwrap();
            prop_assert_eq!(values(&up), values(&x.upsample_nearest2d(2 * h, 2 * w).unwrap()));
            let x = ramp((n, c, 2 * h, 2 * w));
            let down = values(&average_pool_2x(&x).unwrap());
            for (ours, candle) in down.iter().zip(values(&x.avg_pool2d(2).unwrap())) {
                prop_assert!((ours - candle).abs() < 1e-6);
            }
        }

        #[test]
        fn the_two_are_adjoint(n in 1usize..3, c in 1usize..4, h in 1usize..5, w in 1usize..5) {
            let (x, y) = (ramp((n, c, h, w)), ramp((n, c, 2 * h, 2 * w)));
            let dot = |a: &Tensor, b: &Tensor| values(&(a * b).unwrap().sum_all().unwrap().reshape(1).unwrap())[0];
            let left = dot(&upsample_nearest_2x(&x).unwrap(), &y);
            let right = 4. * dot(&x, &average_pool_2x(&y).unwrap());
            prop_assert!((left - right).abs() < 1e-4 * (1. + left.abs()));
        }
    }
}
