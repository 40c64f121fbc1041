//! Two-dimensional convolution.

mod fused;
mod input;
mod sizes;
mod weight;

use candle_core::{Device, Result, Shape, Tensor};

pub use input::ConvInput;
pub use weight::ConvWeight;

use self::sizes::{Sizes, convolve};
use crate::cpu::algorithm::Algorithm;
use crate::operation::{Operation, View, apply_3};
use crate::storage::{runs_here, with_all_floats};
use crate::tape::differentiable;

/// Convolves with stride 1 and zero padding that keeps the size of the image.
///
/// `y[n, o] = bias[o] + sum over c of x[n, c] * weight[o, c]`, where `*` is the two-dimensional cross-correlation.
///
/// On the CPU, 3x3 kernels on images of at least 8 pixels use Winograd's algorithm (unless
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
    if runs_here([x, weight, bias]) && Algorithm::supports(sizes.kernel) {
        return apply_3([x, weight, bias], Conv2d);
    }
    differentiable([x, weight, bias], |[x, weight, bias]| {
        let weight = weight.reshape((sizes.outputs, sizes.inputs, sizes.kernel, sizes.kernel))?;
        let y = x.conv2d(&weight, sizes.kernel >> 1, 1, 1, 1)?;
        y.broadcast_add(&bias.reshape((1, (), 1, 1))?)
    })
}

/// Convolution of an input with a weight and a bias.
struct Conv2d;

impl Operation<3> for Conv2d {
    const NAME: &'static str = "conv2d";

    fn forward(&self, [(x, x_dims), (weight, weight_dims), (bias, _)]: [View<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let sizes = Sizes::of_dims(x_dims, weight_dims)?;
        let y = convolve(sizes.input_planes(x, None)?, &sizes.pack(weight)?, Some(bias), None)?;
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
            let (planes, wanted) = (sizes.input_planes(x_values, None)?, [weight_wanted, bias_wanted]);
            let [d_weight, d_bias] = sizes.parameter_gradients([weight, bias], wanted, planes, dy)?;
            Ok([d_x.transpose()?, d_weight, d_bias])
        })
    }
}
