//! Softmax over rows, forward and backward, in place.

use super::math::exp;
use super::parallel::{Shared, for_each_range};
use super::simd::{LANES, Simd, Task, run};

/// Rows that a task takes at least.
fn least(width: usize) -> usize {
    8192_usize.checked_div(width).unwrap_or(1).max(1)
}

/// `exp(s x - max) / sum` for each row of `width`.
pub(crate) fn forward(x: &mut [f32], width: usize, scale: f32) {
    let rows = x.len().checked_div(width).unwrap_or(0);
    let base = Shared(x.as_mut_ptr());
    for_each_range(rows, least(width), |start, end| {
        for row in start..end {
            // SAFETY: each task writes its own rows.
            unsafe { run(Forward { x: base.get().add(row * width), width, scale }) };
        }
    });
}

/// From the weights p and their gradient dp, in place of dp: `s p (dp - sum(p dp))`.
pub(crate) fn backward(p: &[f32], dp: &mut [f32], width: usize, scale: f32) {
    let rows = p.len().checked_div(width).unwrap_or(0);
    let base = Shared(dp.as_mut_ptr());
    for_each_range(rows, least(width), |start, end| {
        for row in start..end {
            let p = p[row * width..].as_ptr();
            // SAFETY: each task writes its own rows.
            unsafe { run(Backward { p, dp: base.get().add(row * width), width, scale }) };
        }
    });
}

struct Forward {
    x: *mut f32,
    width: usize,
    scale: f32,
}

impl Task for Forward {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, width, scale } = self;
        // SAFETY: the row has `width` elements.
        unsafe {
            let mut largest = f32::NEG_INFINITY;
            for at in 0..width {
                largest = largest.max(*x.add(at));
            }
            let (scale, shift) = (S::splat(scale), S::splat(-scale * largest));
            let mut sum = 0.;
            for at in (0..width).step_by(LANES) {
                let count = LANES.min(width - at);
                let e = exp::<S>(S::fma(S::load_first(x.add(at), count), scale, shift));
                S::store_first(x.add(at), count, e);
                sum += S::sum(S::load_first(x.add(at), count));
            }
            let inverse = S::splat(1. / sum);
            for at in (0..width).step_by(LANES) {
                let count = LANES.min(width - at);
                S::store_first(x.add(at), count, S::mul(S::load_first(x.add(at), count), inverse));
            }
        }
    }
}

struct Backward {
    p: *const f32,
    dp: *mut f32,
    width: usize,
    scale: f32,
}

impl Task for Backward {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { p, dp, width, scale } = self;
        // SAFETY: both rows have `width` elements.
        unsafe {
            let mut sum = S::splat(0.);
            for at in (0..width).step_by(LANES) {
                let count = LANES.min(width - at);
                sum = S::fma(S::load_first(p.add(at), count), S::load_first(dp.add(at), count), sum);
            }
            let mean = S::splat(S::sum(sum));
            let scale = S::splat(scale);
            for at in (0..width).step_by(LANES) {
                let count = LANES.min(width - at);
                let slope = S::sub(S::load_first(dp.add(at), count), mean);
                let value = S::mul(S::mul(S::load_first(p.add(at), count), scale), slope);
                S::store_first(dp.add(at), count, value);
            }
        }
    }
}
