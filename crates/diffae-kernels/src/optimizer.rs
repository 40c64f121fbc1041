//! The Adam and `AdamW` update of a parameter, together with its moving average.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var, bail};

use crate::cpu::optimizer::{self as cpu, Buffers, Factors};
use crate::storage::with_floats;

/// Settings of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decay rate of the first moment, `beta_1`.
    pub beta_1: f64,
    /// Decay rate of the second moment, `beta_2`.
    pub beta_2: f64,
    /// Epsilon, added to the denominator for numerical stability.
    pub eps: f64,
    /// Decoupled weight decay (`AdamW`); 0 is Adam.
    pub weight_decay: f64,
    /// Decay of the moving average of the parameters.
    pub ema_decay: f64,
}

/// One step of Adam, the same for all parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Settings of Adam.
    pub config: AdamConfig,
    /// Number of steps before this one: t - 1, from 0.
    pub step_idx: usize,
    /// Factor by which gradients are scaled first, for clipping.
    pub gradient_scale: f64,
}

/// Optimizer state of one parameter, in f32, in the order of its elements.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterState {
    /// First moment: running mean of the gradient.
    pub m: Vec<f32>,
    /// Second moment: running mean of the squared gradient.
    pub v: Vec<f32>,
    /// Moving average of the parameter, or empty if there is none.
    pub ema: Vec<f32>,
}

/// Updates a parameter, its moments and its moving average in one pass on all threads.
///
/// `g = gradient_scale * gradient`; `m = beta_1 m + (1 - beta_1) g`; `v = beta_2 v + (1 - beta_2) g^2`;
/// `p = p (1 - lr weight_decay) - lr m_hat / (sqrt(v_hat) + eps)`, `m_hat = m / (1 - beta_1^t)`,
/// `v_hat = v / (1 - beta_2^t)`; `ema = ema_decay ema + (1 - ema_decay) p`.
///
/// # Shapes
/// - `parameter`: any, f32 on the CPU; `gradient`: as `parameter`.
/// # Errors
/// If shapes, number types or lengths of the state do not fit.
/// # Source
/// Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1; Loshchilov and Hutter 2019 (arXiv:1711.05101), Algorithm 2.
pub fn adam_step(parameter: &Var, gradient: &Tensor, state: &mut ParameterState, step: &AdamStep) -> Result<()> {
    if gradient.dims() != parameter.dims() {
        bail!("gradient {:?} does not fit a parameter {:?}", gradient.dims(), parameter.dims())
    }
    adam_step_from(parameter, 0, gradient, state, step)
}

/// Updates some consecutive elements of a parameter, from `first` on, as [`adam_step`] updates all: to the same bits.
///
/// # Shapes
/// - `parameter`: any, f32 on the CPU, taken row by row; `gradient`, and all of `state`: as many values as are updated.
/// # Errors
/// If there are fewer elements, or number types or lengths of the state do not fit.
pub fn adam_step_from(
    parameter: &Var,
    first: usize,
    gradient: &Tensor,
    state: &mut ParameterState,
    step: &AdamStep,
) -> Result<()> {
    let AdamStep { config, step_idx, gradient_scale } = step;
    let count = gradient.elem_count();
    let lengths = [state.m.len(), state.v.len()];
    let fits = first.checked_add(count).is_some_and(|end| end <= parameter.elem_count());
    if !fits || lengths != [count; 2] || ![0, count].contains(&state.ema.len()) {
        let dims = gradient.dims();
        bail!("gradient {dims:?} and state {lengths:?} do not fit a parameter {:?} from {first} on", parameter.dims())
    }
    let t = i32::try_from(step_idx + 1).unwrap_or(i32::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "the update runs in f32")]
    let factors = Factors {
        gradient_scale: *gradient_scale as f32,
        beta_1: config.beta_1 as f32,
        beta_2: config.beta_2 as f32,
        step: (config.lr / (1. - config.beta_1.powi(t))) as f32,
        inv_sqrt_correction: (1. - config.beta_2.powi(t)).sqrt().recip() as f32,
        eps: config.eps as f32,
        decay: (config.lr * config.weight_decay) as f32,
        ema_decay: config.ema_decay as f32,
    };
    with_floats(gradient, |gradient| {
        parameter.inplace_op1(&Step { first, gradient, state: RefCell::new(state), factors })
    })
}

/// Number of values in a block of [`block_squares`].
pub const SQUARES_BLOCK: usize = cpu::SQUARES_BLOCK;

/// Computes the sum of squares of a tensor, for the global gradient norm: that of [`block_squares`].
///
/// # Errors
/// If the device fails.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    Ok(block_squares(x)?.iter().sum())
}

/// Computes the sums of squares of blocks of [`SQUARES_BLOCK`] elements of a tensor, the last of which may be shorter.
///
/// A tensor cut at multiples of the length of a block has the same blocks, whoever computes them.
///
/// # Errors
/// If the device fails.
pub fn block_squares(x: &Tensor) -> Result<Vec<f64>> {
    with_floats(&x.to_dtype(candle_core::DType::F32)?, |values| Ok(cpu::block_squares(values)))
}

/// In-place update of one parameter, or of a part of it.
struct Step<'a> {
    first: usize,
    gradient: &'a [f32],
    state: RefCell<&'a mut ParameterState>,
    factors: Factors,
}

impl InplaceOp1 for Step<'_> {
    fn name(&self) -> &'static str {
        "adam-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, _))) = (storage, layout.contiguous_offsets()) else {
            bail!("Adam works on contiguous f32 parameters")
        };
        let start = start + self.first;
        let end = start + self.gradient.len();
        let mut state = self.state.borrow_mut();
        let ParameterState { m, v, ema } = &mut **state;
        let parameter = &mut values[start..end];
        Ok(cpu::step(Buffers { parameter, gradient: self.gradient, m, v, ema }, self.factors)?)
    }
}
