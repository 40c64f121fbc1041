//! Buffers aligned to cache lines, and a pool of them.
//!
//! A task owns its scratch for as long as it runs. (Scratch of the thread would be taken away under a task's feet
//! where rayon runs another task while the first waits.)

use std::sync::Mutex;

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Floats that begin at a cache line.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// `len` zeros, rounded up to whole lines.
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![Line([0.; 16]); len.div_ceil(16)])
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    /// Bytes held.
    pub(crate) fn num_bytes(&self) -> usize {
        self.0.len() * size_of::<Line>()
    }
}

/// Buffers that wait for their next use.
static POOL: Mutex<Vec<Lines>> = Mutex::new(Vec::new());

/// How many buffers wait at most, and how large the largest of them is.
const MAX_WAITING: usize = 24;
const MAX_WAITING_BYTES: usize = 64 << 20;

/// A buffer of the pool; goes back when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(Lines);

impl Scratch {
    /// At least `len` floats of any value.
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

    /// Exactly `len` zeros of its own, rounded up to whole lines.
    pub(crate) fn exact(len: usize) -> Self {
        Self(Lines::zeros(len))
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr()
    }

    /// Bytes held.
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

/// A vector of `len` floats that `fill` writes all of.
///
/// # Safety
/// `fill` writes every one of the `len` floats behind the pointer that it is given.
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(*mut f32)) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(values.as_mut_ptr());
    // SAFETY: the capacity is there, and the caller vouches for the values.
    unsafe { values.set_len(len) };
    values
}
