//! Adam and sums of squares, for all parameters in one launch.

use candle_core::{DType, Result, Tensor, bail};

use super::Card;
use super::plan::{Argument, Launch, MAX_THREADS, Module, blocks, threads};
use crate::cpu::optimizer::{Factors, SQUARES_BLOCK};

/// Lengths of tensors, cut into blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) lengths: Vec<i64>,
    /// Number of the tensor of each block.
    pub(super) tensors: Vec<u32>,
    /// First element of each block.
    pub(super) starts: Vec<i64>,
}

impl Blocks {
    pub(super) fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut blocks = Self { lengths: vec![], tensors: vec![], starts: vec![] };
        for (tensor, length) in (0u32..).zip(lengths) {
            blocks.lengths.push(i64::try_from(length).unwrap_or(i64::MAX));
            for start in (0..length).step_by(SQUARES_BLOCK) {
                blocks.tensors.push(tensor);
                blocks.starts.push(i64::try_from(start).unwrap_or(i64::MAX));
            }
        }
        blocks
    }

    fn launch(&self, kernel: &str, more: impl IntoIterator<Item = Argument>) -> Result<Vec<Launch>> {
        if self.tensors.is_empty() {
            return Ok(vec![]);
        }
        let tables = (0..4).map(Argument::Buffer);
        Ok(vec![Launch {
            module: Module::Optimizer,
            kernel: kernel.to_owned(),
            grid: [blocks(self.tensors.len())?, 1],
            threads: threads(MAX_THREADS),
            arguments: tables.chain([Argument::int(SQUARES_BLOCK)?]).chain(more).collect(),
        }])
    }

    /// Plans a step of Adam. Buffers: the table of five addresses a tensor, lengths, tensors and starts.
    pub(super) fn adam(&self, factors: &Factors) -> Result<Vec<Launch>> {
        let Factors { gradient_scale, beta_1, beta_2, step, inv_sqrt_correction, eps, decay, ema_decay } = *factors;
        let floats = [gradient_scale, beta_1, beta_2, step, inv_sqrt_correction, eps, decay, ema_decay];
        self.launch("adam", floats.map(Argument::Float))
    }

    /// Plans the sums of squares of all blocks. Buffers: the table of addresses, lengths, tensors, starts, and the sums.
    pub(super) fn squares(&self) -> Result<Vec<Launch>> {
        self.launch("squares", [Argument::Buffer(4)])
    }

    /// Uploads lengths, tensors and starts.
    fn upload(&self, card: &Card) -> Result<[Tensor; 3]> {
        let device = card.device();
        let lengths = Tensor::new(self.lengths.as_slice(), device)?;
        Ok([lengths, Tensor::new(self.tensors.as_slice(), device)?, Tensor::new(self.starts.as_slice(), device)?])
    }
}

/// Tensors of one parameter: all f32, contiguous, of one length, on one card.
#[derive(Debug, Clone)]
pub(crate) struct AdamBuffers {
    pub(crate) parameter: Tensor,
    pub(crate) gradient: Tensor,
    pub(crate) m: Tensor,
    pub(crate) v: Tensor,
    pub(crate) average: Option<Tensor>,
}

/// Makes a step of Adam with all parameters, in place; `false` where these kernels do not.
///
/// # Errors
/// If a tensor is not f32 and contiguous, or the card fails.
pub(crate) fn adam_steps(parameters: &[AdamBuffers], factors: &Factors) -> Result<bool> {
    let Some(first) = parameters.first() else { return Ok(true) };
    let Some(card) = Card::of(&first.parameter) else { return Ok(false) };
    let mut table = Vec::with_capacity(5 * parameters.len());
    for AdamBuffers { parameter, gradient, m, v, average } in parameters {
        for tensor in [parameter, gradient, m, v].into_iter().chain(average) {
            if tensor.dtype() != DType::F32 || tensor.elem_count() != parameter.elem_count() {
                bail!("Adam takes f32 tensors of one length, not {:?} {:?}", tensor.dtype(), tensor.dims())
            }
            table.push(card.address(tensor)?);
        }
        if average.is_none() {
            table.push(0);
        }
    }
    let blocks = Blocks::new(parameters.iter().map(|it| it.parameter.elem_count()));
    let table = Tensor::new(table, card.device())?;
    let [lengths, tensors, starts] = blocks.upload(&card)?;
    card.run(&blocks.adam(factors)?, &[&table, &lengths, &tensors, &starts])?;
    Ok(true)
}

/// Computes the sums of squares of blocks of [`SQUARES_BLOCK`] elements of each f32 tensor, in one read of the card; `None` where
/// these kernels do not.
///
/// # Errors
/// If the card fails.
pub(crate) fn block_squares(tensors: &[&Tensor]) -> Result<Option<Vec<Vec<f32>>>> {
    let Some(first) = tensors.first() else { return Ok(Some(vec![])) };
    let Some(card) = Card::of(first) else { return Ok(None) };
    let values = tensors.iter().map(|it| it.to_dtype(DType::F32)?.contiguous()).collect::<Result<Vec<_>>>()?;
    let table = values.iter().map(|it| card.address(it)).collect::<Result<Vec<i64>>>()?;
    let blocks = Blocks::new(values.iter().map(Tensor::elem_count));
    if blocks.tensors.is_empty() {
        return Ok(Some(vec![vec![]; tensors.len()]));
    }
    let sums = card.empty(blocks.tensors.len(), DType::F32)?;
    let [lengths, of_blocks, starts] = blocks.upload(&card)?;
    let table = Tensor::new(table, card.device())?;
    card.run(&blocks.squares()?, &[&table, &lengths, &of_blocks, &starts, &sums])?;
    let mut by_tensor = vec![vec![]; tensors.len()];
    for (tensor, sum) in blocks.tensors.iter().zip(sums.to_vec1::<f32>()?) {
        by_tensor[*tensor as usize].push(sum);
    }
    Ok(Some(by_tensor))
}
