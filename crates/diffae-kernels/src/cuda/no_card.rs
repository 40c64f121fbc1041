//! Absence of cards, in a build without the feature `cuda`.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use super::convolution::Convolution;
use super::plan::Launch;

/// A card; there is none.
#[derive(Debug)]
pub(super) enum Card {}

impl Card {
    pub(super) fn of(_tensor: &Tensor) -> Option<Self> {
        None
    }

    pub(super) fn with_cudnn(_tensor: &Tensor) -> Option<Self> {
        None
    }

    pub(super) fn allows_tf32(&self) -> bool {
        match *self {}
    }

    pub(super) fn convolve(&self, _of: &Convolution, _tensors: [&Tensor; 3]) -> Result<bool> {
        match *self {}
    }

    pub(super) fn device(&self) -> &Device {
        match *self {}
    }

    pub(super) fn empty(&self, _shape: impl Into<Shape>, _dtype: DType) -> Result<Tensor> {
        match *self {}
    }

    pub(super) fn address(&self, _tensor: &Tensor) -> Result<i64> {
        match *self {}
    }

    pub(super) fn run(&self, _launches: &[Launch], _buffers: &[&Tensor]) -> Result<()> {
        match *self {}
    }
}

/// Returns how many kinds of convolutions, by size and number type, cuDNN has computed on a card, and those that it was asked for
/// and has not, with the reason of each.
#[must_use]
pub fn cudnn_plans(_device: &Device) -> (usize, Vec<String>) {
    (0, vec![])
}

/// Returns why convolutions on a card are Candle's although cuDNN's are asked for; `None` if they are cuDNN's, or not asked for.
#[must_use]
pub fn cudnn_problem(_device: &Device) -> Option<String> {
    None
}

/// Opens a card, or returns it if it is open: a process has one device, with one stream, for each card.
///
/// # Errors
/// In a build without the feature `cuda`; if there is no such card, or its driver fails.
pub fn cuda_device(_ordinal: usize) -> Result<Device> {
    bail!("this program is built without CUDA")
}

/// Returns the number of cards that this process sees; 0 in a build without the feature `cuda`.
#[must_use]
pub fn num_cuda_devices() -> usize {
    0
}

/// Copies values to a card; there is none.
#[expect(clippy::unnecessary_wraps, reason = "a card may fail")]
pub(crate) fn upload(_values: &[f32], _shape: &Shape, _device: &Device) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Launches that a card starts by one call; there are none.
pub(crate) enum Recording {}

impl Recording {
    #[expect(clippy::unnecessary_wraps, reason = "a card may fail")]
    pub(crate) fn of(_device: &Device, _work: impl Fn() -> Result<()>) -> Result<Option<Self>> {
        Ok(None)
    }

    pub(crate) fn start(&self) -> Result<()> {
        match *self {}
    }
}
