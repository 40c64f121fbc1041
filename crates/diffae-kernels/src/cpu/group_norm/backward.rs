//! Backward pass of group normalization, its affine map and its activation.

use super::{Folded, Moments, channels_per_task};
use crate::cpu::length::{LengthResult, check_length};
use crate::cpu::math::silu_slope;
use crate::cpu::parallel::{Shared, for_each_range};
use crate::cpu::planes::{Activation, Planes};
use crate::cpu::scratch::filled;
use crate::cpu::simd::{LANES, Simd, Task, run};

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
    /// `m_0, m_1` the means over the group of `du scale` and `du scale x_hat`; both are 0 where the moments are constants.
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

    /// Means of `du scale` and of `du scale x_hat` over each group; zeros where the moments are constants.
    fn group_means(&self, sums: &[f32]) -> Vec<[f32; 2]> {
        if !self.moments.are_measured {
            return vec![[0.; 2]; self.moments.of_groups.len()];
        }
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
