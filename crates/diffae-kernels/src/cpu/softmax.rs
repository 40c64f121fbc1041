//! Softmax over rows, forward and backward, in place.

use super::length::{LengthResult, check_length};
use super::math::exp;
use super::parallel::{Shared, for_each_range};
use super::simd::{LANES, Simd, Task, run};

/// Minimum number of rows of a task.
fn min_rows(width: usize) -> usize {
    8192_usize.checked_div(width).unwrap_or(1).max(1)
}

/// Computes the softmax of `scale * x` over rows of `width`, in place: `exp(scale * x - max) / sum`.
///
/// # Errors
/// If `x` is not whole rows.
pub(crate) fn forward(x: &mut [f32], width: usize, scale: f32) -> LengthResult<()> {
    let rows = x.len().checked_div(width).unwrap_or(0);
    check_length("the argument of a softmax", x.len(), &[rows, width])?;
    let x = Shared::new(x);
    for_each_range(rows, min_rows(width), |start, end| {
        for row in start..end {
            let task = Forward { x: x.part(row * width, width), width, scale };
            // SAFETY: the row has `width` elements, and each task writes its own rows.
            unsafe { run(task) };
        }
    });
    Ok(())
}

/// Computes the gradient w.r.t. x of the softmax `p` of `scale * x`, in place of `dp`, that w.r.t. `p`:
/// `scale p (dp - sum(p dp))` over rows of `width`.
///
/// # Errors
/// If the lengths differ, or are not whole rows.
pub(crate) fn backward(p: &[f32], dp: &mut [f32], width: usize, scale: f32) -> LengthResult<()> {
    let rows = p.len().checked_div(width).unwrap_or(0);
    check_length("a softmax", p.len(), &[rows, width])?;
    check_length("the gradient of a softmax", dp.len(), &[rows, width])?;
    let dp = Shared::new(dp);
    for_each_range(rows, min_rows(width), |start, end| {
        for row in start..end {
            let task = Backward { p: &p[row * width..(row + 1) * width], dp: dp.part(row * width, width), scale };
            // SAFETY: both rows have `width` elements, and each task writes its own rows.
            unsafe { run(task) };
        }
    });
    Ok(())
}

/// Softmax of one row of `width` elements.
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

/// Gradient of one row, with as many elements as `p`.
struct Backward<'a> {
    p: &'a [f32],
    dp: *mut f32,
    scale: f32,
}

impl Task for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { p, dp, scale } = self;
        let (p, width) = (p.as_ptr(), p.len());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_must_be_whole_and_of_equal_number() {
        let mut values = vec![0.; 12];
        assert!(forward(&mut values, 5, 1.).is_err());
        forward(&mut values, 4, 1.).unwrap();
        assert_eq!(values, [0.25; 12]);
        assert!(backward(&[0.25; 12], &mut values[1..], 4, 1.).is_err());
        assert!(backward(&[0.25; 11], &mut values[..11], 4, 1.).is_err());
        backward(&[0.25; 12], &mut values, 4, 1.).unwrap();
        assert_eq!(values, [0.; 12]);
    }
}
