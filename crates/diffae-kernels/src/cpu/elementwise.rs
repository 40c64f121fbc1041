//! Sums and copies over all threads.

use super::length::{LengthResult, check_length};
use super::parallel::{Shared, for_each_range};
use super::scratch::filled;
use super::simd::{LANES, Simd, Task, run};

/// Minimum number of elements of a task.
const MIN_TASK_LEN: usize = 16_384;

/// Computes `a + b`.
///
/// # Errors
/// If the lengths differ.
pub(crate) fn add(a: &[f32], b: &[f32]) -> LengthResult<Vec<f32>> {
    check_length("the second summand", b.len(), &[a.len()])?;
    // SAFETY: the ranges cover all elements, and a task writes all of its range.
    let sum = unsafe {
        filled(a.len(), |to| {
            for_each_range(a.len(), MIN_TASK_LEN, |start, end| {
                let task = Add { a: &a[start..end], b: &b[start..end], to: to.part(start, end - start) };
                // SAFETY: the slices and `to` have the same length, and ranges are disjoint.
                run(task);
            });
        })
    };
    Ok(sum)
}

/// Sum of one range, `to = a + b`; all three have the length of `a`.
struct Add<'a> {
    a: &'a [f32],
    b: &'a [f32],
    to: *mut f32,
}

impl Task for Add<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (len, a, b) = (self.a.len(), self.a.as_ptr(), self.b.as_ptr());
        for at in (0..len).step_by(LANES) {
            let count = LANES.min(len - at);
            // SAFETY: `at + count <= len`, and all three have `len` elements.
            unsafe {
                let sum = S::add(S::load_first(a.add(at), count), S::load_first(b.add(at), count));
                S::store_first(self.to.add(at), count, sum);
            }
        }
    }
}

/// Concatenates along the second axis: `[N, A]` and `[N, B]` to `[N, A + B]`. `widths`: A and B.
///
/// # Errors
/// If the lengths are not those.
pub(crate) fn interleave(a: &[f32], b: &[f32], num_blocks: usize, widths: [usize; 2]) -> LengthResult<Vec<f32>> {
    let [a_len, b_len] = widths;
    check_length("the first part of a concatenation", a.len(), &[num_blocks, a_len])?;
    check_length("the second part of a concatenation", b.len(), &[num_blocks, b_len])?;
    let width = a_len + b_len;
    let min = MIN_TASK_LEN.checked_div(width).unwrap_or(1).max(1);
    let copy = |to: Shared<'_, f32>| {
        for_each_range(num_blocks, min, |start, end| {
            for block in start..end {
                let (a, b) = (&a[block * a_len..][..a_len], &b[block * b_len..][..b_len]);
                let to = to.part(block * width, width);
                // SAFETY: `to` has `a_len + b_len` elements, and each task writes its own blocks.
                unsafe {
                    to.copy_from_nonoverlapping(a.as_ptr(), a_len);
                    to.add(a_len).copy_from_nonoverlapping(b.as_ptr(), b_len);
                }
            }
        });
    };
    // SAFETY: the ranges cover all blocks, and all of each block is written.
    Ok(unsafe { filled(num_blocks * width, copy) })
}

/// Sums `x`, `[N, C, area]`, over images and pixels; result: `[C]`.
///
/// # Errors
/// If `x` is not a whole number of images.
pub(crate) fn channel_sums(x: &[f32], channels: usize, area: usize) -> LengthResult<Vec<f32>> {
    let images = x.len().checked_div(channels * area).unwrap_or(0);
    check_length("the argument of a sum over images", x.len(), &[images, channels, area])?;
    let mut sums = vec![0f32; channels];
    let to = Shared::new(&mut sums);
    let min = MIN_TASK_LEN.checked_div(images * area).unwrap_or(1).max(1);
    for_each_range(channels, min, |start, end| {
        for channel in start..end {
            let sum = (0..images).map(|image| {
                let at = (image * channels + channel) * area;
                // SAFETY: the task reads a slice.
                f64::from(unsafe { run(Sum(&x[at..at + area])) })
            });
            #[expect(clippy::cast_possible_truncation, reason = "the sum of an f32 tensor is f32")]
            let sum = sum.sum::<f64>() as f32;
            // SAFETY: `part` has checked the place, and each task writes its own channels.
            unsafe { *to.part(channel, 1) = sum };
        }
    });
    Ok(sums)
}

/// Sum of a slice.
struct Sum<'a>(&'a [f32]);

impl Task for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: `at + count` is at most the length of the slice.
        unsafe {
            let mut sums = [S::splat(0.); 4];
            for (i, at) in (0..self.0.len()).step_by(LANES).enumerate() {
                let count = LANES.min(self.0.len() - at);
                sums[i % 4] = S::add(sums[i % 4], S::load_first(self.0.as_ptr().add(at), count));
            }
            S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_other_lengths_are_refused() {
        let values = [1.; 12];
        assert!(add(&values, &values[1..]).is_err());
        assert!(interleave(&values, &values[..6], 2, [6, 3]).is_ok());
        assert!(interleave(&values, &values[..5], 2, [6, 3]).is_err());
        assert!(interleave(&values[1..], &values[..6], 2, [6, 3]).is_err());
        assert!(channel_sums(&values, 5, 2).is_err());
        assert_eq!(channel_sums(&values, 2, 3).unwrap(), [6., 6.]);
    }
}
