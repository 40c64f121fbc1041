//! Residual blocks: the conditioned one of the `UNet` and the plain one of the semantic encoder.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{average_pool_2x, upsample_nearest_2x};

use crate::conv::{Conv2d, Conv2dConfig};
use crate::linear::Linear;
use crate::norm::{Activation, GroupNorm, Modulation};
use crate::plan::{ResPlan, Resample};

impl Resample {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Keep => Ok(x.clone()),
            Self::Up => upsample_nearest_2x(&x.contiguous()?),
            Self::Down => average_pool_2x(&x.contiguous()?),
        }
    }
}

/// What every residual block begins with: `conv(resample(SiLU(GN(x))))`, and its shortcut.
#[derive(Debug, Clone)]
struct Stem {
    norm: GroupNorm,
    conv: Conv2d,
    skip: Option<Conv2d>,
    resample: Resample,
}

impl Stem {
    fn new(plan: ResPlan, vb: &VarBuilder<'_>) -> Result<Self> {
        let ResPlan { in_channels, out_channels, resample } = plan;
        let skip = (in_channels != out_channels)
            .then(|| Conv2d::new(Conv2dConfig::one(in_channels, out_channels), &vb.pp("skip_connection")))
            .transpose()?;
        Ok(Self {
            norm: GroupNorm::new(in_channels, &vb.pp("in_layers.0"))?,
            conv: Conv2d::new(Conv2dConfig::three(in_channels, out_channels), &vb.pp("in_layers.2"))?,
            skip,
            resample,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(&self.resample.apply(&self.norm.forward(x, Activation::Silu)?)?)
    }

    fn shortcut(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.resample.apply(x)?;
        match &self.skip {
            Some(conv) => conv.forward(&x),
            None => Ok(x),
        }
    }
}

/// The residual block of the semantic encoder: `skip(x) + conv(resample(SiLU(GN(x))))`.
///
/// It knows no timestep, and in the released weights it has no second convolution either.
#[derive(Debug, Clone)]
pub(crate) struct PlainResBlock(Stem);

impl PlainResBlock {
    pub(crate) fn new(plan: ResPlan, vb: &VarBuilder<'_>) -> Result<Self> {
        Stem::new(plan, vb).map(Self)
    }

    /// `x`: `[N, C_in, H, W]`; result: `[N, C_out, H', W']`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.shortcut(x)? + self.0.forward(x)?
    }
}

/// The conditioned residual block of the `UNet`.
///
/// `skip(x) + conv(SiLU(modulate(GN(conv(resample(SiLU(GN(x))))), t, z_sem)))`, without dropout.
#[derive(Debug, Clone)]
pub(crate) struct ResBlock {
    stem: Stem,
    project_t: Linear,
    project_z: Option<Linear>,
    out_norm: GroupNorm,
    out_conv: Conv2d,
    out_channels: usize,
}

/// Scale and shift of one block from the timestep, each `[M, C]`.
#[derive(Debug, Clone)]
pub(crate) struct ScaleShift {
    pub(crate) scale: Tensor,
    pub(crate) shift: Tensor,
}

/// What conditions one block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockCondition<'a> {
    pub(crate) time: &'a ScaleShift,
    /// `[N, C]`
    pub(crate) scale_z: Option<&'a Tensor>,
}

/// Widths of what conditions the blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConditionWidths {
    /// E
    pub(crate) time: usize,
    /// D, where there is a `z_sem`.
    pub(crate) z_sem: Option<usize>,
}

impl ResBlock {
    pub(crate) fn new(plan: ResPlan, widths: ConditionWidths, vb: &VarBuilder<'_>) -> Result<Self> {
        let channels = plan.out_channels;
        let project_z =
            widths.z_sem.map(|width| Linear::new(width, channels, &vb.pp("cond_emb_layers.1"))).transpose()?;
        let out_conv = Conv2d::zero_initialized(Conv2dConfig::three(channels, channels), &vb.pp("out_layers.3"))?;
        Ok(Self {
            stem: Stem::new(plan, vb)?,
            project_t: Linear::new(widths.time, 2 * channels, &vb.pp("emb_layers.1"))?,
            project_z,
            out_norm: GroupNorm::new(channels, &vb.pp("out_layers.0"))?,
            out_conv,
            out_channels: channels,
        })
    }

    /// `silu_t_emb`: SiLU of the time embedding, `[M, E]`.
    pub(crate) fn project_time(&self, silu_t_emb: &Tensor) -> Result<ScaleShift> {
        let both = self.project_t.forward(silu_t_emb)?; // [M, 2C]
        let half = |start| both.narrow(1, start, self.out_channels)?.contiguous();
        Ok(ScaleShift { scale: half(0)?, shift: half(self.out_channels)? })
    }

    /// `silu_z_sem`: SiLU of the semantic code, `[N, D]`. Result: `[N, C]`; none in a model without `z_sem`.
    pub(crate) fn project_z_sem(&self, silu_z_sem: &Tensor) -> Option<Result<Tensor>> {
        self.project_z.as_ref().map(|linear| linear.forward(silu_z_sem))
    }

    /// `x`: `[N, C_in, H, W]`; result: `[N, C_out, H', W']`.
    pub(crate) fn forward(&self, x: &Tensor, condition: BlockCondition<'_>) -> Result<Tensor> {
        let h = self.stem.forward(x)?;
        let BlockCondition { time, scale_z } = condition;
        let h =
            self.out_norm.forward_modulated(&h, &Modulation { scale_t: &time.scale, shift_t: &time.shift, scale_z })?;
        self.stem.shortcut(x)? + self.out_conv.forward(&h)?
    }
}
