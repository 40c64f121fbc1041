//! Residual blocks: the conditioned one of the `UNet`, the plain one of the semantic encoder, that of the spatial autoencoder.

use std::ops::Range;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{
    Activation, ConvInput, Dropout, average_pool_2x, checkpoint, concat_channels, differentiable, upsample_nearest_2x,
};

use crate::conv::{Conv, ConvConfig};
use crate::linear::Linear;
use crate::norm::{GroupNorm, Modulation};
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

/// First half of every residual block, `conv(resample(SiLU(GN(x))))`, and the shortcut.
#[derive(Debug, Clone)]
struct Stem {
    norm: GroupNorm,
    conv: Conv,
    skip: Option<Conv>,
    resample: Resample,
}

impl Stem {
    fn new(plan: ResPlan, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::with_norm(GroupNorm::new(plan.in_channels, &vb.pp("in_layers.0"))?, plan, vb)
    }

    fn with_norm(norm: GroupNorm, plan: ResPlan, vb: &VarBuilder<'_>) -> Result<Self> {
        let ResPlan { in_channels, out_channels, resample, axes } = plan;
        let skip = (in_channels != out_channels)
            .then(|| Conv::new(ConvConfig::one(in_channels, out_channels).along(axes), &vb.pp("skip_connection")))
            .transpose()?;
        Ok(Self {
            norm,
            conv: Conv::new(ConvConfig::three(in_channels, out_channels).along(axes), &vb.pp("in_layers.2"))?,
            skip,
            resample,
        })
    }

    /// Applies the layers to `input`, and adds `residual` to the result.
    fn forward(&self, input: BlockInput<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        let BlockInput { x, skip } = input;
        if self.resample == Resample::Keep {
            let input = ConvInput { x, skip, norm: None, residual };
            return self.norm.plain().then(&self.conv, &input, Activation::Silu);
        }
        let h = self.resample.apply(&self.norm.forward(&input.joined()?, Activation::Silu)?)?;
        self.conv.apply(&ConvInput { residual, ..ConvInput::plain(&h) })
    }

    fn shortcut(&self, input: BlockInput<'_>) -> Result<Tensor> {
        match (&self.skip, self.resample) {
            (Some(conv), Resample::Keep) => conv.apply(&ConvInput { skip: input.skip, ..ConvInput::plain(input.x) }),
            (Some(conv), _) => conv.forward(&self.resample.apply(&input.joined()?)?),
            (None, _) => self.resample.apply(&input.joined()?),
        }
    }

    fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        std::iter::once(&mut self.conv).chain(&mut self.skip)
    }
}

/// Input of a block: `x`, and the skip connection whose channels follow it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockInput<'a> {
    pub(crate) x: &'a Tensor,
    /// Skip connection, `[N, C', H, W]`.
    pub(crate) skip: Option<&'a Tensor>,
}

impl BlockInput<'_> {
    /// Concatenates the input to one tensor.
    fn joined(self) -> Result<Tensor> {
        match self.skip {
            Some(skip) => concat_channels(self.x, skip),
            None => Ok(self.x.clone()),
        }
    }
}

/// The residual block of the semantic encoder: `skip(x) + conv(resample(SiLU(GN(x))))`.
///
/// The block knows no timestep, and in the released weights it has no second convolution either.
#[derive(Debug, Clone)]
pub(crate) struct PlainResBlock(Stem);

impl PlainResBlock {
    pub(crate) fn new(plan: ResPlan, vb: &VarBuilder<'_>) -> Result<Self> {
        Stem::new(plan, vb).map(Self)
    }

    /// Applies the block to `x`: `[N, C_in, H, W]`; result: `[N, C_out, H', W']`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let input = BlockInput { x, skip: None };
        self.0.forward(input, Some(&self.0.shortcut(input)?))
    }

    pub(crate) fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        self.0.convs_mut()
    }
}

/// The residual block of the spatial autoencoder: `skip(x) + conv(SiLU(GN(conv(resample(SiLU(GN(x)))))))`. Without groups, it
/// begins as `skip(x)`.
#[derive(Debug, Clone)]
pub(crate) struct TwoConvBlock {
    stem: Stem,
    out_norm: GroupNorm,
    out_conv: Conv,
}

impl TwoConvBlock {
    /// Reads the parameters below `vb`; norms have `num_groups` groups, or one a channel if there are fewer channels, and with none
    /// they do not normalize.
    pub(crate) fn new(plan: ResPlan, num_groups: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = |channels: usize, name| GroupNorm::with_groups((channels, num_groups.min(channels)), &vb.pp(name));
        let sizes = ConvConfig::three(plan.out_channels, plan.out_channels).along(plan.axes);
        let vb_of_conv = vb.pp("out_layers.3");
        // Zero at first, as a diffusion's, only where no norm keeps the activations from growing from block to block. The original
        // has norms.
        let out_conv = match num_groups {
            0 => Conv::zero_initialized(sizes, &vb_of_conv)?,
            _ => Conv::new(sizes, &vb_of_conv)?,
        };
        Ok(Self {
            stem: Stem::with_norm(norm(plan.in_channels, "in_layers.0")?, plan, vb)?,
            out_norm: norm(plan.out_channels, "out_layers.0")?,
            out_conv,
        })
    }

    /// Applies the block to `x`: `[N, C_in, H, W]`; result: `[N, C_out, H', W']`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let input = BlockInput { x, skip: None };
        let h = self.stem.forward(input, None)?;
        let shortcut = self.stem.shortcut(input)?;
        let input = ConvInput { residual: Some(&shortcut), ..ConvInput::plain(&h) };
        self.out_norm.plain().then(&self.out_conv, &input, Activation::Silu)
    }

    pub(crate) fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        self.stem.convs_mut().chain(std::iter::once(&mut self.out_conv))
    }
}

/// The conditioned residual block of the `UNet`.
///
/// `skip(x) + conv(SiLU(modulate(GN(conv(resample(SiLU(GN(x))))), t, z_sem)))`, in training with dropout before the last
/// convolution.
#[derive(Debug, Clone)]
pub(crate) struct ResBlock {
    stem: Stem,
    project_t: Linear,
    /// Projection of a part of `z_sem`, with the components that it sees.
    project_z: Option<(Linear, Range<usize>)>,
    out_norm: GroupNorm,
    out_conv: Conv,
}

/// Conditioning of one block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockCondition<'a> {
    /// Scale and shift from the timestep side by side, `[M, 2C]`.
    pub(crate) time: &'a Tensor,
    /// Scale from `z_sem`, `[N, C]`.
    pub(crate) scale_z: Option<&'a Tensor>,
    /// Dropout in training; `None` otherwise.
    pub(crate) dropout: Option<Dropout>,
    /// True if only the input of the block is saved for the backward pass, and the rest recomputed there.
    pub(crate) checkpoint: bool,
}

/// Widths of the conditioning vectors of the blocks.
#[derive(Debug, Clone)]
pub(crate) struct ConditionWidths {
    /// Width of the time embedding, E.
    pub(crate) time: usize,
    /// Components of `z_sem` that the block sees, where there is one.
    pub(crate) z_sem: Option<Range<usize>>,
}

impl ResBlock {
    pub(crate) fn new(plan: ResPlan, widths: ConditionWidths, vb: &VarBuilder<'_>) -> Result<Self> {
        let channels = plan.out_channels;
        let project_z = |part: Range<usize>| {
            Ok::<_, candle_core::Error>((Linear::new(part.len(), channels, &vb.pp("cond_emb_layers.1"))?, part))
        };
        let sizes = ConvConfig::three(channels, channels).along(plan.axes);
        let out_conv = Conv::zero_initialized(sizes, &vb.pp("out_layers.3"))?;
        Ok(Self {
            stem: Stem::new(plan, vb)?,
            project_t: Linear::new(widths.time, 2 * channels, &vb.pp("emb_layers.1"))?,
            project_z: widths.z_sem.map(project_z).transpose()?,
            out_norm: GroupNorm::new(channels, &vb.pp("out_layers.0"))?,
            out_conv,
        })
    }

    /// Projects the time embedding. `silu_t_emb`: SiLU of the time embedding, `[M, E]`; result: scale and shift,
    /// `[M, 2C]`.
    pub(crate) fn project_time(&self, silu_t_emb: &Tensor) -> Result<Tensor> {
        self.project_t.forward(silu_t_emb)
    }

    /// Projects the semantic code. `silu_z_sem`: SiLU of the code, `[N, D]`; result: `[N, C]`, `None` in a model
    /// without `z_sem`.
    pub(crate) fn project_z_sem(&self, silu_z_sem: &Tensor) -> Option<Result<Tensor>> {
        self.project_z.as_ref().map(|(linear, part)| match silu_z_sem.dim(1)? {
            width if width == part.len() => linear.forward(silu_z_sem),
            _ => {
                linear.forward(&differentiable([silu_z_sem], |[z]| z.narrow(1, part.start, part.len())?.contiguous())?)
            }
        })
    }

    /// Applies the block. `input`: `[N, C_in, H, W]` together; result: `[N, C_out, H', W']`.
    pub(crate) fn forward(&self, input: BlockInput<'_>, condition: BlockCondition<'_>) -> Result<Tensor> {
        if !condition.checkpoint {
            return self.compute(input, condition);
        }
        let (block, condition) = (self.clone(), BlockCondition { checkpoint: false, ..condition });
        let dropout = condition.dropout;
        let again = move |x: &Tensor, skip: Option<&Tensor>, time: &Tensor, scale_z: Option<&Tensor>| {
            block.compute(BlockInput { x, skip }, BlockCondition { time, scale_z, dropout, checkpoint: false })
        };
        match (input.skip, condition.scale_z) {
            (None, None) => checkpoint([input.x, condition.time], move |[x, time]| again(x, None, time, None)),
            (None, Some(z)) => {
                checkpoint([input.x, condition.time, z], move |[x, time, z]| again(x, None, time, Some(z)))
            }
            (Some(skip), None) => {
                checkpoint([input.x, skip, condition.time], move |[x, skip, time]| again(x, Some(skip), time, None))
            }
            (Some(skip), Some(z)) => checkpoint([input.x, skip, condition.time, z], move |[x, skip, time, z]| {
                again(x, Some(skip), time, Some(z))
            }),
        }
    }

    fn compute(&self, input: BlockInput<'_>, condition: BlockCondition<'_>) -> Result<Tensor> {
        let BlockCondition { time, scale_z, dropout, .. } = condition;
        let h = self.stem.forward(input, None)?;
        let norm = self.out_norm.modulated(&Modulation { time, scale_z })?;
        let shortcut = self.stem.shortcut(input)?;
        let residual = Some(&shortcut);
        match dropout {
            None => norm.then(&self.out_conv, &ConvInput { residual, ..ConvInput::plain(&h) }, Activation::Silu),
            Some(how) => {
                let h = diffae_kernels::dropout(&norm.forward(&h, Activation::Silu)?, how)?;
                self.out_conv.apply(&ConvInput { residual, ..ConvInput::plain(&h) })
            }
        }
    }

    pub(crate) fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        self.stem.convs_mut().chain(std::iter::once(&mut self.out_conv))
    }
}
