//! Launches of kernels, as data.

use candle_core::{DType, Result, Tensor, bail};

/// Maximum number of threads of a block, as the kernels have it.
pub(super) const MAX_THREADS: usize = 256;
/// Threads that run in lockstep.
const WARP: usize = 32;

/// One launch of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Launch {
    /// File of the kernel.
    pub(super) module: Module,
    pub(super) kernel: String,
    /// Number of blocks along x, and along y, where a card counts to 65,535 only.
    pub(super) grid: [u32; 2],
    /// Threads of a block.
    pub(super) threads: u32,
    pub(super) arguments: Vec<Argument>,
}

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    Attention,
    Elementwise,
    GroupNorm,
    Optimizer,
    Resample,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Argument {
    /// The address of a buffer, by its number in the list that goes with the launch.
    Buffer(usize),
    Null,
    Int(i32),
    Long(i64),
    Unsigned(u64),
    Float(f32),
}

impl Argument {
    /// Wraps a size that a kernel takes as an `int`.
    ///
    /// # Errors
    /// If it is too large.
    pub(super) fn int(size: usize) -> Result<Self> {
        let Ok(size) = i32::try_from(size) else { bail!("{size} elements are more than a CUDA kernel can count") };
        Ok(Self::Int(size))
    }

    /// Wraps a size that a kernel takes as a `long long`.
    pub(super) fn long(size: usize) -> Self {
        Self::Long(i64::try_from(size).unwrap_or(i64::MAX))
    }
}

/// Returns the number of blocks along an axis.
///
/// # Errors
/// If there are more than a card can count along `x`.
pub(super) fn blocks(count: usize) -> Result<u32> {
    match u32::try_from(count) {
        Ok(count) if count < 1 << 31 => Ok(count),
        _ => bail!("{count} blocks are more than a CUDA kernel can have"),
    }
}

/// Returns a number of threads for `count` packs of elements: enough for one each, in whole warps, at most [`MAX_THREADS`].
pub(super) fn threads(count: usize) -> u32 {
    u32::try_from(count.next_multiple_of(WARP).clamp(WARP, MAX_THREADS)).unwrap_or(32)
}

/// Number type of the elements that a kernel reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// Returns the number type that all tensors share; `None` if they share none, or the kernels do not know it.
    pub(super) fn of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Option<Self> {
        let mut dtypes = tensors.into_iter().map(Tensor::dtype);
        let first = dtypes.next()?;
        if dtypes.any(|dtype| dtype != first) {
            return None;
        }
        match first {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Returns the name in names of kernels.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// Returns the number of elements that a thread reads at once in planes of so many pixels.
pub(super) fn width(pixels: usize) -> usize {
    if pixels.is_multiple_of(4) { 4 } else { 1 }
}
