//! Group norm with its activation, and its gradients.

use candle_core::{DType, Result, Tensor};

use super::Card;
use super::plan::{Argument, Element, Launch, MAX_THREADS, Module, blocks, threads, width};
use crate::cpu::group_norm::NORM_EPS;
use crate::cpu::planes::Activation;
use crate::storage::image_dims;

/// Elements of a group that a block sums, about. It does not depend on the number of images, nor do the bits.
const PART: usize = 4096;
/// Maximum number of parts of a group: each block reads the sums of all.
const MAX_PARTS: usize = 64;

/// Epsilon of the variance.
#[expect(clippy::cast_possible_truncation, reason = "the kernels compute in f32")]
const EPS: f32 = NORM_EPS as f32;

/// Sizes of a norm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) element: Element,
    pub(super) images: usize,
    pub(super) channels: usize,
    /// Number of groups; 0 without normalization.
    pub(super) groups: usize,
    pub(super) pixels: usize,
    /// Whether each image has its own scale and shift.
    pub(super) by_image: bool,
    pub(super) activation: Activation,
}

impl Sizes {
    /// Returns the number of groups that blocks are laid out by: one, where nothing is normalized.
    fn laid_out(&self) -> usize {
        self.groups.max(1)
    }

    fn group_len(&self) -> usize {
        self.channels.div_euclid(self.laid_out()) * self.pixels
    }

    fn num_parts(&self) -> usize {
        self.group_len().div_ceil(PART).clamp(1, MAX_PARTS)
    }

    /// Returns the number of values of the sums of moments.
    pub(super) fn num_partial(&self) -> usize {
        2 * self.images * self.laid_out() * self.num_parts()
    }

    fn launch(&self, kernel: &str, grid: [usize; 2], threads: u32, arguments: Vec<Argument>) -> Result<Launch> {
        let kernel = format!("group_norm_{kernel}_{}_x{}", self.element.name(), width(self.pixels));
        Ok(Launch { module: Module::GroupNorm, kernel, grid: [blocks(grid[0])?, blocks(grid[1])?], threads, arguments })
    }

    /// Returns the threads of a block that has a part of a group.
    fn threads_of_part(&self) -> u32 {
        threads(self.group_len().div_ceil(self.num_parts() * width(self.pixels)).min(MAX_THREADS))
    }

    /// Returns the arguments that describe the norm.
    fn described(&self) -> Result<[Argument; 8]> {
        Ok([
            Argument::int(self.num_parts())?,
            Argument::int(self.channels)?,
            Argument::int(self.laid_out())?,
            Argument::int(self.pixels)?,
            Argument::int(if self.by_image { self.channels } else { 0 })?,
            Argument::Float(EPS),
            Argument::Int(i32::from(self.activation == Activation::Silu)),
            Argument::Int(i32::from(self.groups > 0)),
        ])
    }

    /// Returns one block for each part of a group.
    fn grid(&self) -> [usize; 2] {
        [self.images * self.laid_out(), self.num_parts()]
    }

    /// Plans the sums of moments, if there is something to normalize.
    fn moments(&self, x: usize, partial: usize) -> Result<Option<Launch>> {
        let arguments = vec![Argument::Buffer(x), Argument::Buffer(partial), Argument::int(self.group_len())?];
        let launch = || self.launch("moments", self.grid(), self.threads_of_part(), arguments);
        (self.groups > 0).then(launch).transpose()
    }

    /// Plans the forward pass. Buffers: x, y, scale, shift, sums of moments.
    pub(super) fn forward(&self) -> Result<Vec<Launch>> {
        let arguments = (0..5).map(Argument::Buffer).chain(self.described()?).collect();
        let forward = self.launch("forward", self.grid(), self.threads_of_part(), arguments)?;
        Ok(self.moments(0, 4)?.into_iter().chain([forward]).collect())
    }

    /// Plans the backward pass. Buffers: x, dy, scale, shift, sums of moments, and the gradients w.r.t. scale and shift by
    /// image and channel; the gradient w.r.t. x has the number that is given, if it is wanted.
    pub(super) fn backward(&self, d_x: Option<usize>) -> Result<Vec<Launch>> {
        let described = self.described()?;
        let of = |buffers: &[usize]| buffers.iter().copied().map(Argument::Buffer).chain(described).collect();
        let of_plane = threads(self.pixels.div_euclid(width(self.pixels)));
        let sums = self.launch("sums", [self.images * self.channels, 1], of_plane, of(&[0, 1, 2, 3, 4, 5]))?;
        let input = d_x
            .map(|d_x| self.launch("input", self.grid(), self.threads_of_part(), of(&[0, 1, d_x, 2, 3, 4, 5])))
            .transpose()?;
        Ok(self.moments(0, 4)?.into_iter().chain([sums]).chain(input).collect())
    }
}

/// A norm on a card, its tensors as the kernels take them.
struct Norm {
    sizes: Sizes,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
}

impl Norm {
    fn new([x, scale, shift]: [&Tensor; 3], groups: usize, activation: Activation, element: Element) -> Result<Self> {
        let (images, channels, height, width) = image_dims(x.dims())?;
        // Scale and shift may differ in whether they are the same for all images.
        let by_image = images > 1 && [scale, shift].iter().any(|t| t.elem_count() != channels);
        let rows = if by_image { images } else { 1 };
        let affine = |t: &Tensor| {
            let rows = t.to_dtype(DType::F32)?.reshape(((), channels))?.broadcast_as((rows, channels))?;
            rows.contiguous()
        };
        let sizes = Sizes { element, images, channels, groups, pixels: height * width, by_image, activation };
        Ok(Self { sizes, x: x.contiguous()?, scale: affine(scale)?, shift: affine(shift)? })
    }
}

/// Computes the norm of [`group_norm`](crate::group_norm()); `None` where these kernels do not.
///
/// # Errors
/// If shapes do not fit, or the card fails.
pub(crate) fn group_norm(inputs: [&Tensor; 3], groups: usize, activation: Activation) -> Result<Option<Tensor>> {
    let Some((card, element)) = Card::of(inputs[0]).zip(Element::of([inputs[0]])) else { return Ok(None) };
    let norm = Norm::new(inputs, groups, activation, element)?;
    let y = card.empty(norm.x.shape(), norm.x.dtype())?;
    let partial = card.empty(norm.sizes.num_partial(), DType::F32)?;
    card.run(&norm.sizes.forward()?, &[&norm.x, &y, &norm.scale, &norm.shift, &partial])?;
    Ok(Some(y))
}

/// Computes the gradients of the norm w.r.t. x, if it is wanted, and w.r.t. scale and shift by image and channel,
/// `[2, N, C]`; `None` where these kernels do not.
///
/// # Errors
/// If shapes do not fit, or the card fails.
pub(crate) fn group_norm_gradients(
    inputs: [&Tensor; 3],
    (groups, activation): (usize, Activation),
    [input_wanted, ..]: [bool; 3],
    dy: &Tensor,
) -> Result<Option<(Option<Tensor>, Tensor)>> {
    let Some((card, element)) = Card::of(inputs[0]).zip(Element::of([inputs[0], dy])) else { return Ok(None) };
    let norm = Norm::new(inputs, groups, activation, element)?;
    let Norm { sizes, x, scale, shift } = &norm;
    let dy = dy.contiguous()?;
    let partial = card.empty(sizes.num_partial(), DType::F32)?;
    let sums = card.empty((2, sizes.images, sizes.channels), DType::F32)?;
    let d_x = input_wanted.then(|| card.empty(x.shape(), x.dtype())).transpose()?;
    let buffers: Vec<&Tensor> = [x, &dy, scale, shift, &partial, &sums].into_iter().chain(&d_x).collect();
    card.run(&sizes.backward(d_x.as_ref().map(|_| 6))?, &buffers)?;
    Ok(Some((d_x, sums)))
}
