//! The semantic encoder: `x_0 -> z_sem`.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{Activation, Winograd, cast, differentiable, run_in_pool};

use crate::attention::{AttentionBlock, AttentionConfig};
use crate::config::EncoderConfig;
use crate::conv::{Conv, ConvConfig};
use crate::norm::GroupNorm;
use crate::precision::{compute_dtype, statistics_dtype};
use crate::res_block::PlainResBlock;

/// Semantic encoder of clean pictures: the downsampling half of a `UNet`, a global mean and a 1x1 convolution.
///
/// # Source
/// Preechakul et al. 2022 (arXiv:2111.15640), section 3 and appendix A; block layout as in the released weights.
#[derive(Debug, Clone)]
pub struct SemanticEncoder {
    config: EncoderConfig,
    first: Conv,
    stages: Vec<Stage>,
    middle: (PlainResBlock, AttentionBlock, PlainResBlock),
    /// Head behind the middle blocks: all of `z_sem`, or its coarsest part.
    out: Head,
    dtype: DType,
}

/// One stage, `input_blocks.k`.
#[derive(Debug, Clone)]
struct Stage {
    block: PlainResBlock,
    attention: Option<AttentionBlock>,
    /// Head of a part of `z_sem`, at the end of a level.
    head: Option<Head>,
}

/// The end of the encoder: `conv(mean(SiLU(GN(h))))`, the mean over all pixels.
#[derive(Debug, Clone)]
struct Head {
    norm: GroupNorm,
    conv: Conv,
}

impl Head {
    fn new(config: ConvConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { norm: GroupNorm::new(config.in_channels, &vb.pp("0"))?, conv: Conv::new(config, &vb.pp("3"))? })
    }

    /// Applies the layers to `h`, `[N, C, ..]`; result: `[N, D]`.
    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        let h = self.norm.forward(h, Activation::Silu)?;
        let h = differentiable([&h], |[h]| mean_over_pixels(h))?;
        let h = self.conv.forward(&h)?;
        differentiable([&h], |[h]| h.flatten_from(1)) // [N, D]
    }
}

/// Averages maps `[N, C, ..]` to `[N, C, 1, ..]`; half precision in f32, since Candle adds f16 up in f16.
fn mean_over_pixels(h: &Tensor) -> Result<Tensor> {
    let of_floats = h.to_dtype(statistics_dtype(h.dtype()))?;
    let mean = match h.rank() {
        4 => of_floats.mean_keepdim((2, 3))?,                                // [N, C, 1, 1]
        _ => of_floats.flatten_from(3)?.mean_keepdim((2, 3))?.unsqueeze(4)?, // [N, C, 1, 1, 1]
    };
    mean.to_dtype(h.dtype())
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
        let axes = config.image_size.axes();
        let (num_levels, width) = (config.channel_mult.len(), config.out_channels);
        let mut stages = Vec::with_capacity(plan.stages.len());
        for (i, stage) in plan.stages.iter().enumerate() {
            let ends_level = plan.stages.get(i + 1).is_some_and(|next| next.level > stage.level);
            let part = config.z_levels.range(stage.level, width).len();
            let has_head = ends_level && !config.z_levels.is_empty() && part > 0;
            let sizes = ConvConfig::one(stage.res.out_channels, part).along(axes);
            let head = has_head.then(|| Head::new(sizes, &vb.pp("z_levels").pp(stage.level))).transpose()?;
            let vb = vb.pp("input_blocks").pp(i + 1);
            let block = PlainResBlock::new(stage.res, &vb.pp("0"))?;
            let attention = stage.attention.then(|| attention(stage.res.out_channels, &vb.pp("1"))).transpose()?;
            stages.push(Stage { block, attention, head });
        }
        let channels = config.trunk().width(config.trunk().last_level());
        let keep = config.trunk().keeping(channels, channels);
        let last_part = config.z_levels.range(num_levels - 1, width).len();
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
            out: Head::new(ConvConfig::one(channels, last_part).along(axes), &vb.pp("out"))?,
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
        let mut finer = None; // [N, D of the levels so far]
        for Stage { block, attention, head } in &self.stages {
            h = block.forward(&h)?;
            if let Some(attention) = attention {
                h = attention.forward(&h)?;
            }
            if let Some(head) = head {
                finer = Some(beside(finer, head.forward(&h)?)?);
            }
        }
        let (first, attention, second) = &self.middle;
        h = second.forward(&attention.forward(&first.forward(&h)?)?)?;
        let z_sem = beside(finer, self.out.forward(&h)?)?;
        differentiable([&z_sem], |[z_sem]| z_sem.to_dtype(x_0.dtype()))
    }

    /// Freezes the encoder for inference: no gradients may be requested afterwards; see
    /// [`Unet::freeze`](crate::Unet::freeze).
    pub fn freeze(&mut self, winograd: Winograd) {
        let (first, attention, second) = &mut self.middle;
        let middle = first.convs_mut().chain(attention.convs_mut()).chain(second.convs_mut());
        let stages = self.stages.iter_mut();
        let stages = stages.flat_map(|Stage { block, attention, head }| {
            let attention = attention.iter_mut().flat_map(AttentionBlock::convs_mut);
            block.convs_mut().chain(attention).chain(head.iter_mut().map(|head| &mut head.conv))
        });
        let all = [&mut self.first, &mut self.out.conv].into_iter().chain(middle).chain(stages);
        all.for_each(|conv| conv.freeze(winograd));
    }
}

/// Puts a part of `z_sem` beside those before it.
fn beside(before: Option<Tensor>, part: Tensor) -> Result<Tensor> {
    match before {
        None => Ok(part),
        Some(before) => differentiable([&before, &part], |[before, part]| Tensor::cat(&[before, part], 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_mean_over_many_pixels_is_added_up_in_f32() {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            for dims in [&[1, 2, 64, 64][..], &[1, 2, 16, 16, 16]] {
                let mean = mean_over_pixels(&Tensor::ones(dims, dtype, &Device::Cpu).unwrap()).unwrap();
                assert_eq!((mean.dtype(), mean.rank()), (dtype, dims.len()));
                let mean = mean.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                assert_eq!(mean.to_vec1::<f32>().unwrap(), [1.; 2], "{dtype:?}");
            }
        }
    }
}
