//! Group normalization, its affine map and SiLU: statistics, forward, backward.
//!
//! `x_hat = (x - mean) * rstd` by image and group; `u = x_hat * scale + shift` by image and channel; `y = f(u)`.

use super::math::{silu, silu_slope};
use super::parallel::{Shared, for_each_range};
use super::planes::{Activation, Planes};
use super::scratch::filled;
use super::simd::{LANES, Simd, Task, run};

/// Mean and `1 / sqrt(variance + eps)` of each image and group.
pub(crate) type Moments = Vec<(f32, f32)>;

/// Channels that a task takes at least: enough work to be worth a task.
fn channels_per_task(area: usize) -> usize {
    8192_usize.checked_div(area).unwrap_or(1).max(1)
}

/// The moments of `images * num_groups` groups, biased variance.
///
/// Each channel is summed in f32 around its own mean; channels are joined in f64.
///
/// # Safety
/// The planes are valid.
pub(crate) unsafe fn moments(images: usize, x: &Planes, num_groups: usize, eps: f64) -> Moments {
    let channels = x.channels;
    let mut sums = vec![[0f32; 2]; images * channels];
    let to = Shared(sums.as_mut_ptr());
    let planes = *x;
    for_each_range(images * channels, channels_per_task(x.area()), |start, end| {
        // SAFETY: each task writes its own channels.
        unsafe { run(ChannelSums { planes, start, end, to: to.get() }) };
    });
    let group_size = channels.checked_div(num_groups).unwrap_or(1);
    let area = x.area() as f64;
    let moments = sums.chunks(group_size).map(|group| {
        let count = group.len() as f64;
        let mean = group.iter().map(|[mean, _]| f64::from(*mean)).sum::<f64>() / count;
        let squares: f64 = group
            .iter()
            .map(|[channel_mean, squares]| f64::from(*squares) + area * (f64::from(*channel_mean) - mean).powi(2))
            .sum();
        #[expect(clippy::cast_possible_truncation, reason = "statistics are used in f32")]
        let moments = (mean as f32, (squares / (count * area) + eps).sqrt().recip() as f32);
        moments
    });
    moments.collect()
}

/// [`moments`] with the stabilizer of all norms.
pub(crate) fn moments_of(images: usize, x: &Planes, num_groups: usize) -> Moments {
    // SAFETY: planes are made of slices that live as long as they are used.
    unsafe { moments(images, x, num_groups, crate::group_norm::NORM_EPS) }
}

/// Mean, and sum of squares around it, of channels `start..end`.
struct ChannelSums {
    planes: Planes,
    start: usize,
    end: usize,
    to: *mut [f32; 2],
}

impl Task for ChannelSums {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let area = self.planes.area();
        for at in self.start..self.end {
            let (image, channel) = (at.checked_div(self.planes.channels).unwrap_or(0), at % self.planes.channels);
            let x = self.planes.plane(image, channel);
            // SAFETY: the plane has `area` values; `to` has this channel.
            unsafe {
                let mean = sum_of::<S>(x, area) / area as f32;
                let squares = squares_around::<S>(x, area, mean);
                self.to.add(at).write([mean, squares]);
            }
        }
    }
}

/// `sum of x`, with four accumulators.
#[inline(always)]
unsafe fn sum_of<S: Simd>(x: *const f32, len: usize) -> f32 {
    // SAFETY: x has `len` elements.
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

/// `sum of (x - center)^2`, with four accumulators.
#[inline(always)]
unsafe fn squares_around<S: Simd>(x: *const f32, len: usize, center: f32) -> f32 {
    // SAFETY: x has `len` elements.
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

/// Folds moments into an affine map: `x_hat * scale + shift = x * a + b`. Result: `a` and `b`, `[N, C]` each.
pub(crate) fn fold_affine(
    moments: &Moments,
    (scale, shift): (&[f32], &[f32]),
    images: usize,
    channels: usize,
) -> [Vec<f32>; 2] {
    let num_groups = moments.len().checked_div(images).unwrap_or(1);
    let group_size = channels.checked_div(num_groups).unwrap_or(1).max(1);
    let mut folded = [Vec::with_capacity(images * channels), Vec::with_capacity(images * channels)];
    for image in 0..images {
        for channel in 0..channels {
            let (mean, rstd) = moments[image * num_groups + channel / group_size];
            // One row of scale or shift may stand for all images.
            let at = image * channels + channel;
            let a = scale[at % scale.len()] * rstd;
            folded[0].push(a);
            folded[1].push(shift[at % shift.len()] - mean * a);
        }
    }
    folded
}

/// `y = f(x * a + b)` for every channel.
///
/// # Safety
/// The planes, which have an affine map, are valid, and all of `to`, `[N, C, H, W]`.
pub(crate) unsafe fn apply(images: usize, x: &Planes, to: *mut f32) {
    let to = Shared(to);
    let planes = *x;
    for_each_range(images * x.channels, channels_per_task(x.area()), |start, end| {
        // SAFETY: each task writes its own channels.
        unsafe { run(Apply { planes, start, end, to: to.get() }) };
    });
}

/// [`apply`] into a vector of its own.
pub(crate) fn apply_to_vec(images: usize, x: &Planes) -> Vec<f32> {
    // SAFETY: planes are made of slices that live as long as they are used; every element is written.
    unsafe { filled(images * x.channels * x.area(), |to| apply(images, x, to)) }
}

struct Apply {
    planes: Planes,
    start: usize,
    end: usize,
    to: *mut f32,
}

impl Task for Apply {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Some(affine) = self.planes.affine else { return };
        let area = self.planes.area();
        for at in self.start..self.end {
            let (image, channel) = (at.checked_div(self.planes.channels).unwrap_or(0), at % self.planes.channels);
            let x = self.planes.plane(image, channel);
            // SAFETY: the plane has `area` values, and so has its place in `to`.
            unsafe {
                let to = self.to.add(at * area);
                let (a, b) = (S::splat(*affine.scale.add(at)), S::splat(*affine.shift.add(at)));
                for pixel in (0..area).step_by(LANES) {
                    let count = LANES.min(area - pixel);
                    let mut u = S::fma(S::load_first(x.add(pixel), count), a, b);
                    if affine.activation == Activation::Silu {
                        u = silu::<S>(u);
                    }
                    S::store_first(to.add(pixel), count, u);
                }
            }
        }
    }
}

/// Gradients of one normalization.
pub(crate) struct Backward<'a> {
    pub(crate) images: usize,
    /// What was normalized; its affine map does not matter.
    pub(crate) x: Planes,
    pub(crate) moments: &'a Moments,
    /// `[N, C]`, or `[C]` for all images.
    pub(crate) scale: &'a [f32],
    /// As `scale`.
    pub(crate) shift: &'a [f32],
    pub(crate) activation: Activation,
}

impl Backward<'_> {
    /// From dy: dx in a vector of its own, and the gradients of scale and shift.
    pub(crate) fn to_vec(&self, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut sums = Vec::new();
        let len = self.images * self.x.channels * self.x.area();
        debug_assert_eq!(dy.len(), len);
        // SAFETY: planes are made of slices that live as long as they are used; every element is written.
        let dx = unsafe { filled(len, |dx| sums = self.run(dy.as_ptr(), dx)) };
        (dx, sums)
    }

    /// From dy to dx in its place; the gradients of scale and shift.
    pub(crate) fn in_place(&self, dy: &mut [f32]) -> Vec<f32> {
        debug_assert_eq!(dy.len(), self.images * self.x.channels * self.x.area());
        let dy = dy.as_mut_ptr();
        // SAFETY: planes are made of slices that live as long as they are used; each dy is read before it is overwritten.
        unsafe { self.run(dy, dy) }
    }

    /// From dy: dx, and the gradients of scale and shift by image and channel, `[2, N, C]`.
    ///
    /// `du = dy f'(u)`; `dscale = sum du x_hat`; `dshift = sum du`; `dx = rstd (du scale - m_0 - x_hat m_1)` with
    /// `m_0, m_1` the means over the group of `du scale` and `du scale x_hat`.
    ///
    /// # Safety
    /// `dy` holds `[N, C, H, W]`, and so does `dx`, which is overwritten; they may be the same.
    unsafe fn run(&self, dy: *const f32, dx: *mut f32) -> Vec<f32> {
        let Self { images, x, .. } = *self;
        let (channels, area) = (x.channels, x.area());
        let [a, b] = fold_affine(self.moments, (self.scale, self.shift), images, channels);
        let mut sums = vec![0f32; 2 * images * channels];
        let (dy, dx, to) = (Shared(dy.cast_mut()), Shared(dx), Shared(sums.as_mut_ptr()));
        let least = channels_per_task(area);
        let rows = images * channels;
        let num_groups = self.moments.len().checked_div(images).unwrap_or(1);
        let group_size = channels.checked_div(num_groups).unwrap_or(1).max(1);
        let moments_of = |at: usize| self.moments[at / channels * num_groups + at % channels / group_size];
        for_each_range(rows, least, |start, end| {
            for at in start..end {
                let task = SlopeTask {
                    area,
                    x: x.plane(at / channels, at % channels),
                    dy: dy.get().wrapping_add(at * area),
                    du: dx.get().wrapping_add(at * area),
                    affine: (a[at], b[at]),
                    moments: moments_of(at),
                    activation: self.activation,
                };
                // SAFETY: each task writes its own channels.
                unsafe {
                    let (du_x_hat, du) = run(task);
                    *to.get().add(at) = du_x_hat;
                    *to.get().add(rows + at) = du;
                }
            }
        });
        let means = self.group_means(&sums, group_size);
        for_each_range(rows, least, |start, end| {
            for at in start..end {
                let (mean, rstd) = moments_of(at);
                let [m_0, m_1] = means[at / group_size];
                let scale = self.scale[at % self.scale.len()];
                let task = CombineTask {
                    area,
                    x: x.plane(at / channels, at % channels),
                    dx: dx.get().wrapping_add(at * area),
                    // dx = rstd scale du - rstd^2 m_1 x + rstd (rstd mean m_1 - m_0)
                    factors: [rstd * scale, -rstd * rstd * m_1, rstd * (rstd * mean * m_1 - m_0)],
                };
                // SAFETY: each task writes its own channels.
                unsafe { run(task) };
            }
        });
        sums
    }

    /// The means of `du scale` and of `du scale x_hat` in each group.
    fn group_means(&self, sums: &[f32], group_size: usize) -> Vec<[f32; 2]> {
        let rows = self.images * self.x.channels;
        let count = (group_size * self.x.area()) as f64;
        let mean = |group: usize, part: usize| {
            let members = group * group_size..(group + 1) * group_size;
            let weighted =
                members.map(|at| f64::from(self.scale[at % self.scale.len()]) * f64::from(sums[part * rows + at]));
            #[expect(clippy::cast_possible_truncation, reason = "statistics are used in f32")]
            let mean = (weighted.sum::<f64>() / count) as f32;
            mean
        };
        (0..self.moments.len()).map(|group| [mean(group, 1), mean(group, 0)]).collect()
    }
}

/// Writes `du` and returns `(sum du x_hat, sum du)` of one channel.
struct SlopeTask {
    area: usize,
    x: *const f32,
    dy: *const f32,
    du: *mut f32,
    affine: (f32, f32),
    moments: (f32, f32),
    activation: Activation,
}

impl Task for SlopeTask {
    type Output = (f32, f32);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f32) {
        // SAFETY: all three have `area` values.
        unsafe {
            let (a, b) = (S::splat(self.affine.0), S::splat(self.affine.1));
            let (mean, rstd) = (S::splat(self.moments.0), S::splat(self.moments.1));
            let (mut sum_x_hat, mut sum) = (S::splat(0.), S::splat(0.));
            for pixel in (0..self.area).step_by(LANES) {
                let count = LANES.min(self.area - pixel);
                let x = S::load_first(self.x.add(pixel), count);
                let mut du = S::load_first(self.dy.add(pixel), count);
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

/// `dx = du * factors[0] + x * factors[1] + factors[2]`, in place of du.
struct CombineTask {
    area: usize,
    x: *const f32,
    dx: *mut f32,
    factors: [f32; 3],
}

impl Task for CombineTask {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: both have `area` values.
        unsafe {
            let [f_0, f_1, f_2] = [S::splat(self.factors[0]), S::splat(self.factors[1]), S::splat(self.factors[2])];
            for pixel in (0..self.area).step_by(LANES) {
                let count = LANES.min(self.area - pixel);
                let x = S::load_first(self.x.add(pixel), count);
                let du = S::load_first(self.dx.add(pixel), count);
                S::store_first(self.dx.add(pixel), count, S::fma(du, f_0, S::fma(x, f_1, f_2)));
            }
        }
    }
}
