//! Operations with gradients, each with two backends, some with a third.
//!
//! The kernels of this crate compute on f32 tensors on the CPU. Everything else, CUDA, Metal and other number types, goes
//! through the *composed* backend: the same mathematics in Candle's operations, with the gradient written out. (Candle's own
//! differentiation would save every intermediate result until the backward pass.) Tests hold one against the other on the CPU,
//! where [`KernelSet::Candle`](crate::KernelSet::Candle) selects the composed backend.
//!
//! On a card, an operation may have kernels, too (`cuda/`), which are asked first where they are selected.

use candle_core::{Result, Shape, Tensor};

use crate::storage::{runs_here, with_all_floats};
use crate::tape;

/// Elements and shape of an input.
pub(crate) type View<'a> = (&'a [f32], &'a [usize]);

/// A differentiable operation on N tensors.
pub(crate) trait Operation<const N: usize>: Send + Sync + 'static {
    /// Returns whether the kernels know this operation; other ones are always composed.
    fn has_kernel(&self) -> bool {
        true
    }

    /// Computes the elements and the shape of the result by the kernels.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn forward(&self, inputs: [View<'_>; N]) -> Result<(Vec<f32>, Shape)>;

    /// Computes by the kernels the gradients w.r.t. those inputs that are `wanted`, from that w.r.t. the result. `inputs` are
    /// contiguous.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn gradients(&self, inputs: [&Tensor; N], wanted: [bool; N], dy: &Tensor) -> Result<[Option<Tensor>; N]>;

    /// Computes the result by the kernels for cards; `None` where there is none for these tensors, or they are not selected.
    ///
    /// # Errors
    /// If shapes do not fit, or the card fails.
    fn on_card(&self, _inputs: [&Tensor; N]) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Computes what [`gradients`](Self::gradients) computes by the kernels for cards; `None` as in [`on_card`](Self::on_card).
    ///
    /// # Errors
    /// If shapes do not fit, or the card fails.
    fn gradients_on_card(
        &self,
        _inputs: [&Tensor; N],
        _wanted: [bool; N],
        _dy: &Tensor,
    ) -> Result<Option<[Option<Tensor>; N]>> {
        Ok(None)
    }

    /// Computes the result by Candle's operations, on any device and in any number type.
    ///
    /// # Errors
    /// If shapes do not fit, or the device fails.
    fn composed(&self, inputs: [&Tensor; N]) -> Result<Tensor>;

    /// Computes what [`gradients`](Self::gradients) computes by Candle's operations.
    ///
    /// # Errors
    /// If shapes do not fit, or the device fails.
    fn composed_gradients(&self, inputs: [&Tensor; N], wanted: [bool; N], dy: &Tensor) -> Result<[Option<Tensor>; N]>;
}

/// Computes the result of an operation where the kernels of the CPU do not.
///
/// # Errors
/// That of the operation.
pub(crate) fn forward<const N: usize>(op: &impl Operation<N>, inputs: [&Tensor; N]) -> Result<Tensor> {
    op.on_card(inputs)?.map_or_else(|| op.composed(inputs), Ok)
}

/// Computes the gradients of an operation where the kernels of the CPU do not.
///
/// # Errors
/// That of the operation.
pub(crate) fn gradients<const N: usize>(
    op: &impl Operation<N>,
    inputs: [&Tensor; N],
    wanted: [bool; N],
    dy: &Tensor,
) -> Result<[Option<Tensor>; N]> {
    op.gradients_on_card(inputs, wanted, dy)?.map_or_else(|| op.composed_gradients(inputs, wanted, dy), Ok)
}

/// Applies an operation, and records it if a tape is being recorded.
///
/// # Errors
/// That of the operation.
pub(crate) fn apply<const N: usize>(inputs: [&Tensor; N], op: impl Operation<N>) -> Result<Tensor> {
    let has_kernel = op.has_kernel() && runs_here(inputs);
    let y = if has_kernel {
        let (values, shape) = with_all_floats(inputs, |values| {
            let mut views: [View<'_>; N] = [(&[], &[]); N];
            for ((view, values), input) in views.iter_mut().zip(values).zip(inputs) {
                *view = (values, input.dims());
            }
            op.forward(views)
        })?;
        Tensor::from_vec(values, shape, inputs[0].device())?
    } else {
        // A graph of Candle's would keep all intermediate results.
        let constants = inputs.map(Tensor::detach);
        forward(&op, std::array::from_fn(|i| &constants[i]))?
    };
    let kept = inputs.into_iter().map(tape::keeper(&inputs)).collect::<Result<Vec<_>>>()?;
    tape::push(&inputs, &y, move |dy, wanted| {
        let mut contiguous = Vec::with_capacity(N);
        for kept in kept {
            contiguous.push(kept.get()?);
        }
        let mut flags = [false; N];
        flags.copy_from_slice(wanted);
        let refs: [&Tensor; N] = std::array::from_fn(|i| &contiguous[i]);
        let gradients = if has_kernel { op.gradients(refs, flags, dy) } else { gradients(&op, refs, flags, dy) };
        Ok(gradients?.into())
    })?;
    Ok(y)
}
