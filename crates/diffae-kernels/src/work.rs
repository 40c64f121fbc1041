//! A count of multiply-adds, for benchmarks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Multiply-adds of this process so far.
static MULTIPLY_ADDS: AtomicU64 = AtomicU64::new(0);

/// Adds the multiply-adds of a convolution or matrix product to the count, as the plain algorithm does them.
pub(crate) fn note_multiply_adds(count: usize) {
    MULTIPLY_ADDS.fetch_add(count as u64, Ordering::Relaxed);
}

/// Returns the number of multiply-adds that this crate's kernels have done in this process so far.
///
/// Convolutions and matrix products count as the plain algorithms do them: Winograd's needs fewer.
#[must_use]
pub fn num_multiply_adds() -> u64 {
    MULTIPLY_ADDS.load(Ordering::Relaxed)
}
