//! Spatial self-attention.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use crate::conv::Conv2d;
use crate::init;
use crate::norm::{Activation, GroupNorm};
use crate::precision::statistics_dtype;

/// Every pixel looks at every other pixel of the same picture: `y = x + proj(softmax(q^T k / sqrt(C / heads)) v)`.
#[derive(Debug, Clone)]
pub(crate) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Conv2d,
    proj_out: Conv2d,
    num_heads: usize,
}

/// Sizes of an [`AttentionBlock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionConfig {
    /// C.
    pub(crate) channels: usize,
    /// Number of heads; divides C.
    pub(crate) num_heads: usize,
}

impl AttentionBlock {
    /// Reads `norm`, `qkv` and `proj_out` below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(config: AttentionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let AttentionConfig { channels, num_heads } = config;
        let qkv_init = init::uniform_by_fan_in(channels);
        Ok(Self {
            norm: GroupNorm::new(channels, &vb.pp("norm"))?,
            qkv: Conv2d::from_pointwise_conv1d(channels, 3 * channels, &vb.pp("qkv"), qkv_init)?,
            proj_out: Conv2d::from_pointwise_conv1d(channels, channels, &vb.pp("proj_out"), init::ZERO)?,
            num_heads,
        })
    }

    /// Attends. The softmax runs in f32.
    ///
    /// # Shapes
    /// - `x`: `[N, C, H, W]`; result: the same.
    /// # Errors
    /// If the channel count differs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let (heads, length) = (self.num_heads, h * w);
        let head_width = c.checked_div(heads).unwrap_or(0);
        let qkv = self.qkv.forward(&self.norm.forward(x, Activation::Identity)?)?;
        let qkv = qkv.reshape((n * heads, 3 * head_width, length))?; // [N*heads, 3*C/heads, L]
        // Scaling q and k by the fourth root each keeps the products small in half precision.
        let scale = (head_width as f64).powf(-0.25);
        let q = (qkv.narrow(1, 0, head_width)? * scale)?;
        let k = (qkv.narrow(1, head_width, head_width)? * scale)?;
        let v = qkv.narrow(1, 2 * head_width, head_width)?.contiguous()?;
        let scores = q.transpose(1, 2)?.contiguous()?.matmul(&k)?; // [N*heads, L, L]
        let weights = softmax(&scores.to_dtype(statistics_dtype(scores.dtype()))?)?.to_dtype(v.dtype())?;
        let y = v.matmul(&weights.transpose(1, 2)?.contiguous()?)?; // [N*heads, C/heads, L]
        x + self.proj_out.forward(&y.reshape((n, c, h, w))?)?
    }
}

/// `exp(x - max) / sum(exp(x - max))` over the last axis.
fn softmax(x: &Tensor) -> Result<Tensor> {
    // The maximum only keeps exp from overflowing; no gradient flows through it.
    let exp = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
