//! Elementary functions of vectors.

use super::simd::Simd;

/// Computes `e^x`, within 2 units in the last place for `x` in `[-87, 88]`.
///
/// Outside, `x` is clamped to that range; NaN gives NaN. `x = n ln 2 + r` with n whole and `|r| <= ln(2) / 2`; `e^r` by a
/// polynomial of degree 6.
///
/// # Safety
/// The instruction set is available.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    /// ln 2 in two parts, the first with trailing zeros, so that `n` times it is exact.
    const LN_2: [f32; 2] = [355. / 512., -2.121_944_4e-4];
    /// Highest power first; the last two coefficients, 1 and 1, are those of the Taylor series.
    const POLYNOMIAL: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    // SAFETY: the caller's promise is that of every method called.
    unsafe {
        // In this order NaN comes through: where one operand is NaN, the second is the result.
        let x = S::min(S::splat(88.), S::max(S::splat(-87.), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fnma(n, S::splat(LN_2[1]), S::fnma(n, S::splat(LN_2[0]), x));
        let mut p = S::splat(POLYNOMIAL[0]);
        p = S::fma(p, r, S::splat(POLYNOMIAL[1]));
        p = S::fma(p, r, S::splat(POLYNOMIAL[2]));
        p = S::fma(p, r, S::splat(POLYNOMIAL[3]));
        p = S::fma(p, r, S::splat(POLYNOMIAL[4]));
        let p = S::fma(S::mul(p, r), r, S::add(r, S::splat(1.)));
        S::mul(p, S::exp2_of_integer(n))
    }
}

/// Computes `1 / (1 + e^-x)`.
///
/// # Safety
/// The instruction set is available.
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise is that of every method called.
    unsafe {
        let one = S::splat(1.);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.), x))))
    }
}

/// Computes `x * sigmoid(x)`.
///
/// # Safety
/// The instruction set is available.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise is that of every method called.
    unsafe {
        let one = S::splat(1.);
        S::div(x, S::add(one, exp::<S>(S::sub(S::splat(0.), x))))
    }
}

/// Computes the derivative of [`silu`]: `s (1 + x (1 - s))`, `s = sigmoid(x)`.
///
/// # Safety
/// The instruction set is available.
#[inline(always)]
pub(crate) unsafe fn silu_slope<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise is that of every method called.
    unsafe {
        let s = sigmoid::<S>(x);
        let one = S::splat(1.);
        S::mul(s, S::fma(x, S::sub(one, s), one))
    }
}
