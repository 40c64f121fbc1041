//! cuDNN on the cards of this process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtrMut};
use candle_core::{Error, Result};

use super::descriptor::Handle;
use super::library::Library;
use super::plan::Plan;
use crate::cuda::convolution::Convolution;

/// cuDNN on each card that was asked for it, or why it does not work there, by the number of the card.
static CARDS: Mutex<BTreeMap<usize, std::result::Result<Plans, String>>> = Mutex::new(BTreeMap::new());

/// The plans of a card.
struct Plans {
    handle: Handle,
    /// The stream of the handle.
    stream: Arc<CudaStream>,
    /// `None` where cuDNN has no engine.
    by_convolution: HashMap<Convolution, Option<Plan>>,
}

/// Opens cuDNN on the card of a stream, unless it is open.
///
/// # Errors
/// If it is not installed, or does not work with the card.
pub(in crate::cuda) fn open(stream: &Arc<CudaStream>) -> Result<()> {
    with_plans(stream, |_| Ok(()))
}

/// Starts the plan of a convolution on a stream; returns whether cuDNN has one.
///
/// # Safety
/// `addresses` are those of input, weight and output, tensors of the convolution's sizes and number type on the card of the stream,
/// aligned to [`ALIGNMENT`](crate::cuda::convolution::ALIGNMENT) bytes, which live until the work on the stream has come to its end.
/// # Errors
/// If cuDNN or the card fails.
#[expect(unsafe_code, reason = "addresses on a card")]
pub(in crate::cuda) unsafe fn convolve(
    stream: &Arc<CudaStream>,
    of: &Convolution,
    addresses: [u64; 3],
) -> Result<bool> {
    with_plans(stream, |plans| {
        let Plans { handle, by_convolution, .. } = plans;
        if !by_convolution.contains_key(of) {
            // Candle may know what cuDNN refuses; a card that fails will fail there, too.
            by_convolution.insert(*of, Plan::new(handle, of).unwrap_or(None));
        }
        let Some(plan) = by_convolution.get(of).and_then(Option::as_ref) else { return Ok(false) };
        // SAFETY: the plan alone reads it, and only what it has written. It is freed in the order of the stream.
        let mut workspace = unsafe { stream.alloc::<u8>(plan.workspace().max(1)) }.w()?;
        let (workspace, _guard) = workspace.device_ptr_mut(stream);
        // SAFETY: as the caller promises; the handle has the stream.
        unsafe { plan.execute(handle, addresses, workspace)? };
        Ok(true)
    })
}

/// Hands the plans of a stream's card on, which are opened if they are not.
fn with_plans<T>(stream: &Arc<CudaStream>, act: impl FnOnce(&mut Plans) -> Result<T>) -> Result<T> {
    let mut cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    stream.context().bind_to_thread().w()?;
    let plans = cards
        .entry(stream.context().ordinal())
        .or_insert_with(|| Plans::open(stream).map_err(|error| error.to_string()));
    match plans {
        Ok(plans) => {
            plans.move_to(stream)?;
            act(plans)
        }
        Err(problem) => Err(Error::Msg(problem.clone())),
    }
}

impl Plans {
    fn open(stream: &Arc<CudaStream>) -> Result<Self> {
        let handle = Handle::new(Arc::new(Library::open()?))?;
        set_stream(&handle, stream)?;
        Ok(Self { handle, stream: Arc::clone(stream), by_convolution: HashMap::new() })
    }

    fn move_to(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        if !Arc::ptr_eq(&self.stream, stream) {
            set_stream(&self.handle, stream)?;
            self.stream = Arc::clone(stream);
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "a call of a C library")]
fn set_stream(handle: &Handle, stream: &Arc<CudaStream>) -> Result<()> {
    // SAFETY: the stream is one of the card's only context, and the plans keep it.
    unsafe { handle.set_stream(stream.cu_stream().cast()) }
}
