//! Convolution in two dimensions, and in three.

mod composed;
mod fused;
mod input;
mod sizes;
mod weight;

use candle_core::{Device, Result, Shape, Tensor};

pub use input::ConvInput;
pub use weight::ConvWeight;

use self::sizes::Sizes;
use crate::cpu::algorithm::Algorithm;
use crate::operation::{Operation, View, apply};
use crate::storage::with_all_floats;

/// Convolves with stride 1 and zero padding that keeps the size of the image.
///
/// `y[n, o] = bias[o] + sum over c of x[n, c] * weight[o, c]`, where `*` is the two-dimensional cross-correlation.
///
/// On the CPU, 3x3 kernels on images of at least 8 pixels use Winograd's algorithm (unless
/// [`set_exact`](crate::set_exact) says otherwise), the rest nine or one matrix products; other kernel sizes, other number
/// types than f32 and other devices are composed of Candle's operations. Only gradients that are needed are computed.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; `weight`: `[O, C, K, K]`, K odd, or `[O, C, 1]`; `bias`: `[O]`; result: `[N, O, H, W]`.
/// # Errors
/// If shapes, number types or devices do not fit.
/// # Source
/// Winograd 1980, Lavin and Gray 2015 (arXiv:1509.09308).
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    convolve(x, weight, bias)
}

/// Convolves volumes with stride 1 and zero padding that keeps their size.
///
/// `y[n, o] = bias[o] + sum over c of x[n, c] * weight[o, c]`, where `*` is the three-dimensional cross-correlation.
///
/// Each slice is convolved in two dimensions, as [`conv2d`] does, with its neighbors as further channels: the kernels of the CPU read
/// them where they are, other devices side by side.
///
/// # Shapes
/// - `x`: `[N, C, D, H, W]`; `weight`: `[O, C, K, K, K]`, K odd, or `[O, C, 1]`; `bias`: `[O]`; result: `[N, O, D, H, W]`.
/// # Errors
/// If shapes, number types or devices do not fit.
pub fn conv3d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.dims5()?;
    convolve(x, weight, bias)
}

fn convolve(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::new(x, weight, bias)?;
    apply([x, weight, bias], Conv { has_kernel: Algorithm::supports(sizes.kernel) })
}

/// Convolution of an input with a weight and a bias.
struct Conv {
    has_kernel: bool,
}

impl Operation<3> for Conv {
    fn has_kernel(&self) -> bool {
        self.has_kernel
    }

    fn forward(&self, [(x, x_dims), (weight, weight_dims), (bias, _)]: [View<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let sizes = Sizes::of_dims(x_dims, weight_dims)?;
        let y = sizes.convolve(sizes.input_planes(x, None)?, &sizes.pack(weight)?, Some(bias), None)?;
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

    fn composed(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<Tensor> {
        composed::convolve(x, weight, bias, None)
    }

    fn composed_gradients(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        [x_wanted, weight_wanted, bias_wanted]: [bool; 3],
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let d_x = x_wanted.then(|| composed::input_gradient(weight, dy)).transpose()?;
        let d_weight = weight_wanted.then(|| composed::weight_gradient(x, weight, dy)).transpose()?;
        Ok([d_x, d_weight, bias_wanted.then(|| composed::bias_gradient(bias, dy)).transpose()?])
    }
}
