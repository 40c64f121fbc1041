//! Spatial self-attention.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{Activation, ConvInput, attention};

use crate::conv::Conv;
use crate::init;
use crate::norm::GroupNorm;

/// Self-attention over all pixels of an image: `y = x + proj(softmax(q^T k / sqrt(C / heads)) v)`.
#[derive(Debug, Clone)]
pub(crate) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Conv,
    proj_out: Conv,
    num_heads: usize,
}

/// Sizes of an [`AttentionBlock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionConfig {
    /// Number of channels, C.
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
        let norm = GroupNorm::new(config.channels, &vb.pp("norm"))?;
        Self::with_norm(norm, config, vb)
    }

    /// Reads `qkv` and `proj_out` below `vb`, behind a given norm.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn with_norm(norm: GroupNorm, config: AttentionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let AttentionConfig { channels, num_heads } = config;
        let qkv_init = init::uniform_by_fan_in(channels);
        Ok(Self {
            norm,
            qkv: Conv::from_pointwise_conv1d(channels, 3 * channels, &vb.pp("qkv"), qkv_init)?,
            proj_out: Conv::from_pointwise_conv1d(channels, channels, &vb.pp("proj_out"), init::ZERO)?,
            num_heads,
        })
    }

    /// Applies self-attention. The softmax runs in f32.
    ///
    /// # Shapes
    /// - `x`: `[N, C, H, W]`; result: the same.
    /// # Errors
    /// If the channel count differs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let plain = ConvInput::plain(x);
        let qkv = self.norm.plain().then(&self.qkv, &plain, Activation::Identity)?;
        let y = attention(&qkv, self.num_heads)?;
        self.proj_out.apply(&ConvInput { residual: Some(x), ..ConvInput::plain(&y) })
    }

    pub(crate) fn convs_mut(&mut self) -> [&mut Conv; 2] {
        [&mut self.qkv, &mut self.proj_out]
    }
}
