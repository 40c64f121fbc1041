//! Self-attention over pixels.

use candle_core::{D, DType, Device, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::length::LengthResult;
use crate::cpu::matrix::{Matrix, multiply, multiply_alone};
use crate::cpu::softmax;
use crate::cuda;
use crate::operation::{Operation, View, apply};
use crate::storage::{image_dims, with_all_floats};

/// Computes self-attention over the pixels of each image, head by head.
///
/// `y = v softmax(q^T k / sqrt(C / heads))^T`; the softmax runs in f32 at least. One `[L, L]` matrix a thread is in memory
/// at a time, L = H * W; the backward pass recomputes it.
///
/// # Shapes
/// - `qkv`: `[N, 3C, H, W]`, the channels in order head, then q, k, v, then C / heads; result: `[N, C, H, W]`, dtype of
///   `qkv`, heads side by side. Of volumes, `[N, 3C, D, H, W]`, all voxels attend to one another.
/// # Errors
/// If the channels cannot be split into q, k and v of that many heads.
/// # Source
/// Vaswani et al. 2017 (arXiv:1706.03762), Eq. 1.
pub fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let (_, channels, ..) = image_dims(qkv.dims())?;
    if num_heads == 0 || channels % (3 * num_heads) != 0 {
        bail!("{channels} channels cannot be cut into q, k and v of {num_heads} heads")
    }
    apply([qkv], Attention { num_heads })
}

/// Dimensions of the result for those of q, k and v.
fn output_dims(qkv: &[usize]) -> Vec<usize> {
    let mut dims = qkv.to_vec();
    if let Some(channels) = dims.get_mut(1) {
        *channels = channels.checked_div(3).unwrap_or(0);
    }
    dims
}

/// Queries, keys and values of all images and heads in tensors, for the composed backend.
struct Composed {
    /// Queries times `scale`, `[N * heads, width, L]`.
    q: Tensor,
    /// Keys times `scale`, of the same shape.
    k: Tensor,
    /// Values, of the same shape.
    v: Tensor,
    /// Attention weights, `[N * heads, L, L]`: query, key.
    weights: Tensor,
    /// Fourth root of `1 / width`: scaling q and k each keeps the products small in half precision.
    scale: f64,
}

impl Composed {
    fn new(qkv: &Tensor, num_heads: usize) -> Result<Self> {
        let (n, channels, h, w) = image_dims(qkv.dims())?;
        let (heads, length) = (n * num_heads, h * w);
        let width = channels.checked_div(3 * num_heads).unwrap_or(0);
        let qkv = qkv.reshape((heads, 3 * width, length))?;
        let scale = (width as f64).powf(-0.25);
        let q = (qkv.narrow(1, 0, width)? * scale)?;
        let k = (qkv.narrow(1, width, width)? * scale)?;
        let v = qkv.narrow(1, 2 * width, width)?.contiguous()?;
        let scores = transposed(&q)?.matmul(&k)?;
        let dtype = if scores.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let weights = softmax_of(&scores.to_dtype(dtype)?)?;
        Ok(Self { q, k, v, weights, scale })
    }
}

/// Computes `exp(x - max) / sum(exp(x - max))` over the last axis by Candle's operations.
fn softmax_of(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Transposes the matrices of a batch.
fn transposed(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}

/// Queries, keys and values of all images and heads as parts of one tensor, for products that read them where they are.
struct Parts {
    /// Queries, `[N * heads, width, L]`.
    q: Tensor,
    /// Keys, of the same shape.
    k: Tensor,
    /// Values, of the same shape.
    v: Tensor,
    /// Factor of the scores, `1 / sqrt(width)`.
    scale: f32,
}

impl Parts {
    fn new(qkv: &Tensor, num_heads: usize) -> Result<Self> {
        let (n, channels, h, w) = image_dims(qkv.dims())?;
        let width = channels.checked_div(3 * num_heads).unwrap_or(0);
        let qkv = qkv.contiguous()?.reshape((n * num_heads, 3 * width, h * w))?;
        let part = |i: usize| qkv.narrow(1, i * width, width);
        Ok(Self { q: part(0)?, k: part(1)?, v: part(2)?, scale: (width as f32).sqrt().recip() })
    }

    /// Computes the attention weights, `[N * heads, L, L]`: query, key. `softmax` gives that of a factor times a tensor.
    fn weights(&self, softmax: impl Fn(&Tensor, f32) -> Result<Option<Tensor>>) -> Result<Option<Tensor>> {
        softmax(&self.q.t()?.matmul(&self.k)?, self.scale)
    }

    fn output(&self, weights: &Tensor) -> Result<Tensor> {
        self.v.matmul(&weights.t()?)
    }

    /// Computes the gradient w.r.t. all three, from that w.r.t. the output. `softmax_gradient` gives that w.r.t. a tensor of the
    /// softmax of a factor times it.
    fn gradient(
        &self,
        weights: &Tensor,
        dy: &Tensor,
        softmax_gradient: impl Fn(&Tensor, &Tensor, f32) -> Result<Option<Tensor>>,
    ) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?.reshape(self.v.shape())?;
        let of_weights = dy.t()?.matmul(&self.v)?;
        let Some(slopes) = softmax_gradient(weights, &of_weights, self.scale)? else { return Ok(None) };
        let d_q = self.k.matmul(&slopes.t()?)?;
        let d_k = self.q.matmul(&slopes)?;
        Tensor::cat(&[d_q, d_k, dy.matmul(weights)?], 1).map(Some)
    }
}

/// Returns whether the kernels of cards compute on a tensor. In f16, products of unscaled queries and keys might be infinite.
fn is_for_cards(qkv: &Tensor) -> bool {
    cuda::has_kernels(qkv) && qkv.dtype() != DType::F16
}

/// Self-attention of q, k and v in one tensor.
struct Attention {
    num_heads: usize,
}

/// A matrix product, on one thread where each thread has a head of its own.
type Multiply = fn(Matrix<'_>, Matrix<'_>, &mut [f32]) -> LengthResult<()>;

/// Queries, keys and values of one image and head, each `[width, length]`.
struct Head<'a> {
    q: Matrix<'a>,
    k: Matrix<'a>,
    v: Matrix<'a>,
    width: usize,
    length: usize,
}

impl<'a> Head<'a> {
    /// Cuts `qkv`, `[3 * width, length]`, in three.
    fn new(qkv: &'a [f32], length: usize) -> LengthResult<Self> {
        let part = qkv.len().checked_div(3).unwrap_or(0);
        let width = part.checked_div(length).unwrap_or(0);
        let matrix = |i: usize| Matrix::new(&qkv[i * part..(i + 1) * part], width, length);
        Ok(Self { q: matrix(0)?, k: matrix(1)?, v: matrix(2)?, width, length })
    }

    fn scale(&self) -> f32 {
        (self.width as f32).sqrt().recip()
    }

    /// Computes the attention weights, `[query, key]`.
    fn weights(&self, multiply: Multiply, to: &mut [f32]) -> LengthResult<()> {
        multiply(self.q.transposed(), self.k, to)?;
        softmax::forward(to, self.length, self.scale())
    }
}

/// Runs `task` for each head of all images, with its number and its part of `to`.
///
/// With a head for every thread each takes its own; otherwise they share the products of one after the other.
fn for_each_head(
    to: &mut [f32],
    heads: usize,
    task: impl Fn(Multiply, usize, &mut [f32]) -> LengthResult<()> + Sync,
) -> LengthResult<()> {
    let len = to.len().checked_div(heads).unwrap_or(0).max(1);
    if heads >= rayon::current_num_threads() {
        to.par_chunks_mut(len).enumerate().try_for_each(|(i, to)| task(multiply_alone, i, to))
    } else {
        to.chunks_mut(len).enumerate().try_for_each(|(i, to)| task(multiply, i, to))
    }
}

/// Cuts `values` into equal parts and returns part i.
fn part(values: &[f32], parts: usize, i: usize) -> &[f32] {
    let len = values.len().checked_div(parts).unwrap_or(0);
    &values[i * len..(i + 1) * len]
}

impl Operation<1> for Attention {
    fn forward(&self, [(qkv, dims)]: [View<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (n, _, h, w) = image_dims(dims)?;
        let (heads, length) = (n * self.num_heads, h * w);
        let mut y = vec![0f32; qkv.len().checked_div(3).unwrap_or(0)];
        for_each_head(&mut y, heads, |multiply, i, y| {
            let head = Head::new(part(qkv, heads, i), length)?;
            let mut weights = vec![0f32; length * length];
            head.weights(multiply, &mut weights)?;
            multiply(head.v, Matrix::new(&weights, length, length)?.transposed(), y)
        })?;
        Ok((y, Shape::from(output_dims(dims))))
    }

    fn gradients(&self, [qkv]: [&Tensor; 1], [wanted]: [bool; 1], dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        if !wanted {
            return Ok([None]);
        }
        let (n, _, h, w) = image_dims(qkv.dims())?;
        let (heads, length) = (n * self.num_heads, h * w);
        let gradient = with_all_floats([qkv, dy], |[values, dy]| {
            let mut gradient = vec![0f32; values.len()];
            for_each_head(&mut gradient, heads, |multiply, i, gradient| {
                let head = Head::new(part(values, heads, i), length)?;
                let (mut weights, mut slopes) = (vec![0f32; length * length], vec![0f32; length * length]);
                head.weights(multiply, &mut weights)?;
                let dy = Matrix::new(part(dy, heads, i), head.width, length)?;
                let len = head.width * length;
                let (d_q, rest) = gradient.split_at_mut(len);
                let (d_k, d_v) = rest.split_at_mut(len);
                multiply(dy, Matrix::new(&weights, length, length)?, d_v)?;
                multiply(dy.transposed(), head.v, &mut slopes)?;
                softmax::backward(&weights, &mut slopes, length, head.scale())?;
                let slopes = Matrix::new(&slopes, length, length)?; // [query, key]
                multiply(head.k, slopes.transposed(), d_q)?;
                multiply(head.q, slopes, d_k)
            })?;
            Ok(gradient)
        })?;
        Ok([Some(Tensor::from_vec(gradient, qkv.shape(), &Device::Cpu)?)])
    }

    fn on_card(&self, [qkv]: [&Tensor; 1]) -> Result<Option<Tensor>> {
        if !is_for_cards(qkv) {
            return Ok(None);
        }
        let parts = Parts::new(qkv, self.num_heads)?;
        let Some(weights) = parts.weights(cuda::softmax)? else { return Ok(None) };
        parts.output(&weights)?.reshape(output_dims(qkv.dims())).map(Some)
    }

    fn gradients_on_card(
        &self,
        [qkv]: [&Tensor; 1],
        [wanted]: [bool; 1],
        dy: &Tensor,
    ) -> Result<Option<[Option<Tensor>; 1]>> {
        if !wanted || !is_for_cards(qkv) {
            return Ok(None);
        }
        let parts = Parts::new(qkv, self.num_heads)?;
        let Some(weights) = parts.weights(cuda::softmax)? else { return Ok(None) };
        let Some(gradient) = parts.gradient(&weights, dy, cuda::softmax_gradient)? else { return Ok(None) };
        Ok(Some([Some(gradient.reshape(qkv.shape())?)]))
    }

    fn composed(&self, [qkv]: [&Tensor; 1]) -> Result<Tensor> {
        let Composed { v, weights, .. } = Composed::new(qkv, self.num_heads)?;
        let y = v.matmul(&transposed(&weights.to_dtype(v.dtype())?)?)?;
        y.reshape(output_dims(qkv.dims()))
    }

    fn composed_gradients(&self, [qkv]: [&Tensor; 1], [wanted]: [bool; 1], dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        if !wanted {
            return Ok([None]);
        }
        let Composed { q, k, v, weights, scale } = Composed::new(qkv, self.num_heads)?;
        let dy = dy.reshape(v.shape())?;
        let d_v = dy.matmul(&weights.to_dtype(v.dtype())?)?;
        let slopes = transposed(&dy)?.matmul(&v)?.to_dtype(weights.dtype())?; // w.r.t. the weights
        let mean = (&slopes * &weights)?.sum_keepdim(D::Minus1)?;
        let slopes = (&weights * slopes.broadcast_sub(&mean)?)?.to_dtype(v.dtype())?; // w.r.t. the scores
        let d_q = (k.matmul(&transposed(&slopes)?)? * scale)?;
        let d_k = (q.matmul(&slopes)? * scale)?;
        Ok([Some(Tensor::cat(&[d_q, d_k, d_v], 1)?.reshape(qkv.shape())?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The products around the softmax of cards, with a softmax of Candle's in its place.
    #[test]
    fn products_in_place_are_those_of_the_kernels() {
        let numbers = |shape: (usize, usize, usize, usize)| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
        let (qkv, dy) = (numbers((2, 24, 3, 5)), numbers((2, 8, 3, 5)));
        let op = Attention { num_heads: 2 };
        let parts = Parts::new(&qkv, op.num_heads).unwrap();
        let weights = parts.weights(|x, scale| softmax_of(&(x * f64::from(scale))?).map(Some)).unwrap().unwrap();
        let gradient = parts.gradient(&weights, &dy, |p, dp, scale| {
            let sum = (p * dp)?.sum_keepdim(D::Minus1)?;
            ((p * dp.broadcast_sub(&sum)?)? * f64::from(scale)).map(Some)
        });
        let gradient = gradient.unwrap().unwrap().reshape(qkv.shape()).unwrap();
        let [expected] = op.gradients([&qkv], [true], &dy).unwrap();
        let output = attention(&qkv, op.num_heads).unwrap();
        for (got, expected) in
            [(parts.output(&weights).unwrap().reshape(output.shape()).unwrap(), output), (gradient, expected.unwrap())]
        {
            let error = (got - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(error < 1e-5, "{error}");
        }
    }
}
