//! Fully connected layers of a few rows, whose cost is reading the weights once.

use super::length::{LengthResult, check_length};
use super::parallel::{Shared, for_each_range};
use super::scratch::filled;
use super::simd::{LANES, Simd, Task, run};
use crate::work::note_multiply_adds;

/// Maximum number of rows for which [`few_rows`] beats a matrix product.
pub(crate) const FEW_ROWS: usize = 8;

/// Computes `y = x w^T + b` for `x` `[rows, inputs]`, `w` `[outputs, inputs]` and `b` `[outputs]`.
///
/// # Errors
/// If the lengths are not those.
pub(crate) fn few_rows(x: &[f32], w: &[f32], b: &[f32], inputs: usize) -> LengthResult<Vec<f32>> {
    let outputs = b.len();
    let rows = x.len().checked_div(inputs).unwrap_or(0);
    check_length("the input of a linear layer", x.len(), &[rows, inputs])?;
    check_length("the weight of a linear layer", w.len(), &[outputs, inputs])?;
    check_length("the output of a linear layer", rows.wrapping_mul(outputs), &[rows, outputs])?;
    note_multiply_adds(rows * inputs * outputs);
    let min = 65_536_usize.checked_div(inputs).unwrap_or(1).max(1);
    let multiply = |to: Shared<'_, f32>| {
        for_each_range(outputs, min, |start, end| {
            for output in start..end {
                for row in 0..rows {
                    let dot =
                        Dot { a: &x[row * inputs..(row + 1) * inputs], b: &w[output * inputs..(output + 1) * inputs] };
                    // SAFETY: the task reads slices; `part` has checked the place, and each task writes its own outputs.
                    unsafe { *to.part(row * outputs + output, 1) = run(dot) + b[output] };
                }
            }
        });
    };
    // SAFETY: the ranges cover all outputs, each of which is written for every row.
    Ok(unsafe { filled(rows * outputs, multiply) })
}

/// Scalar product of two slices.
struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Task for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let len = self.a.len().min(self.b.len());
        let (a, b) = (self.a.as_ptr(), self.b.as_ptr());
        // SAFETY: both have at least `len` elements.
        unsafe {
            let mut sums = [S::splat(0.); 4];
            let mut at = 0;
            while at + 4 * LANES <= len {
                for i in 0..4 {
                    sums[i] = S::fma(S::load(a.add(at + i * LANES)), S::load(b.add(at + i * LANES)), sums[i]);
                }
                at += 4 * LANES;
            }
            while at < len {
                let count = LANES.min(len - at);
                sums[0] = S::fma(S::load_first(a.add(at), count), S::load_first(b.add(at), count), sums[0]);
                at += count;
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
        assert_eq!(few_rows(&values[..6], &values, &values[..4], 3).unwrap(), [4.; 8]);
        assert!(few_rows(&values[..5], &values, &values[..4], 3).is_err());
        assert!(few_rows(&values[..6], &values[1..], &values[..4], 3).is_err());
        assert!(few_rows(&values[..6], &values, &values[..5], 3).is_err());
    }
}
