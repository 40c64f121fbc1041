//! Two-dimensional convolution, stride 1, "same" padding.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::init;
use crate::precision::like;

/// `y = conv(x, weight) + bias`, with an odd square kernel and padding that keeps H and W.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Tensor, // [C_out, C_in, K, K]
    bias: Tensor,   // [C_out]
    padding: usize,
}

/// Sizes of a [`Conv2d`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conv2dConfig {
    /// Channels of the input.
    pub(crate) in_channels: usize,
    /// Channels of the result.
    pub(crate) out_channels: usize,
    /// Height and width of the kernel; odd.
    pub(crate) kernel_size: usize,
}

impl Conv2dConfig {
    /// A 3x3 convolution.
    pub(crate) fn three(in_channels: usize, out_channels: usize) -> Self {
        Self { in_channels, out_channels, kernel_size: 3 }
    }

    /// A 1x1 convolution.
    pub(crate) fn one(in_channels: usize, out_channels: usize) -> Self {
        Self { in_channels, out_channels, kernel_size: 1 }
    }
}

impl Conv2d {
    /// Reads `weight` `[C_out, C_in, K, K]` and `bias` `[C_out]` below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(config: Conv2dConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let fan_in = config.in_channels * config.kernel_size * config.kernel_size;
        Self::with_init(config, vb, init::uniform_by_fan_in(fan_in), init::uniform_by_fan_in(fan_in))
    }

    /// The same, starting from zeros where there are no weights to read yet.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn zero_initialized(config: Conv2dConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::with_init(config, vb, init::ZERO, init::ZERO)
    }

    /// A 1x1 convolution whose weight is stored as the released checkpoints do, `[C_out, C_in, 1]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn from_pointwise_conv1d(
        in_channels: usize,
        out_channels: usize,
        vb: &VarBuilder<'_>,
        init: Init,
    ) -> Result<Self> {
        let weight = vb.get_with_hints((out_channels, in_channels, 1), "weight", init)?;
        let weight = weight.reshape((out_channels, in_channels, 1, 1))?; // [C_out, C_in, 1, 1]
        let bias = vb.get_with_hints(out_channels, "bias", init)?;
        Ok(Self { weight, bias, padding: 0 })
    }

    /// Convolves.
    ///
    /// # Shapes
    /// - `x`: `[N, C_in, H, W]`; result: `[N, C_out, H, W]`, dtype of `x`.
    /// # Errors
    /// If the channel count differs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.conv2d(&like(&self.weight, x)?, self.padding, 1, 1, 1)?;
        y.broadcast_add(&like(&self.bias, x)?.reshape((1, (), 1, 1))?)
    }

    fn with_init(config: Conv2dConfig, vb: &VarBuilder<'_>, weight_init: Init, bias_init: Init) -> Result<Self> {
        let Conv2dConfig { in_channels, out_channels, kernel_size } = config;
        let weight = vb.get_with_hints((out_channels, in_channels, kernel_size, kernel_size), "weight", weight_init)?;
        let bias = vb.get_with_hints(out_channels, "bias", bias_init)?;
        Ok(Self { weight, bias, padding: kernel_size >> 1 })
    }
}
