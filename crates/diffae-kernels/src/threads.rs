//! The thread pool of the kernels.

use candle_core::{Device, Error, Result};

use crate::tape::{in_graph, in_graph_mode};

/// Sets the number of threads of all CPU work in this process. Must be called before the first parallel operation.
///
/// # Errors
/// If the thread pool exists already.
pub fn set_num_threads(num_threads: usize) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads);
    pool.build_global().map_err(|error| Error::Msg(format!("the number of threads cannot be set: {error}")))
}

/// Runs `f`, work on `device`, on a thread of the thread pool.
///
/// Work that calls the kernels often, such as a training step or a chain, is faster there: from outside, each kernel
/// hands its work to the pool and sleeps until it is woken. While a tape is being recorded on this thread, or
/// gradients are off, `f` runs right here; begin such work in the pool instead. Work on a GPU always runs right here: the order of
/// what a device is given is that of one thread.
pub fn run_in_pool<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    // The worker may be in the midst of somebody else's recording, waiting for a kernel.
    if device.is_cpu() && in_graph() { rayon::scope(|_| in_graph_mode(f)) } else { f() }
}
