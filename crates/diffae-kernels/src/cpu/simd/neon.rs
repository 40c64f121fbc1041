//! NEON: a vector is four registers, and there are 32 of them.

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vaddq_s32, vcvtq_s32_f32, vdivq_f32, vdupq_n_f32, vdupq_n_s32, vfmaq_f32, vfmsq_f32,
    vld1q_f32, vmaxq_f32, vminq_f32, vmulq_f32, vreinterpretq_f32_s32, vrndnq_f32, vshlq_n_s32, vsqrtq_f32, vst1q_f32,
    vsubq_f32,
};

use super::{LANES, Simd, Task};

/// NEON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon;

/// Applies a function to each register.
#[inline(always)]
fn zip(
    a: [float32x4_t; 4],
    b: [float32x4_t; 4],
    f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t,
) -> [float32x4_t; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

// SAFETY of all blocks below: NEON is part of every aarch64 target with floats; the caller vouches for the lanes
// behind a pointer.
impl Simd for Neon {
    type V = [float32x4_t; 4];

    const ACCUMULATORS: usize = 6;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn enter<T: Task>(task: T) -> T::Output {
        // SAFETY: this function is compiled for the set; the rest is the caller's promise.
        unsafe { task.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above the impl.
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: see above the impl.
        unsafe {
            vst1q_f32(to, v[0]);
            vst1q_f32(to.add(4), v[1]);
            vst1q_f32(to.add(8), v[2]);
            vst1q_f32(to.add(12), v[3]);
        }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        let mut lanes = [0f32; LANES];
        // SAFETY: the caller vouches for the first n lanes; n is at most sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n.min(LANES));
            Self::load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        let mut lanes = [0f32; LANES];
        // SAFETY: the caller vouches for the first n lanes; n is at most sixteen.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n.min(LANES));
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        zip(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        zip(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        zip(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        zip(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        a.map(|a| unsafe { vsqrtq_f32(a) })
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        zip(a, b, |a, b| unsafe { vmaxq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        zip(a, b, |a, b| unsafe { vminq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        unsafe {
            [
                vfmsq_f32(c[0], a[0], b[0]),
                vfmsq_f32(c[1], a[1], b[1]),
                vfmsq_f32(c[2], a[2], b[2]),
                vfmsq_f32(c[3], a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        a.map(|a| unsafe { vrndnq_f32(a) })
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(a: Self::V) -> Self::V {
        // SAFETY: see above the impl.
        a.map(|a| unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127)))) })
    }
}
