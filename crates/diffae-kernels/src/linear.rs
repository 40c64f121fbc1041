//! Fully connected layers.

use candle_core::{Device, Result, Shape, Tensor, bail};

use crate::cpu::elementwise::channel_sums;
use crate::cpu::linear::{FEW_ROWS, few_rows};
use crate::cpu::matrix::{Matrix, multiply};
use crate::operation::{Operation, View, apply};
use crate::storage::{sum_over, with_all_floats};
use crate::tape::is_recording;

/// Applies a fully connected layer, `y = x weight^T + bias`.
///
/// On the CPU, unless a tape is being recorded, a row of the result depends on that row of `x` alone, to the bit: results
/// of an image do not depend on its batch.
///
/// # Shapes
/// - `x`: `[N, in]`; `weight`: `[out, in]`; `bias`: `[out]`; result: `[N, out]`, all of one dtype.
/// # Errors
/// If shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (_, inputs) = x.dims2()?;
    let (outputs, weight_inputs) = weight.dims2()?;
    if weight_inputs != inputs || bias.dims() != [outputs] {
        bail!("weight {:?} and bias {:?} do not fit an input of shape {:?}", weight.dims(), bias.dims(), x.dims())
    }
    apply([x, weight, bias], Linear)
}

/// A fully connected layer of input, weight and bias.
struct Linear;

impl Operation<3> for Linear {
    fn forward(&self, [(x, x_dims), (weight, _), (bias, bias_dims)]: [View<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let (rows, inputs) = Shape::from(x_dims).dims2()?;
        let outputs = Shape::from(bias_dims).dims1()?;
        // A matrix product rounds differently for other numbers of rows; training does not mind, and is faster by it.
        let y = if rows <= FEW_ROWS || !is_recording() {
            few_rows(x, weight, bias, inputs)?
        } else {
            let mut y = vec![0f32; rows * outputs];
            multiply(Matrix::new(x, rows, inputs)?, Matrix::new(weight, outputs, inputs)?.transposed(), &mut y)?;
            for row in y.chunks_mut(outputs.max(1)) {
                for (y, bias) in row.iter_mut().zip(bias) {
                    *y += bias;
                }
            }
            y
        };
        Ok((y, Shape::from((rows, outputs))))
    }

    fn gradients(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        [x_wanted, weight_wanted, bias_wanted]: [bool; 3],
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let ((rows, inputs), outputs) = (x.dims2()?, bias.dims1()?);
        let product = |a: Matrix<'_>, b: Matrix<'_>, like: &Tensor| {
            let mut to = vec![0f32; like.elem_count()];
            multiply(a, b, &mut to)?;
            Tensor::from_vec(to, like.shape(), &Device::Cpu)
        };
        with_all_floats([x, weight, dy], |[x_values, weight_values, dy_values]| {
            let dy = Matrix::new(dy_values, rows, outputs)?;
            let d_x = x_wanted.then(|| product(dy, Matrix::new(weight_values, outputs, inputs)?, x));
            let d_weight =
                weight_wanted.then(|| product(dy.transposed(), Matrix::new(x_values, rows, inputs)?, weight));
            let d_bias =
                bias_wanted.then(|| Tensor::from_vec(channel_sums(dy_values, outputs, 1)?, outputs, &Device::Cpu));
            Ok([d_x.transpose()?, d_weight.transpose()?, d_bias.transpose()?])
        })
    }

    fn composed(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<Tensor> {
        x.matmul(&weight.t()?)?.broadcast_add(bias)
    }

    fn composed_gradients(
        &self,
        [x, weight, _]: [&Tensor; 3],
        [x_wanted, weight_wanted, bias_wanted]: [bool; 3],
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let d_x = x_wanted.then(|| dy.matmul(weight)).transpose()?;
        let d_weight = weight_wanted.then(|| dy.t()?.matmul(x)).transpose()?;
        Ok([d_x, d_weight, bias_wanted.then(|| sum_over(dy, 0)).transpose()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let ramp = |rows: usize, columns: usize| {
            let values = (0..rows * columns).map(|i| (i as f32 * 1.7).sin()).collect::<Vec<_>>();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        let (x, weight, bias) = (ramp(40, 70), ramp(33, 70), ramp(1, 33).reshape(33).unwrap());
        let all = linear(&x, &weight, &bias).unwrap();
        for rows in [1, 7, 9, 32] {
            let some = linear(&x.narrow(0, 3, rows).unwrap(), &weight, &bias).unwrap();
            let expected = all.narrow(0, 3, rows).unwrap();
            assert_eq!(some.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap(), "{rows} rows");
        }
    }
}
