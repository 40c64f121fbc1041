//! How many threads the kernels use.

use candle_core::{Error, Result};

/// Sets the number of threads of all CPU work in this process. Call it once, before any.
///
/// # Errors
/// If the pool of threads exists already.
pub fn set_num_threads(num_threads: usize) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads);
    pool.build_global().map_err(|error| Error::Msg(format!("the number of threads cannot be set: {error}")))
}
