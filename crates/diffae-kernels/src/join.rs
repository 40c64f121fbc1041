//! Where two tensors become one: sum and concatenation.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::cpu::elementwise;
use crate::storage::{floats, runs_here, wants_gradient};

/// `a + b`, on all threads.
///
/// # Shapes
/// - `a`, `b`, result: the same.
/// # Errors
/// If shapes, number types or devices differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("tensors of shape {:?} and {:?} cannot be added", a.dims(), b.dims())
    }
    if runs_here([a, b]) { a.contiguous()?.apply_op2(&b.contiguous()?, Add) } else { a + b }
}

/// `[a, b]` along the channels, on all threads.
///
/// # Shapes
/// - `a`: `[N, A, H, W]`; `b`: `[N, B, H, W]`; result: `[N, A + B, H, W]`.
/// # Errors
/// If the other axes differ.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((n, _, h, w), (n_b, _, h_b, w_b)) = (a.dims4()?, b.dims4()?);
    if (n, h, w) != (n_b, h_b, w_b) {
        bail!("tensors of shape {:?} and {:?} cannot be put side by side", a.dims(), b.dims())
    }
    if runs_here([a, b]) {
        a.contiguous()?.apply_op2(&b.contiguous()?, ConcatChannels)
    } else {
        Tensor::cat(&[a, b], 1)
    }
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sum = elementwise::add(floats(a, a_layout)?, floats(b, b_layout)?);
        Ok((CpuStorage::F32(sum), a_layout.shape().clone()))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let needed = |t: &Tensor| wants_gradient(t).then(|| grad.clone());
        Ok((needed(a), needed(b)))
    }
}

struct ConcatChannels;

impl CustomOp2 for ConcatChannels {
    fn name(&self) -> &'static str {
        "concat-channels"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, c_a, h, w), (_, c_b, _, _)) = (a_layout.shape().dims4()?, b_layout.shape().dims4()?);
        let area = h * w;
        let both = elementwise::interleave((floats(a, a_layout)?, c_a * area), (floats(b, b_layout)?, c_b * area));
        Ok((CpuStorage::F32(both), Shape::from((n, c_a + c_b, h, w))))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (c_a, c_b) = (a.dim(1)?, b.dim(1)?);
        let part =
            |t: &Tensor, start: usize, len: usize| wants_gradient(t).then(|| grad.narrow(1, start, len)?.contiguous());
        Ok((part(a, 0, c_a).transpose()?, part(b, c_a, c_b).transpose()?))
    }
}
