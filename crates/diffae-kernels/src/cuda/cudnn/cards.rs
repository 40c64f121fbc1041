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
    /// The plan of each, or the reason why there is none.
    by_convolution: HashMap<Convolution, std::result::Result<Plan, String>>,
}

/// Opens cuDNN on the card of a stream, unless it is open.
///
/// # Errors
/// If it is not installed, or does not work with the card.
pub(in crate::cuda) fn open(stream: &Arc<CudaStream>) -> Result<()> {
    with_plans(stream, |_| Ok(()))
}

/// Returns how many convolutions on the card of a stream have a plan, and why the others have none.
pub(in crate::cuda) fn made(stream: &Arc<CudaStream>) -> (usize, Vec<String>) {
    let cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Ok(plans)) = cards.get(&stream.context().ordinal()) else { return (0, vec![]) };
    let all = &plans.by_convolution;
    let problem = |(of, made): (&Convolution, &std::result::Result<Plan, String>)| {
        made.as_ref().err().map(|problem| format!("{of:?}: {problem}"))
    };
    (all.values().filter(|made| made.is_ok()).count(), all.iter().filter_map(problem).collect())
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
            let made = Plan::new(handle, of).map_err(|error| error.to_string());
            let made = made.and_then(|plan| plan.ok_or_else(|| "cuDNN has no engine that may be taken".to_owned()));
            by_convolution.insert(*of, made);
        }
        let Some(Ok(plan)) = by_convolution.get(of) else { return Ok(false) };
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
