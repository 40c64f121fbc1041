//! The Adam and `AdamW` update of a parameter, together with its moving average.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, Var, bail};

use crate::cpu::optimizer::{self as cpu, Buffers, Factors};
use crate::cuda::{self, AdamBuffers};
use crate::storage::{runs_here, with_floats};

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

/// A part of the optimizer state of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatePart {
    /// Running mean of the gradient.
    FirstMoment,
    /// Running mean of the squared gradient.
    SecondMoment,
    /// Moving average of the parameter.
    Average,
}

impl StatePart {
    /// All parts.
    pub const ALL: [Self; 3] = [Self::FirstMoment, Self::SecondMoment, Self::Average];
}

/// Optimizer state of one parameter, in f32, in the order of its elements: where the kernels update it in vectors, on other
/// devices in tensors beside the parameter.
#[derive(Debug)]
pub struct ParameterState {
    m: Values,
    v: Values,
    /// `None` without an average.
    ema: Option<Values>,
}

/// Consecutive values of a part of the state.
#[derive(Debug)]
enum Values {
    Host(Vec<f32>),
    /// A tensor of one axis.
    Device(Tensor),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(tensor) => tensor.elem_count(),
        }
    }

    fn get(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Host(values) => Ok(Cow::Borrowed(values)),
            Self::Device(tensor) => Ok(Cow::Owned(tensor.to_vec1()?)),
        }
    }

    fn set(&mut self, values: Vec<f32>) -> Result<()> {
        match self {
            Self::Host(before) => *before = values,
            Self::Device(before) => *before = Tensor::new(values, before.device())?,
        }
        Ok(())
    }

    fn narrow(&mut self, range: &Range<usize>) -> Result<()> {
        match self {
            Self::Host(values) => *values = values[range.clone()].to_vec(),
            // A view would hold the memory of the whole.
            Self::Device(tensor) => *tensor = tensor.narrow(0, range.start, range.len())?.force_contiguous()?,
        }
        Ok(())
    }
}

impl ParameterState {
    /// Creates the state before the first step: moments of zero, and an average that starts at the parameter.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(parameter: &Var) -> Result<Self> {
        let mut state = Self::without_average(parameter)?;
        let values = parameter.flatten_all()?;
        state.ema = Some(match &state.m {
            Values::Host(_) => Values::Host(values.to_vec1()?),
            Values::Device(_) => Values::Device(values.copy()?),
        });
        Ok(state)
    }

    /// Creates the state before the first step, without a moving average.
    ///
    /// # Errors
    /// If the device fails.
    pub fn without_average(parameter: &Var) -> Result<Self> {
        let count = parameter.elem_count();
        let zeros = || {
            Ok::<_, candle_core::Error>(if runs_here([parameter.as_tensor()]) {
                Values::Host(vec![0.; count])
            } else {
                Values::Device(Tensor::zeros(count, DType::F32, parameter.device())?)
            })
        };
        Ok(Self { m: zeros()?, v: zeros()?, ema: None })
    }

    /// Returns the values of a part; none of an average that is not kept.
    ///
    /// # Errors
    /// If the device fails.
    pub fn values(&self, part: StatePart) -> Result<Cow<'_, [f32]>> {
        match part {
            StatePart::FirstMoment => self.m.get(),
            StatePart::SecondMoment => self.v.get(),
            StatePart::Average => self.ema.as_ref().map_or(Ok(Cow::Borrowed(&[][..])), Values::get),
        }
    }

    /// Replaces the values of a part; an average that is not kept stays absent.
    ///
    /// # Errors
    /// If the device fails.
    pub fn set(&mut self, part: StatePart, values: Vec<f32>) -> Result<()> {
        match part {
            StatePart::FirstMoment => self.m.set(values),
            StatePart::SecondMoment => self.v.set(values),
            StatePart::Average => self.ema.as_mut().map_or(Ok(()), |ema| ema.set(values)),
        }
    }

    /// Keeps only some elements of those parts that hold all `count`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn narrow(&mut self, range: &Range<usize>, count: usize) -> Result<()> {
        let whole = [&mut self.m, &mut self.v].into_iter().chain(self.ema.as_mut());
        whole.filter(|values| values.len() == count).try_for_each(|values| values.narrow(range))
    }
}

/// A parameter, or some consecutive elements of one, with what updates it.
#[derive(Debug)]
pub struct ParameterUpdate<'a> {
    /// The parameter, f32.
    pub parameter: &'a Var,
    /// First element that is updated, row by row.
    pub first: usize,
    /// Gradient w.r.t. the elements that are updated.
    pub gradient: &'a Tensor,
    /// State of these elements.
    pub state: &'a mut ParameterState,
}

/// Updates parameters, their moments and their moving averages: on the CPU in one pass on all threads, on a card in one launch
/// for all where this crate's kernels are selected, else by Candle's operations.
///
/// `g = gradient_scale * gradient`; `m = beta_1 m + (1 - beta_1) g`; `v = beta_2 v + (1 - beta_2) g^2`;
/// `p = p (1 - lr weight_decay) - lr m_hat / (sqrt(v_hat) + eps)`, `m_hat = m / (1 - beta_1^t)`,
/// `v_hat = v / (1 - beta_2^t)`; `ema = ema_decay ema + (1 - ema_decay) p`. A part of a parameter is updated to the same bits as
/// the whole.
///
/// # Shapes
/// - `parameter`: any, f32; `gradient`, and all of `state`: as many values as are updated.
/// # Errors
/// If lengths of gradients or state do not fit, which is seen before anything changes; if number types do not.
/// # Source
/// Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1; Loshchilov and Hutter 2019 (arXiv:1711.05101), Algorithm 2.
pub fn adam_steps(updates: &mut [ParameterUpdate<'_>], step: &AdamStep) -> Result<()> {
    updates.iter().try_for_each(ParameterUpdate::check)?;
    let factors = factors_of(step);
    let on_card = updates.iter().map(ParameterUpdate::on_card).collect::<Result<Option<Vec<AdamBuffers>>>>()?;
    if let Some(buffers) = on_card
        && cuda::adam_steps(&buffers, &factors)?
    {
        return Ok(());
    }
    updates.iter_mut().try_for_each(|update| update.step(factors))
}

/// Updates a whole parameter, as [`adam_steps`] does.
///
/// # Errors
/// As [`adam_steps`]; if the gradient has another shape than the parameter.
pub fn adam_step(parameter: &Var, gradient: &Tensor, state: &mut ParameterState, step: &AdamStep) -> Result<()> {
    if gradient.dims() != parameter.dims() {
        bail!("gradient {:?} does not fit a parameter {:?}", gradient.dims(), parameter.dims())
    }
    adam_steps(&mut [ParameterUpdate { parameter, first: 0, gradient, state }], step)
}

impl ParameterUpdate<'_> {
    fn check(&self) -> Result<()> {
        let Self { parameter, first, gradient, state } = self;
        let count = gradient.elem_count();
        let lengths = [state.m.len(), state.v.len()];
        let fits = first.checked_add(count).is_some_and(|end| end <= parameter.elem_count());
        if !fits || lengths != [count; 2] || state.ema.as_ref().is_some_and(|ema| ema.len() != count) {
            let (got, expected) = (gradient.dims(), parameter.dims());
            bail!("gradient {got:?} and state {lengths:?} do not fit a parameter {expected:?} from {first} on")
        }
        Ok(())
    }

    /// Returns all tensors of the update; `None` if the state is on the host.
    fn on_card(&self) -> Result<Option<AdamBuffers>> {
        let ParameterState { m: Values::Device(m), v: Values::Device(v), ema } = &*self.state else { return Ok(None) };
        let average = match ema {
            Some(Values::Device(average)) => Some(average.clone()),
            Some(Values::Host(_)) => bail!("the state of a parameter is in two places"),
            None => None,
        };
        let parameter = elements(self.parameter, self.first, m.elem_count())?;
        let gradient = beside(self.parameter, self.gradient)?.contiguous()?;
        Ok(Some(AdamBuffers { parameter, gradient, m: m.clone(), v: v.clone(), average }))
    }

    /// Makes the step by the kernels of the CPU, or by Candle's operations.
    fn step(&mut self, factors: Factors) -> Result<()> {
        let Self { parameter, first, gradient, state } = self;
        let ParameterState { m, v, ema } = &mut **state;
        match (m, v, ema) {
            (Values::Host(m), Values::Host(v), ema) => {
                let mut none = vec![];
                let ema = match ema {
                    Some(Values::Host(ema)) => ema,
                    Some(Values::Device(_)) => bail!("the state of a parameter is in two places"),
                    None => &mut none,
                };
                let (first, state) = (*first, RefCell::new([m, v, ema]));
                with_floats(gradient, |gradient| parameter.inplace_op1(&Step { first, gradient, state, factors }))
            }
            (Values::Device(m), Values::Device(v), ema) => {
                let ema = match ema {
                    Some(Values::Device(ema)) => Some(ema),
                    Some(Values::Host(_)) => bail!("the state of a parameter is in two places"),
                    None => None,
                };
                let values = elements(parameter, *first, m.elem_count())?;
                let values = composed_step(&values, &beside(parameter, gradient)?, [m, v], ema, &factors)?;
                // The flat view shares the storage of the parameter.
                parameter.as_detached_tensor().flatten_all()?.slice_set(&values, 0, *first)
            }
            _ => bail!("the state of a parameter is in two places"),
        }
    }
}

/// Returns consecutive elements of a parameter, as a view.
fn elements(parameter: &Var, first: usize, count: usize) -> Result<Tensor> {
    parameter.as_detached_tensor().flatten_all()?.narrow(0, first, count)
}

/// Returns a gradient in f32 on the device of its parameter.
fn beside(parameter: &Var, gradient: &Tensor) -> Result<Tensor> {
    gradient.to_device(parameter.device())?.flatten_all()?.to_dtype(DType::F32)
}

/// Makes the step of [`adam_steps`] in Candle's operations; returns the new values of the parameter.
fn composed_step(
    values: &Tensor,
    gradient: &Tensor,
    [m, v]: [&mut Tensor; 2],
    ema: Option<&mut Tensor>,
    factors: &Factors,
) -> Result<Tensor> {
    let [beta_1, beta_2, ema_decay] = [factors.beta_1, factors.beta_2, factors.ema_decay].map(f64::from);
    let [gradient_scale, step, decay] = [factors.gradient_scale, factors.step, factors.decay].map(f64::from);
    let [inv_sqrt_correction, eps] = [factors.inv_sqrt_correction, factors.eps].map(f64::from);
    let g = (gradient * gradient_scale)?;
    *m = ((&*m * beta_1)? + (&g * (1. - beta_1))?)?;
    *v = ((&*v * beta_2)? + (g.sqr()? * (1. - beta_2))?)?;
    let denominator = ((v.sqrt()? * inv_sqrt_correction)? + eps)?;
    let values = ((values * (1. - decay))? - ((&*m / denominator)? * step)?)?;
    if let Some(ema) = ema {
        *ema = ((&*ema * ema_decay)? + (&values * (1. - ema_decay))?)?;
    }
    Ok(values)
}

/// Computes the coefficients of a step.
#[expect(clippy::cast_possible_truncation, reason = "the update runs in f32")]
pub(crate) fn factors_of(AdamStep { config, step_idx, gradient_scale }: &AdamStep) -> Factors {
    let t = i32::try_from(step_idx + 1).unwrap_or(i32::MAX);
    Factors {
        gradient_scale: *gradient_scale as f32,
        beta_1: config.beta_1 as f32,
        beta_2: config.beta_2 as f32,
        step: (config.lr / (1. - config.beta_1.powi(t))) as f32,
        inv_sqrt_correction: (1. - config.beta_2.powi(t)).sqrt().recip() as f32,
        eps: config.eps as f32,
        decay: (config.lr * config.weight_decay) as f32,
        ema_decay: config.ema_decay as f32,
    }
}

/// Number of values in a block of [`block_squares`].
pub const SQUARES_BLOCK: usize = cpu::SQUARES_BLOCK;

/// Computes the sums of squares of tensors, for the global gradient norm: of those on the CPU each as that of
/// [`block_squares`], of the others in one read of the device.
///
/// # Errors
/// If the device fails.
pub fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let mut sums = vec![0.; tensors.len()];
    let (mut places, mut waiting) = (vec![], vec![]);
    for (place, tensor) in tensors.iter().copied().enumerate() {
        if tensor.device().is_cpu() {
            sums[place] = block_squares(tensor)?.iter().sum();
        } else {
            places.push(place);
            waiting.push(tensor);
        }
    }
    if waiting.is_empty() {
        return Ok(sums);
    }
    let of_waiting = device_block_squares(&waiting)?;
    for (place, blocks) in places.into_iter().zip(of_waiting) {
        sums[place] = blocks.into_iter().map(f64::from).sum();
    }
    Ok(sums)
}

/// Computes the sums of squares of the blocks of tensors on a device, in f32, in one read of it.
fn device_block_squares(tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>> {
    if let Some(blocks) = cuda::block_squares(tensors)? {
        return Ok(blocks);
    }
    let sums = tensors.iter().map(|it| composed_block_squares(it)).collect::<Result<Vec<_>>>()?;
    let mut all = Tensor::cat(&sums, 0)?.to_vec1::<f32>()?.into_iter();
    Ok(sums.iter().map(|of_tensor| all.by_ref().take(of_tensor.elem_count()).collect()).collect())
}

/// Computes the sums of squares of the blocks of a tensor by operations of Candle: `[number of blocks]`, f32.
fn composed_block_squares(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_all()?.to_dtype(DType::F32)?;
    let (num_whole, rest) = (flat.elem_count().div_euclid(SQUARES_BLOCK), flat.elem_count() % SQUARES_BLOCK);
    let start = num_whole * SQUARES_BLOCK;
    let mut sums = vec![];
    if num_whole > 0 {
        sums.push(flat.narrow(0, 0, start)?.reshape((num_whole, SQUARES_BLOCK))?.sqr()?.sum(1)?);
    }
    if rest > 0 {
        sums.push(flat.narrow(0, start, rest)?.sqr()?.sum_all()?.reshape(1)?);
    }
    if sums.is_empty() { Tensor::zeros(0, DType::F32, x.device()) } else { Tensor::cat(&sums, 0) }
}

/// Computes the sums of squares of blocks of [`SQUARES_BLOCK`] elements of a tensor, the last of which may be shorter.
///
/// A tensor cut at multiples of the length of a block has the same blocks, whoever computes them.
///
/// # Errors
/// If the device fails.
pub fn block_squares(x: &Tensor) -> Result<Vec<f64>> {
    if !x.device().is_cpu() {
        let blocks = device_block_squares(&[x])?;
        return Ok(blocks.into_iter().flatten().map(f64::from).collect());
    }
    with_floats(&x.to_dtype(DType::F32)?, |values| Ok(cpu::block_squares(values)))
}

/// In-place update of one parameter, or of a part of it.
struct Step<'a, 's> {
    first: usize,
    gradient: &'a [f32],
    /// First moment, second moment and moving average, which may be empty.
    state: RefCell<[&'s mut Vec<f32>; 3]>,
    factors: Factors,
}

impl InplaceOp1 for Step<'_, '_> {
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
        let [m, v, ema] = &mut *state;
        let parameter = &mut values[start..end];
        Ok(cpu::step(Buffers { parameter, gradient: self.gradient, m, v, ema }, self.factors)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn sums_of_blocks_by_composed_operations_are_those_of_pieces() {
        for len in [0, 1, SQUARES_BLOCK, 2 * SQUARES_BLOCK, 2 * SQUARES_BLOCK + 77] {
            let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37 + 0.5).sin()).collect();
            let x = Tensor::from_vec(values, len, &Device::Cpu).unwrap();
            let blocks = composed_block_squares(&x).unwrap().to_vec1::<f32>().unwrap();
            let expected = block_squares(&x).unwrap();
            assert_eq!(blocks.len(), expected.len());
            for (got, expected) in blocks.iter().zip(&expected) {
                assert!((f64::from(*got) / expected - 1.).abs() < 1e-5, "{got} {expected}");
            }
            let cut = len.min(SQUARES_BLOCK);
            let piece = |start: usize, len: usize| composed_block_squares(&x.narrow(0, start, len).unwrap()).unwrap();
            let pieces = Tensor::cat(&[piece(0, cut), piece(cut, len - cut)], 0).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(pieces, blocks);
        }
    }
}
