//! A fully connected layer for a few rows: reading the weights once is the cost.

use super::parallel::{Shared, for_each_range};
use super::scratch::filled;
use super::simd::{LANES, Simd, Task, run};
use crate::work::note_multiply_adds;

/// Rows up to which [`few_rows`] beats a matrix product.
pub(crate) const FEW_ROWS: usize = 8;

/// `y = x w^T + b` for `x` `[rows, inputs]` and `w` `[outputs, inputs]`.
pub(crate) fn few_rows(x: &[f32], w: &[f32], b: &[f32], inputs: usize) -> Vec<f32> {
    let outputs = b.len();
    let rows = x.len().checked_div(inputs).unwrap_or(0);
    note_multiply_adds(rows * inputs * outputs);
    let least = 65_536_usize.checked_div(inputs).unwrap_or(1).max(1);
    // SAFETY: every output of every row is written.
    unsafe {
        filled(rows * outputs, |to| {
            let to = Shared(to);
            for_each_range(outputs, least, |start, end| {
                for output in start..end {
                    for row in 0..rows {
                        let dot = Dot {
                            a: &x[row * inputs..(row + 1) * inputs],
                            b: &w[output * inputs..(output + 1) * inputs],
                        };
                        *to.get().add(row * outputs + output) = run(dot) + b[output];
                    }
                }
            });
        })
    }
}

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
        // SAFETY: both have `len` elements.
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
