//! Two-dimensional convolution.

mod algorithm;
mod weight;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

pub(crate) use algorithm::Algorithm;
pub use weight::{ConvInput, ConvWeight};

use crate::cpu::convolve::Convolution;
use crate::cpu::elementwise::channel_sums;
use crate::cpu::pack::{Direction, Packed};
use crate::cpu::planes::{Planes, PlanesOut};
use crate::cpu::weight_gradient::WeightGradient;
use crate::storage::{floats, runs_here, wants_gradient, with_floats};

/// `y[n, o] = bias[o] + sum over c of x[n, c] * weight[o, c]`, stride 1, with zeros around the picture that keep its size.
///
/// On the CPU, 3x3 kernels on pictures of at least 8 pixels use Winograd's algorithm (unless
/// [`set_exact`](crate::set_exact) says otherwise), the rest nine or one matrix products; other kernel sizes, other number
/// types than f32 and other devices go through Candle. Only gradients that are needed are computed.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; `weight`: `[O, C, K, K]`, K odd; `bias`: `[O]`; result: `[N, O, H, W]`.
/// # Errors
/// If shapes, number types or devices do not fit.
/// # Source
/// Winograd 1980, Lavin and Gray 2015 (arXiv:1509.09308).
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::new(x, weight, bias)?;
    if runs_here([x, weight, bias]) && Algorithm::for_kernel(sizes.kernel).is_some() {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Conv2d);
    }
    let y = x.conv2d(weight, sizes.kernel >> 1, 1, 1, 1)?;
    y.broadcast_add(&bias.reshape((1, (), 1, 1))?)
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
        let (images, inputs, height, width) = x.dims4()?;
        let (outputs, weight_inputs, kernel, kernel_width) = weight.dims4()?;
        if kernel != kernel_width || kernel % 2 == 0 {
            bail!("a convolution needs an odd square kernel, got {kernel}x{kernel_width}")
        }
        if weight_inputs != inputs || bias.dims() != [outputs] {
            let (weight, bias) = (weight.dims(), bias.dims());
            bail!("weight {weight:?} and bias {bias:?} do not fit an input of shape {:?}", x.dims())
        }
        Ok(Self { images, inputs, outputs, height, width, kernel })
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

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (images, inputs, height, width) = x_layout.shape().dims4()?;
        let (outputs, _, kernel, _) = weight_layout.shape().dims4()?;
        let sizes = Sizes { images, inputs, outputs, height, width, kernel };
        let (x, weight, bias) = (floats(x, x_layout)?, floats(weight, weight_layout)?, floats(bias, bias_layout)?);
        let packed = Packed::of(sizes.algorithm()?, Direction::Forward, weight, (outputs, inputs));
        let y = convolve(images, sizes.planes(x, inputs), &packed, Some(bias), None);
        Ok((CpuStorage::F32(y), Shape::from((images, outputs, height, width))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::new(x, weight, bias)?;
        let algorithm = sizes.algorithm()?;
        let channels = (sizes.outputs, sizes.inputs);
        let d_x = wants_gradient(x).then(|| {
            let d_x = with_floats(weight, |weight| {
                let packed = Packed::of(algorithm, Direction::InputGradient, weight, channels);
                with_floats(grad, |dy| Ok(convolve(sizes.images, sizes.planes(dy, sizes.outputs), &packed, None, None)))
            })?;
            Tensor::from_vec(d_x, x.shape(), &Device::Cpu)
        });
        let d_weight = wants_gradient(weight).then(|| {
            let d_weight = with_floats(x, |x| {
                let x = sizes.planes(x, sizes.inputs);
                with_floats(grad, |dy| Ok(weight_gradient(sizes.images, x, sizes.planes(dy, sizes.outputs), algorithm)))
            })?;
            Tensor::from_vec(d_weight, weight.shape(), &Device::Cpu)
        });
        let d_bias = wants_gradient(bias).then(|| {
            let d_bias = with_floats(grad, |dy| Ok(channel_sums(dy, sizes.outputs, sizes.area())))?;
            Tensor::from_vec(d_bias, bias.shape(), &Device::Cpu)
        });
        Ok((d_x.transpose()?, d_weight.transpose()?, d_bias.transpose()?))
    }
}

/// The gradient of the weights, `[O, C, K, K]`.
fn weight_gradient(images: usize, input: Planes, output: Planes, algorithm: Algorithm) -> Vec<f32> {
    let len = output.channels * input.channels * algorithm.taps();
    crate::cpu::weight_gradient::to_vec(len, |to| WeightGradient { images, input, output, algorithm, to })
}
