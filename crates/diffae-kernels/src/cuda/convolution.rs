//! Convolutions and their gradients by cuDNN.

use candle_core::{Result, Tensor, bail};

use super::Card;
use super::plan::Element;

/// Alignment of tensors that cuDNN computes on, in bytes: as much as its fastest engines ask for, and less than that of every
/// allocation.
pub(super) const ALIGNMENT: u64 = 16;

/// The one of the input, the weight and the output of a convolution that is computed from the other two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// The output.
    Forward,
    /// The gradient w.r.t. the input, in the place of the input.
    Input,
    /// The gradient w.r.t. the weight, in the place of the weight.
    Weight,
}

/// A convolution with stride 1 and zero padding that keeps the size of the image, or one of its gradients: what a plan depends on.
///
/// Tensors are contiguous: input `[images, inputs, height, width]`, weight `[outputs, inputs, kernel, kernel]` with an odd kernel,
/// output `[images, outputs, height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Convolution {
    pub(super) direction: Direction,
    pub(super) element: Element,
    /// Whether f32 may be rounded to TF32, for tensor cores.
    pub(super) tf32: bool,
    pub(super) images: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) size: [usize; 2],
    pub(super) kernel: usize,
}

impl Convolution {
    /// Returns the sizes of input, weight and output.
    pub(super) fn dims(&self) -> [[usize; 4]; 3] {
        let Self { images, inputs, outputs, size: [height, width], kernel, .. } = *self;
        [[images, inputs, height, width], [outputs, inputs, kernel, kernel], [images, outputs, height, width]]
    }
}

/// Computes a convolution or one of its gradients; `None` where cuDNN does not.
///
/// # Shapes
/// - Input: `[N, C, H, W]`; weight: `[O, C, K, K]`, K odd; output: `[N, O, H, W]`. `given`: those two that are not computed, in this
///   order.
/// # Errors
/// If shapes do not fit, or the card fails.
pub(crate) fn convolution(direction: Direction, kernel: usize, given: [&Tensor; 2]) -> Result<Option<Tensor>> {
    let Some((card, element)) = Card::with_cudnn(given[0]).zip(Element::of(given)) else { return Ok(None) };
    let [first, second] = [given[0].dims4()?, given[1].dims4()?];
    let (images, inputs, outputs, size) = match direction {
        Direction::Forward => (first.0, first.1, second.0, [first.2, first.3]),
        Direction::Input => (second.0, first.1, second.1, [second.2, second.3]),
        Direction::Weight => (first.0, first.1, second.1, [first.2, first.3]),
    };
    let tf32 = element == Element::F32 && card.allows_tf32();
    let of = Convolution { direction, element, tf32, images, inputs, outputs, size, kernel };
    let [input, weight, output] = of.dims();
    let (computed, expected) = match direction {
        Direction::Forward => (output, [input, weight]),
        Direction::Input => (input, [weight, output]),
        Direction::Weight => (weight, [input, output]),
    };
    if given.iter().zip(expected).any(|(tensor, dims)| tensor.dims() != dims) {
        bail!("a convolution of {:?} and {:?}", given[0].shape(), given[1].shape())
    }
    let result = card.empty(&computed, given[0].dtype())?;
    let [first, second] = [aligned(&card, given[0])?, aligned(&card, given[1])?];
    let tensors = match direction {
        Direction::Forward => [&first, &second, &result],
        Direction::Input => [&result, &first, &second],
        Direction::Weight => [&first, &result, &second],
    };
    Ok(card.convolve(&of, tensors)?.then_some(result))
}

/// Returns a tensor without gaps that begins where cuDNN can read it.
fn aligned(card: &Card, tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    // A part of a larger tensor may begin anywhere.
    if card.address(&tensor)?.cast_unsigned().is_multiple_of(ALIGNMENT) {
        Ok(tensor)
    } else {
        tensor.force_contiguous()
    }
}
