//! Convolution of planes with packed weights.
//!
//! Where there are enough pixels, a task takes a band of the image through all steps, and what lies between the
//! steps stays in its core's second-level cache. On small images the steps are parallel one after the other.

mod direct;
mod volumes;
mod winograd;

use self::direct::Direct;
use self::winograd::Winograd;
use super::algorithm::Algorithm;
use super::length::{LengthResult, check_length};
use super::pack::Packed;
use super::planes::{Planes, PlanesOut};
use super::product::PANEL;
use super::scratch::filled;
use super::simd::LANES;
use super::winograd::{F2, F4};

/// Distance of the products of one pixel or tile from those of the next: an odd number of cache lines, so that a
/// column of them does not fall on one cache set.
const PRODUCT_STRIDE: usize = PANEL + LANES;

/// One convolution: `y[n, o] = bias[o] + residual[n, o] + sum over c of x[n, c] * weight[o, c]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Convolution<'a> {
    input: Planes<'a>,
    weight: &'a Packed,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
}

impl<'a> Convolution<'a> {
    /// Makes a convolution of `input`, `[N, C, H, W]`, `bias`, `[O]`, and `residual`, `[N, O, H, W]`; C and O are the
    /// channels of `weight`.
    ///
    /// # Errors
    /// If a length is another, or C is zero.
    pub(crate) fn new(
        input: Planes<'a>,
        weight: &'a Packed,
        bias: Option<&'a [f32]>,
        residual: Option<&'a [f32]>,
    ) -> LengthResult<Self> {
        let conv = Self { input, weight, bias, residual };
        check_length("the channels of a convolution", input.channels(), &[weight.inputs().max(1)])?;
        let output = [input.images(), weight.outputs(), input.height(), input.width()];
        check_length("the output of a convolution", conv.output_len(), &output)?;
        bias.map_or(Ok(()), |bias| check_length("the bias of a convolution", bias.len(), &output[1..2]))?;
        residual.map_or(Ok(()), |values| check_length("the residual of a convolution", values.len(), &output))?;
        Ok(conv)
    }

    /// Number of values of the result.
    fn output_len(&self) -> usize {
        self.input.images().wrapping_mul(self.weight.outputs()).wrapping_mul(self.input.area())
    }

    /// Computes the convolution, `[N, O, H, W]`.
    pub(crate) fn to_vec(self) -> Vec<f32> {
        let shape = [self.weight.outputs(), self.input.slices(), self.input.area()];
        let len = self.output_len();
        if len == 0 {
            return Vec::new();
        }
        // SAFETY: the algorithms write every pixel of every output channel.
        unsafe { filled(len, |to| self.run(PlanesOut::new(to, shape, self.bias, self.residual))) }
    }

    /// Writes the convolution, of which no axis is empty, to `to`.
    fn run(&self, to: PlanesOut<'_>) {
        match self.weight.algorithm() {
            Algorithm::Direct1 | Algorithm::Direct3 => Direct::new(self, to).run(),
            Algorithm::Winograd2 => Winograd::<F2, 4, 2>::new(self, to).run(),
            Algorithm::Winograd4 => Winograd::<F4, 6, 4>::new(self, to).run(),
        }
    }
}

/// Cuts `len` into equal pieces of at most `max`; returns their number and the size of one.
pub(crate) fn pieces(len: usize, max: usize) -> (usize, usize) {
    let count = len.div_ceil(max.max(1)).max(1);
    let size = len.div_ceil(count).max(1);
    (len.div_ceil(size), size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::pack::Direction;

    #[test]
    fn slices_of_other_lengths_are_refused() {
        let weight = Packed::passing(Algorithm::Direct1, Direction::Forward, &[1.; 6], [2, 3]).unwrap();
        let (x, bias, residual) = ([1.; 24], [1.; 2], [1.; 16]);
        let input = Planes::new(&x, [2, 3, 2, 2]).unwrap();
        let y = Convolution::new(input, &weight, Some(&bias), Some(&residual)).unwrap().to_vec();
        assert_eq!(y, [5.; 16]);
        assert!(Convolution::new(input, &weight, Some(&bias[1..]), None).is_err());
        assert!(Convolution::new(input, &weight, None, Some(&residual[1..])).is_err());
        let other = Planes::new(&x, [3, 2, 2, 2]).unwrap();
        assert!(Convolution::new(other, &weight, None, None).is_err());
        assert!(Packed::passing(Algorithm::Direct3, Direction::Forward, &[1.; 6], [2, 3]).is_err());
    }

    #[test]
    fn empty_images_have_an_empty_result() {
        for algorithm in [Algorithm::Direct3, Algorithm::Winograd2, Algorithm::Winograd4] {
            let weight = Packed::passing(algorithm, Direction::Forward, &[1.; 54], [2, 3]).unwrap();
            for shape in [[0, 3, 9, 9], [1, 3, 0, 9], [1, 3, 9, 0]] {
                let input = Planes::new(&[], shape).unwrap();
                assert!(Convolution::new(input, &weight, None, None).unwrap().to_vec().is_empty());
            }
        }
    }
}
