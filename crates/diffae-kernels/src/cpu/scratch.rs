//! Buffers aligned to cache lines, and a pool of them.
//!
//! A task owns its scratch for as long as it runs. (A thread-local buffer would be taken away under a task's feet
//! where rayon runs another task while the first waits.)

use std::sync::Mutex;

use super::parallel::Shared;

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Floats that begin at a cache line.
#[derive(Debug, Default)]
struct Lines(Vec<Line>);

impl Lines {
    /// Allocates `len` zeros, rounded up to whole lines.
    fn zeros(len: usize) -> Self {
        Self(vec![Line([0.; 16]); len.div_ceil(16)])
    }

    /// Size in bytes.
    fn num_bytes(&self) -> usize {
        self.0.len() * size_of::<Line>()
    }
}

/// Buffers that are free for their next use.
static POOL: Mutex<Vec<Lines>> = Mutex::new(Vec::new());

/// Maximum number of free buffers in the pool.
const MAX_WAITING: usize = 24;
/// Maximum size of a free buffer in the pool; larger ones are deallocated.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// A buffer that returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(Lines);

impl Scratch {
    /// Takes a buffer of at least `len` floats, of any value, from the pool.
    pub(crate) fn take(len: usize) -> Self {
        let bytes = len * size_of::<f32>();
        let mut pool = match POOL.lock() {
            Ok(pool) => pool,
            Err(poisoned) => poisoned.into_inner(), // nothing in it can be half done
        };
        let fitting = pool.iter().enumerate().filter(|(_, lines)| lines.num_bytes() >= bytes);
        let smallest = fitting.min_by_key(|(_, lines)| lines.num_bytes()).map(|(i, _)| i);
        if let Some(i) = smallest {
            return Self(pool.swap_remove(i));
        }
        drop(pool);
        Self(Lines::zeros(len))
    }

    /// Allocates `len` zeros, rounded up to whole lines.
    pub(crate) fn exact(len: usize) -> Self {
        Self(Lines::zeros(len))
    }

    /// Views all floats of the buffer, which may be more than were asked for.
    pub(crate) fn as_slice(&self) -> &[f32] {
        let lines = &self.0.0;
        // SAFETY: a `Line` is sixteen floats without padding (`repr(C)`, 64 bytes), so the lines are a slice of
        // sixteen times as many floats; all have been initialized by `zeros`.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
    }

    /// Shares all floats of the buffer among tasks that write disjoint parts of them.
    pub(crate) fn share(&mut self) -> Shared<'_, f32> {
        let lines = &mut self.0.0;
        // SAFETY: as in `as_slice`; the borrow is unique.
        let floats = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) };
        Shared::new(floats)
    }

    /// Size in bytes.
    pub(crate) fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.0);
        if lines.num_bytes() > MAX_WAITING_BYTES {
            return;
        }
        if let Ok(mut pool) = POOL.lock() {
            if pool.len() == MAX_WAITING {
                let smallest = pool.iter().enumerate().min_by_key(|(_, lines)| lines.num_bytes()).map(|(i, _)| i);
                smallest.map(|i| pool.swap_remove(i));
            }
            pool.push(lines);
        }
    }
}

/// Makes a vector of `len` values that `fill` writes.
///
/// # Safety
/// `fill` initializes every one of the `len` elements that it is given.
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(Shared<'_, f32>)) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(Shared::uninit(&mut values.spare_capacity_mut()[..len]));
    // SAFETY: the capacity is at least `len`, and the caller vouches for the values.
    unsafe { values.set_len(len) };
    values
}
