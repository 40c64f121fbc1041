//! Gradient of a convolution with respect to its weight.
//!
//! Direct: `dW[o][c][tap] = sum over pixels of dy[o][pixel] x[c][pixel + tap]`. Winograd: the adjoint of the forward
//! algorithm, `dW = G^T [sum over tiles of (B^T x B) (A dy A^T)] G`, with as many fewer products as forward.
//!
//! Tasks own output and input channels, never a part of the sum, so the result does not depend on timing.

mod direct;
mod volumes;
mod winograd;

use super::algorithm::Algorithm;
use super::length::{LengthResult, check_length};
use super::pack::{num_panels, panel_width, row_channels};
use super::parallel::{Shared, for_each};
use super::planes::Planes;
use super::product::PANEL;
use super::scratch::{Scratch, filled};
use super::simd::{LANES, Simd, Task, run};
use super::winograd::{F2, F4, Tiles, both_ways};

/// One gradient of a convolution with respect to its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightGradient<'a> {
    input: Planes<'a>,
    /// Gradient with respect to the output.
    output: Planes<'a>,
    algorithm: Algorithm,
}

impl<'a> WeightGradient<'a> {
    /// Makes a weight gradient of `input`, `[N, C, H, W]`, and `output`, the gradient with respect to the output, `[N, O, H, W]`.
    ///
    /// # Errors
    /// If N, H or W differ, or a weight `[O, C, K, K]` is too large.
    pub(crate) fn new(input: Planes<'a>, output: Planes<'a>, algorithm: Algorithm) -> LengthResult<Self> {
        check_length("the images of a weight gradient", output.images(), &[input.images()])?;
        check_length("the rows of a weight gradient", output.height(), &[input.height()])?;
        check_length("the columns of a weight gradient", output.width(), &[input.width()])?;
        let gradient = Self { input, output, algorithm };
        let shape = [output.channels(), input.channels(), algorithm.taps()];
        check_length("a weight gradient", gradient.len(), &shape)?;
        Ok(gradient)
    }

    /// Number of values of the result.
    fn len(&self) -> usize {
        self.output.channels().wrapping_mul(self.input.channels()).wrapping_mul(self.algorithm.taps())
    }

    /// Computes the gradient, `[O, C, K, K]`.
    pub(crate) fn to_vec(self) -> Vec<f32> {
        let len = self.len();
        if len == 0 || self.input.images() * self.input.area() == 0 {
            return vec![0.; len];
        }
        // SAFETY: every panel of output channels and group of input channels is written by one `Finish`.
        unsafe { filled(len, |to| self.run(to)) }
    }

    /// Writes the gradient to `to`. There is at least one pixel.
    fn run(self, to: Shared<'_, f32>) {
        let algorithm = self.algorithm;
        let (inputs, outputs) = (self.input.channels(), self.output.channels());
        let channels = row_channels(inputs);
        let mut sums = Scratch::take(outputs.next_multiple_of(LANES) * algorithm.positions() * channels);
        let sums = sums.share();
        match algorithm {
            Algorithm::Direct1 | Algorithm::Direct3 => self.direct(sums),
            Algorithm::Winograd2 if self.input.taps() > 1 => self.volumes::<F2, 4, 2>(sums),
            Algorithm::Winograd4 if self.input.taps() > 1 => self.volumes::<F4, 6, 4>(sums),
            Algorithm::Winograd2 => self.winograd::<F2, 4, 2>(sums),
            Algorithm::Winograd4 => self.winograd::<F4, 6, 4>(sums),
        }
        let groups = inputs.div_ceil(LANES);
        for_each(num_panels(outputs) * groups, |i| {
            let (panel, group) = (i.checked_div(groups).unwrap_or(0), i % groups);
            let (start, len) = self.sums_range(panel);
            // SAFETY: the sums are only read; each task writes its own pairs of channels.
            unsafe { run(Finish { gradient: self, sums: sums.part(start, len), to, panel, group }) };
        });
    }

    /// Start and length of the sums of one panel, `[position or tap][input channel][output channel]`.
    fn sums_range(&self, panel: usize) -> (usize, usize) {
        let column = self.algorithm.positions() * row_channels(self.input.channels());
        (panel * PANEL * column, panel_width(self.output.channels(), panel) * column)
    }
}

/// Conversion of sums to `[O, C, K, K]`, for one panel and sixteen input channels.
struct Finish<'a> {
    gradient: WeightGradient<'a>,
    /// Sums of the panel.
    sums: *const f32,
    /// Whole result, `[O, C, K, K]`.
    to: Shared<'a, f32>,
    panel: usize,
    group: usize,
}

impl Task for Finish<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { gradient, sums, to: result, panel, group } = self;
        let algorithm = gradient.algorithm;
        let (inputs, outputs) = (gradient.input.channels(), gradient.output.channels());
        let (channels, width, taps) = (row_channels(inputs), panel_width(outputs, panel), algorithm.taps());
        let num_inputs = LANES.min(inputs - group * LANES);
        let mut block = [[0f32; LANES]; LANES * 9];
        for column in (0..width).step_by(LANES) {
            let output = panel * PANEL + column;
            let num_outputs = LANES.min(outputs.saturating_sub(output));
            // SAFETY: positions lie `channels * width` apart in the sums of the panel, and `column + LANES <= width`;
            // `part` has checked the place of what is written, which belongs to channels that exist.
            unsafe {
                for i in 0..num_inputs {
                    let from = sums.add((group * LANES + i) * width + column);
                    let to = &mut block[i * taps..(i + 1) * taps];
                    match algorithm {
                        Algorithm::Direct1 | Algorithm::Direct3 => {
                            for (tap, to) in to.iter_mut().enumerate() {
                                S::store(to.as_mut_ptr(), S::load(from.add(tap * channels * width)));
                            }
                        }
                        Algorithm::Winograd2 => weights::<S, F2, 4, 2>(from, channels * width, to),
                        Algorithm::Winograd4 => weights::<S, F4, 6, 4>(from, channels * width, to),
                    }
                }
                let len = num_inputs * taps;
                for start in (0..len).step_by(LANES) {
                    let mut lanes = [S::splat(0.); LANES];
                    let some = LANES.min(len - start);
                    for i in 0..some {
                        lanes[i] = S::load(block[start + i].as_ptr());
                    }
                    S::transpose(&mut lanes);
                    for i in 0..num_outputs {
                        let to = ((output + i) * inputs + group * LANES) * taps + start;
                        S::store_first(result.part(to, some), some, lanes[i]);
                    }
                }
            }
        }
    }
}

/// Transforms positions `stride` apart to nine taps.
///
/// # Safety
/// `from` holds sixteen values at each of `T * T` positions. The instruction set is available.
#[inline(always)]
unsafe fn weights<S: Simd, W: Tiles<T, M>, const T: usize, const M: usize>(
    from: *const f32,
    stride: usize,
    to: &mut [[f32; LANES]],
) {
    // SAFETY: the caller vouches for the positions; a tap is sixteen values.
    unsafe {
        let mut u = [[S::splat(0.); T]; T];
        for i in 0..T {
            for j in 0..T {
                u[i][j] = S::load(from.add((i * T + j) * stride));
            }
        }
        let g = both_ways::<S, W::WeightAdjoint, T, 3>(&u);
        for (tap, to) in to.iter_mut().enumerate().take(9) {
            S::store(to.as_mut_ptr(), g[tap / 3][tap % 3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_other_sizes_are_refused() {
        let values = [1.; 24];
        let planes = |shape| Planes::new(&values, shape).unwrap();
        let input = planes([2, 3, 2, 2]);
        assert!(WeightGradient::new(input, planes([2, 3, 2, 2]), Algorithm::Direct1).is_ok());
        for shape in [[1, 6, 2, 2], [2, 6, 1, 2], [2, 6, 2, 1], [3, 2, 2, 2]] {
            assert!(WeightGradient::new(input, planes(shape), Algorithm::Direct1).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn no_images_have_a_gradient_of_zeros() {
        for algorithm in [Algorithm::Direct1, Algorithm::Direct3, Algorithm::Winograd2, Algorithm::Winograd4] {
            let (x, dy) = (Planes::new(&[], [0, 3, 9, 9]).unwrap(), Planes::new(&[], [0, 2, 9, 9]).unwrap());
            let gradient = WeightGradient::new(x, dy, algorithm).unwrap().to_vec();
            assert_eq!(gradient, vec![0.; 6 * algorithm.taps()]);
        }
    }
}
