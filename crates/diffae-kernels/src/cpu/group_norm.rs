//! Group normalization, its affine map and SiLU: statistics, forward and backward.
//!
//! `x_hat = (x - mean) * rstd` by image and group; `u = x_hat * scale + shift` by image and channel; `y = f(u)`.

use super::length::{LengthResult, check_length};
use super::math::{silu, silu_slope};
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
}

/// Minimum number of channels of a task: enough work to be worth a task.
fn channels_per_task(area: usize) -> usize {
    8192_usize.checked_div(area).unwrap_or(1).max(1)
}

impl Moments {
    /// Computes the moments of planes cut into `num_groups` groups of channels, with the biased variance.
    ///
    /// Each channel is summed in f32 around its own mean; channels are joined in f64.
    ///
    /// # Errors
    /// If the channels cannot be cut so.
    pub(crate) fn new(x: &Planes<'_>, num_groups: usize) -> LengthResult<Self> {
        let (images, channels, area) = (x.images(), x.channels(), x.area());
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
        Ok(Self { of_groups: moments.collect(), images, channels, group_size })
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

/// Backward pass of one normalization, its affine map and its activation.
#[derive(Debug)]
pub(crate) struct Backward<'a> {
    x: Planes<'a>,
    moments: &'a Moments,
    scale: &'a [f32],
    folded: Folded,
    activation: Activation,
}

impl<'a> Backward<'a> {
    /// Makes a backward pass of `x`, the input of the norm (its affine map does not matter), its moments, and scale and
    /// shift, `[N, C]`, or `[C]` for all images.
    ///
    /// # Errors
    /// If sizes differ.
    pub(crate) fn new(
        x: Planes<'a>,
        moments: &'a Moments,
        scale: &'a [f32],
        shift: &'a [f32],
        activation: Activation,
    ) -> LengthResult<Self> {
        check_length("the moments of a norm", moments.images, &[x.images()])?;
        check_length("the channels of the moments of a norm", moments.channels, &[x.channels()])?;
        Ok(Self { x, moments, scale, folded: moments.fold(scale, shift)?, activation })
    }

    /// Computes dx from dy, `[N, C, H, W]`, and the gradients w.r.t. scale and shift by image and channel, `[2, N, C]`.
    ///
    /// # Errors
    /// If dy has another length than x.
    pub(crate) fn to_vec(&self, dy: &[f32]) -> LengthResult<(Vec<f32>, Vec<f32>)> {
        let len = self.check(dy)?;
        let mut sums = Vec::new();
        // SAFETY: `run` writes every element.
        let dx = unsafe { filled(len, |dx| sums = self.run(Some(dy), dx)) };
        Ok((dx, sums))
    }

    /// Replaces dy, `[N, C, H, W]`, by dx; returns the gradients w.r.t. scale and shift by image and channel,
    /// `[2, N, C]`.
    ///
    /// # Errors
    /// If dy has another length than x.
    pub(crate) fn in_place(&self, dy: &mut [f32]) -> LengthResult<Vec<f32>> {
        self.check(dy)?;
        Ok(self.run(None, Shared::new(dy)))
    }

    /// Checks dy and returns its length.
    fn check(&self, dy: &[f32]) -> LengthResult<usize> {
        let x = &self.x;
        check_length("the gradient of a norm", dy.len(), &[x.images(), x.channels(), x.height(), x.width()])?;
        Ok(dy.len())
    }

    /// Writes dx and returns the gradients w.r.t. scale and shift. Without a `dy`, it is read from `dx`.
    ///
    /// `du = dy f'(u)`; `dscale = sum du x_hat`; `dshift = sum du`; `dx = rstd (du scale - m_0 - x_hat m_1)` with
    /// `m_0, m_1` the means over the group of `du scale` and `du scale x_hat`.
    fn run(&self, dy: Option<&[f32]>, dx: Shared<'_, f32>) -> Vec<f32> {
        let Self { x, moments, scale, .. } = self;
        let (channels, area) = (x.channels(), x.area());
        let rows = x.images() * channels;
        let mut sums = vec![0f32; 2 * rows];
        let to = Shared::new(&mut sums);
        let min = channels_per_task(area);
        for_each_range(rows, min, |start, end| {
            for row in start..end {
                let task = GradPreActivation {
                    x: x.plane(row / channels, row % channels),
                    dy: dy.map(|dy| &dy[row * area..(row + 1) * area]),
                    du: dx.part(row * area, area),
                    affine: (self.folded.a[row], self.folded.b[row]),
                    moments: moments.of_row(row),
                    activation: self.activation,
                };
                // SAFETY: `du` has `area` values, as x and dy, and holds dy where there is none; each task writes its
                // own channels.
                unsafe {
                    let (du_x_hat, du) = run(task);
                    *to.part(row, 1) = du_x_hat;
                    *to.part(rows + row, 1) = du;
                }
            }
        });
        let means = self.group_means(&sums);
        for_each_range(rows, min, |start, end| {
            for row in start..end {
                let (mean, rstd) = moments.of_row(row);
                let [m_0, m_1] = means[row / moments.group_size];
                let scale = scale[row % scale.len()];
                let task = GradInput {
                    x: x.plane(row / channels, row % channels),
                    dx: dx.part(row * area, area),
                    // dx = rstd scale du - rstd^2 m_1 x + rstd (rstd mean m_1 - m_0)
                    factors: [rstd * scale, -rstd * rstd * m_1, rstd * (rstd * mean * m_1 - m_0)],
                };
                // SAFETY: `dx` has `area` values, as x, which the tasks above have written; each task writes its own
                // channels.
                unsafe { run(task) };
            }
        });
        sums
    }

    /// Means of `du scale` and of `du scale x_hat` over each group.
    fn group_means(&self, sums: &[f32]) -> Vec<[f32; 2]> {
        let group_size = self.moments.group_size;
        let rows = self.x.images() * self.x.channels();
        let count = (group_size * self.x.area()) as f64;
        let mean = |group: usize, part: usize| {
            let members = group * group_size..(group + 1) * group_size;
            let weighted =
                members.map(|at| f64::from(self.scale[at % self.scale.len()]) * f64::from(sums[part * rows + at]));
            #[expect(clippy::cast_possible_truncation, reason = "statistics are used in f32")]
            let mean = (weighted.sum::<f64>() / count) as f32;
            mean
        };
        (0..self.moments.of_groups.len()).map(|group| [mean(group, 1), mean(group, 0)]).collect()
    }
}

/// Gradient of one channel w.r.t. the input of the activation; returns `(sum du x_hat, sum du)`.
struct GradPreActivation<'a> {
    x: &'a [f32],
    /// Gradient w.r.t. y, as many values as `x`; if absent, `du` holds them.
    dy: Option<&'a [f32]>,
    /// Gradient w.r.t. u, as many values as `x`.
    du: *mut f32,
    affine: (f32, f32),
    moments: (f32, f32),
    activation: Activation,
}

impl Task for GradPreActivation<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f32) {
        let (x, area) = (self.x.as_ptr(), self.x.len());
        let dy = self.dy.map_or(self.du.cast_const(), <[f32]>::as_ptr);
        // SAFETY: `pixel + count <= area`, and all three have `area` values; dy is read before du is written there.
        unsafe {
            let (a, b) = (S::splat(self.affine.0), S::splat(self.affine.1));
            let (mean, rstd) = (S::splat(self.moments.0), S::splat(self.moments.1));
            let (mut sum_x_hat, mut sum) = (S::splat(0.), S::splat(0.));
            for pixel in (0..area).step_by(LANES) {
                let count = LANES.min(area - pixel);
                let x = S::load_first(x.add(pixel), count);
                let mut du = S::load_first(dy.add(pixel), count);
                if self.activation == Activation::Silu {
                    du = S::mul(du, silu_slope::<S>(S::fma(x, a, b)));
                }
                S::store_first(self.du.add(pixel), count, du);
                sum = S::add(sum, du);
                sum_x_hat = S::fma(du, S::mul(S::sub(x, mean), rstd), sum_x_hat);
            }
            (S::sum(sum_x_hat), S::sum(sum))
        }
    }
}

/// Gradient of one channel w.r.t. x, in place of du: `dx = du * factors[0] + x * factors[1] + factors[2]`.
struct GradInput<'a> {
    x: &'a [f32],
    /// Gradient w.r.t. u, then w.r.t. x: as many values as `x`.
    dx: *mut f32,
    factors: [f32; 3],
}

impl Task for GradInput<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (x, area) = (self.x.as_ptr(), self.x.len());
        // SAFETY: `pixel + count <= area`, and both have `area` values.
        unsafe {
            let [f_0, f_1, f_2] = [S::splat(self.factors[0]), S::splat(self.factors[1]), S::splat(self.factors[2])];
            for pixel in (0..area).step_by(LANES) {
                let count = LANES.min(area - pixel);
                let x = S::load_first(x.add(pixel), count);
                let du = S::load_first(self.dx.add(pixel), count);
                S::store_first(self.dx.add(pixel), count, S::fma(du, f_0, S::fma(x, f_1, f_2)));
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
        assert!(Moments::new(&x, 0).is_err());
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
