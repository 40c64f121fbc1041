//! Decoding of codes under other conditions than those under which they were made.

use candle_core::{Device, Tensor};
use diffae_infer::{Pipeline, PipelineSettings, StochasticCode};
use diffae_kernels::{KernelSet, Winograd, is_exact, kernel_set};

use crate::error::{Result, unsuitable};
use crate::evaluated_model::decode_with;
use crate::evaluation::Stage;

/// A condition of decoding that may differ from that of encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Each picture in a batch of its own; a lone picture in a batch of two.
    BatchSize,
    /// One thread, or two where codes were made by one.
    Threads,
    /// The convolution algorithms that `--exact` selects, or, where they made the codes, the default ones.
    Convolution,
}

/// Returns the choice of convolution algorithms that the process has not made.
pub(super) fn other_convolution() -> Winograd {
    if is_exact() { Winograd::Allowed } else { Winograd::Never }
}

impl Condition {
    /// Returns the conditions that exist on a device: threads are those of a CPU, and there is a choice of convolution
    /// algorithms where the kernels are this project's.
    pub(super) fn of(device: &Device) -> &'static [Self] {
        match (device.is_cpu(), kernel_set()) {
            (false, _) => &[Self::BatchSize],
            (true, KernelSet::Candle) => &[Self::BatchSize, Self::Threads],
            (true, _) => &[Self::BatchSize, Self::Threads, Self::Convolution],
        }
    }

    /// Returns the names of the mean square error and the share of equal 8-bit values under this condition.
    pub(super) fn values(self) -> [&'static str; 2] {
        match self {
            Self::BatchSize => ["mse_other_batch", "equal_other_batch"],
            Self::Threads => ["mse_other_threads", "equal_other_threads"],
            Self::Convolution => ["mse_other_convolution", "equal_other_convolution"],
        }
    }
}

/// A batch of codes to decode. `first` is the number of its first picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoding<'a> {
    pub(super) code: &'a StochasticCode,
    pub(super) z_sem: Option<&'a Tensor>,
    pub(super) first: usize,
    pub(super) settings: &'a PipelineSettings,
}

impl Decoding<'_> {
    /// Decodes under the conditions of the process.
    pub(super) fn run(&self, pipeline: &Pipeline, stage: &Stage<'_>) -> Result<Tensor> {
        decode_with(pipeline, (self.code, self.z_sem), self.first, self.settings, stage)
    }

    /// Decodes under another condition. `twin` has the networks of `pipeline` with [`other_convolution`], for that condition
    /// alone.
    pub(super) fn run_under(
        &self,
        condition: Condition,
        (pipeline, twin): (&Pipeline, &Pipeline),
        stage: &Stage<'_>,
    ) -> Result<Tensor> {
        match condition {
            Condition::BatchSize => self.in_other_batches(pipeline, stage),
            Condition::Threads => self.on_other_threads(pipeline, stage),
            Condition::Convolution => self.run(twin, stage),
        }
    }

    fn in_other_batches(&self, pipeline: &Pipeline, stage: &Stage<'_>) -> Result<Tensor> {
        let count = self.code.x_terminal.dim(0)?;
        if count == 1 {
            let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0);
            return Ok(self.decode_rows(&twice, self.first, pipeline, stage)?.narrow(0, 0, 1)?);
        }
        let one = |row: usize| {
            let of_row = move |tensor: &Tensor| tensor.narrow(0, row, 1);
            self.decode_rows(&of_row, self.first + row, pipeline, stage)
        };
        Ok(Tensor::cat(&(0..count).map(one).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Decodes the rows of the codes that `rows` selects.
    fn decode_rows(
        &self,
        rows: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
        first: usize,
        pipeline: &Pipeline,
        stage: &Stage<'_>,
    ) -> Result<Tensor> {
        let chain = self.code.chain.as_ref().map(|chain| chain.map(rows)).transpose()?;
        let code = StochasticCode { x_terminal: rows(&self.code.x_terminal)?, chain };
        let z_sem = self.z_sem.map(rows).transpose()?;
        Decoding { code: &code, z_sem: z_sem.as_ref(), first, settings: self.settings }.run(pipeline, stage)
    }

    fn on_other_threads(&self, pipeline: &Pipeline, stage: &Stage<'_>) -> Result<Tensor> {
        let num_threads = if rayon::current_num_threads() == 1 { 2 } else { 1 };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
        let pool =
            pool.map_err(|error| unsuitable(format!("no pool of {num_threads} threads can be made: {error}")))?;
        pool.install(|| self.run(pipeline, stage))
    }
}
