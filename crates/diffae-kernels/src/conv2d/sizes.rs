//! Sizes of a convolution, and its forward and backward pass over slices of these sizes.

use candle_core::{Device, Result, Shape, Tensor, bail};

use crate::cpu::algorithm::Algorithm;
use crate::cpu::convolve::Convolution;
use crate::cpu::elementwise::channel_sums;
use crate::cpu::pack::{Direction, Packed};
use crate::cpu::planes::Planes;
use crate::cpu::weight_gradient::WeightGradient;
use crate::dispatch::Winograd;
use crate::work::note_multiply_adds;

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Number of images, N.
    pub(super) images: usize,
    /// Number of input channels, C.
    pub(super) inputs: usize,
    /// Number of output channels, O.
    pub(super) outputs: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Side of the kernel, K.
    pub(super) kernel: usize,
}

/// Sizes of the weight of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightSizes {
    /// Number of output channels, O.
    pub(super) outputs: usize,
    /// Number of input channels, C.
    pub(super) inputs: usize,
    /// Side of the kernel, K.
    pub(super) kernel: usize,
}

impl Sizes {
    /// Sizes of a convolution of `x` with `weight` and `bias`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(super) fn new(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let sizes = Self::of_dims(x.dims(), weight.dims())?;
        if bias.dims() != [sizes.outputs] {
            bail!("bias {:?} does not fit a weight of shape {:?}", bias.dims(), weight.dims())
        }
        Ok(sizes)
    }

    /// Sizes of a convolution of an input with a weight of these shapes.
    ///
    /// # Errors
    /// If they do not fit.
    pub(super) fn of_dims(x: &[usize], weight: &[usize]) -> Result<Self> {
        let WeightSizes { outputs, inputs: weight_inputs, kernel } = WeightSizes::of_dims(weight)?;
        match *x {
            [images, inputs, height, width] if inputs == weight_inputs => {
                Ok(Self { images, inputs, outputs, height, width, kernel })
            }
            _ => bail!("a weight of shape {weight:?} does not fit an input of shape {x:?}"),
        }
    }

    /// Returns the shape of the result, `[N, O, H, W]`.
    pub(super) fn output_shape(&self) -> Shape {
        Shape::from((self.images, self.outputs, self.height, self.width))
    }

    fn algorithm(&self) -> Result<Algorithm> {
        self.algorithm_with(Winograd::Process)
    }

    fn algorithm_with(&self, winograd: Winograd) -> Result<Algorithm> {
        let (channels, sides) = ([self.outputs, self.inputs], [self.height, self.width]);
        match Algorithm::pick(self.kernel, channels, sides, winograd) {
            Some(algorithm) => Ok(algorithm),
            None => bail!("there is no kernel for {0}x{0} convolutions", self.kernel),
        }
    }

    /// Views `x` and the channels that follow it as the input, `[N, C, H, W]`.
    ///
    /// # Errors
    /// If the lengths are not those.
    pub(super) fn input_planes<'a>(&self, x: &'a [f32], following: Option<&'a [f32]>) -> Result<Planes<'a>> {
        Ok(Planes::joined(x, following, [self.images, self.inputs, self.height, self.width])?)
    }

    /// Views `dy` as the gradient w.r.t. the output, `[N, O, H, W]`.
    fn output_planes<'a>(&self, dy: &'a [f32]) -> Result<Planes<'a>> {
        Ok(Planes::new(dy, [self.images, self.outputs, self.height, self.width])?)
    }

    /// Packs a weight for one forward pass.
    ///
    /// # Errors
    /// If there is no kernel for these sizes, or the weight has another length.
    pub(super) fn pack(&self, weight: &[f32]) -> Result<Packed> {
        let channels = [self.outputs, self.inputs];
        Ok(Packed::passing(self.algorithm()?, Direction::Forward, weight, channels)?)
    }

    /// Packs a weight for as long as a model lives.
    ///
    /// # Errors
    /// If there is no kernel for these sizes, or the weight has another length.
    pub(super) fn pack_lasting(&self, weight: &[f32], winograd: Winograd) -> Result<Packed> {
        let channels = [self.outputs, self.inputs];
        Ok(Packed::lasting(self.algorithm_with(winograd)?, Direction::Forward, weight, channels)?)
    }

    /// Computes the gradient w.r.t. the input, `[N, C, H, W]`.
    ///
    /// # Errors
    /// If a length does not fit.
    pub(super) fn input_gradient(&self, weight: &[f32], dy: &[f32]) -> Result<Vec<f32>> {
        let channels = [self.outputs, self.inputs];
        let packed = Packed::passing(self.algorithm()?, Direction::InputGradient, weight, channels)?;
        convolve(self.output_planes(dy)?, &packed, None, None)
    }

    /// Computes the gradients w.r.t. weight and bias, where they are wanted. `x`: the input of the convolution.
    ///
    /// # Errors
    /// If a length does not fit.
    pub(super) fn parameter_gradients(
        &self,
        [weight, bias]: [&Tensor; 2],
        [weight_wanted, bias_wanted]: [bool; 2],
        x: Planes<'_>,
        dy: &[f32],
    ) -> Result<[Option<Tensor>; 2]> {
        let d_weight = weight_wanted.then(|| {
            let algorithm = self.algorithm()?;
            note_multiply_adds(self.images * x.area() * self.outputs * self.inputs * algorithm.taps());
            let d_weight = WeightGradient::new(x, self.output_planes(dy)?, algorithm)?.to_vec();
            Tensor::from_vec(d_weight, weight.shape(), &Device::Cpu)
        });
        let d_bias = bias_wanted.then(|| {
            let d_bias = channel_sums(dy, self.outputs, self.height * self.width)?;
            Tensor::from_vec(d_bias, bias.shape(), &Device::Cpu)
        });
        Ok([d_weight.transpose()?, d_bias.transpose()?])
    }
}

impl WeightSizes {
    /// Sizes of a weight of this shape, `[O, C, K, K]` with an odd K, or `[O, C, 1]`.
    ///
    /// # Errors
    /// If it is another shape.
    pub(super) fn of_dims(dims: &[usize]) -> Result<Self> {
        match *dims {
            [outputs, inputs, kernel, width] if kernel == width && kernel % 2 == 1 => {
                Ok(Self { outputs, inputs, kernel })
            }
            [outputs, inputs, 1] => Ok(Self { outputs, inputs, kernel: 1 }),
            _ => bail!("a convolution needs a weight [O, C, K, K] with an odd K, got {dims:?}"),
        }
    }
}

/// Convolves planes with packed weights and adds `bias`, `[O]`, and `residual`, `[N, O, H, W]`.
///
/// # Errors
/// If sizes do not fit.
pub(super) fn convolve(
    input: Planes<'_>,
    weight: &Packed,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) -> Result<Vec<f32>> {
    let convolution = Convolution::new(input, weight, bias, residual)?;
    let pixels = input.images() * input.area();
    note_multiply_adds(pixels * weight.inputs() * weight.outputs() * weight.algorithm().taps());
    Ok(convolution.to_vec())
}
