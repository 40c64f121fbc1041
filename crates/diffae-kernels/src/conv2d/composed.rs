//! A convolution and its gradients in Candle's operations, on any device, or by cuDNN on a card.
//!
//! Both gradients are convolutions themselves, which Candle has faster than its transposed ones: that w.r.t. the input with the
//! kernel turned by half a turn, that w.r.t. the weight with images and channels changing places.
//!
//! A convolution of volumes is one of their slices, each with its neighbors as further channels ([`slices`]).

use candle_core::{Result, Tensor, bail};

use super::sizes::WeightSizes;
use crate::cuda::{self, Direction};
use crate::storage::{as_images, sum_over};

/// Computes `y[n, o] = bias[o] + residual[n, o] + sum over c of x[n, c] * weight[o, c]`.
///
/// # Errors
/// If shapes do not fit.
pub(super) fn convolve(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    if x.rank() == 4 {
        return convolve_images(x, weight, bias, residual);
    }
    let WeightSizes { outputs, inputs, kernel, .. } = WeightSizes::of_dims(weight.dims())?;
    let mut dims = x.dims().to_vec();
    dims[1] = outputs;
    if kernel == 1 {
        let residual = residual.map(as_images).transpose()?;
        return convolve_images(&as_images(x)?, weight, bias, residual.as_ref())?.reshape(dims);
    }
    let weight = weight.transpose(1, 2)?.contiguous()?.reshape((outputs, kernel * inputs, kernel, kernel))?;
    let y = volumes(&convolve_images(&slices(x, kernel)?, &weight, bias, None)?, &dims)?;
    residual.map_or_else(|| Ok(y.clone()), |residual| &y + residual)
}

/// Takes the slices of volumes `[N, C, D, H, W]` as images with the channels of `taps` slices, `[N D, K C, H, W]`: channel `k C + c`
/// is channel c of slice `d + k - (K - 1) / 2`, zero beyond the volume.
fn slices(x: &Tensor, taps: usize) -> Result<Tensor> {
    let (items, channels, depth, height, width) = x.dims5()?;
    let images = x.transpose(1, 2)?.contiguous()?; // [N, D, C, H, W]
    let images = if taps == 1 {
        images
    } else {
        let padded = images.pad_with_zeros(1, taps >> 1, taps >> 1)?;
        let tap = |tap: usize| padded.narrow(1, tap, depth);
        Tensor::cat(&(0..taps).map(tap).collect::<Result<Vec<_>>>()?, 2)?
    };
    images.reshape((items * depth, taps * channels, height, width))
}

/// Puts slices `[N D, O, H, W]` together to volumes of these dimensions, `[N, O, D, H, W]`.
fn volumes(y: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let &[items, channels, depth, height, width] = dims else { bail!("volumes of shape {dims:?}") };
    y.reshape((items, depth, channels, height, width))?.transpose(1, 2)?.contiguous()
}

fn convolve_images(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let (weight, kernel) = square(weight)?;
    let y = match cuda::convolution(Direction::Forward, kernel, [x, &weight])? {
        Some(y) => y,
        None => conv(x, &weight, kernel)?,
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
    if dy.rank() == 4 {
        return input_gradient_of_images(weight, dy);
    }
    let WeightSizes { outputs, inputs, kernel, .. } = WeightSizes::of_dims(weight.dims())?;
    let mut dims = dy.dims().to_vec();
    dims[1] = inputs;
    if kernel == 1 {
        return input_gradient_of_images(weight, &as_images(dy)?)?.reshape(dims);
    }
    // Turned around along the slices here, along the other axes below.
    let weight = weight.flip(&[2])?.permute((2, 0, 1, 3, 4))?.contiguous()?;
    let weight = weight.reshape((kernel * outputs, inputs, kernel, kernel))?;
    volumes(&input_gradient_of_images(&weight, &slices(dy, kernel)?)?, &dims)
}

fn input_gradient_of_images(weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (weight, kernel) = square(weight)?;
    if let Some(d_x) = cuda::convolution(Direction::Input, kernel, [&weight, dy])? {
        return Ok(d_x);
    }
    let turned = if kernel == 1 { weight } else { weight.flip(&[2, 3])? };
    let turned = turned.transpose(0, 1)?.contiguous()?; // [C, O, K, K]
    conv(dy, &turned, kernel)
}

/// Computes the gradient w.r.t. the weight: `d_weight[o, c] = sum over n of x[n, c] * dy[n, o]`, at all shifts of the kernel.
///
/// # Errors
/// If shapes do not fit.
pub(super) fn weight_gradient(x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let WeightSizes { outputs, inputs, kernel, .. } = WeightSizes::of_dims(weight.dims())?;
    if x.rank() == 4 {
        return weight_gradient_of_images(x, dy, kernel)?.reshape(weight.shape());
    }
    if kernel == 1 {
        return weight_gradient_of_images(&as_images(x)?, &as_images(dy)?, 1)?.reshape(weight.shape());
    }
    let d_weight = weight_gradient_of_images(&slices(x, kernel)?, &slices(dy, 1)?, kernel)?; // [O, K C, K, K]
    d_weight.reshape((outputs, kernel, inputs, kernel, kernel))?.transpose(1, 2)?.contiguous()
}

fn weight_gradient_of_images(x: &Tensor, dy: &Tensor, kernel: usize) -> Result<Tensor> {
    if let Some(d_weight) = cuda::convolution(Direction::Weight, kernel, [x, dy])? {
        return Ok(d_weight);
    }
    let turned = |t: &Tensor| t.transpose(0, 1)?.contiguous();
    let d_weight = weight_gradient_in_parts(x, dy, kernel, images_at_once(x, kernel)?)?; // [C, O, K, K]
    turned(&d_weight)
}

/// Sums up the gradient w.r.t. the weight over parts of the images: `[C, O, K, K]`.
fn weight_gradient_in_parts(x: &Tensor, dy: &Tensor, kernel: usize, at_once: usize) -> Result<Tensor> {
    let part = |start: usize, count: usize| {
        let turned = |t: &Tensor| t.narrow(0, start, count)?.transpose(0, 1)?.contiguous();
        turned(x)?.conv2d(&turned(dy)?, kernel >> 1, 1, 1, 1)
    };
    let images = x.dim(0)?;
    let mut sum = part(0, images.min(at_once))?;
    for start in (at_once..images).step_by(at_once) {
        sum = (sum + part(start, at_once.min(images - start))?)?;
    }
    Ok(sum)
}

/// Convolves with stride 1 and the padding that keeps the size of the image.
fn conv(x: &Tensor, weight: &Tensor, kernel: usize) -> Result<Tensor> {
    conv_in_parts(x, weight, kernel, images_at_once(x, kernel)?)
}

/// Convolves parts of the images, one after the other.
fn conv_in_parts(x: &Tensor, weight: &Tensor, kernel: usize, at_once: usize) -> Result<Tensor> {
    let images = x.dim(0)?;
    let part = |start: usize| {
        let part = x.narrow(0, start, at_once.min(images - start))?;
        part.contiguous()?.conv2d(weight, kernel >> 1, 1, 1, 1)
    };
    if images <= at_once {
        return part(0);
    }
    Tensor::cat(&(0..images).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?, 0)
}

/// Returns the number of images that Candle convolves at once on a device.
///
/// On cards it writes the values under the kernel at each pixel side by side, `[N, H, W, C K K]`, by a kernel that numbers them in 32
/// bits: beyond, most of them are never written, without an error.
///
/// # Errors
/// If a single image has more values.
fn images_at_once(x: &Tensor, kernel: usize) -> Result<usize> {
    let (images, channels, height, width) = x.dims4()?;
    if x.device().is_cpu() {
        return Ok(images.max(1));
    }
    let per_image = channels * height * width * kernel * kernel;
    match (u32::MAX as usize).checked_div(per_image) {
        Some(0) => {
            bail!("a convolution of {height} x {width} pixels with {channels} channels is too large for this device")
        }
        Some(count) => Ok(count.min(images.max(1))),
        None => Ok(images.max(1)),
    }
}

/// Computes the gradient w.r.t. the bias: the sum over images and pixels.
///
/// # Errors
/// If the device fails.
pub(super) fn bias_gradient(bias: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let dy = as_images(dy)?;
    let sums = cuda::sum_channels(&dy)?.map_or_else(|| sum_over(&dy, (0, 2, 3)), Ok)?;
    sums.reshape(bias.shape())
}

/// Returns a weight as `[O, C, K, K]`, and K.
fn square(weight: &Tensor) -> Result<(Tensor, usize)> {
    let WeightSizes { outputs, inputs, kernel, .. } = WeightSizes::of_dims(weight.dims())?;
    Ok((weight.reshape((outputs, inputs, kernel, kernel))?, kernel))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn values(dims: &[usize], seed: f64) -> Tensor {
        let count = dims.iter().product::<usize>();
        let values: Vec<f64> = (0..count).map(|i| (i as f64 * 0.731 + seed).sin()).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn gradients_of_biases_are_added_up_in_f32() {
        for (dtype, count) in [(DType::F16, 4096f32), (DType::BF16, 4096.), (DType::F32, 4096.)] {
            let (dy, bias) = (Tensor::ones((1, 2, 64, 64), dtype, &Device::Cpu).unwrap(), values(&[2], 0.));
            let sums = bias_gradient(&bias, &dy).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(sums.to_vec1::<f32>().unwrap(), [count; 2], "{dtype:?}");
        }
    }

    #[test]
    fn parts_of_the_images_give_the_convolution_of_all() {
        let (x, weight, dy) = (values(&[5, 3, 6, 7], 0.), values(&[4, 3, 3, 3], 1.), values(&[5, 4, 6, 7], 2.));
        let whole = [conv(&x, &weight, 3).unwrap(), weight_gradient_in_parts(&x, &dy, 3, 5).unwrap()];
        for at_once in [1, 2, 3, 4, 9] {
            let y = conv_in_parts(&x, &weight, 3, at_once).unwrap();
            assert!(difference(&y, &whole[0]) < 1e-6, "{at_once}");
            let d_weight = weight_gradient_in_parts(&x, &dy, 3, at_once).unwrap();
            assert!(difference(&d_weight, &whole[1]) < 1e-4, "{at_once}");
        }
        assert_eq!(images_at_once(&x, 3).unwrap(), 5);
    }
}
