//! Winograd's minimal filtering for 3x3 kernels: the one-dimensional transforms and their products.
//!
//! `y = A^T [(G g G^T) * (B^T d B)] A` for a tile d of the input, a kernel g and a tile y of the output. With points
//! `p_i` and `N_i = prod over j != i of (p_i - p_j)`, row i of `A` is `(1, p_i, p_i^2, ..)`, row i of `G` is
//! `(1, p_i, p_i^2) / N_i`, row i of `B^T` has the coefficients of `prod over j != i of (x - p_j)`; the last row
//! belongs to the point at infinity.
//!
//! # Source
//! Winograd 1980; Lavin and Gray 2015 (arXiv:1509.09308). The points `0, +-sqrt(1/2), +-sqrt(2)` of [`F4`] give a
//! fifth of the rounding error of the usual `0, +-1, +-2`, since the powers in `A` and `B` stay small.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};
use std::marker::PhantomData;

use super::simd::Simd;

/// A linear map of vectors of FROM elements to vectors of TO.
///
/// (Types rather than closures: a closure that the compiler does not inline runs without the instruction set.)
pub(crate) trait Linear<const FROM: usize, const TO: usize> {
    /// Applies the map to sixteen vectors at once, one a lane.
    ///
    /// # Safety
    /// The instruction set is available.
    unsafe fn apply<S: Simd>(x: [S::V; FROM]) -> [S::V; TO];
}

/// One of Winograd's algorithms: output tiles of M x M from input tiles of T x T, T = M + 2.
pub(crate) trait Tiles<const T: usize, const M: usize>: Copy + Send + Sync {
    /// Transform of input tiles, `B^T d`.
    type Input: Linear<T, T>;
    /// Transform of kernels, `G g`.
    type Weight: Linear<3, T>;
    /// Transform of products to output tiles, `A^T m`.
    type Output: Linear<T, M>;
    /// Adjoint of the output transform, `A y`.
    type OutputAdjoint: Linear<M, T>;
    /// Adjoint of the kernel transform, `G^T u`.
    type WeightAdjoint: Linear<T, 3>;
}

/// Transform of input tiles of the algorithm `W`.
#[derive(Debug)]
pub(crate) struct Input<W>(PhantomData<W>);
/// Transform of kernels of the algorithm `W`.
#[derive(Debug)]
pub(crate) struct Weight<W>(PhantomData<W>);
/// Transform of products of the algorithm `W` to output tiles.
#[derive(Debug)]
pub(crate) struct Output<W>(PhantomData<W>);
/// Adjoint of [`Output`].
#[derive(Debug)]
pub(crate) struct OutputAdjoint<W>(PhantomData<W>);
/// Adjoint of [`Weight`].
#[derive(Debug)]
pub(crate) struct WeightAdjoint<W>(PhantomData<W>);

/// F(2x2, 3x3): points 0, 1, -1. Four positions an output instead of nine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F2;

/// F(4x4, 3x3): points 0, +-sqrt(1/2), +-sqrt(2). Two and a quarter positions an output instead of nine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F4;

// SAFETY of all blocks below: the caller's promise is that of every method called.
impl Tiles<4, 2> for F2 {
    type Input = Input<Self>;
    type Weight = Weight<Self>;
    type Output = Output<Self>;
    type OutputAdjoint = OutputAdjoint<Self>;
    type WeightAdjoint = WeightAdjoint<Self>;
}

impl Linear<4, 4> for Input<F2> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(d: [S::V; 4]) -> [S::V; 4] {
        // SAFETY: see above the impl.
        unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[3], d[1])] }
    }
}

impl Linear<3, 4> for Weight<F2> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(g: [S::V; 3]) -> [S::V; 4] {
        // SAFETY: see above the impl.
        unsafe {
            let half = S::splat(0.5);
            let even = S::mul(half, S::add(g[0], g[2]));
            let odd = S::mul(half, g[1]);
            [g[0], S::add(even, odd), S::sub(even, odd), g[2]]
        }
    }
}

impl Linear<4, 2> for Output<F2> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(m: [S::V; 4]) -> [S::V; 2] {
        // SAFETY: see above the impl.
        unsafe { [S::add(m[0], S::add(m[1], m[2])), S::add(S::sub(m[1], m[2]), m[3])] }
    }
}

impl Linear<2, 4> for OutputAdjoint<F2> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(y: [S::V; 2]) -> [S::V; 4] {
        // SAFETY: see above the impl.
        unsafe { [y[0], S::add(y[0], y[1]), S::sub(y[0], y[1]), y[1]] }
    }
}

impl Linear<4, 3> for WeightAdjoint<F2> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(u: [S::V; 4]) -> [S::V; 3] {
        // SAFETY: see above the impl.
        unsafe {
            let half = S::splat(0.5);
            let even = S::mul(half, S::add(u[1], u[2]));
            let odd = S::mul(half, S::sub(u[1], u[2]));
            [S::add(u[0], even), odd, S::add(u[3], even)]
        }
    }
}

/// First pair of points of [`F4`].
const P: f32 = FRAC_1_SQRT_2;
// Powers of P.
const P_2: f32 = 0.5;
const P_3: f32 = 0.5 * FRAC_1_SQRT_2;
/// Second pair of points of [`F4`].
const Q: f32 = SQRT_2;
// Powers of Q.
const Q_2: f32 = 2.;
const Q_3: f32 = 2. * SQRT_2;
// `1 / N_i` of both pairs; that of the point 0 is one.
const INV_N_P: f32 = -2. / 3.;
const INV_N_Q: f32 = 1. / 6.;

impl Tiles<6, 4> for F4 {
    type Input = Input<Self>;
    type Weight = Weight<Self>;
    type Output = Output<Self>;
    type OutputAdjoint = OutputAdjoint<Self>;
    type WeightAdjoint = WeightAdjoint<Self>;
}

impl Linear<6, 6> for Input<F4> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: see above the impl.
        unsafe {
            let middle = S::splat(-(P_2 + Q_2));
            let first = S::fma(middle, d[2], S::add(d[0], d[4]));
            let last = S::fma(middle, d[3], S::add(d[1], d[5]));
            let even_p = S::fnma(S::splat(Q_2), d[2], d[4]);
            let odd_p = S::mul(S::splat(P), S::fnma(S::splat(Q_2), d[1], d[3]));
            let even_q = S::fnma(S::splat(P_2), d[2], d[4]);
            let odd_q = S::mul(S::splat(Q), S::fnma(S::splat(P_2), d[1], d[3]));
            [first, S::add(even_p, odd_p), S::sub(even_p, odd_p), S::add(even_q, odd_q), S::sub(even_q, odd_q), last]
        }
    }
}

impl Linear<3, 6> for Weight<F4> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(g: [S::V; 3]) -> [S::V; 6] {
        // SAFETY: see above the impl.
        unsafe {
            let even_p = S::mul(S::splat(INV_N_P), S::fma(S::splat(P_2), g[2], g[0]));
            let odd_p = S::mul(S::splat(INV_N_P * P), g[1]);
            let even_q = S::mul(S::splat(INV_N_Q), S::fma(S::splat(Q_2), g[2], g[0]));
            let odd_q = S::mul(S::splat(INV_N_Q * Q), g[1]);
            [g[0], S::add(even_p, odd_p), S::sub(even_p, odd_p), S::add(even_q, odd_q), S::sub(even_q, odd_q), g[2]]
        }
    }
}

impl Linear<6, 4> for Output<F4> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
        // SAFETY: see above the impl.
        unsafe {
            let (sum_p, difference_p) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (sum_q, difference_q) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            [
                S::add(m[0], S::add(sum_p, sum_q)),
                S::fma(S::splat(P), difference_p, S::mul(S::splat(Q), difference_q)),
                S::fma(S::splat(P_2), sum_p, S::mul(S::splat(Q_2), sum_q)),
                S::fma(S::splat(P_3), difference_p, S::fma(S::splat(Q_3), difference_q, m[5])),
            ]
        }
    }
}

impl Linear<4, 6> for OutputAdjoint<F4> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(y: [S::V; 4]) -> [S::V; 6] {
        // SAFETY: see above the impl.
        unsafe {
            let even_p = S::fma(S::splat(P_2), y[2], y[0]);
            let odd_p = S::fma(S::splat(P_3), y[3], S::mul(S::splat(P), y[1]));
            let even_q = S::fma(S::splat(Q_2), y[2], y[0]);
            let odd_q = S::fma(S::splat(Q_3), y[3], S::mul(S::splat(Q), y[1]));
            [y[0], S::add(even_p, odd_p), S::sub(even_p, odd_p), S::add(even_q, odd_q), S::sub(even_q, odd_q), y[3]]
        }
    }
}

impl Linear<6, 3> for WeightAdjoint<F4> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(u: [S::V; 6]) -> [S::V; 3] {
        // SAFETY: see above the impl.
        unsafe {
            let sum_p = S::mul(S::splat(INV_N_P), S::add(u[1], u[2]));
            let difference_p = S::mul(S::splat(INV_N_P * P), S::sub(u[1], u[2]));
            let sum_q = S::mul(S::splat(INV_N_Q), S::add(u[3], u[4]));
            let difference_q = S::mul(S::splat(INV_N_Q * Q), S::sub(u[3], u[4]));
            [
                S::add(u[0], S::add(sum_p, sum_q)),
                S::add(difference_p, difference_q),
                S::fma(S::splat(P_2), sum_p, S::fma(S::splat(Q_2), sum_q, u[5])),
            ]
        }
    }
}

/// Applies a one-dimensional map to columns, then to rows: `L x L^T`.
///
/// # Safety
/// The instruction set is available.
#[inline(always)]
pub(crate) unsafe fn both_ways<S: Simd, L: Linear<FROM, TO>, const FROM: usize, const TO: usize>(
    x: &[[S::V; FROM]; FROM],
) -> [[S::V; TO]; TO] {
    // SAFETY: the caller's promise is that of every method called.
    unsafe {
        let mut half = [[S::splat(0.); FROM]; TO];
        for j in 0..FROM {
            let mut column = x[0];
            for i in 0..FROM {
                column[i] = x[i][j];
            }
            let column = L::apply::<S>(column);
            for i in 0..TO {
                half[i][j] = column[i];
            }
        }
        let mut y = [[S::splat(0.); TO]; TO];
        for i in 0..TO {
            y[i] = L::apply::<S>(half[i]);
        }
        y
    }
}
