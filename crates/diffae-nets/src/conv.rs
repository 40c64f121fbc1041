//! Convolution of stride 1 with "same" padding, of pictures or of volumes.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use diffae_kernels::{ConvInput, ConvWeight, Winograd};

use crate::init;

/// Convolution `y = conv(x, weight) + bias` with an odd square or cubic kernel and padding that keeps the size.
#[derive(Debug, Clone)]
pub(crate) struct Conv(ConvWeight);

/// Sizes of a [`Conv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConvConfig {
    /// Channels of the input.
    pub(crate) in_channels: usize,
    /// Channels of the result.
    pub(crate) out_channels: usize,
    /// Sides of the kernel; odd.
    pub(crate) kernel_size: usize,
    /// Number of axes that the kernel moves along: 2, or 3 in volumes.
    pub(crate) axes: usize,
}

impl ConvConfig {
    /// Returns the sizes of a 3x3 convolution.
    pub(crate) fn three(in_channels: usize, out_channels: usize) -> Self {
        Self { in_channels, out_channels, kernel_size: 3, axes: 2 }
    }

    /// Returns the sizes of a 1x1 convolution.
    pub(crate) fn one(in_channels: usize, out_channels: usize) -> Self {
        Self { in_channels, out_channels, kernel_size: 1, axes: 2 }
    }

    /// Returns the sizes of the same convolution along 2 or 3 axes.
    pub(crate) fn along(self, axes: usize) -> Self {
        Self { axes, ..self }
    }

    fn kernel_dims(self) -> Vec<usize> {
        vec![self.kernel_size; self.axes]
    }
}

impl Conv {
    /// Reads `weight` `[C_out, C_in, K, K]`, or `[C_out, C_in, K, K, K]`, and `bias` `[C_out]` below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(config: ConvConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let fan_in = config.in_channels * config.kernel_dims().iter().product::<usize>();
        Self::with_init(config, vb, init::uniform_by_fan_in(fan_in), init::uniform_by_fan_in(fan_in))
    }

    /// Reads the layer like [`Conv::new`], starting from zeros where there are no weights to read yet.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn zero_initialized(config: ConvConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::with_init(config, vb, init::ZERO, init::ZERO)
    }

    /// Reads a 1x1 convolution whose weight is stored as the released checkpoints do, `[C_out, C_in, 1]`.
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
        let bias = vb.get_with_hints(out_channels, "bias", init)?;
        ConvWeight::new(weight, bias).map(Self)
    }

    /// Applies the convolution.
    ///
    /// # Shapes
    /// - `x`: `[N, C_in, H, W]` or `[N, C_in, D, H, W]`; result: the same with `C_out`, dtype of `x`.
    /// # Errors
    /// If the channel count differs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.apply(&ConvInput::plain(x))
    }

    /// Applies the convolution to the result of an optional norm and concatenation, and adds the optional residual.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn apply(&self, input: &ConvInput<'_>) -> Result<Tensor> {
        self.0.apply(input)
    }

    /// Freezes the layer for inference; see [`ConvWeight::freeze`].
    pub(crate) fn freeze(&mut self, winograd: Winograd) {
        self.0.freeze(winograd);
    }

    /// Returns the size of the weights in bytes; see [`ConvWeight::num_bytes`].
    pub(crate) fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    fn with_init(config: ConvConfig, vb: &VarBuilder<'_>, weight_init: Init, bias_init: Init) -> Result<Self> {
        let dims: Vec<usize> =
            [config.out_channels, config.in_channels].into_iter().chain(config.kernel_dims()).collect();
        let weight = vb.get_with_hints(dims, "weight", weight_init)?;
        let bias = vb.get_with_hints(config.out_channels, "bias", bias_init)?;
        ConvWeight::new(weight, bias).map(Self)
    }
}
