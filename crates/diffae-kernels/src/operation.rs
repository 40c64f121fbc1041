//! Operations that can be differentiated both in Candle's graph and on a tape.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::storage::{floats, with_all_floats};
use crate::tape;

/// Elements and shape of an input.
pub(crate) type View<'a> = (&'a [f32], &'a [usize]);

/// A differentiable operation on f32 tensors on the CPU.
pub(crate) trait Operation<const N: usize>: Send + Sync + 'static {
    /// Name of the operation in error messages.
    const NAME: &'static str;

    /// Computes the elements and the shape of the result.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn forward(&self, inputs: [View<'_>; N]) -> Result<(Vec<f32>, Shape)>;

    /// Computes the gradients w.r.t. those inputs that are `wanted`, from that w.r.t. the result. `inputs` are contiguous.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn gradients(&self, inputs: [&Tensor; N], wanted: [bool; N], dy: &Tensor) -> Result<[Option<Tensor>; N]>;
}

/// Adapts an [`Operation`] to Candle's `CustomOp` traits.
struct InGraph<O>(O);

/// Applies an operation to one tensor, in the mode of this thread.
///
/// # Errors
/// That of the operation.
pub(crate) fn apply_1(x: &Tensor, op: impl Operation<1>) -> Result<Tensor> {
    if tape::in_graph() { x.contiguous()?.apply_op1(InGraph(op)) } else { apply_on_tape([x], op) }
}

/// Applies an operation to two tensors, in the mode of this thread.
///
/// # Errors
/// That of the operation.
pub(crate) fn apply_2(x: &Tensor, y: &Tensor, op: impl Operation<2>) -> Result<Tensor> {
    if tape::in_graph() { x.contiguous()?.apply_op2(&y.contiguous()?, InGraph(op)) } else { apply_on_tape([x, y], op) }
}

/// Applies an operation to three tensors, in the mode of this thread.
///
/// # Errors
/// That of the operation.
pub(crate) fn apply_3(inputs: [&Tensor; 3], op: impl Operation<3>) -> Result<Tensor> {
    let [x, y, z] = inputs;
    if tape::in_graph() {
        x.contiguous()?.apply_op3(&y.contiguous()?, &z.contiguous()?, InGraph(op))
    } else {
        apply_on_tape(inputs, op)
    }
}

/// Applies an operation and records it, if a tape is being recorded.
fn apply_on_tape<const N: usize>(inputs: [&Tensor; N], op: impl Operation<N>) -> Result<Tensor> {
    let (values, shape) = with_all_floats(inputs, |values| {
        let mut views: [View<'_>; N] = [(&[], &[]); N];
        for ((view, values), input) in views.iter_mut().zip(values).zip(inputs) {
            *view = (values, input.dims());
        }
        op.forward(views)
    })?;
    let y = Tensor::from_vec(values, shape, inputs[0].device())?;
    let kept = inputs.into_iter().map(tape::keeper(&inputs)).collect::<Result<Vec<_>>>()?;
    tape::push(&inputs, &y, move |dy, wanted| {
        let mut contiguous = Vec::with_capacity(N);
        for kept in kept {
            contiguous.push(kept.get()?);
        }
        let mut flags = [false; N];
        flags.copy_from_slice(wanted);
        let refs: [&Tensor; N] = std::array::from_fn(|i| &contiguous[i]);
        Ok(op.gradients(refs, flags, dy)?.into())
    })?;
    Ok(y)
}

/// Views a storage of Candle's as the input of an operation.
fn view<'a>(storage: &'a CpuStorage, layout: &'a Layout) -> Result<View<'a>> {
    Ok((floats(storage, layout)?, layout.dims()))
}

/// Wraps a result as a storage of Candle's.
fn stored((values, shape): (Vec<f32>, Shape)) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape)
}

impl<O: Operation<1>> CustomOp1 for InGraph<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.forward([view(x, x_layout)?]).map(stored)
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.0.gradients([x], [x.track_op()], grad)?;
        Ok(x)
    }
}

impl<O: Operation<2>> CustomOp2 for InGraph<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.forward([view(x, x_layout)?, view(y, y_layout)?]).map(stored)
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = self.0.gradients([x, y], [x, y].map(Tensor::track_op), grad)?;
        Ok((x, y))
    }
}

impl<O: Operation<3>> CustomOp3 for InGraph<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        z: &CpuStorage,
        z_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.forward([view(x, x_layout)?, view(y, y_layout)?, view(z, z_layout)?]).map(stored)
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = self.0.gradients([x, y, z], [x, y, z].map(Tensor::track_op), grad)?;
        Ok((x, y, z))
    }
}
