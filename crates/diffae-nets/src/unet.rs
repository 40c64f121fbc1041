//! The noise predictor: `(x_t, t, z_sem) -> eps`.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use diffae_kernels::{Activation, ConvInput, Dropout, Winograd, cast, differentiable, run_in_pool};

use crate::attention::{AttentionBlock, AttentionConfig};
use crate::config::UnetConfig;
use crate::conv::{Conv, ConvConfig};
use crate::image_size::ImageSize;
use crate::norm::GroupNorm;
use crate::plan::ResPlan;
use crate::precision::compute_dtype;
use crate::res_block::{BlockCondition, BlockInput, ConditionWidths, ResBlock};
use crate::time_embedding::{TimeEmbedding, TimeEmbeddingConfig, silu};

/// Noise predictor for `x_t`, conditioned on the timestep and, in an autoencoder, on `z_sem`.
///
/// A chain calls it many times with the same `z_sem`, and for all pictures of a batch with the same timestep. The
/// projections of those alone are computed once, by [`Unet::project_z_sem`] and [`Unet::project_time`], and handed to
/// [`Unet::forward_projected`]. [`Unet::forward`] does all three.
///
/// Dropout is applied by [`Unet::forward_training`] only.
///
/// # Source
/// Ho et al. 2020 (arXiv:2006.11239), Dhariwal and Nichol 2021 (arXiv:2105.05233) for the blocks, Preechakul et al.
/// 2022 (arXiv:2111.15640) for the conditioning on `z_sem`.
#[derive(Debug, Clone)]
pub struct Unet {
    config: UnetConfig,
    time_embedding: TimeEmbedding,
    first: Conv,
    input: Vec<Stage>,
    middle: (ResBlock, AttentionBlock, ResBlock),
    output: Vec<Stage>,
    out_norm: GroupNorm,
    out_conv: Conv,
    dtype: DType,
}

/// One stage, `input_blocks.k` or `output_blocks.k`.
#[derive(Debug, Clone)]
struct Stage {
    /// Level whose skip connection this stage pushes or pops.
    level: Option<usize>,
    res: ResBlock,
    attention: Option<AttentionBlock>,
    up: Option<ResBlock>,
}

/// Per-block scale and shift from the time embedding; one `[M, 2C]` entry per block.
#[derive(Debug, Clone)]
pub struct TimeProjections(Vec<Tensor>);

/// Training-only behavior: dropout and activation checkpointing. Off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrainingMode {
    /// Seed that decides which activations are dropped, where the config has dropout. `None` drops nothing.
    pub dropout_seed: Option<u64>,
    /// Activation checkpointing: saves only each block's input, and recomputes the rest in the backward pass.
    pub checkpoint_blocks: bool,
}

/// Per-block scale from `z_sem`; one `[N, C]` entry per block.
#[derive(Debug, Clone)]
pub struct ZSemProjections(Vec<Tensor>);

impl Unet {
    /// Reads the parameters below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &UnetConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let builder = StageBuilder { config, vb };
        let last = config.trunk().last_level();
        let channels = config.trunk().width(last);
        let keep = config.trunk().keeping(channels, channels);
        let axes = config.image_size.axes();
        let (first_channels, input) = builder.input()?;
        let time =
            TimeEmbeddingConfig { sinusoid_channels: config.model_channels, embed_channels: config.embed_channels };
        Ok(Self {
            time_embedding: TimeEmbedding::new(time, &vb.pp("time_embed"))?,
            first: Conv::new(
                ConvConfig::three(config.in_channels, first_channels).along(axes),
                &vb.pp("input_blocks.0.0"),
            )?,
            input,
            middle: (
                builder.res_block((keep, last), "middle_block.0")?,
                builder.attention(channels, "middle_block.1")?,
                builder.res_block((keep, last), "middle_block.2")?,
            ),
            output: builder.output()?,
            out_norm: GroupNorm::new(first_channels, &vb.pp("out.0"))?,
            out_conv: Conv::zero_initialized(
                ConvConfig::three(first_channels, config.out_channels).along(axes),
                &vb.pp("out.2"),
            )?,
            dtype: compute_dtype(vb.dtype(), vb.device()),
            config: config.clone(),
        })
    }

    /// Returns the config of the network.
    #[must_use]
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Predicts the noise in `x_t`.
    ///
    /// # Shapes
    /// - `x_t`: `[N, C, H, W]`, or volumes, `[N, C, D, H, W]`; `timesteps`: one number in `0..T` for the whole batch, or N; `z_sem`:
    ///   `[N, D]`, given exactly if the model has one; result: as `x_t` with `C_out` channels, dtype of `x_t`.
    /// # Errors
    /// If shapes do not fit, or `z_sem` is missing or not expected.
    pub fn forward(&self, x_t: &Tensor, timesteps: &[f32], z_sem: Option<&Tensor>) -> Result<Tensor> {
        let z_sem = z_sem.map(|z| self.project_z_sem(z)).transpose()?;
        self.forward_projected(x_t, &self.project_time(timesteps, x_t)?, z_sem.as_ref())
    }

    /// Runs [`Unet::forward`] with the training-only behavior of `mode`.
    ///
    /// # Shapes
    /// As for [`Unet::forward`].
    /// # Errors
    /// As [`Unet::forward`].
    pub fn forward_training(
        &self,
        x_t: &Tensor,
        timesteps: &[f32],
        z_sem: Option<&Tensor>,
        mode: TrainingMode,
    ) -> Result<Tensor> {
        let z_sem = z_sem.map(|z| self.project_z_sem(z)).transpose()?;
        self.run(x_t, &self.project_time(timesteps, x_t)?, z_sem.as_ref(), mode)
    }

    /// Computes the projections of the timesteps that the blocks need.
    ///
    /// # Shapes
    /// - `timesteps`: M numbers in `0..T`, M = 1 or the batch size; `like`: gives the device.
    /// # Errors
    /// If the device fails.
    pub fn project_time(&self, timesteps: &[f32], like: &Tensor) -> Result<TimeProjections> {
        let t_emb = self.time_embedding.forward(timesteps, &like.to_dtype(self.dtype)?)?; // [M, E]
        let silu_t_emb = silu(&t_emb)?;
        self.blocks().map(|block| block.project_time(&silu_t_emb)).collect::<Result<_>>().map(TimeProjections)
    }

    /// Computes the projections of the semantic code that the blocks need.
    ///
    /// # Shapes
    /// - `z_sem`: `[N, D]`.
    /// # Errors
    /// If the width differs, or the model has no semantic code.
    pub fn project_z_sem(&self, z_sem: &Tensor) -> Result<ZSemProjections> {
        if !self.config.has_z_sem() {
            bail!("this model has no semantic code")
        }
        let (_, width) = z_sem.dims2()?;
        if width != self.config.embed_channels {
            bail!("z_sem has width {width}, the model expects {}", self.config.embed_channels)
        }
        let silu_z_sem = differentiable([z_sem], |[z_sem]| z_sem.to_dtype(self.dtype)?.silu())?;
        self.blocks().filter_map(|b| b.project_z_sem(&silu_z_sem)).collect::<Result<_>>().map(ZSemProjections)
    }

    /// Predicts the noise in `x_t` from projections computed before.
    ///
    /// # Shapes
    /// As for [`Unet::forward`].
    /// # Errors
    /// If shapes do not fit, or the projections of `z_sem` are missing or not expected.
    pub fn forward_projected(
        &self,
        x_t: &Tensor,
        time: &TimeProjections,
        z_sem: Option<&ZSemProjections>,
    ) -> Result<Tensor> {
        run_in_pool(x_t.device(), || self.run(x_t, time, z_sem, TrainingMode::default()))
    }

    fn run(
        &self,
        x_t: &Tensor,
        time: &TimeProjections,
        z_sem: Option<&ZSemProjections>,
        mode: TrainingMode,
    ) -> Result<Tensor> {
        check_images(x_t, self.config.in_channels, self.config.image_size)?;
        if self.config.has_z_sem() != z_sem.is_some() {
            bail!("the semantic code must be given exactly if the model has one")
        }
        let dropout = |block: usize| {
            let seed = mode.dropout_seed.filter(|_| self.config.dropout > 0.)?;
            // Blocks lie far apart in the sequence of seeds, so that those of neighboring steps do not meet.
            Some(Dropout { probability: self.config.dropout, seed: seed.wrapping_add((block as u64) << 40) })
        };
        let mut conditions = (0..time.0.len()).map(|i| BlockCondition {
            time: &time.0[i],
            scale_z: z_sem.and_then(|z| z.0.get(i)),
            dropout: dropout(i),
            checkpoint: mode.checkpoint_blocks,
        });
        let mut next =
            || conditions.next().ok_or_else(|| candle_core::Error::Msg("projections of another network".into()));

        let mut h = self.first.forward(&cast(x_t, self.dtype)?)?;
        let mut skips = vec![vec![]; self.config.channel_mult.len()];
        skips[0].push(h.clone());
        for stage in &self.input {
            h = stage.forward(BlockInput { x: &h, skip: None }, &mut next)?;
            if let Some(level) = stage.level {
                skips[level].push(h.clone());
            }
        }
        let (first, attention, second) = &self.middle;
        h = first.forward(BlockInput { x: &h, skip: None }, next()?)?;
        h = attention.forward(&h)?;
        h = second.forward(BlockInput { x: &h, skip: None }, next()?)?;
        for stage in &self.output {
            let skip = stage.level.and_then(|level| skips[level].pop());
            h = stage.forward(BlockInput { x: &h, skip: skip.as_ref() }, &mut next)?;
        }
        drop(skips);
        let eps = self.out_norm.plain().then(&self.out_conv, &ConvInput::plain(&h), Activation::Silu)?;
        cast(&eps, x_t.dtype())
    }

    /// Freezes the network for inference: no gradients may be requested afterwards, so that weights can be packed and
    /// the originals dropped.
    ///
    /// On the CPU with f32 weights each convolution packs its weights at the first use, for the algorithm that `winograd`
    /// allows; elsewhere nothing changes.
    pub fn freeze(&mut self, winograd: Winograd) {
        self.convs_mut().for_each(|conv| conv.freeze(winograd));
    }

    /// Returns the current size of the convolutions' weights in bytes.
    pub fn num_conv_bytes(&mut self) -> usize {
        self.convs_mut().map(|conv| conv.num_bytes()).sum()
    }

    fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        let (first, attention, second) = &mut self.middle;
        let middle = first.convs_mut().chain(attention.convs_mut()).chain(second.convs_mut());
        let stages = self.input.iter_mut().chain(&mut self.output).flat_map(Stage::convs_mut);
        [&mut self.first, &mut self.out_conv].into_iter().chain(middle).chain(stages)
    }

    /// Iterates over all residual blocks: input, middle, output.
    fn blocks(&self) -> impl Iterator<Item = &ResBlock> {
        let middle = [&self.middle.0, &self.middle.2];
        let input = self.input.iter().flat_map(Stage::blocks);
        input.chain(middle).chain(self.output.iter().flat_map(Stage::blocks))
    }
}

impl TimeProjections {
    /// Joins projections of single blocks.
    pub(crate) fn of_blocks(blocks: Vec<Tensor>) -> Self {
        Self(blocks)
    }

    /// Returns the projections of single blocks, `[M, 2C]` each.
    pub(crate) fn blocks(&self) -> &[Tensor] {
        &self.0
    }

    /// Returns the projections of one of the M timesteps.
    ///
    /// # Errors
    /// If there are not so many.
    pub fn of(&self, idx: usize) -> Result<Self> {
        self.0.iter().map(|both| both.narrow(0, idx, 1)).collect::<Result<_>>().map(Self)
    }
}

impl ZSemProjections {
    /// Joins projections of single blocks.
    pub(crate) fn of_blocks(blocks: Vec<Tensor>) -> Self {
        Self(blocks)
    }

    /// Returns the projections of single blocks, `[N, C]` each.
    pub(crate) fn blocks(&self) -> &[Tensor] {
        &self.0
    }

    /// Returns the style space: the projections of all blocks side by side, in order input, middle, output.
    ///
    /// # Shapes
    /// - result: `[N, sum of the blocks' channels]`.
    /// # Errors
    /// If the device fails.
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), after the S space of Wu et al. 2021 (arXiv:2011.12799).
    pub fn style_space(&self) -> Result<Tensor> {
        Tensor::cat(&self.0, 1)
    }
}

impl Stage {
    fn blocks(&self) -> impl Iterator<Item = &ResBlock> {
        std::iter::once(&self.res).chain(&self.up)
    }

    fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        let attention = self.attention.iter_mut().flat_map(AttentionBlock::convs_mut);
        self.res.convs_mut().chain(attention).chain(self.up.iter_mut().flat_map(ResBlock::convs_mut))
    }

    fn forward<'a>(
        &self,
        input: BlockInput<'_>,
        next: &mut impl FnMut() -> Result<BlockCondition<'a>>,
    ) -> Result<Tensor> {
        let mut h = self.res.forward(input, next()?)?;
        if let Some(attention) = &self.attention {
            h = attention.forward(&h)?;
        }
        match &self.up {
            Some(up) => up.forward(BlockInput { x: &h, skip: None }, next()?),
            None => Ok(h),
        }
    }
}

/// Builder of stages from the plan.
struct StageBuilder<'a> {
    config: &'a UnetConfig,
    vb: &'a VarBuilder<'a>,
}

impl StageBuilder<'_> {
    /// Builds the descending half; also returns the channels after the first convolution.
    fn input(&self) -> Result<(usize, Vec<Stage>)> {
        let plan = self.config.trunk().input_plan();
        let stage = |(i, stage): (usize, &crate::plan::InputStage)| {
            let path = format!("input_blocks.{}", i + 1);
            let attention = stage.attention.then(|| self.attention(stage.res.out_channels, &format!("{path}.1")));
            Ok(Stage {
                level: Some(stage.level),
                res: self.res_block((stage.res, stage.level), &format!("{path}.0"))?,
                attention: attention.transpose()?,
                up: None,
            })
        };
        Ok((plan.first_channels, plan.stages.iter().enumerate().map(stage).collect::<Result<_>>()?))
    }

    fn output(&self) -> Result<Vec<Stage>> {
        let stage = |(i, stage): (usize, crate::plan::OutputStage)| {
            let path = format!("output_blocks.{i}");
            let attention = stage.attention.then(|| self.attention(stage.res.out_channels, &format!("{path}.1")));
            let up_path = if stage.attention { format!("{path}.2") } else { format!("{path}.1") };
            Ok(Stage {
                level: stage.skip,
                res: self.res_block((stage.res, stage.level), &format!("{path}.0"))?,
                attention: attention.transpose()?,
                up: stage.up.map(|plan| self.res_block((plan, stage.level - 1), &up_path)).transpose()?,
            })
        };
        self.config.output_plan().into_iter().enumerate().map(stage).collect()
    }

    /// Builds a block whose result has the resolution of `level`.
    fn res_block(&self, (plan, level): (ResPlan, usize), path: &str) -> Result<ResBlock> {
        let width = self.config.embed_channels;
        let z_sem = self.config.has_z_sem().then(|| self.config.z_levels.range(level, width));
        let widths = ConditionWidths { time: width, z_sem };
        ResBlock::new(plan, widths, &self.vb.pp(path))
    }

    fn attention(&self, channels: usize, path: &str) -> Result<AttentionBlock> {
        AttentionBlock::new(AttentionConfig { channels, num_heads: self.config.num_heads }, &self.vb.pp(path))
    }
}

/// Checks that `x` is a batch of pictures or volumes of a size.
pub(crate) fn check_images(x: &Tensor, channels: usize, size: impl Into<ImageSize>) -> Result<()> {
    let expected = size.into().with_channels(channels).dims();
    match x.dims() {
        [_, dims @ ..] if dims == expected => Ok(()),
        dims => {
            let expected: Vec<String> = expected.iter().map(usize::to_string).collect();
            bail!("pictures have shape {dims:?}, the model expects [N, {}]", expected.join(", "))
        }
    }
}
