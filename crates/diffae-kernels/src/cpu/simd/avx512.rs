//! AVX-512 (F): a vector is one register, and there are 32 of them.

use std::arch::x86_64::{
    __m512, __mmask16, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32,
    _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castsi512_ps, _mm512_cvtps_epi32, _mm512_div_ps,
    _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_roundscale_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_sqrt_ps, _mm512_storeu_ps, _mm512_sub_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::{LANES, Simd, Task};

/// AVX-512 (F), AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512;

/// Returns the mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n >= LANES { u16::MAX } else { (1u16 << n) - 1 }
}

// SAFETY of all blocks below: the caller vouches for AVX-512 and for the lanes behind a pointer; masked loads and
// stores touch only lanes whose mask bit is set.
impl Simd for Avx512 {
    type V = __m512;

    const ACCUMULATORS: usize = 24;

    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
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
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: see above the impl.
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_maskz_loadu_ps(first(n), from) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        // SAFETY: see above the impl.
        unsafe { _mm512_mask_storeu_ps(to, first(n), v) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self::V; LANES]) {
        // SAFETY: see above the impl.
        unsafe {
            // Pairs of rows, then quadruples, inside each 128-bit quarter.
            let mut a = *rows;
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut b = a;
            for i in 0..4 {
                let quad = [
                    _mm512_castps_pd(a[4 * i]),
                    _mm512_castps_pd(a[4 * i + 1]),
                    _mm512_castps_pd(a[4 * i + 2]),
                    _mm512_castps_pd(a[4 * i + 3]),
                ];
                b[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(quad[0], quad[2]));
                b[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(quad[0], quad[2]));
                b[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(quad[1], quad[3]));
                b[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(quad[1], quad[3]));
            }
            // Quarters change places: b[4q + j] holds column 4k + j of rows 4q..4q + 4 in quarter k.
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(b[j], b[4 + j]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(b[j], b[4 + j]);
                let even_high = _mm512_shuffle_f32x4::<0x88>(b[8 + j], b[12 + j]);
                let odd_high = _mm512_shuffle_f32x4::<0xdd>(b[8 + j], b[12 + j]);
                rows[j] = _mm512_shuffle_f32x4::<0x88>(even, even_high);
                rows[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, even_high);
                rows[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd_high);
                rows[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_high);
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: see above the impl.
        unsafe { _mm512_reduce_add_ps(v) }
    }
}
