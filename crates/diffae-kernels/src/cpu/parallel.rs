//! Tasks over all threads that write to disjoint parts of one buffer.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use rayon::prelude::*;

/// A mutable slice, perhaps not yet initialized, that tasks write disjoint parts of.
///
/// It hands out addresses only, each with a checked length; writing through them is up to unsafe code, which has to see
/// to it that no two tasks write to the same place.
#[derive(Debug)]
pub(crate) struct Shared<'a, T> {
    base: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [MaybeUninit<T>]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

// SAFETY: it stands for a mutable slice, which may be sent where its elements may; what is read and written through
// its addresses is up to the unsafe code that does so.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above; the methods hand out addresses only.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares a slice for as long as it is borrowed.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { base: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Shares a slice whose elements have no values yet.
    pub(crate) fn uninit(slice: &'a mut [MaybeUninit<T>]) -> Self {
        Self { base: slice.as_mut_ptr().cast(), len: slice.len(), slice: PhantomData }
    }

    /// Returns the address of the `len` elements from `start` on, all of which lie inside the slice.
    ///
    /// # Panics
    /// If they do not: a fault of a kernel, as an index out of range is.
    #[inline(always)]
    pub(crate) fn part(self, start: usize, len: usize) -> *mut T {
        let end = start.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "{len} elements from {start} on of {}", self.len);
        self.base.wrapping_add(start)
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

/// Returns the number of threads of the pool.
pub(crate) fn num_threads() -> usize {
    rayon::current_num_threads()
}

/// Cuts `0..len` into disjoint pieces of at least `min` and runs `task(start, end)` for each, on all threads.
pub(crate) fn for_each_range(len: usize, min: usize, task: impl Fn(usize, usize) + Sync + Send) {
    let pieces = len.div_ceil(min.max(1)).clamp(1, 4 * num_threads());
    let size = len.div_ceil(pieces).next_multiple_of(16);
    for_each(len.div_ceil(size.max(1)), |i| task(i * size, len.min((i + 1) * size)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_inside_the_slice() {
        let mut values = [0f32; 10];
        let shared = Shared::new(&mut values);
        assert_eq!(shared.part(10, 0), shared.part(0, 10).wrapping_add(10));
        for (start, len) in [(0, 11), (9, 2), (11, 0), (1, usize::MAX)] {
            assert!(std::panic::catch_unwind(|| shared.part(start, len)).is_err(), "{start} {len}");
        }
    }

    #[test]
    fn ranges_cover_each_index_once() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut counts = vec![0u8; len];
            let shared = Shared::new(&mut counts);
            for_each_range(len, 20, |start, end| {
                let part = shared.part(start, end - start);
                for i in 0..end - start {
                    // SAFETY: the part has `end - start` elements, and ranges are disjoint.
                    unsafe { *part.add(i) += 1 };
                }
            });
            assert!(counts.iter().all(|count| *count == 1));
        }
    }
}
