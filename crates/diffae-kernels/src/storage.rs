//! Conversion between Candle's tensors and slices.

use candle_core::shape::Dims;
use candle_core::{CpuStorage, DType, Device, Error, Layout, Result, Storage, Tensor, bail};

use crate::cpu::elementwise;
use crate::cpu::length::LengthError;
use crate::cuda;
use crate::dispatch::{KernelSet, kernel_set};

impl From<LengthError> for Error {
    fn from(error: LengthError) -> Self {
        Self::wrap(error)
    }
}

/// Returns whether a kernel of this crate computes on these tensors: they are f32, on the CPU, and the kernel set is not
/// Candle's.
pub(crate) fn runs_here<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    let fits = |tensor: &Tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32;
    kernel_set() != KernelSet::Candle && tensors.into_iter().all(fits)
}

/// Returns the sizes of images, `[N, C, H, W]`, or of volumes, `[N, C, D, H, W]`, whose slices stand below one another.
///
/// # Errors
/// If there are neither four nor five axes.
pub(crate) fn image_dims(dims: &[usize]) -> Result<(usize, usize, usize, usize)> {
    match *dims {
        [images, channels, height, width] => Ok((images, channels, height, width)),
        [volumes, channels, depth, height, width] => Ok((volumes, channels, depth * height, width)),
        _ => bail!("expected images [N, C, H, W] or volumes [N, C, D, H, W], got {dims:?}"),
    }
}

/// Views volumes as images, their slices below one another; images stay.
///
/// # Errors
/// If they are neither.
pub(crate) fn as_images(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 4 { Ok(x.clone()) } else { x.reshape(image_dims(x.dims())?) }
}

/// Returns the elements of a contiguous f32 storage.
///
/// # Errors
/// If it is neither.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        (CpuStorage::F32(_), None) => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
        (other, _) => bail!("expected f32, got {:?}", candle_core::backend::BackendStorage::dtype(other)),
    }
}

/// Copies a tensor to a device. Where this crate's kernels for cards are selected, f32 values of the CPU leave through page-locked
/// memory, so that a card fetches them after the work that was given to it before, and the host does not wait.
///
/// # Shapes
/// - `x`, result: any, the same.
/// # Errors
/// If the device fails.
pub fn to_device(x: &Tensor, device: &Device) -> Result<Tensor> {
    if !x.device().is_cpu() || x.dtype() != DType::F32 || device.is_cpu() {
        return x.to_device(device);
    }
    match with_floats(x, |values| cuda::upload(values, x.shape(), device))? {
        Some(on_card) => Ok(on_card),
        None => x.to_device(device),
    }
}

/// Sums over axes by Candle's operations: numbers of half precision in f32, since Candle adds f16 up in f16, where a sum of ones ends
/// at 2048, and bf16 on a CPU in bf16, where it ends at 256.
///
/// # Errors
/// If the device fails.
pub(crate) fn sum_over(x: &Tensor, axes: impl Dims) -> Result<Tensor> {
    match x.dtype() {
        half @ (DType::F16 | DType::BF16) => x.to_dtype(DType::F32)?.sum(axes)?.to_dtype(half),
        _ => x.sum(axes),
    }
}

/// Hands the elements of a tensor on the CPU to `f`, without a copy where it is contiguous.
///
/// # Errors
/// That of `f`, or if the tensor is not f32 on the CPU.
pub(crate) fn with_floats<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    with_all_floats([tensor], |[values]| f(values))
}

/// Hands the elements of several tensors on the CPU to `f`, without copies of those that are contiguous.
///
/// # Errors
/// That of `f`, or if a tensor is not f32 on the CPU.
pub(crate) fn with_all_floats<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let contiguous = tensors.into_iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let storages: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut values: [&[f32]; N] = [&[]; N];
    for (values, (storage, layout)) in values.iter_mut().zip(&storages) {
        *values = match &**storage {
            Storage::Cpu(storage) => floats(storage, layout)?,
            _ => bail!("expected a tensor on the CPU"),
        };
    }
    f(values)
}

/// Adds two tensors outside of any differentiation: `a + b`.
///
/// # Errors
/// If shapes, number types or devices differ.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if runs_here([a, b]) {
        let sum = with_all_floats([a, b], |[a, b]| Ok(elementwise::add(a, b)?))?;
        Tensor::from_vec(sum, a.shape(), &Device::Cpu)
    } else {
        a.detach() + b.detach()
    }
}
