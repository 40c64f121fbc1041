//! Layers of the feature networks: convolutions with folded batch norms, pooling, resizing.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use diffae_kernels::differentiable;

use crate::error::{Error, Result};
use crate::weights::Weights;

/// Reads layers and tensors from weights, by name.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    pub(super) weights: &'a Weights,
    pub(super) device: &'a Device,
}

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Height and width.
    pub(super) kernel: [usize; 2],
    pub(super) stride: usize,
    pub(super) padding: Padding,
    pub(super) groups: usize,
}

/// Zero padding around a picture.
#[derive(Debug, Clone, Copy)]
pub(super) enum Padding {
    /// Rows above and below, and columns left and right.
    Zeros([usize; 2]),
    /// `TensorFlow`'s: the output has `ceil(size / stride)` pixels, and an odd zero goes below or right.
    Same,
}

/// A convolution with a bias.
#[derive(Debug, Clone)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    window: Window,
}

impl Window {
    /// A square kernel with stride 1 and zeros that keep the size.
    pub(super) fn square(kernel: usize) -> Self {
        Self::rectangle([kernel, kernel])
    }

    /// A kernel with stride 1 and zeros that keep the size.
    pub(super) fn rectangle(kernel: [usize; 2]) -> Self {
        Self { kernel, stride: 1, padding: Padding::Zeros(kernel.map(|side| side >> 1)), groups: 1 }
    }

    pub(super) fn with_padding(self, padding: usize) -> Self {
        Self { padding: Padding::Zeros([padding; 2]), ..self }
    }

    pub(super) fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Pads with zeros as `TensorFlow` does.
    pub(super) fn same(self) -> Self {
        Self { padding: Padding::Same, ..self }
    }

    /// Convolves each channel on its own (depthwise).
    pub(super) fn depthwise(self, channels: usize) -> Self {
        Self { groups: channels, ..self }
    }
}

impl Loader<'_> {
    /// Reads a tensor, which must have the given shape.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.weights.tensor(name, DType::F32, self.device)?;
        if tensor.dims() == shape {
            return Ok(tensor);
        }
        let (name, got, expected) = (name.to_owned(), tensor.dims().to_vec(), shape.to_vec());
        Err(Error::ShapeMismatch { name, got, expected })
    }

    /// Reads a convolution from `NAME.weight` and `NAME.bias`.
    pub(super) fn conv(&self, name: &str, (inputs, outputs): (usize, usize), window: Window) -> Result<Conv> {
        let weight = self.weight(name, (inputs, outputs), window)?;
        Ok(Conv { weight, bias: self.tensor(&format!("{name}.bias"), &[outputs])?, window })
    }

    /// Reads `CONV.weight` and folds the statistics of a batch norm in: `(x - mean) / sqrt(var + eps) * gamma + beta`
    /// after a convolution without bias is a convolution with one.
    pub(super) fn conv_norm(
        &self,
        (conv, norm): (&str, &str),
        (inputs, outputs): (usize, usize),
        window: Window,
        eps: f64,
    ) -> Result<Conv> {
        let weight = self.weight(conv, (inputs, outputs), window)?;
        let of_norm = |part: &str| self.tensor(&format!("{norm}.{part}"), &[outputs]);
        let (gamma, beta) = (of_norm("weight")?, of_norm("bias")?);
        let (mean, var) = (of_norm("running_mean")?, of_norm("running_var")?);
        let scale = (gamma / (var + eps)?.sqrt()?)?;
        let bias = (beta - (mean * &scale)?)?;
        Ok(Conv { weight: weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?, bias, window })
    }

    fn weight(&self, name: &str, (inputs, outputs): (usize, usize), window: Window) -> Result<Tensor> {
        let [height, width] = window.kernel;
        let inputs = if window.groups == 1 { inputs } else { 1 };
        self.tensor(&format!("{name}.weight"), &[outputs, inputs, height, width])
    }
}

impl Conv {
    pub(super) fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let Window { kernel: [height, width], stride, padding, groups } = self.window;
        let keeps_size = match padding {
            Padding::Zeros(zeros) => zeros == [height >> 1, width >> 1],
            Padding::Same => true,
        };
        if groups == 1 && stride == 1 && height == width && height <= 3 && height % 2 == 1 && keeps_size {
            return diffae_kernels::conv2d(x, &self.weight, &self.bias);
        }
        if groups > 1 {
            let zeros = zeros_around(x, self.window)?;
            return diffae_kernels::depthwise_conv2d(x, &self.weight, &self.bias, (stride, zeros));
        }
        differentiable([x], |[x]| {
            let y = pad(x, self.window)?.conv2d(&self.weight, 0, stride, 1, 1)?;
            y.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)
        })
    }
}

/// Returns the zeros with which pictures are padded: above and below, left and right.
fn zeros_around(x: &Tensor, window: Window) -> CandleResult<[[usize; 2]; 2]> {
    let sides = [x.dim(2)?, x.dim(3)?];
    Ok([0, 1].map(|axis| match window.padding {
        Padding::Zeros(zeros) => [zeros[axis]; 2],
        Padding::Same => {
            let (side, kernel) = (sides[axis], window.kernel[axis]);
            let covered = (side.div_ceil(window.stride).saturating_sub(1)) * window.stride + kernel;
            let zeros = covered.saturating_sub(side);
            [zeros >> 1, zeros - (zeros >> 1)]
        }
    }))
}

/// Pads pictures with zeros.
fn pad(x: &Tensor, window: Window) -> CandleResult<Tensor> {
    let [[top, bottom], [left, right]] = zeros_around(x, window)?;
    x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)
}

/// Max pooling of values of at least 0: pixels beyond the border count as 0.
pub(super) fn max_pool(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> CandleResult<Tensor> {
    let x = pad(x, Window::square(kernel).with_padding(padding))?;
    x.max_pool2d_with_stride(kernel, stride)
}

/// Pools as [`max_pool`] without padding, but pixels that are left at the border get a window of their own.
pub(super) fn max_pool_ceil(x: &Tensor, kernel: usize, stride: usize) -> CandleResult<Tensor> {
    let missing = |side: usize| match side.saturating_sub(kernel) % stride {
        0 => 0,
        left => stride - left,
    };
    let (bottom, right) = (missing(x.dim(2)?), missing(x.dim(3)?));
    x.pad_with_zeros(2, 0, bottom)?.pad_with_zeros(3, 0, right)?.max_pool2d_with_stride(kernel, stride)
}

/// Average pooling over 3x3 windows, of the pixels within the picture alone.
pub(super) fn average_pool_3x3(x: &Tensor) -> CandleResult<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let ones = Tensor::ones((1, 1, height, width), x.dtype(), x.device())?;
    let mean = |x: &Tensor| pad(x, Window::square(3))?.avg_pool2d_with_stride(3, 1);
    mean(x)?.broadcast_div(&mean(&ones)?)
}

/// Global average pooling: `[N, C, H, W]` to `[N, C]`.
pub(super) fn global_average(x: &Tensor) -> CandleResult<Tensor> {
    x.flatten_from(2)?.mean(2)
}

/// Filter of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Between the two nearest pixels, as `torch.nn.functional.interpolate` with `align_corners=False`: pixels are
    /// left out where the picture shrinks.
    Bilinear,
    /// Keys' cubic with a = -0.75 in PyTorch's way: over the four nearest pixels.
    Bicubic,
    /// A triangle as wide as the pixels of the smaller picture.
    Antialiased,
    /// Keys' cubic with a = -0.5, as wide as the pixels of the smaller picture: Pillow's `BICUBIC`.
    AntialiasedBicubic,
}

/// Resizes pictures, `[N, C, H, W]` to `[N, C, side, side]`. The scale of the mapping is `scale`, or `side / old side`
/// if that is `None`.
pub(super) fn resize(x: &Tensor, side: usize, filter: Filter, scale: Option<f64>) -> CandleResult<Tensor> {
    let (n, c, height, width) = x.dims4()?;
    let matrix = |old: usize| {
        let scale = scale.unwrap_or(side as f64 / old as f64);
        Tensor::from_vec(resize_weights(old, side, filter, scale), (side, old), x.device())
    };
    let across = x.contiguous()?.reshape((n * c * height, width))?.matmul(&matrix(width)?.t()?)?;
    let across = across.reshape((n * c, height, side))?;
    let rows = matrix(height)?.broadcast_left(n * c)?;
    rows.matmul(&across)?.reshape((n, c, side, side))
}

/// Returns the resize matrix, whose row r holds the weights of the old pixels for the new pixel r.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "places are clamped to the picture")]
pub(super) fn resize_weights(old: usize, new: usize, filter: Filter, scale: f64) -> Vec<f32> {
    let last = old.saturating_sub(1) as f64;
    let mut weights = vec![0f32; old * new];
    for (place, row) in weights.chunks_mut(old).enumerate() {
        let center = (place as f64 + 0.5) / scale - 0.5;
        let mut add = |at: f64, weight: f64| {
            if let Some(entry) = row.get_mut(at.clamp(0., last) as usize) {
                *entry += weight as f32;
            }
        };
        match filter {
            Filter::Bilinear => {
                let center = center.max(0.);
                let fraction = center - center.floor();
                add(center.floor(), 1. - fraction);
                add(center.floor() + 1., fraction);
            }
            Filter::Bicubic => {
                for offset in [-1., 0., 1., 2.] {
                    let at = center.floor() + offset;
                    add(at, cubic(center - at, -0.75));
                }
            }
            Filter::Antialiased | Filter::AntialiasedBicubic => {
                let (radius, kernel): (f64, fn(f64) -> f64) = match filter {
                    Filter::AntialiasedBicubic => (2., |x| cubic(x, -0.5)),
                    _ => (1., |x| (1. - x.abs()).max(0.)),
                };
                let stretch = scale.recip().max(1.);
                let first = (center - radius * stretch).ceil().max(0.) as usize;
                let end = ((center + radius * stretch).floor().min(last)) as usize;
                let weight = |at: usize| kernel((at as f64 - center) / stretch);
                let sum: f64 = (first..=end).map(weight).sum();
                (first..=end).for_each(|at| add(at as f64, weight(at) / sum));
            }
        }
    }
    weights
}

/// Evaluates the cubic kernel of Keys 1981.
fn cubic(distance: f64, a: f64) -> f64 {
    let x = distance.abs();
    if x <= 1. {
        ((a + 2.) * x - (a + 3.)) * x * x + 1.
    } else if x < 2. {
        ((a * x - 5. * a) * x + 8. * a) * x - 4. * a
    } else {
        0.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_resizing_sum_to_one_and_keep_the_size_as_it_is() {
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Antialiased, Filter::AntialiasedBicubic] {
            for (old, new) in [(5, 9), (9, 4), (7, 7), (1, 3)] {
                let weights = resize_weights(old, new, filter, new as f64 / old as f64);
                for row in weights.chunks(old) {
                    assert!((row.iter().sum::<f32>() - 1.).abs() < 1e-6, "{filter:?} {old} {new}");
                }
                if old == new {
                    assert!((0..old).all(|at| (weights[at * old + at] - 1.).abs() < 1e-6), "{filter:?}");
                }
            }
        }
    }
}
