//! AVX2 and FMA: a vector is two registers, and there are 16 of them.

use std::arch::x86_64::{
    __m256, __m256i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_prefetch, _mm256_add_epi32,
    _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_shuffle_ps,
    _mm256_slli_epi32, _mm256_sqrt_ps, _mm256_storeu_ps, _mm256_sub_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

use super::{LANES, Simd, Task};

/// AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

/// Number of lanes of one register.
const HALF: usize = 8;

/// Returns the mask of the first `n` lanes of one register.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    const BITS: [i32; 2 * HALF] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: eight of the sixteen entries are read from position 8 - n on, n at most eight; the caller has AVX2.
    unsafe { _mm256_loadu_si256(BITS.as_ptr().add(HALF - n.min(HALF)).cast()) }
}

/// Transposes 8 x 8 lanes.
#[inline(always)]
unsafe fn transpose_8(r: [__m256; HALF]) -> [__m256; HALF] {
    // SAFETY: the caller has AVX2.
    unsafe {
        let mut pairs = r;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut quads = r;
        for i in 0..2 {
            for j in 0..2 {
                let (a, b) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
                quads[4 * i + 2 * j] = _mm256_shuffle_ps::<0x44>(a, b);
                quads[4 * i + 2 * j + 1] = _mm256_shuffle_ps::<0xee>(a, b);
            }
        }
        let mut columns = r;
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(quads[i], quads[4 + i]);
            columns[4 + i] = _mm256_permute2f128_ps::<0x31>(quads[i], quads[4 + i]);
        }
        columns
    }
}

// SAFETY of all blocks below: the caller vouches for AVX2 and FMA and for the lanes behind a pointer; masked loads
// and stores touch only lanes whose mask is set.
impl Simd for Avx2 {
    type V = [__m256; 2];

    const ACCUMULATORS: usize = 6;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn enter<T: Task>(task: T) -> T::Output {
        // SAFETY: this function is compiled for the set; the rest is the caller's promise.
        unsafe { task.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        // SAFETY: a hint, for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(HALF))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: see above the impl.
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(HALF), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        // SAFETY: see above the impl; the second pointer may lie outside the lanes, but is not read then.
        unsafe {
            let high = from.wrapping_add(HALF);
            [_mm256_maskload_ps(from, first(n)), _mm256_maskload_ps(high, first(n.saturating_sub(HALF)))]
        }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        // SAFETY: see above the impl; the second pointer may lie outside the lanes, but is not written then.
        unsafe {
            _mm256_maskstore_ps(to, first(n), v[0]);
            _mm256_maskstore_ps(to.wrapping_add(HALF), first(n.saturating_sub(HALF)), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])]
        }
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(a[0]), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(a[1]), bias);
            [_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high))]
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self::V; LANES]) {
        // SAFETY: see above the impl.
        unsafe {
            for (top, left) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                // Blocks (top, left) and (left, top) of eight change places; the first visit to a pair moves both.
                if top > left {
                    continue;
                }
                let (mut a, mut b) = ([rows[0][0]; HALF], [rows[0][0]; HALF]);
                for i in 0..HALF {
                    a[i] = rows[top * HALF + i][left];
                    b[i] = rows[left * HALF + i][top];
                }
                let (a, b) = (transpose_8(a), transpose_8(b));
                for i in 0..HALF {
                    rows[left * HALF + i][top] = a[i];
                    rows[top * HALF + i][left] = b[i];
                }
            }
        }
    }
}
