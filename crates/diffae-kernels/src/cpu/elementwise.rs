//! Sums and copies over all threads.

use super::parallel::{Shared, for_each_range};
use super::scratch::filled;
use super::simd::{LANES, Simd, Task, run};

/// Elements that a task takes at least.
const LEAST: usize = 16_384;

/// `a + b`.
pub(crate) fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    let len = a.len().min(b.len());
    // SAFETY: every element is written.
    unsafe {
        filled(len, |to| {
            let to = Shared(to);
            for_each_range(len, LEAST, |start, end| {
                let task = Add {
                    a: a.as_ptr().add(start),
                    b: b.as_ptr().add(start),
                    to: to.get().add(start),
                    len: end - start,
                };
                run(task);
            });
        })
    }
}

struct Add {
    a: *const f32,
    b: *const f32,
    to: *mut f32,
    len: usize,
}

impl Task for Add {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for at in (0..self.len).step_by(LANES) {
            let count = LANES.min(self.len - at);
            // SAFETY: all three have `len` elements.
            unsafe {
                let sum = S::add(S::load_first(self.a.add(at), count), S::load_first(self.b.add(at), count));
                S::store_first(self.to.add(at), count, sum);
            }
        }
    }
}

/// Blocks of `a` and `b` in turn: `[N, A]` and `[N, B]` to `[N, A + B]`.
pub(crate) fn interleave<T: Copy + Send + Sync>((a, a_len): (&[T], usize), (b, b_len): (&[T], usize)) -> Vec<T> {
    let blocks = a.len().checked_div(a_len).unwrap_or(0);
    let mut to: Vec<T> = Vec::with_capacity(a.len() + b.len());
    let base = Shared(to.as_mut_ptr());
    let least = LEAST.checked_div(a_len + b_len).unwrap_or(1).max(1);
    for_each_range(blocks, least, |start, end| {
        for block in start..end {
            // SAFETY: each task writes its own blocks.
            unsafe {
                let to = base.get().add(block * (a_len + b_len));
                to.copy_from_nonoverlapping(a.as_ptr().add(block * a_len), a_len);
                to.add(a_len).copy_from_nonoverlapping(b.as_ptr().add(block * b_len), b_len);
            }
        }
    });
    // SAFETY: all blocks of both are written.
    unsafe { to.set_len(blocks * (a_len + b_len)) };
    to
}

/// The sum over images and pixels of each channel of `[N, C, area]`.
pub(crate) fn channel_sums(x: &[f32], channels: usize, area: usize) -> Vec<f32> {
    let images = x.len().checked_div(channels * area).unwrap_or(0);
    let mut sums = vec![0f32; channels];
    let to = Shared(sums.as_mut_ptr());
    let least = LEAST.checked_div(images * area).unwrap_or(1).max(1);
    for_each_range(channels, least, |start, end| {
        for channel in start..end {
            let sum = (0..images).map(|image| {
                let at = (image * channels + channel) * area;
                // SAFETY: the task only reads.
                f64::from(unsafe { run(Sum(&x[at..at + area])) })
            });
            #[expect(clippy::cast_possible_truncation, reason = "the sum of an f32 tensor is f32")]
            let sum = sum.sum::<f64>() as f32;
            // SAFETY: each task writes its own channels.
            unsafe { *to.get().add(channel) = sum };
        }
    });
    sums
}

struct Sum<'a>(&'a [f32]);

impl Task for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: only elements of the slice are read.
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
