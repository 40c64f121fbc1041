//! Group normalization, its affine map and SiLU: statistics, forward and backward.
//!
//! `x_hat = (x - mean) * rstd` by image and group; `u = x_hat * scale + shift` by image and channel; `y = f(u)`.

mod backward;

pub(crate) use backward::Backward;

use super::length::{LengthResult, check_length};
use super::math::silu;
use super::parallel::{Shared, for_each_range};
use super::planes::{Activation, Affine, Planes};
use super::scratch::filled;
use super::simd::{LANES, Simd, Task, run};

/// Stabilizer that is added to the variance.
pub const NORM_EPS: f64 = 1e-5;

/// Mean and `rstd = 1 / sqrt(variance + eps)` of each image and group.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    /// Moments by image and group, `[N, groups]`.
    of_groups: Vec<(f32, f32)>,
    images: usize,
    channels: usize,
    /// Number of channels of a group, at least one.
    group_size: usize,
    /// Whether the moments are those of `x`, and change with it.
    are_measured: bool,
}

/// Minimum number of channels of a task: enough work to be worth a task.
fn channels_per_task(area: usize) -> usize {
    8192_usize.checked_div(area).unwrap_or(1).max(1)
}

impl Moments {
    /// Computes the moments of planes cut into `num_groups` groups of channels, with the biased variance.
    ///
    /// Each channel is summed in f32 around its own mean; channels are joined in f64. Without groups, the moments are 0 and 1,
    /// whatever the planes are: `x_hat = x`.
    ///
    /// # Errors
    /// If the channels cannot be cut so.
    pub(crate) fn new(x: &Planes<'_>, num_groups: usize) -> LengthResult<Self> {
        let (images, channels, area) = (x.images(), x.channels(), x.area());
        if num_groups == 0 {
            let group_size = channels.max(1);
            return Ok(Self { of_groups: vec![(0., 1.); images], images, channels, group_size, are_measured: false });
        }
        let group_size = channels.checked_div(num_groups).unwrap_or(0);
        check_length("the channels of a group norm", channels, &[num_groups, group_size])?;
        let group_size = group_size.max(1);
        let mut sums = vec![[0f32; 2]; images * channels];
        let to = Shared::new(&mut sums);
        for_each_range(images * channels, channels_per_task(area), |start, end| {
            let task = ChannelSums { planes: *x, start, end, to: to.part(start, end - start) };
            // SAFETY: `to` has an element for each channel of the range, and ranges are disjoint.
            unsafe { run(task) };
        });
        let area = area as f64;
        let moments = sums.chunks(group_size).map(|group| {
            let count = group.len() as f64;
            let mean = group.iter().map(|[mean, _]| f64::from(*mean)).sum::<f64>() / count;
            let squares: f64 = group
                .iter()
                .map(|[channel_mean, squares]| f64::from(*squares) + area * (f64::from(*channel_mean) - mean).powi(2))
                .sum();
            #[expect(clippy::cast_possible_truncation, reason = "statistics are used in f32")]
            let moments = (mean as f32, (squares / (count * area) + NORM_EPS).sqrt().recip() as f32);
            moments
        });
        Ok(Self { of_groups: moments.collect(), images, channels, group_size, are_measured: true })
    }

    /// Mean and rstd of the channel `row = image * C + channel`.
    fn of_row(&self, row: usize) -> (f32, f32) {
        self.of_groups[row / self.group_size]
    }

    /// Folds moments into an affine map, `x_hat * scale + shift = x * a + b`.
    ///
    /// # Errors
    /// If scale or shift is neither `[N, C]` nor `[C]`.
    pub(crate) fn fold(&self, scale: &[f32], shift: &[f32]) -> LengthResult<Folded> {
        let rows = self.images * self.channels;
        for values in [scale, shift] {
            if values.len() != self.channels {
                check_length("the scale or shift of a norm", values.len(), &[self.images, self.channels])?;
            }
        }
        let mut folded = Folded { a: Vec::with_capacity(rows), b: Vec::with_capacity(rows) };
        for row in 0..rows {
            let (mean, rstd) = self.of_row(row);
            // One row of scale or shift may stand for all images.
            let a = scale[row % scale.len()] * rstd;
            folded.a.push(a);
            folded.b.push(shift[row % shift.len()] - mean * a);
        }
        Ok(folded)
    }
}

/// Affine map of a whole norm, `x * a + b` by image and channel: `[N, C]` each.
#[derive(Debug)]
pub(crate) struct Folded {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Folded {
    /// Adds an activation to the affine map.
    pub(crate) fn affine(&self, activation: Activation) -> Affine<'_> {
        Affine { scale: &self.a, shift: &self.b, activation }
    }
}

/// Sums of channels `start..end` of all images.
struct ChannelSums<'a> {
    planes: Planes<'a>,
    start: usize,
    end: usize,
    /// Mean, and sum of squares around it, of each of the channels.
    to: *mut [f32; 2],
}

impl Task for ChannelSums<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (channels, area) = (self.planes.channels(), self.planes.area());
        for row in self.start..self.end {
            let x = self.planes.plane(row / channels, row % channels).as_ptr();
            // SAFETY: a plane has `area` values; `to` has `end - start` elements.
            unsafe {
                let mean = sum_of::<S>(x, area) / area as f32;
                let squares = squares_around::<S>(x, area, mean);
                self.to.add(row - self.start).write([mean, squares]);
            }
        }
    }
}

/// Computes `sum of x`, with four accumulators.
///
/// # Safety
/// `x` has `len` values. The instruction set is available.
#[inline(always)]
unsafe fn sum_of<S: Simd>(x: *const f32, len: usize) -> f32 {
    // SAFETY: only the first `len` values of x are read.
    unsafe {
        let mut sums = [S::splat(0.); 4];
        let mut at = 0;
        while at + 4 * LANES <= len {
            for i in 0..4 {
                sums[i] = S::add(sums[i], S::load(x.add(at + i * LANES)));
            }
            at += 4 * LANES;
        }
        while at < len {
            let count = LANES.min(len - at);
            sums[0] = S::add(sums[0], S::load_first(x.add(at), count));
            at += count;
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

/// Computes `sum of (x - center)^2`, with four accumulators.
///
/// # Safety
/// `x` has `len` values. The instruction set is available.
#[inline(always)]
unsafe fn squares_around<S: Simd>(x: *const f32, len: usize, center: f32) -> f32 {
    // SAFETY: only the first `len` values of x are read.
    unsafe {
        let mut sums = [S::splat(0.); 4];
        let c = S::splat(center);
        let mut at = 0;
        while at + 4 * LANES <= len {
            for i in 0..4 {
                let d = S::sub(S::load(x.add(at + i * LANES)), c);
                sums[i] = S::fma(d, d, sums[i]);
            }
            at += 4 * LANES;
        }
        while at < len {
            // Lanes beyond the last element count as the center.
            let count = LANES.min(len - at);
            let mut lanes = [center; LANES];
            std::ptr::copy_nonoverlapping(x.add(at), lanes.as_mut_ptr(), count);
            let d = S::sub(S::load(lanes.as_ptr()), c);
            sums[0] = S::fma(d, d, sums[0]);
            at += count;
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

/// Computes `y = f(x * scale + shift)` with the affine map of the planes, `[N, C, H, W]`; without one, `y = x`.
pub(crate) fn apply(x: &Planes<'_>) -> Vec<f32> {
    let (rows, area) = (x.images() * x.channels(), x.area());
    let write = |to: Shared<'_, f32>| {
        for_each_range(rows, channels_per_task(area), |start, end| {
            let task = Apply { planes: *x, start, end, to: to.part(start * area, (end - start) * area) };
            // SAFETY: `to` has `area` values for each channel of the range, and ranges are disjoint.
            unsafe { run(task) };
        });
    };
    // SAFETY: the ranges cover all channels, and a task writes every pixel of its channels.
    unsafe { filled(rows * area, write) }
}

/// Affine map and activation of channels `start..end` of all images.
struct Apply<'a> {
    planes: Planes<'a>,
    start: usize,
    end: usize,
    to: *mut f32,
}

impl Task for Apply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (channels, area) = (self.planes.channels(), self.planes.area());
        for row in self.start..self.end {
            let x = self.planes.plane(row / channels, row % channels).as_ptr();
            let (a, b, activation) = match self.planes.affine() {
                Some(affine) => (affine.scale[row], affine.shift[row], affine.activation),
                None => (1., 0., Activation::Identity),
            };
            // SAFETY: `pixel + count <= area`; the plane has `area` values, and so has its place in `to`.
            unsafe {
                let to = self.to.add((row - self.start) * area);
                let (a, b) = (S::splat(a), S::splat(b));
                for pixel in (0..area).step_by(LANES) {
                    let count = LANES.min(area - pixel);
                    let mut u = S::fma(S::load_first(x.add(pixel), count), a, b);
                    if activation == Activation::Silu {
                        u = silu::<S>(u);
                    }
                    S::store_first(to.add(pixel), count, u);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let values: Vec<f32> = (0..24u8).map(f32::from).collect();
        let x = Planes::new(&values, [2, 6, 1, 2]).unwrap();
        assert!(Moments::new(&x, 4).is_err());
        let moments = Moments::new(&x, 3).unwrap();
        for len in [0, 1, 5, 7, 18] {
            assert!(moments.fold(&vec![1.; len], &[0.; 6]).is_err(), "{len}");
            assert!(moments.fold(&[1.; 12], &vec![0.; len]).is_err(), "{len}");
        }
        assert!(Backward::new(x, &moments, &[1.; 12], &[0.; 7], Activation::Silu).is_err());
        let other = Planes::new(&values, [1, 6, 2, 2]).unwrap();
        assert!(Backward::new(other, &moments, &[1.; 12], &[0.; 6], Activation::Silu).is_err());
        let backward = Backward::new(x, &moments, &[1.; 12], &[0.; 6], Activation::Silu).unwrap();
        assert!(backward.to_vec(&values[1..]).is_err());
        let mut dy = values.clone();
        assert!(backward.in_place(&mut dy[1..]).is_err());
        let (dx, sums) = backward.to_vec(&values).unwrap();
        assert_eq!(backward.in_place(&mut dy).unwrap(), sums);
        assert_eq!(dy, dx);
    }

    #[test]
    fn the_affine_map_is_optional() {
        let values: Vec<f32> = (0..24u8).map(f32::from).collect();
        let x = Planes::new(&values, [2, 6, 1, 2]).unwrap();
        assert_eq!(apply(&x), values);
        let folded = Moments::new(&x, 6).unwrap().fold(&[0.; 6], &[3.; 6]).unwrap();
        assert_eq!(apply(&x.with_affine(folded.affine(Activation::Identity)).unwrap()), [3.; 24]);
    }
}
