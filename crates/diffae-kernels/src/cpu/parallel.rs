//! Many tasks over all threads, writing to disjoint parts of one buffer.

use rayon::prelude::*;

/// A pointer that tasks share. Each task writes only the part that is its own.
#[derive(Debug)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: it is only an address; what is read and written through it is the business of the unsafe code that does.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The address. (A closure that calls this captures the wrapper, not the bare pointer.)
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

/// Runs `task(0)`, .., `task(count - 1)`, in any order, on all threads.
pub(crate) fn for_each(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count <= 1 || num_threads() == 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// Threads of the pool.
pub(crate) fn num_threads() -> usize {
    rayon::current_num_threads()
}

/// Cuts `0..len` into pieces of at least `least` and runs `task(start, end)` for each.
pub(crate) fn for_each_range(len: usize, least: usize, task: impl Fn(usize, usize) + Sync + Send) {
    let pieces = len.div_ceil(least.max(1)).clamp(1, 4 * num_threads());
    let size = len.div_ceil(pieces).next_multiple_of(16);
    for_each(len.div_ceil(size.max(1)), |i| task(i * size, len.min((i + 1) * size)));
}
