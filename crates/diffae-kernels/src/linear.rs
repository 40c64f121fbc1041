//! Fully connected layer.

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use crate::cpu::elementwise::channel_sums;
use crate::cpu::linear::{FEW_ROWS, few_rows};
use crate::cpu::matrix::{Matrix, multiply};
use crate::storage::{floats, runs_here, wants_gradient, with_floats};

/// `y = x weight^T + bias`.
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
    if runs_here([x, weight, bias]) {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear);
    }
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = x_layout.shape().dims2()?;
        let outputs = weight_layout.shape().dims2()?.0;
        let (x, weight, bias) = (floats(x, x_layout)?, floats(weight, weight_layout)?, floats(bias, bias_layout)?);
        let y = if rows <= FEW_ROWS {
            few_rows(x, weight, bias, inputs)
        } else {
            let mut y = vec![0f32; rows * outputs];
            multiply(Matrix::rows(x, rows, inputs), Matrix::rows(weight, outputs, inputs).transposed(), &mut y);
            for row in y.chunks_mut(outputs.max(1)) {
                for (y, bias) in row.iter_mut().zip(bias) {
                    *y += bias;
                }
            }
            y
        };
        Ok((CpuStorage::F32(y), Shape::from((rows, outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, inputs), (outputs, _)) = (x.dims2()?, weight.dims2()?);
        let product = |a: Matrix<'_>, b: Matrix<'_>, shape: (usize, usize)| {
            let mut to = vec![0f32; shape.0 * shape.1];
            multiply(a, b, &mut to);
            Tensor::from_vec(to, shape, &Device::Cpu)
        };
        with_floats(grad, |dy_values| {
            let dy = Matrix::rows(dy_values, rows, outputs);
            let d_x = wants_gradient(x).then(|| {
                with_floats(weight, |weight| product(dy, Matrix::rows(weight, outputs, inputs), (rows, inputs)))
            });
            let d_weight = wants_gradient(weight).then(|| {
                with_floats(x, |x| product(dy.transposed(), Matrix::rows(x, rows, inputs), (outputs, inputs)))
            });
            let d_bias = wants_gradient(bias)
                .then(|| Tensor::from_vec(channel_sums(dy_values, outputs, 1), outputs, &Device::Cpu));
            Ok((d_x.transpose()?, d_weight.transpose()?, d_bias.transpose()?))
        })
    }
}
