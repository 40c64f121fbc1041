//! Copies to a card from page-locked memory, which it reads by itself.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{Device, Result, Shape, Storage, Tensor, bail};

use crate::dispatch::{CudaKernels, cuda_kernels};

/// Maximum number of pieces of page-locked memory that are kept: two for each of a few sizes of batches and noise.
const MAX_KEPT: usize = 8;

/// Page-locked memory, the least recently used first.
static KEPT: Mutex<Vec<Staging>> = Mutex::new(vec![]);

/// Page-locked memory of the host.
struct Staging {
    values: PinnedHostSlice<f32>,
    /// Passed when the last copy has been made. The event within `values` is not: devices of this crate have event tracking off.
    copied: CudaEvent,
}

impl Staging {
    /// Allocates memory; `None` if there is none to be had.
    #[expect(unsafe_code, reason = "memory that is filled before it is read")]
    fn new(stream: &CudaStream, len: usize) -> Option<Self> {
        let context = stream.context();
        // SAFETY: `fill` writes all of it before a card reads it.
        let values = unsafe { context.alloc_pinned(len) }.ok()?;
        Some(Self { values, copied: context.new_event(None).ok()? })
    }

    /// Replaces the values, once those before have been copied.
    ///
    /// # Errors
    /// If the card fails.
    #[expect(unsafe_code, reason = "memory that has no values before")]
    fn fill(&mut self, values: &[f32]) -> Result<()> {
        if self.values.num_bytes() != size_of_val(values) {
            bail!("{} values do not fit {} bytes", values.len(), self.values.num_bytes())
        }
        self.copied.synchronize().w()?;
        let to = self.values.as_mut_ptr().w()?;
        // SAFETY: both have this length, which was checked; memory of the driver does not overlap a slice of ours.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()) };
        Ok(())
    }

    /// Returns memory of a length on a card: that of the copy before the last one of this length, or new one.
    fn take(stream: &CudaStream, len: usize) -> Option<Self> {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let fits =
            |it: &Self| it.values.num_bytes() == len * size_of::<f32>() && it.values.context() == stream.context();
        // The last one may be on its way still.
        let places: Vec<usize> = (0..kept.len()).filter(|&place| fits(&kept[place])).collect();
        match places[..] {
            [first, _, ..] => Some(kept.remove(first)),
            _ => Self::new(stream, len),
        }
    }

    /// Keeps memory that a card may still read from.
    fn keep(self) -> Result<()> {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(self);
        if kept.len() > MAX_KEPT {
            // Memory is freed when it is dropped, which must not be before it has been copied.
            kept[0].copied.synchronize().w()?;
            kept.remove(0);
        }
        Ok(())
    }
}

/// Copies values to a card; `None` if the device is none, kernels of this crate are not asked for, or there is no page-locked
/// memory. What is recorded in a graph must not call it: the memory will have other values when the graph starts.
///
/// # Errors
/// If the card fails.
pub(crate) fn upload(values: &[f32], shape: &Shape, device: &Device) -> Result<Option<Tensor>> {
    match device {
        Device::Cuda(card) if cuda_kernels() != CudaKernels::Candle && !values.is_empty() => {
            upload_to(card, values, shape)
        }
        _ => Ok(None),
    }
}

#[expect(unsafe_code, reason = "memory of a card that a copy fills")]
fn upload_to(card: &CudaDevice, values: &[f32], shape: &Shape) -> Result<Option<Tensor>> {
    if values.len() != shape.elem_count() {
        bail!("{} values do not make {shape:?}", values.len())
    }
    let stream = card.cuda_stream();
    let Some(mut staging) = Staging::take(&stream, values.len()) else { return Ok(None) };
    staging.fill(values)?;
    // SAFETY: the copy that follows on the same stream writes each element.
    let mut on_card = unsafe { card.alloc::<f32>(values.len()) }?;
    let copied = stream.memcpy_htod(&staging.values, &mut on_card).and_then(|()| staging.copied.record(&stream));
    if copied.is_err() {
        // It is not known how far the card has come: what it may read is never freed.
        std::mem::forget(staging);
    } else {
        staging.keep()?;
    }
    copied.w()?;
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(on_card, card.clone()));
    Ok(Some(Tensor::from_storage(storage, shape.clone(), BackpropOp::none(), false)))
}
