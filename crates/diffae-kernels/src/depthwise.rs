//! Depthwise convolution, for networks that are only evaluated.

use candle_core::{Device, IndexOp, Result, Tensor, bail};

use crate::cpu::depthwise::{Geometry, convolve};
use crate::storage::{runs_here, with_all_floats};
use crate::tape;

/// Convolves each channel with a kernel of its own: `y[n, c] = bias[c] + sum over i, j of w[c, i, j] x[n, c, s y + i, s x + j]`, where
/// x is padded by zeros.
///
/// It has no gradient.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; `weight`: `[C, 1, K, L]`; `bias`: `[C]`; `padding`: zeros above and below, left and right; result: the
///   places at which the kernel fits, every `stride`th in either direction.
/// # Errors
/// If shapes do not fit, `stride` is 0, or a gradient is asked for.
pub fn depthwise_conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (stride, padding): (usize, [[usize; 2]; 2]),
) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    let (kernels, one, kernel_height, kernel_width) = weight.dims4()?;
    let (size, kernel) = ([height, width], [kernel_height, kernel_width]);
    if kernels != channels || one != 1 || bias.dims() != [channels] || stride == 0 || kernel.contains(&0) {
        bail!("kernels {:?} with bias {:?} and stride {stride} of {channels} channels", weight.dims(), bias.dims())
    }
    if [x, weight, bias].into_iter().any(tape::is_tracked) {
        bail!("a depthwise convolution has no gradient")
    }
    let of = Geometry { images, channels, size, kernel, stride, padding };
    let [rows, columns] = of.output();
    if rows == 0 || columns == 0 {
        bail!("a kernel of {kernel:?} on pictures of {size:?}")
    }
    if runs_here([x, weight, bias]) {
        let y = with_all_floats([x, weight, bias], |[x, weight, bias]| Ok(convolve(x, weight, bias, &of)?))?;
        return Tensor::from_vec(y, (images, channels, rows, columns), &Device::Cpu);
    }
    let [[top, bottom], [left, right]] = padding;
    composed(&x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?, weight, stride, [rows, columns])?
        .broadcast_add(&bias.reshape((1, (), 1, 1))?)
}

/// Computes it by one product for each place of the kernel: Candle would take the channels one by one.
fn composed(x: &Tensor, weight: &Tensor, stride: usize, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    let (channels, _, kernel_height, kernel_width) = weight.dims4()?;
    let every = |x: &Tensor, axis: usize, start: usize, count: usize| {
        let x = x.narrow(axis, start, (count - 1) * stride + 1)?;
        if stride == 1 {
            return Ok(x);
        }
        let chosen: Vec<u32> = (0..).step_by(stride).take(count).collect();
        x.contiguous()?.index_select(&Tensor::new(chosen, x.device())?, axis)
    };
    let mut sum: Option<Tensor> = None;
    for i in 0..kernel_height {
        let band = every(x, 2, i, rows)?;
        for j in 0..kernel_width {
            let factor = weight.i((.., 0, i, j))?.reshape((1, channels, 1, 1))?;
            let term = every(&band, 3, j, columns)?.broadcast_mul(&factor)?;
            sum = Some(sum.map_or(Ok(term.clone()), |sum| sum + &term)?);
        }
    }
    sum.map_or_else(|| bail!("a kernel without places"), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernel, size, stride, and zeros on the four sides.
    type Case = ([usize; 2], [usize; 2], usize, [[usize; 2]; 2]);

    const CASES: [Case; 7] = [
        ([3, 3], [9, 9], 1, [[1, 1], [1, 1]]),
        ([3, 3], [16, 40], 2, [[0, 1], [0, 1]]),
        ([5, 5], [7, 18], 1, [[2, 2], [2, 2]]),
        ([5, 3], [13, 8], 2, [[1, 2], [0, 1]]),
        ([3, 3], [8, 35], 3, [[0, 0], [2, 0]]),
        ([1, 1], [4, 5], 4, [[0, 0], [0, 0]]),
        ([4, 2], [4, 2], 1, [[0, 0], [0, 0]]),
    ];

    #[test]
    fn each_channel_is_convolved_by_itself() {
        for (kernel, size, stride, padding) in CASES {
            let numbers = |dims: &[usize]| Tensor::randn(0f32, 1., dims, &Device::Cpu).unwrap();
            let x = numbers(&[2, 3, size[0], size[1]]);
            let (weight, bias) = (numbers(&[3, 1, kernel[0], kernel[1]]), numbers(&[3]));
            let [[top, bottom], [left, right]] = padding;
            let padded = x.pad_with_zeros(2, top, bottom).unwrap().pad_with_zeros(3, left, right).unwrap();
            // Candle convolves channel by channel, with the same stride along both axes.
            let expected = padded.conv2d(&weight, 0, stride, 1, 3).unwrap();
            let expected = expected.broadcast_add(&bias.reshape((1, 3, 1, 1)).unwrap()).unwrap();
            let by_kernel = depthwise_conv2d(&x, &weight, &bias, (stride, padding)).unwrap();
            let [rows, columns] = [expected.dim(2).unwrap(), expected.dim(3).unwrap()];
            let by_products = composed(&padded, &weight, stride, [rows, columns]).unwrap();
            let by_products = by_products.broadcast_add(&bias.reshape((1, 3, 1, 1)).unwrap()).unwrap();
            for got in [by_kernel, by_products] {
                assert_eq!(got.dims(), expected.dims());
                let error = (got - &expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(error < 1e-5, "{kernel:?} on {size:?}: {error}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu).unwrap();
        let (x, weight, bias) = (zeros(&[1, 2, 4, 4]), zeros(&[2, 1, 3, 3]), zeros(&[2]));
        let none = [[0; 2]; 2];
        assert!(depthwise_conv2d(&x, &weight, &bias, (1, none)).is_ok());
        for (x, weight, bias, stride) in [
            (&x, &weight, &bias, 0),
            (&x, &zeros(&[3, 1, 3, 3]), &bias, 1),
            (&x, &zeros(&[2, 2, 3, 3]), &bias, 1),
            (&x, &zeros(&[2, 1, 0, 3]), &bias, 1),
            (&x, &weight, &zeros(&[3]), 1),
            (&x, &zeros(&[2, 1, 5, 3]), &bias, 1),
            (&zeros(&[1, 2, 4, 0]), &weight, &bias, 1),
        ] {
            assert!(depthwise_conv2d(x, weight, bias, (stride, none)).is_err());
        }
        // No picture is a batch, too.
        assert_eq!(depthwise_conv2d(&zeros(&[0, 2, 4, 4]), &weight, &bias, (1, none)).unwrap().dims(), [0, 2, 2, 2]);
    }
}
