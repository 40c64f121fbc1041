//! Depthwise convolution: each channel with a kernel of its own.

use super::length::{LengthResult, check_length};
use super::parallel::for_each;
use super::scratch::filled;
use super::simd::{LANES, Simd, Task, run};

/// Sizes of a depthwise convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    /// Height and width of the input.
    pub(crate) size: [usize; 2],
    /// Height and width of the kernels; at least one.
    pub(crate) kernel: [usize; 2],
    /// At least one.
    pub(crate) stride: usize,
    /// Zeros above and below, left and right.
    pub(crate) padding: [[usize; 2]; 2],
}

impl Geometry {
    /// Returns height and width of the result; 0 where the kernel does not fit.
    pub(crate) fn output(&self) -> [usize; 2] {
        [0, 1].map(|axis| {
            let padded = self.size[axis] + self.padding[axis][0] + self.padding[axis][1];
            match padded.checked_sub(self.kernel[axis]) {
                Some(free) => free.div_euclid(self.stride) + 1,
                None => 0,
            }
        })
    }

    /// Returns the elements of a row of a padded plane in which every `stride`th column lies side by side, with what the last
    /// vector reads beyond.
    fn phase_len(&self) -> usize {
        self.output()[1] + self.kernel[1].div_euclid(self.stride) + LANES
    }
}

/// Computes `y[n, c] = bias[c] + sum over i, j of w[c, i, j] x[n, c, s y + i, s x + j]`.
///
/// # Errors
/// If lengths do not fit the geometry.
pub(crate) fn convolve(x: &[f32], weight: &[f32], bias: &[f32], of: &Geometry) -> LengthResult<Vec<f32>> {
    let Geometry { images, channels, size: [height, width], kernel, .. } = *of;
    check_length("the input", x.len(), &[images, channels, height, width])?;
    check_length("the kernels", weight.len(), &[channels, kernel[0], kernel[1]])?;
    check_length("the bias", bias.len(), &[channels])?;
    let (plane, taps, [rows, columns]) = (height * width, kernel[0] * kernel[1], of.output());
    check_length("the result", images * channels * rows * columns, &[images, channels, rows, columns])?;
    // SAFETY: each plane of the result is written whole, by one task.
    let y = unsafe {
        filled(images * channels * rows * columns, |to| {
            for_each(images * channels, |number| {
                let channel = number % channels;
                let task = Plane {
                    x: &x[number * plane..(number + 1) * plane],
                    weight: &weight[channel * taps..(channel + 1) * taps],
                    bias: bias[channel],
                    of,
                    to: to.part(number * rows * columns, rows * columns),
                };
                // SAFETY: the lengths are those of the geometry, and planes are disjoint.
                run(task);
            });
        })
    };
    Ok(y)
}

/// One channel of one image; the slices and `to` have the lengths of the geometry.
struct Plane<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: f32,
    of: &'a Geometry,
    to: *mut f32,
}

impl Task for Plane<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, weight, bias, of, to } = self;
        let Geometry { size: [height, width], kernel: [kernel_height, kernel_width], stride, padding, .. } = *of;
        let ([rows, columns], len) = (of.output(), of.phase_len());
        // The padded plane, `[rows, stride, len]`: column k of phase p is column `stride k + p` of the picture.
        let padded_height = (rows * stride + kernel_height).max(height + padding[0][0]);
        let mut padded = vec![0f32; padded_height * stride * len];
        for (row, values) in x.chunks(width.max(1)).enumerate() {
            let start = (row + padding[0][0]) * stride * len;
            if stride == 1 {
                let (start, count) = (start + padding[1][0], width.min(len.saturating_sub(padding[1][0])));
                padded[start..start + count].copy_from_slice(&values[..count]);
                continue;
            }
            for (column, value) in values.iter().enumerate() {
                let column = column + padding[1][0];
                let (phase, place) = (column % stride, column.div_euclid(stride));
                if place < len {
                    padded[start + phase * len + place] = *value;
                }
            }
        }
        for row in 0..rows {
            for column in (0..columns).step_by(LANES) {
                // SAFETY: `column < columns`, so that a vector from `column + j / stride` on ends within `len`; `row stride + i`
                // is a row of the padded plane. The result has `rows` rows of `columns`.
                unsafe {
                    let mut sum = S::splat(bias);
                    for i in 0..kernel_height {
                        for j in 0..kernel_width {
                            let start =
                                ((row * stride + i) * stride + j % stride) * len + column + j.div_euclid(stride);
                            let factor = S::splat(*weight.get_unchecked(i * kernel_width + j));
                            sum = S::fma(factor, S::load(padded.as_ptr().add(start)), sum);
                        }
                    }
                    S::store_first(to.add(row * columns + column), LANES.min(columns - column), sum);
                }
            }
        }
    }
}
