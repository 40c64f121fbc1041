//! Cards of this process.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, sys};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Result};

/// Cards that are open, by their numbers.
static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());

/// Opens a card, or returns it if it is open: a process has one device, with one stream, for each card.
///
/// All work on that stream is in order, so that tensors have no events; memory that they leave stays in the card's pool for those to
/// come.
///
/// # Errors
/// In a build without the feature `cuda`; if there is no such card, or its driver fails.
pub fn cuda_device(ordinal: usize) -> Result<Device> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda_with_stream(ordinal)?;
    if let Device::Cuda(card) = &device {
        set_up(card)?;
    }
    open.insert(ordinal, device.clone());
    Ok(device)
}

/// Returns the number of cards that this process sees; 0 in a build without the feature `cuda`.
#[must_use]
pub fn num_cuda_devices() -> usize {
    CudaContext::device_count().ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

#[expect(unsafe_code, reason = "settings of the driver, before there is any tensor")]
fn set_up(card: &CudaDevice) -> Result<()> {
    let context = card.cuda_stream().context().clone();
    // SAFETY: this function alone makes devices, one for each card, and a device has one stream; nothing is used on two.
    unsafe { card.disable_event_tracking() };
    // Without it, the driver gives memory back to the system whenever the host waits for the card, and fetches it again. A driver
    // that has no pools goes on as before.
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    context.bind_to_thread().w()?;
    // SAFETY: the addresses are those of a pool and of a number of the type of the attribute.
    unsafe {
        if sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) == sys::CUresult::CUDA_SUCCESS {
            let _status = sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast());
        }
    }
    Ok(())
}
