//! Sixteen-lane vectors: one interface, one implementation per instruction set.
//!
//! Every kernel body is written once, generic over [`Simd`]. A *task* (a piece of work that one thread does) is a
//! [`Task`]; [`run`] hands it to the selected instruction set, inside a function compiled for that set. Everything
//! between there and the intrinsics is `#[inline(always)]`, because a function that is not inlined is compiled for
//! the baseline of the target.
//!
//! All sets have sixteen lanes, so memory layouts do not depend on the machine; an AVX2 vector is two registers, a
//! NEON one four.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use crate::dispatch::{KernelSet, kernel_set};

/// Number of lanes of every vector.
pub(crate) const LANES: usize = 16;

/// An instruction set for vectors of sixteen `f32`.
///
/// # Safety
/// Every method may be called only where the instruction set is available, and those that take pointers only if the
/// lanes they name are valid to read or write. Pointers need no alignment beyond that of `f32`.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Vector of sixteen lanes.
    type V: Copy;

    /// Maximum number of accumulators in the register tile of a matrix product.
    const ACCUMULATORS: usize;

    /// Runs a task in a function compiled for this set.
    unsafe fn enter<T: Task>(task: T) -> T::Output;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// Loads the first `n` lanes, with zeros in the others.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V;
    /// Stores the first `n` lanes.
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// Computes the maximum; NaN if b is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Computes the minimum; NaN if b is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Computes `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Computes `c - a * b`.
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Rounds to the nearest whole number.
    unsafe fn round(a: Self::V) -> Self::V;
    /// Computes `2^a` for whole numbers in `-126..=127`.
    unsafe fn exp2_of_integer(a: Self::V) -> Self::V;

    /// Prefetches a cache line that will be read soon. The address need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}

    /// Transposes sixteen vectors in place.
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self::V; LANES]) {
        let mut from = [0f32; LANES * LANES];
        let mut to = [0f32; LANES * LANES];
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: row i of 16 lies inside the 256 floats.
            unsafe { Self::store(from.as_mut_ptr().add(i * LANES), *row) };
        }
        for i in 0..LANES {
            for j in 0..LANES {
                to[j * LANES + i] = from[i * LANES + j];
            }
        }
        for (i, row) in rows.iter_mut().enumerate() {
            // SAFETY: as above.
            *row = unsafe { Self::load(to.as_ptr().add(i * LANES)) };
        }
    }

    /// Sums the lanes pairwise.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: the array has sixteen lanes.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = LANES >> 1;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width >>= 1;
        }
        lanes[0]
    }
}

/// A piece of work that one thread does, for any instruction set.
pub(crate) trait Task {
    type Output;

    /// Does the work. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The instruction set is available, pointers that the task holds are valid as their fields say, and no other task
    /// writes where this one reads or writes.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a task with the selected instruction set.
///
/// # Safety
/// That of [`Task::run`], but for the instruction set, which the machine has.
pub(crate) unsafe fn run<T: Task>(task: T) -> T::Output {
    // SAFETY: only sets that `KernelSet::is_available` are ever selected; the rest is the caller's promise.
    unsafe {
        match kernel_set() {
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx512 => avx512::Avx512::enter(task),
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx2 => avx2::Avx2::enter(task),
            #[cfg(target_arch = "aarch64")]
            KernelSet::Neon => neon::Neon::enter(task),
            _ => portable::Portable::enter(task),
        }
    }
}
