//! Between Candle's tensors and slices.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

use crate::dispatch::{KernelSet, kernel_set};

/// Whether a kernel of this crate computes on these tensors: f32, on the CPU, and no one has asked for Candle's own.
pub(crate) fn runs_here<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    let fits = |tensor: &Tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32;
    kernel_set() != KernelSet::Candle && tensors.into_iter().all(fits)
}

/// The elements of a contiguous f32 storage.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        (CpuStorage::F32(_), None) => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
        (other, _) => bail!("expected f32, got {:?}", candle_core::backend::BackendStorage::dtype(other)),
    }
}

/// Hands the elements of a tensor on the CPU to `f`, without a copy where it is contiguous.
pub(crate) fn with_floats<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(floats(storage, layout)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// Whether a gradient for `tensor` would be used.
pub(crate) fn wants_gradient(tensor: &Tensor) -> bool {
    tensor.track_op()
}
