//! How much arithmetic has been done, for benchmarks.

use std::sync::atomic::{AtomicU64, Ordering};

static MULTIPLY_ADDS: AtomicU64 = AtomicU64::new(0);

/// Notes multiply-adds of a convolution or matrix product, counted as the plain algorithm does them.
pub(crate) fn note_multiply_adds(count: usize) {
    MULTIPLY_ADDS.fetch_add(count as u64, Ordering::Relaxed);
}

/// Multiply-adds of all convolutions and matrix products of this crate's kernels in this process so far, counted as the
/// plain algorithms do them: Winograd's needs fewer.
#[must_use]
pub fn num_multiply_adds() -> u64 {
    MULTIPLY_ADDS.load(Ordering::Relaxed)
}
