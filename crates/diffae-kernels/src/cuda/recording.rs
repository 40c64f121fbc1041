//! Launches on a stream as one graph, which the card starts by one call.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
use candle_core::{Device, Result, bail};

/// Flag of a graph whose memory, where it was not freed within, is freed when the graph starts again.
const AUTO_FREE_ON_LAUNCH: u32 = 1;

/// A recorded graph.
pub(crate) struct Recording(CudaGraph);

// SAFETY: a graph is bound to no thread; only one thread at a time has it.
#[expect(unsafe_code, reason = "addresses are not sent between threads by themselves")]
unsafe impl Send for Recording {}

impl Recording {
    /// Runs `work` once, and records what it starts on a card, without carrying that out; `None` if the device is none.
    ///
    /// Tensors that are made within belong to the graph: none may outlive the work. Those that are read or written must live as long
    /// as the recording. No other thread may use the card meanwhile: what it starts would be recorded, too.
    ///
    /// # Errors
    /// That of `work`; if something in it cannot be recorded.
    pub(crate) fn of(device: &Device, work: impl Fn() -> Result<()>) -> Result<Option<Self>> {
        let Device::Cuda(card) = device else { return Ok(None) };
        let stream = card.cuda_stream();
        // Candle hands sizes and strides to kernels by copies from memory that it frees: a graph would read it when it starts. They
        // come from memory of the card that stays, and other copies become errors.
        let _from_card = card.enable_cuda_graph_htod_cache();
        // What is loaded or chosen at a first time must not be so in a recording.
        work()?;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let done = work();
        // It must be ended also where the work has failed; an error that tensors have left when they were freed would keep it from
        // that, and be found by whatever comes next.
        let left = stream.context().check_err();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(AUTO_FREE_ON_LAUNCH)).w();
        if done.is_err() || graph.is_err() {
            let _ = stream.context().check_err();
        }
        done?;
        left.w()?;
        match graph? {
            Some(graph) => Ok(Some(Self(graph))),
            None => bail!("the driver recorded nothing"),
        }
    }

    /// Starts the graph.
    ///
    /// # Errors
    /// If the card fails.
    pub(crate) fn start(&self) -> Result<()> {
        self.0.launch().w()?;
        Ok(())
    }
}
