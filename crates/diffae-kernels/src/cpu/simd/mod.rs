//! Sixteen-lane vectors: one interface, one implementation an instruction set.
//!
//! Every kernel body is written once, generic over [`Simd`]. A *task* (a piece of work that one thread does) is a
//! [`Task`]; [`run`] hands it to the instruction set in force, inside a function compiled for that set. Everything
//! between there and the intrinsics is `#[inline(always)]`, because a function that is not inlined is compiled for
//! the baseline of the target.
//!
//! All sets have sixteen lanes, so memory layouts do not depend on the machine; an AVX2 vector is two registers, a
//! NEON one four.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

use crate::dispatch::{KernelSet, kernel_set};

/// Lanes of every vector.
pub(crate) const LANES: usize = 16;

/// Vectors of sixteen `f32`.
///
/// # Safety
/// Every method may be called only where the instruction set is available, and those that take pointers only if the
/// lanes they name are valid to read or write. Pointers need no alignment beyond that of `f32`.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen lanes.
    type V: Copy;

    /// Accumulators that the register tile of a matrix product may hold.
    const ACCUMULATORS: usize;

    /// Runs a task in a function compiled for this set.
    unsafe fn enter<T: Task>(task: T) -> T::Output;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// The first `n` lanes, zeros in the others.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V;
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// The larger; NaN if b is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; NaN if b is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`.
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest whole number.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^a` for whole numbers in `-126..=127`.
    unsafe fn exp2_of_integer(a: Self::V) -> Self::V;

    /// Asks for a cache line that will be read soon. The address need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}

    /// Rows become columns.
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

    /// The sum of the lanes, pairwise.
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

/// What one thread does, for any instruction set.
pub(crate) trait Task {
    type Output;

    /// Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The instruction set is available, and what the task holds is as its constructor demands.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a task with the instruction set in force.
///
/// # Safety
/// As [`Task::run`], but for the instruction set, which [`kernel_set`] has found available.
pub(crate) unsafe fn run<T: Task>(task: T) -> T::Output {
    // SAFETY: the set in force is one that the machine has; the rest is the caller's promise.
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
