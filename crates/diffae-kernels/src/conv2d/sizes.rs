//! Sizes of a convolution, and its forward and backward pass over slices of these sizes.

use std::borrow::Cow;

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
    /// Number of slices of a volume, D; `None` for images.
    pub(super) depth: Option<usize>,
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
    /// Number of axes that it moves along; `None` for a kernel of one value, which moves along any.
    pub(super) axes: Option<usize>,
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
        let WeightSizes { outputs, inputs: weight_inputs, kernel, axes } = WeightSizes::of_dims(weight)?;
        let (images, inputs, depth, height, width) = match *x {
            [images, inputs, height, width] => (images, inputs, None, height, width),
            [images, inputs, depth, height, width] => (images, inputs, Some(depth), height, width),
            _ => bail!("a convolution of an input of shape {x:?}"),
        };
        if inputs != weight_inputs || axes.is_some_and(|axes| axes + 2 != x.len()) {
            bail!("a weight of shape {weight:?} does not fit an input of shape {x:?}")
        }
        Ok(Self { images, inputs, outputs, depth, height, width, kernel })
    }

    /// Returns the shape of the result, `[N, O, H, W]` or `[N, O, D, H, W]`.
    pub(super) fn output_shape(&self) -> Shape {
        self.shape(self.outputs)
    }

    /// Returns the shape of the input, `[N, C, H, W]` or `[N, C, D, H, W]`.
    pub(super) fn input_shape(&self) -> Shape {
        self.shape(self.inputs)
    }

    fn shape(&self, channels: usize) -> Shape {
        match self.depth {
            Some(depth) => Shape::from((self.images, channels, depth, self.height, self.width)),
            None => Shape::from((self.images, channels, self.height, self.width)),
        }
    }

    /// Height of all slices of a volume below one another, or of an image.
    fn rows(&self) -> usize {
        self.depth.unwrap_or(1) * self.height
    }

    /// Number of slices that a kernel reads at once: K of a volume, 1 of an image.
    fn slice_taps(&self) -> usize {
        if self.depth.is_some() { self.kernel } else { 1 }
    }

    /// Views planes of all slices below one another as those of a convolution in two dimensions: where the kernel reads several
    /// slices, as slices with the channels of their neighbors.
    ///
    /// # Errors
    /// If they are of other sizes.
    fn in_slices<'a>(&self, planes: Planes<'a>, taps: usize) -> Result<Planes<'a>> {
        match self.depth {
            Some(depth) if self.kernel > 1 => Ok(planes.in_slices(depth, taps)?),
            _ => Ok(planes),
        }
    }

    fn algorithm(&self) -> Result<Algorithm> {
        self.algorithm_with(Winograd::Process)
    }

    fn algorithm_with(&self, winograd: Winograd) -> Result<Algorithm> {
        let channels = [self.outputs, self.inputs];
        let algorithm = match self.depth {
            Some(depth) => {
                Algorithm::pick_for_volumes(self.kernel, channels, [depth, self.height, self.width], winograd)
            }
            None => Algorithm::pick(self.kernel, channels, [self.height, self.width], winograd),
        };
        match algorithm {
            Some(algorithm) => Ok(algorithm),
            None => bail!("there is no kernel for {0}x{0} convolutions", self.kernel),
        }
    }

    /// Views `x` and the channels that follow it as the input, `[N, C, H, W]`, the slices of a volume below one another.
    ///
    /// # Errors
    /// If the lengths are not those.
    pub(super) fn input_planes<'a>(&self, x: &'a [f32], following: Option<&'a [f32]>) -> Result<Planes<'a>> {
        Ok(Planes::joined(x, following, [self.images, self.inputs, self.rows(), self.width])?)
    }

    /// Views `dy` as the gradient w.r.t. the output, `[N, O, H, W]`, the slices of a volume below one another.
    fn output_planes<'a>(&self, dy: &'a [f32]) -> Result<Planes<'a>> {
        Ok(Planes::new(dy, [self.images, self.outputs, self.rows(), self.width])?)
    }

    /// Convolves planes, as [`input_planes`](Self::input_planes) views them, with packed weights and adds `bias`, `[O]`, and
    /// `residual`, of the shape of the output.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub(super) fn convolve(
        &self,
        input: Planes<'_>,
        weight: &Packed,
        bias: Option<&[f32]>,
        residual: Option<&[f32]>,
    ) -> Result<Vec<f32>> {
        let input = self.in_slices(input, self.slice_taps())?;
        let convolution = Convolution::new(input, weight, bias, residual)?;
        let pixels = input.images() * input.area();
        note_multiply_adds(pixels * weight.inputs() * weight.outputs() * weight.algorithm().taps());
        Ok(convolution.to_vec())
    }

    /// Packs a weight for one forward pass.
    ///
    /// # Errors
    /// If there is no kernel for these sizes, or the weight has another length.
    pub(super) fn pack(&self, weight: &[f32]) -> Result<Packed> {
        let channels = [self.outputs, self.inputs * self.slice_taps()];
        Ok(Packed::passing(self.algorithm()?, Direction::Forward, &self.by_slice(weight), channels)?)
    }

    /// Packs a weight for as long as a model lives.
    ///
    /// # Errors
    /// If there is no kernel for these sizes, or the weight has another length.
    pub(super) fn pack_lasting(&self, weight: &[f32], winograd: Winograd) -> Result<Packed> {
        let channels = [self.outputs, self.inputs * self.slice_taps()];
        Ok(Packed::lasting(self.algorithm_with(winograd)?, Direction::Forward, &self.by_slice(weight), channels)?)
    }

    /// Orders a weight `[O, C, K, K, K]` as that of a convolution in two dimensions of K C channels, `[O, K C, K, K]`; one of
    /// images stays.
    fn by_slice<'a>(&self, weight: &'a [f32]) -> Cow<'a, [f32]> {
        swapped(weight, [self.outputs, self.inputs, self.slice_taps(), self.kernel * self.kernel])
    }

    /// Computes the gradient w.r.t. the input, in its shape.
    ///
    /// In three dimensions too, it is a convolution of `dy` with the kernel turned around: here along the slices, in the other two as
    /// it is packed.
    ///
    /// # Errors
    /// If a length does not fit.
    pub(super) fn input_gradient(&self, weight: &[f32], dy: &[f32]) -> Result<Vec<f32>> {
        let (taps, area) = (self.slice_taps(), self.kernel * self.kernel);
        let channels = [self.outputs * taps, self.inputs];
        let turned: Vec<f32>;
        let weight = if taps == 1 {
            weight
        } else {
            let of_tap = |tap: usize| weight.chunks(area).skip(taps - 1 - tap).step_by(taps).flatten().copied();
            turned = (0..taps).flat_map(of_tap).collect(); // [K O, C, K, K]
            &turned
        };
        let packed = Packed::passing(self.algorithm()?, Direction::InputGradient, weight, channels)?;
        self.convolve(self.output_planes(dy)?, &packed, None, None)
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
            let (algorithm, taps) = (self.algorithm()?, self.slice_taps());
            note_multiply_adds(self.images * x.area() * self.outputs * self.inputs * taps * algorithm.taps());
            let (x, dy) = (self.in_slices(x, taps)?, self.in_slices(self.output_planes(dy)?, 1)?);
            let d_weight = WeightGradient::new(x, dy, algorithm)?.to_vec(); // [O, K C, K, K]
            let d_weight = match swapped(&d_weight, [self.outputs, taps, self.inputs, self.kernel * self.kernel]) {
                Cow::Owned(d_weight) => d_weight,
                Cow::Borrowed(_) => d_weight,
            };
            Tensor::from_vec(d_weight, weight.shape(), &Device::Cpu)
        });
        let d_bias = bias_wanted.then(|| {
            let d_bias = channel_sums(dy, self.outputs, self.rows() * self.width)?;
            Tensor::from_vec(d_bias, bias.shape(), &Device::Cpu)
        });
        Ok([d_weight.transpose()?, d_bias.transpose()?])
    }
}

impl WeightSizes {
    /// Sizes of a weight of this shape, `[O, C, K, K]` or `[O, C, K, K, K]` with an odd K, or `[O, C, 1]`.
    ///
    /// # Errors
    /// If it is another shape.
    pub(super) fn of_dims(dims: &[usize]) -> Result<Self> {
        let (outputs, inputs, sides) = match *dims {
            [outputs, inputs, ref sides @ ..] if sides.len() <= 3 => (outputs, inputs, sides),
            _ => (0, 0, &[][..]),
        };
        match *sides {
            [1] | [1, 1] | [1, 1, 1] => Ok(Self { outputs, inputs, kernel: 1, axes: None }),
            [kernel, ref others @ ..]
                if kernel % 2 == 1 && !others.is_empty() && others.iter().all(|&side| side == kernel) =>
            {
                Ok(Self { outputs, inputs, kernel, axes: Some(sides.len()) })
            }
            _ => bail!("a convolution needs a weight [O, C, K, K] or [O, C, K, K, K] with an odd K, got {dims:?}"),
        }
    }
}

/// Swaps the middle axes of `[A, B, C, len]`; borrowed where that changes nothing.
fn swapped(values: &[f32], [first, second, third, len]: [usize; 4]) -> Cow<'_, [f32]> {
    if second == 1 || third == 1 {
        return Cow::Borrowed(values);
    }
    let block = |i: usize, j: usize, k: usize| &values[((i * second + j) * third + k) * len..][..len];
    let places = (0..first).flat_map(|i| (0..third).flat_map(move |k| (0..second).map(move |j| (i, j, k))));
    let mut swapped = Vec::with_capacity(values.len());
    places.for_each(|(i, j, k)| swapped.extend_from_slice(block(i, j, k)));
    Cow::Owned(swapped)
}
