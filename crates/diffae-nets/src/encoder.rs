//! The semantic encoder: `x_0 -> z_sem`.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{Activation, Winograd, cast, differentiable, run_in_pool};

use crate::attention::{AttentionBlock, AttentionConfig};
use crate::config::EncoderConfig;
use crate::conv::{Conv, ConvConfig};
use crate::norm::GroupNorm;
use crate::precision::compute_dtype;
use crate::res_block::PlainResBlock;

/// Semantic encoder of clean pictures: the downsampling half of a `UNet`, a global mean and a 1x1 convolution.
///
/// # Source
/// Preechakul et al. 2022 (arXiv:2111.15640), section 3 and appendix A; block layout as in the released weights.
#[derive(Debug, Clone)]
pub struct SemanticEncoder {
    config: EncoderConfig,
    first: Conv,
    stages: Vec<(PlainResBlock, Option<AttentionBlock>)>,
    middle: (PlainResBlock, AttentionBlock, PlainResBlock),
    out_norm: GroupNorm,
    out_conv: Conv,
    dtype: DType,
}

impl SemanticEncoder {
    /// Reads the parameters below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &EncoderConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let plan = config.trunk().input_plan();
        let attention = |channels, vb: &VarBuilder<'_>| {
            AttentionBlock::new(AttentionConfig { channels, num_heads: config.num_heads }, vb)
        };
        let mut stages = Vec::with_capacity(plan.stages.len());
        for (i, stage) in plan.stages.iter().enumerate() {
            let vb = vb.pp("input_blocks").pp(i + 1);
            let block = PlainResBlock::new(stage.res, &vb.pp("0"))?;
            let attention = stage.attention.then(|| attention(stage.res.out_channels, &vb.pp("1"))).transpose()?;
            stages.push((block, attention));
        }
        let channels = config.trunk().width(config.trunk().last_level());
        let keep = config.trunk().keeping(channels, channels);
        let axes = config.image_size.axes();
        let middle = vb.pp("middle_block");
        Ok(Self {
            first: Conv::new(
                ConvConfig::three(config.in_channels, plan.first_channels).along(axes),
                &vb.pp("input_blocks.0.0"),
            )?,
            stages,
            middle: (
                PlainResBlock::new(keep, &middle.pp("0"))?,
                attention(channels, &middle.pp("1"))?,
                PlainResBlock::new(keep, &middle.pp("2"))?,
            ),
            out_norm: GroupNorm::new(channels, &vb.pp("out.0"))?,
            out_conv: Conv::new(ConvConfig::one(channels, config.out_channels).along(axes), &vb.pp("out.3"))?,
            dtype: compute_dtype(vb.dtype(), vb.device()),
            config: config.clone(),
        })
    }

    /// Returns the config of the encoder.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Encodes pictures.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, or volumes, `[N, C, D, H, W]`, f32 in `[-1, 1]`, of the configured image size; result: `z_sem`
    ///   `[N, D]`, dtype of `x_0`.
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x_0: &Tensor) -> Result<Tensor> {
        crate::unet::check_images(x_0, self.config.in_channels, self.config.image_size)?;
        run_in_pool(x_0.device(), || self.run(x_0))
    }

    fn run(&self, x_0: &Tensor) -> Result<Tensor> {
        let mut h = self.first.forward(&cast(x_0, self.dtype)?)?;
        for (block, attention) in &self.stages {
            h = block.forward(&h)?;
            if let Some(attention) = attention {
                h = attention.forward(&h)?;
            }
        }
        let (first, attention, second) = &self.middle;
        h = second.forward(&attention.forward(&first.forward(&h)?)?)?;
        h = self.out_norm.forward(&h, Activation::Silu)?;
        h = differentiable([&h], |[h]| match h.rank() {
            4 => h.mean_keepdim((2, 3)),                                // [N, C, 1, 1]
            _ => h.flatten_from(3)?.mean_keepdim((2, 3))?.unsqueeze(4), // [N, C, 1, 1, 1]
        })?;
        h = self.out_conv.forward(&h)?;
        differentiable([&h], |[h]| h.flatten_from(1)?.to_dtype(x_0.dtype())) // [N, D]
    }

    /// Freezes the encoder for inference: no gradients may be requested afterwards; see
    /// [`Unet::freeze`](crate::Unet::freeze).
    pub fn freeze(&mut self, winograd: Winograd) {
        let (first, attention, second) = &mut self.middle;
        let middle = first.convs_mut().chain(attention.convs_mut()).chain(second.convs_mut());
        let stages = self.stages.iter_mut();
        let stages = stages.flat_map(|(block, attention)| {
            block.convs_mut().chain(attention.iter_mut().flat_map(AttentionBlock::convs_mut))
        });
        let all = [&mut self.first, &mut self.out_conv].into_iter().chain(middle).chain(stages);
        all.for_each(|conv| conv.freeze(winograd));
    }
}
