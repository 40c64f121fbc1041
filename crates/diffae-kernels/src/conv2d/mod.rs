//! Two-dimensional convolution.

mod algorithm;
mod fused;
mod weight;

use candle_core::{Device, Result, Shape, Tensor, bail};

pub(crate) use algorithm::Algorithm;
pub use weight::{ConvInput, ConvWeight};

use crate::cpu::convolve::Convolution;
use crate::cpu::elementwise::channel_sums;
use crate::cpu::pack::{Direction, Packed};
use crate::cpu::planes::{Planes, PlanesOut};
use crate::cpu::weight_gradient::WeightGradient;
use crate::operation::{Operation, View, apply_3};
use crate::storage::{runs_here, with_all_floats};
use crate::tape::differentiable;
use crate::work::note_multiply_adds;

/// `y[n, o] = bias[o] + sum over c of x[n, c] * weight[o, c]`, stride 1, with zeros around the picture that keep its size.
///
/// On the CPU, 3x3 kernels on pictures of at least 8 pixels use Winograd's algorithm (unless
/// [`set_exact`](crate::set_exact) says otherwise), the rest nine or one matrix products; other kernel sizes, other number
/// types than f32 and other devices go through Candle. Only gradients that are needed are computed.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; `weight`: `[O, C, K, K]`, K odd, or `[O, C, 1]`; `bias`: `[O]`; result: `[N, O, H, W]`.
/// # Errors
/// If shapes, number types or devices do not fit.
/// # Source
/// Winograd 1980, Lavin and Gray 2015 (arXiv:1509.09308).
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::new(x, weight, bias)?;
    if runs_here([x, weight, bias]) && Algorithm::for_kernel(sizes.kernel).is_some() {
        return apply_3([x, weight, bias], Conv2d);
    }
    differentiable([x, weight, bias], |[x, weight, bias]| {
        let weight = weight.reshape((sizes.outputs, sizes.inputs, sizes.kernel, sizes.kernel))?;
        let y = x.conv2d(&weight, sizes.kernel >> 1, 1, 1, 1)?;
        y.broadcast_add(&bias.reshape((1, (), 1, 1))?)
    })
}

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) images: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) kernel: usize,
}

impl Sizes {
    fn new(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let sizes = Self::of_dims(x.dims(), weight.dims())?;
        if bias.dims() != [sizes.outputs] {
            bail!("bias {:?} does not fit a weight of shape {:?}", bias.dims(), weight.dims())
        }
        Ok(sizes)
    }

    fn of_dims(x: &[usize], weight: &[usize]) -> Result<Self> {
        let (outputs, weight_inputs, kernel) = weight_dims(weight)?;
        match *x {
            [images, inputs, height, width] if inputs == weight_inputs => {
                Ok(Self { images, inputs, outputs, height, width, kernel })
            }
            _ => bail!("a weight of shape {weight:?} does not fit an input of shape {x:?}"),
        }
    }

    fn output_shape(&self) -> Shape {
        Shape::from((self.images, self.outputs, self.height, self.width))
    }

    fn algorithm(&self) -> Result<Algorithm> {
        match self.kernel {
            1 => Ok(Algorithm::Direct1),
            3 => Ok(Algorithm::for_3x3((self.outputs, self.inputs), (self.height, self.width))),
            other => bail!("there is no kernel for {other}x{other} convolutions"),
        }
    }

    fn area(&self) -> usize {
        self.height * self.width
    }

    fn planes(&self, x: &[f32], channels: usize) -> Planes {
        Planes::plain(x.as_ptr(), channels, self.height, self.width)
    }

    /// The planes of `x` and of the channels that follow it.
    fn joined_planes(&self, x: &[f32], lateral: Option<&[f32]>) -> Planes {
        Planes {
            first_channels: x.len().checked_div(self.images * self.area()).unwrap_or(0),
            second: lateral.map_or(std::ptr::null(), <[f32]>::as_ptr),
            ..self.planes(x, self.inputs)
        }
    }
}

/// Output channels, input channels and kernel size of a weight.
fn weight_dims(dims: &[usize]) -> Result<(usize, usize, usize)> {
    match *dims {
        [outputs, inputs, kernel, width] if kernel == width && kernel % 2 == 1 => Ok((outputs, inputs, kernel)),
        [outputs, inputs, 1] => Ok((outputs, inputs, 1)),
        _ => bail!("a convolution needs a weight [O, C, K, K] with an odd K, got {dims:?}"),
    }
}

/// Convolves planes with packed weights.
///
/// # Panics
/// Never: sizes have been checked.
pub(crate) fn convolve(
    images: usize,
    input: Planes,
    weight: &Packed,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    note_multiply_adds(images * input.area() * weight.inputs * weight.outputs * weight.algorithm.taps());
    let output = |to| PlanesOut {
        to,
        channels: weight.outputs,
        area: input.area(),
        bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
        residual: residual.map_or(std::ptr::null(), <[f32]>::as_ptr),
    };
    crate::cpu::convolve::to_vec(Convolution { images, input, weight, output: output(std::ptr::null_mut()) })
}

struct Conv2d;

impl Operation<3> for Conv2d {
    const NAME: &'static str = "conv2d";

    fn forward(&self, [(x, x_dims), (weight, weight_dims), (bias, _)]: [View<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let sizes = Sizes::of_dims(x_dims, weight_dims)?;
        let packed = Packed::passing(sizes.algorithm()?, Direction::Forward, weight, (sizes.outputs, sizes.inputs));
        let y = convolve(sizes.images, sizes.planes(x, sizes.inputs), &packed, Some(bias), None);
        Ok((y, sizes.output_shape()))
    }

    fn gradients(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        [x_wanted, weight_wanted, bias_wanted]: [bool; 3],
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let sizes = Sizes::new(x, weight, bias)?;
        with_all_floats([x, weight, dy], |[x_values, weight_values, dy]| {
            let d_x =
                x_wanted.then(|| Tensor::from_vec(sizes.input_gradient(weight_values, dy)?, x.shape(), &Device::Cpu));
            let planes = sizes.planes(x_values, sizes.inputs);
            let [d_weight, d_bias] =
                sizes.parameter_gradients([weight, bias], [weight_wanted, bias_wanted], planes, dy)?;
            Ok([d_x.transpose()?, d_weight, d_bias])
        })
    }
}

impl Sizes {
    /// The gradient of the input, `[N, C, H, W]`.
    pub(crate) fn input_gradient(&self, weight: &[f32], dy: &[f32]) -> Result<Vec<f32>> {
        let channels = (self.outputs, self.inputs);
        let packed = Packed::passing(self.algorithm()?, Direction::InputGradient, weight, channels);
        Ok(convolve(self.images, self.planes(dy, self.outputs), &packed, None, None))
    }

    /// Those of weight and bias, where they are wanted. `x`: what was convolved.
    pub(crate) fn parameter_gradients(
        &self,
        [weight, bias]: [&Tensor; 2],
        [weight_wanted, bias_wanted]: [bool; 2],
        x: Planes,
        dy: &[f32],
    ) -> Result<[Option<Tensor>; 2]> {
        let d_weight = weight_wanted.then(|| {
            let d_weight = weight_gradient(self.images, x, self.planes(dy, self.outputs), self.algorithm()?);
            Tensor::from_vec(d_weight, weight.shape(), &Device::Cpu)
        });
        let d_bias = bias_wanted
            .then(|| Tensor::from_vec(channel_sums(dy, self.outputs, self.area()), bias.shape(), &Device::Cpu));
        Ok([d_weight.transpose()?, d_bias.transpose()?])
    }
}

/// The gradient of the weights, `[O, C, K, K]`.
fn weight_gradient(images: usize, input: Planes, output: Planes, algorithm: Algorithm) -> Vec<f32> {
    let len = output.channels * input.channels * algorithm.taps();
    note_multiply_adds(images * input.area() * len);
    crate::cpu::weight_gradient::to_vec(len, |to| WeightGradient { images, input, output, algorithm, to })
}
