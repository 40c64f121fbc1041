//! Elementwise addition and channel concatenation.

use candle_core::{Result, Shape, Tensor, bail};

use crate::cpu::elementwise;
use crate::operation::{Operation, View, apply};
use crate::storage::{image_dims, sum};
use crate::tape;

/// Adds two tensors elementwise, on all threads: `a + b`.
///
/// # Shapes
/// - `a`, `b`, result: any, all the same.
/// # Errors
/// If shapes, number types or devices differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("tensors of shape {:?} and {:?} cannot be added", a.dims(), b.dims())
    }
    let y = sum(a, b)?;
    tape::push(&[a, b], &y, |dy, wanted| Ok(wanted.iter().map(|wanted| wanted.then(|| dy.clone())).collect()))?;
    Ok(y)
}

/// Concatenates two tensors along the channels, on all threads: `[a, b]`.
///
/// # Shapes
/// - `a`: `[N, A, H, W]`; `b`: `[N, B, H, W]`; result: `[N, A + B, H, W]`; or volumes, `[N, .., D, H, W]`.
/// # Errors
/// If the other axes differ.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    image_dims(a.dims())?;
    if a.rank() != b.rank() || a.dim(0)? != b.dim(0)? || a.dims()[2..] != b.dims()[2..] {
        bail!("tensors of shape {:?} and {:?} cannot be put side by side", a.dims(), b.dims())
    }
    apply([a, b], ConcatChannels)
}

/// Concatenation along the channels.
struct ConcatChannels;

impl Operation<2> for ConcatChannels {
    fn forward(&self, [(a, a_dims), (b, b_dims)]: [View<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        let ((n, c_a, h, w), c_b) = (image_dims(a_dims)?, b_dims.get(1).copied().unwrap_or(0));
        let area = h * w;
        let both = elementwise::interleave(a, b, n, [c_a * area, c_b * area])?;
        let mut dims = a_dims.to_vec();
        dims[1] = c_a + c_b;
        Ok((both, Shape::from(dims)))
    }

    fn gradients(&self, [a, b]: [&Tensor; 2], wanted: [bool; 2], dy: &Tensor) -> Result<[Option<Tensor>; 2]> {
        split_channels(dy, [a.dim(1)?, b.dim(1)?], wanted)
    }

    fn composed(&self, both: [&Tensor; 2]) -> Result<Tensor> {
        Tensor::cat(&both, 1)
    }

    fn composed_gradients(&self, both: [&Tensor; 2], wanted: [bool; 2], dy: &Tensor) -> Result<[Option<Tensor>; 2]> {
        self.gradients(both, wanted, dy)
    }
}

/// Splits `dy`, `[N, A + B, H, W]`, into those of its two parts that are wanted.
///
/// # Errors
/// If the channels are fewer.
pub(crate) fn split_channels(dy: &Tensor, [a, b]: [usize; 2], wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let part = |wanted: bool, start, len| wanted.then(|| dy.narrow(1, start, len)?.contiguous()).transpose();
    Ok([part(wanted[0], 0, a)?, part(wanted[1], a, b)?])
}
