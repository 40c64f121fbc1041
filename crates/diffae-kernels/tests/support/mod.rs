//! Shared parts of the kernel tests.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor, Var};
use diffae_kernels::{Gradients, differentiable, record};

/// Lock by which tests take turns, for the kernel set is selected for the whole process.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a tensor of pseudorandom numbers of both signs.
pub(crate) fn values(dims: &[usize], seed: f32) -> Tensor {
    let count = dims.iter().product::<usize>();
    let value = |i: usize| ((i as f32 * 12.9898 + seed * 78.233).sin() * 437.585_45).fract();
    Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), dims, &Device::Cpu).unwrap()
}

/// Function of tensors that a test differentiates.
pub(crate) type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Makes variables with the values of `args`, and returns them as tensors, too.
pub(crate) fn variables(args: &[Tensor]) -> (Vec<Var>, Vec<Tensor>) {
    let vars: Vec<Var> = args.iter().map(|arg| Var::from_tensor(arg).unwrap()).collect();
    let tensors = vars.iter().map(|var| var.as_tensor().clone()).collect();
    (vars, tensors)
}

/// Computes the result of `f` and the gradients of `sum(result * weights)` with respect to its arguments, from a tape.
pub(crate) fn with_gradients_of_a_tape(args: &[Tensor], f: Function<'_>) -> Vec<Tensor> {
    let (vars, tensors) = variables(args);
    let mut result = None;
    let forward = || -> Result<Tensor> {
        let y = f(&tensors)?;
        result = Some(y.clone());
        differentiable([&y], |[y]| (y * values(y.dims(), 5.))?.sum_all())
    };
    let (loss, tape) = record(forward).unwrap();
    let mut gradients = Gradients::default();
    tape.backward(&loss, &mut gradients).unwrap();
    result.into_iter().chain(vars.iter().map(|var| gradients.get(var).unwrap().clone())).collect()
}

/// Computes the largest magnitude; NaN if there is one among the values.
pub(crate) fn largest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().map(f32::abs).fold(0., |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
}
