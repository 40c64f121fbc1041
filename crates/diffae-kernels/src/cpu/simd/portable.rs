//! Plain Rust, for every machine. The compiler vectorizes the loops where the target allows it.

use super::{LANES, Simd, Task};

/// Arrays of sixteen floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map(a: [f32; LANES], f: impl Fn(f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];

    const ACCUMULATORS: usize = 4;

    #[inline]
    unsafe fn enter<T: Task>(task: T) -> T::Output {
        // SAFETY: no instruction set is needed; the rest is the caller's promise.
        unsafe { task.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen lanes.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen lanes.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        let mut v = [0.; LANES];
        // SAFETY: the caller vouches for the first n lanes; n is at most sixteen.
        unsafe { std::ptr::copy_nonoverlapping(from, v.as_mut_ptr(), n.min(LANES)) };
        v
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        // SAFETY: the caller vouches for the first n lanes; n is at most sixteen.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, n.min(LANES)) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        map(a, f32::sqrt)
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    // Two roundings: without hardware support a fused product is a library call a lane.
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        map(a, f32::round_ties_even)
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(a: Self::V) -> Self::V {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number in -126..=127")]
        map(a, |a| f32::from_bits(((a as i32 + 127) as u32) << 23))
    }
}
