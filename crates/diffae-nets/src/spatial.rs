//! The spatial autoencoder: pictures to smaller maps, the latents on which a diffusion may run, and back.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use diffae_kernels::{
    Activation, Winograd, add, average_pool_2x, cast, checkpoint, differentiable, no_gradients, run_in_pool,
    upsample_nearest_2x,
};
use serde::{Deserialize, Serialize};

use crate::attention::{AttentionBlock, AttentionConfig};
use crate::config::{Check, Valid};
use crate::conv::{Conv, ConvConfig};
use crate::error::{Error, Result as NetsResult};
use crate::init;
use crate::norm::GroupNorm;
use crate::plan::{ResPlan, Resample, at_most, positive};
use crate::precision::compute_dtype;
use crate::res_block::TwoConvBlock;
use crate::unet::TrainingMode;

const NETWORK: &str = "spatial autoencoder";
/// Maximum number of levels: latents are smaller than pictures by up to 2^7.
const MAX_LEVELS: usize = 8;
const MAX_CHANNELS: usize = 1 << 12;
const MAX_BLOCKS: usize = 1 << 6;
const MAX_GROUPS: usize = 32;
/// Range of the logarithm of a variance; beyond it the exponential is of no use in f32.
const LOG_VARIANCES: [f32; 2] = [-30., 20.];
/// Values of the largest maps that are computed at once without gradients, about: the rest of a batch follows.
const MAX_VALUES: usize = 1 << 26;

/// Unvalidated config of a [`SpatialAutoencoder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSpatialConfig {
    /// Height and width of pictures.
    pub image_size: usize,
    /// Channels of pictures, C.
    pub image_channels: usize,
    /// Channels of latents, c.
    pub latent_channels: usize,
    /// Base number of channels, M; channels are multiples of it.
    pub model_channels: usize,
    /// Channels of each level in units of M; the resolution halves from level to level, and the last one is that of latents.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level of the encoder, R; the decoder has one more.
    pub num_res_blocks: usize,
    /// Groups of every norm; one a channel where there are fewer channels. A norm with one group a channel cannot tell flat areas
    /// of different colors apart, so that networks of few channels need few groups. With 0, nothing is normalized, and scales and
    /// shifts are left: what a pixel becomes then depends on its surroundings alone.
    pub num_groups: usize,
    /// Whether the networks compute what a reduced picture lacks: the mean of each block of [`factor`](Self::factor) by `factor`
    /// pixels is added to the first C channels of the means of latents, and these channels, enlarged to nearest neighbors, to the
    /// decoded picture.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")] // models without one keep their fingerprints
    pub shortcut: bool,
    /// Whether there is self-attention, of one head, between the two blocks at the smallest resolution.
    pub middle_attention: bool,
}

/// Validated config of a [`SpatialAutoencoder`].
pub type SpatialConfig = Valid<RawSpatialConfig>;

impl RawSpatialConfig {
    /// Returns the factor by which latents are smaller than pictures in height and width.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << self.channel_mult.len().saturating_sub(1)
    }

    /// Returns the shape of latents, `[c, h, w]`, of a [`Valid`] config.
    #[must_use]
    pub fn latent_shape(&self) -> [usize; 3] {
        let size = self.image_size.checked_div(self.factor()).unwrap_or(0);
        [self.latent_channels, size, size]
    }

    /// Returns the channels of each level.
    fn widths(&self) -> Vec<usize> {
        self.channel_mult.iter().map(|mult| mult * self.model_channels).collect()
    }
}

impl Check for RawSpatialConfig {
    fn check(&self) -> NetsResult<()> {
        for (field, got, most) in [
            ("image_size", self.image_size, 1 << 14),
            ("image_channels", self.image_channels, MAX_CHANNELS),
            ("latent_channels", self.latent_channels, MAX_CHANNELS),
            ("model_channels", self.model_channels, MAX_CHANNELS),
            ("num_res_blocks", self.num_res_blocks, MAX_BLOCKS),
            ("num_groups", self.num_groups.max(1), MAX_GROUPS),
            ("number of channel_mult entries", self.channel_mult.len(), MAX_LEVELS),
            ("smallest channel_mult entry", self.channel_mult.iter().copied().min().unwrap_or(0), MAX_CHANNELS),
            ("largest channel_mult entry", self.channel_mult.iter().copied().max().unwrap_or(0), MAX_CHANNELS),
        ] {
            positive(NETWORK, field, got)?;
            at_most(NETWORK, field, got, most)?;
        }
        if self.shortcut && self.latent_channels < self.image_channels {
            let (got, least) = (self.latent_channels, self.image_channels);
            return Err(Error::TooFewLatents { got, least });
        }
        let (image_size, factor) = (self.image_size, self.factor());
        if !image_size.is_multiple_of(factor) {
            return Err(Error::ImageNotDivisible { network: NETWORK, image_size: image_size.into(), factor });
        }
        self.widths().into_iter().try_for_each(|channels| {
            let groups = self.num_groups.min(channels);
            let block = "block".to_owned();
            let misfit = Error::GroupsDoNotDivide { network: NETWORK, block, channels, groups };
            if groups == 0 || channels.is_multiple_of(groups) { Ok(()) } else { Err(misfit) }
        })
    }
}

/// Mean and logarithm of the variance of the normal distribution of latents, before they are normalized.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Means, `[N, c, h, w]`.
    pub mean: Tensor,
    /// Logarithms of the variances, `[N, c, h, w]`, in `[-30, 20]`.
    pub log_variance: Tensor,
}

impl Posterior {
    /// Draws latents with given noise: `mean + exp(log_variance / 2) * noise`.
    ///
    /// # Shapes
    /// - `noise`: standard normal, `[N, c, h, w]`; result: the same.
    /// # Errors
    /// If the shape differs.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        differentiable([&self.mean, &self.log_variance], |[mean, log_variance]| {
            mean + ((log_variance * 0.5)?.exp()? * noise)?
        })
    }

    /// Computes the Kullback-Leibler divergence from the standard normal distribution, a scalar: the mean over all values of
    /// `(mean^2 + variance - 1 - log variance) / 2`, in nats.
    ///
    /// # Shapes
    /// - result: a scalar.
    /// # Errors
    /// If the arithmetic fails.
    /// # Source
    /// Kingma and Welling 2014 (arXiv:1312.6114), appendix B.
    pub fn divergence(&self) -> Result<Tensor> {
        differentiable([&self.mean, &self.log_variance], |[mean, log_variance]| {
            let terms = ((mean.sqr()? + log_variance.exp()?)? - log_variance)?;
            ((terms - 1.)?.mean_all()?) * 0.5
        })
    }
}

/// A pair of convolutional networks: pictures to latents, `2^k` times smaller in height and width and with few channels, and
/// back. It is trained by itself; a diffusion on its latents costs a fraction of one on pictures.
///
/// The architecture is that of the autoencoder with KL regularization of latent diffusion models, so that its released
/// weights fit ([`SpatialWeights`](crate::weights::SpatialWeights)). A network of our own may do without its norms, and may have
/// a shortcut around all layers; both let it learn colors much sooner. Latents are handed out normalized: of zero mean and unit
/// variance in each channel, by statistics of the training pictures that belong to the parameters.
/// # Source
/// Rombach et al. 2022 (arXiv:2112.10752), section 3.1. Residual blocks without norms: Lim et al. 2017 (arXiv:1707.02921), section
/// 3.1; shortcuts around changes of resolution: Chen et al. 2024 (arXiv:2410.10733), section 3.2.
#[derive(Debug, Clone)]
pub struct SpatialAutoencoder {
    config: SpatialConfig,
    encoder: Down,
    /// 1x1 convolution to mean and log-variance.
    to_moments: Conv,
    /// 1x1 convolution of latents.
    from_latents: Conv,
    decoder: Up,
    /// Mean of each channel of latents, `[1, c, 1, 1]`.
    mean: Tensor,
    /// Standard deviation of each channel of latents, `[1, c, 1, 1]`.
    std: Tensor,
    dtype: DType,
}

/// The downsampling half.
#[derive(Debug, Clone)]
struct Down {
    first: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm: GroupNorm,
    last: Conv,
}

/// The upsampling half.
#[derive(Debug, Clone)]
struct Up {
    first: Conv,
    middle: Middle,
    levels: Vec<Level>,
    norm: GroupNorm,
    last: Conv,
}

/// Blocks at the smallest resolution.
#[derive(Debug, Clone)]
struct Middle {
    first: TwoConvBlock,
    attention: Option<AttentionBlock>,
    second: TwoConvBlock,
}

/// Channels of a layer, and groups of its norms.
#[derive(Debug, Clone, Copy)]
struct Width {
    channels: usize,
    num_groups: usize,
}

impl Width {
    fn norm(self, vb: &VarBuilder<'_>) -> Result<GroupNorm> {
        GroupNorm::with_groups((self.channels, self.num_groups.min(self.channels)), vb)
    }

    /// Builds a block from this width to another number of channels, which is the width from then on.
    fn block(&mut self, out_channels: usize, vb: &VarBuilder<'_>) -> Result<TwoConvBlock> {
        let plan = ResPlan { in_channels: self.channels, out_channels, resample: Resample::Keep, axes: 2 };
        self.channels = out_channels;
        TwoConvBlock::new(plan, self.num_groups, vb)
    }
}

impl Middle {
    fn new(mut width: Width, config: &SpatialConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let channels = width.channels;
        let attention = || {
            let (config, vb) = (AttentionConfig { channels, num_heads: 1 }, vb.pp("attention"));
            AttentionBlock::with_norm(width.norm(&vb.pp("norm"))?, config, &vb)
        };
        let attention = config.middle_attention.then(attention).transpose()?;
        Ok(Self {
            first: width.block(channels, &vb.pp("first"))?,
            attention,
            second: width.block(channels, &vb.pp("second"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.first.forward(x)?;
        if let Some(attention) = &self.attention {
            h = attention.forward(&h)?;
        }
        self.second.forward(&h)
    }

    fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        let attention = self.attention.iter_mut().flat_map(AttentionBlock::convs_mut);
        self.first.convs_mut().chain(attention).chain(self.second.convs_mut())
    }
}

/// Blocks at one resolution, and the convolution that belongs to the change to the next.
type Level = (Vec<TwoConvBlock>, Option<Conv>);

/// Builds levels of the given channels in the order of computation, each of so many blocks; `resample` names the convolutions between
/// them.
fn levels(
    channels: Vec<usize>,
    num_blocks: usize,
    width: &mut Width,
    (resample, vb): (&str, &VarBuilder<'_>),
) -> Result<Vec<Level>> {
    let (mut levels, count) = (vec![], channels.len());
    for (level, channels) in channels.into_iter().enumerate() {
        let vb = vb.pp("levels").pp(level);
        let block = |idx: usize| width.block(channels, &vb.pp("blocks").pp(idx));
        let blocks = (0..num_blocks).map(block).collect::<Result<_>>()?;
        let is_last = level + 1 == count;
        let conv = (!is_last).then(|| Conv::new(ConvConfig::three(channels, channels), &vb.pp(resample)));
        levels.push((blocks, conv.transpose()?));
    }
    Ok(levels)
}

impl Down {
    fn new(config: &SpatialConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let widths = config.widths();
        let channels = widths.first().copied().unwrap_or_default();
        let mut width = Width { channels, num_groups: config.num_groups };
        let first = Conv::new(ConvConfig::three(config.image_channels, channels), &vb.pp("first"))?;
        let levels = levels(widths, config.num_res_blocks, &mut width, ("down", vb))?;
        Ok(Self {
            first,
            levels,
            middle: Middle::new(width, config, &vb.pp("middle"))?,
            norm: width.norm(&vb.pp("out.0"))?,
            last: Conv::new(ConvConfig::three(width.channels, 2 * config.latent_channels), &vb.pp("out.2"))?,
        })
    }

    fn forward(&self, x: &Tensor, mode: TrainingMode) -> Result<Tensor> {
        let mut h = self.first.forward(x)?;
        for (blocks, down) in &self.levels {
            h = run_blocks(blocks, h, mode)?;
            if let Some(down) = down {
                h = odd_pixels(&down.forward(&h)?)?;
            }
        }
        let h = self.middle.forward(&h)?;
        self.last.forward(&self.norm.forward(&h, Activation::Silu)?)
    }

    fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        [&mut self.first, &mut self.last].into_iter().chain(of_levels(&mut self.levels)).chain(self.middle.convs_mut())
    }
}

impl Up {
    fn new(config: &SpatialConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let widths = config.widths().into_iter().rev().collect::<Vec<_>>();
        let channels = widths.first().copied().unwrap_or_default();
        let mut width = Width { channels, num_groups: config.num_groups };
        let first = Conv::new(ConvConfig::three(config.latent_channels, channels), &vb.pp("first"))?;
        let middle = Middle::new(width, config, &vb.pp("middle"))?;
        let levels = levels(widths, config.num_res_blocks + 1, &mut width, ("up", vb))?;
        Ok(Self {
            first,
            middle,
            levels,
            norm: width.norm(&vb.pp("out.0"))?,
            last: match (ConvConfig::three(width.channels, config.image_channels), config.shortcut) {
                (sizes, true) => Conv::zero_initialized(sizes, &vb.pp("out.2"))?,
                (sizes, false) => Conv::new(sizes, &vb.pp("out.2"))?,
            },
        })
    }

    fn forward(&self, latents: &Tensor, mode: TrainingMode) -> Result<Tensor> {
        let mut h = self.middle.forward(&self.first.forward(latents)?)?;
        for (blocks, up) in &self.levels {
            h = run_blocks(blocks, h, mode)?;
            if let Some(up) = up {
                h = up.forward(&upsample_nearest_2x(&h)?)?;
            }
        }
        self.last.forward(&self.norm.forward(&h, Activation::Silu)?)
    }

    fn convs_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        [&mut self.first, &mut self.last].into_iter().chain(of_levels(&mut self.levels)).chain(self.middle.convs_mut())
    }
}

fn of_levels(levels: &mut [Level]) -> impl Iterator<Item = &mut Conv> {
    levels.iter_mut().flat_map(|(blocks, conv)| blocks.iter_mut().flat_map(TwoConvBlock::convs_mut).chain(conv))
}

fn run_blocks(blocks: &[TwoConvBlock], mut h: Tensor, mode: TrainingMode) -> Result<Tensor> {
    for block in blocks {
        h = if mode.checkpoint_blocks {
            let block = block.clone();
            checkpoint([&h], move |[h]| block.forward(h))?
        } else {
            block.forward(&h)?
        };
    }
    Ok(h)
}

/// Selects the pixels of odd rows and columns, counted from 0.
///
/// Of a convolution with a pixel of zeros all around, these are the results of one of stride 2 with zeros below and on the
/// right alone, which is that of the released weights.
fn odd_pixels(x: &Tensor) -> Result<Tensor> {
    differentiable([x], |[x]| {
        let (n, c, h, w) = x.dims4()?;
        let rows = x.reshape((n * c, h >> 1, 2, w))?.narrow(2, 1, 1)?.contiguous()?;
        let pixels = rows.reshape((n * c * (h >> 1) * (w >> 1), 2))?.narrow(1, 1, 1)?.contiguous()?;
        pixels.reshape((n, c, h >> 1, w >> 1))
    })
}

impl SpatialAutoencoder {
    /// Names of the mean and the standard deviation of latents among the parameters, `[c]` each.
    pub const STATISTICS: [&str; 2] = ["latents.mean", "latents.std"];

    /// Reads the parameters below `vb`. Without statistics of latents, which training computes at its end, they are those of
    /// latents that need no normalization.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &SpatialConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let c = config.latent_channels;
        let [mean, std] = Self::STATISTICS;
        let statistics = |name: &str, init| vb.get_with_hints(c, name, init)?.reshape((1, c, 1, 1));
        Ok(Self {
            encoder: Down::new(config, &vb.pp("encoder"))?,
            to_moments: Conv::new(ConvConfig::one(2 * c, 2 * c), &vb.pp("to_moments"))?,
            from_latents: Conv::new(ConvConfig::one(c, c), &vb.pp("from_latents"))?,
            decoder: Up::new(config, &vb.pp("decoder"))?,
            mean: statistics(mean, init::ZERO)?.detach(),
            std: statistics(std, init::ONE)?.detach(),
            dtype: compute_dtype(vb.dtype(), vb.device()),
            config: config.clone(),
        })
    }

    /// Returns the config of the network.
    #[must_use]
    pub fn config(&self) -> &SpatialConfig {
        &self.config
    }

    /// Computes the distribution of latents, not normalized, for training. Of the mode it takes the
    /// checkpoints.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]` in `[-1, 1]`, H and W divisible by the [factor](RawSpatialConfig::factor), so that crops of
    ///   pictures do as well; result: dtype of `x_0`.
    /// # Errors
    /// If the shape does not fit.
    pub fn posterior(&self, x_0: &Tensor, mode: TrainingMode) -> Result<Posterior> {
        let (_, channels, height, width) = x_0.dims4()?;
        let (expected, factor) = (self.config.image_channels, self.config.factor());
        if channels != expected || height % factor != 0 || width % factor != 0 || height == 0 || width == 0 {
            bail!(
                "pictures are [{channels}, {height}, {width}], the spatial autoencoder expects {expected} channels and \
                 sides divisible by {factor}"
            )
        }
        run_in_pool(x_0.device(), || {
            let h = self.encoder.forward(&cast(x_0, self.dtype)?, mode)?;
            let moments = cast(&self.to_moments.forward(&h)?, x_0.dtype())?;
            let half = self.config.latent_channels;
            let part = |start| differentiable([&moments], |[moments]| moments.narrow(1, start, half)?.contiguous());
            let (mean, log_variance) = (self.with_reduced(part(0)?, x_0)?, part(half)?);
            let [least, most] = LOG_VARIANCES;
            let log_variance = differentiable([&log_variance], |[x]| x.clamp(least, most))?;
            Ok(Posterior { mean, log_variance })
        })
    }

    /// Decodes latents that are not normalized, for training; the counterpart of [`posterior`](Self::posterior).
    ///
    /// # Shapes
    /// - `latents`: `[N, c, h, w]`; result: `[N, C, H, W]`, not clipped, dtype of `latents`.
    /// # Errors
    /// If the shape does not fit.
    pub fn decode_posterior(&self, latents: &Tensor, mode: TrainingMode) -> Result<Tensor> {
        let (_, channels, _, _) = latents.dims4()?;
        let expected = self.config.latent_channels;
        if channels != expected {
            bail!("latents have {channels} channels, the spatial autoencoder expects {expected}")
        }
        run_in_pool(latents.device(), || {
            let h = self.from_latents.forward(&cast(latents, self.dtype)?)?;
            self.with_enlarged(cast(&self.decoder.forward(&h, mode)?, latents.dtype())?, latents)
        })
    }

    /// Adds reduced pictures to the first channels of means, if there is a shortcut.
    fn with_reduced(&self, mean: Tensor, x_0: &Tensor) -> Result<Tensor> {
        if !self.config.shortcut {
            return Ok(mean);
        }
        let mut reduced = x_0.contiguous()?;
        for _ in 1..self.config.channel_mult.len() {
            reduced = average_pool_2x(&reduced)?;
        }
        let others = self.config.latent_channels - self.config.image_channels;
        let reduced = differentiable([&reduced], |[reduced]| reduced.pad_with_zeros(1, 0, others)?.contiguous())?;
        add(&mean, &reduced)
    }

    /// Adds the first channels of latents, enlarged, to decoded pictures, if there is a shortcut.
    fn with_enlarged(&self, decoded: Tensor, latents: &Tensor) -> Result<Tensor> {
        if !self.config.shortcut {
            return Ok(decoded);
        }
        let channels = self.config.image_channels;
        let mut enlarged = differentiable([latents], |[latents]| latents.narrow(1, 0, channels)?.contiguous())?;
        for _ in 1..self.config.channel_mult.len() {
            enlarged = upsample_nearest_2x(&enlarged)?;
        }
        add(&decoded, &enlarged)
    }

    /// Encodes pictures to normalized latents, the means of their distributions, without gradients. A picture has the same
    /// latents in any batch.
    ///
    /// # Shapes
    /// - `x_0`: as for [`posterior`](Self::posterior); result: `[N, c, h, w]`, dtype of `x_0`.
    /// # Errors
    /// If the shape does not fit.
    pub fn latents(&self, x_0: &Tensor) -> Result<Tensor> {
        self.in_parts(x_0, 1, |x_0| {
            let Posterior { mean, .. } = self.posterior(x_0, TrainingMode::default())?;
            let (shift, scale) = (cast(&self.mean, mean.dtype())?, cast(&self.std, mean.dtype())?);
            mean.broadcast_sub(&shift)?.broadcast_div(&scale)
        })
    }

    /// Decodes normalized latents, without gradients.
    ///
    /// # Shapes
    /// - `latents`: `[N, c, h, w]`; result: `[N, C, H, W]`, about `[-1, 1]` and not clipped, dtype of `latents`.
    /// # Errors
    /// If the shape does not fit.
    pub fn pictures(&self, latents: &Tensor) -> Result<Tensor> {
        self.in_parts(latents, self.config.factor(), |latents| {
            let (shift, scale) = (cast(&self.mean, latents.dtype())?, cast(&self.std, latents.dtype())?);
            let plain = latents.broadcast_mul(&scale)?.broadcast_add(&shift)?;
            self.decode_posterior(&plain, TrainingMode::default())
        })
    }

    /// Computes a function of a batch in parts of so many pictures that their largest maps fit in memory; `factor` is that of
    /// the picture's side to that of `x`.
    fn in_parts(
        &self,
        x: &Tensor,
        factor: usize,
        f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync,
    ) -> Result<Tensor> {
        let (count, _, height, width) = x.dims4()?;
        // The last doubling is computed with the channels of the level below.
        let widest = self.config.widths().iter().take(2).copied().max().unwrap_or(1);
        let values = widest * height * width * factor * factor;
        let at_once = MAX_VALUES.checked_div(values).unwrap_or(1).max(1);
        run_in_pool(x.device(), || {
            no_gradients(|| {
                if count <= at_once {
                    return f(x);
                }
                let part = |start| f(&x.narrow(0, start, at_once.min(count - start))?.contiguous()?);
                Tensor::cat(&(0..count).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?, 0)
            })
        })
    }

    /// Freezes the networks for inference: no gradients may be requested afterwards; see
    /// [`Unet::freeze`](crate::Unet::freeze).
    pub fn freeze(&mut self, winograd: Winograd) {
        let ends = [&mut self.to_moments, &mut self.from_latents];
        let convs = self.encoder.convs_mut().chain(self.decoder.convs_mut()).chain(ends);
        convs.for_each(|conv| conv.freeze(winograd));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{Device, Var};
    use diffae_kernels::{Gradients, record};

    use super::*;

    fn raw() -> RawSpatialConfig {
        RawSpatialConfig {
            image_size: 16,
            image_channels: 3,
            latent_channels: 2,
            model_channels: 8,
            channel_mult: vec![1, 2],
            num_res_blocks: 1,
            num_groups: 4,
            shortcut: false,
            middle_attention: true,
        }
    }

    fn wave(shape: impl Into<candle_core::Shape>, frequency: f32) -> Tensor {
        let shape = shape.into();
        let values = (0..shape.elem_count()).map(|idx| (idx as f32 * frequency).sin()).collect::<Vec<_>>();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Parameters that are small waves, with statistics of latents.
    fn parameters(config: &SpatialConfig) -> HashMap<String, Tensor> {
        let vars = candle_nn::VarMap::new();
        SpatialAutoencoder::new(config, &VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
        let data = vars.data().lock().unwrap();
        let tensor = |(name, var): (&String, &Var)| {
            let tensor = match name.as_str() {
                "latents.mean" => Tensor::full(0.3f32, var.shape(), &Device::Cpu).unwrap(),
                "latents.std" => Tensor::full(0.5f32, var.shape(), &Device::Cpu).unwrap(),
                _ => (wave(var.shape(), 0.7 + 0.01 * name.len() as f32) * 0.2).unwrap(),
            };
            (name.clone(), tensor)
        };
        data.iter().map(tensor).collect()
    }

    fn built(config: &SpatialConfig) -> SpatialAutoencoder {
        SpatialAutoencoder::new(config, &VarBuilder::from_tensors(parameters(config), DType::F32, &Device::Cpu))
            .unwrap()
    }

    fn far(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn latents_are_normalized_and_smaller_by_the_factor() {
        let config = SpatialConfig::new(RawSpatialConfig { channel_mult: vec![1, 2, 1], ..raw() }).unwrap();
        assert_eq!((config.factor(), config.latent_shape()), (4, [2, 4, 4]));
        let mut net = built(&config);
        let x_0 = wave((3, 3, 16, 16), 0.013);
        let latents = net.latents(&x_0).unwrap();
        assert_eq!(latents.dims(), [3, 2, 4, 4]);
        let Posterior { mean, log_variance } = net.posterior(&x_0, TrainingMode::default()).unwrap();
        assert_eq!(log_variance.dims(), [3, 2, 4, 4]);
        assert!(far(&((mean - 0.3).unwrap() / 0.5).unwrap(), &latents) < 1e-6);
        let pictures = net.pictures(&latents).unwrap();
        assert_eq!(pictures.dims(), [3, 3, 16, 16]);
        let alone = net.pictures(&latents.narrow(0, 2, 1).unwrap()).unwrap();
        assert!(far(&pictures.narrow(0, 2, 1).unwrap(), &alone) <= 0., "a picture depends on no other");
        net.freeze(Winograd::Process);
        assert!(far(&net.pictures(&latents).unwrap(), &pictures) < 1e-4);
        assert!(far(&net.latents(&x_0).unwrap(), &latents) < 1e-4);
        assert!(net.latents(&wave((1, 3, 18, 16), 0.1)).unwrap_err().to_string().contains("divisible by 4"));
        assert!(net.pictures(&wave((1, 3, 4, 4), 0.1)).is_err());
    }

    #[test]
    fn norms_have_the_groups_of_the_config() {
        let x_0 = wave((1, 3, 16, 16), 0.05);
        let latents = |num_groups| {
            let raw = RawSpatialConfig { num_groups, ..raw() };
            built(&SpatialConfig::new(raw).unwrap()).latents(&x_0).unwrap()
        };
        assert!(far(&latents(2), &latents(16)) > 1e-2);
        assert!(far(&latents(16), &latents(32)) <= 0., "one a channel");
    }

    #[test]
    fn a_large_batch_is_computed_in_parts() {
        let config = SpatialConfig::new(RawSpatialConfig { model_channels: 64, ..raw() }).unwrap();
        let net = built(&config);
        let parts = std::sync::Mutex::new(vec![]);
        let x = Tensor::zeros((5, 1, 512, 1024), DType::F32, &Device::Cpu).unwrap();
        let all = net.in_parts(&x, 1, |part| {
            parts.lock().unwrap().push(part.dim(0)?);
            Ok(part.clone())
        });
        assert_eq!((all.unwrap().dims(), parts.into_inner().unwrap()), (&[5, 1, 512, 1024][..], vec![1; 5]));
    }

    #[test]
    fn odd_pixels_of_a_convolution_are_those_of_stride_2() {
        let (x, weight) = (wave((2, 3, 6, 8), 0.31), wave((4, 3, 3, 3), 0.7));
        let bias = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
        let got = odd_pixels(&diffae_kernels::conv2d(&x, &weight, &bias).unwrap()).unwrap();
        let padded = x.pad_with_zeros(2, 0, 1).unwrap().pad_with_zeros(3, 0, 1).unwrap();
        assert!(far(&got, &padded.conv2d(&weight, 0, 2, 1, 1).unwrap()) < 1e-5);
    }

    #[test]
    fn gradients_are_those_of_central_differences() {
        let config = SpatialConfig::new(raw()).unwrap();
        let checkpointed = TrainingMode { checkpoint_blocks: true, ..TrainingMode::default() };
        gradients_are_right(&config, TrainingMode::default());
        gradients_are_right(&config, checkpointed);
        let plain = RawSpatialConfig { num_groups: 0, shortcut: true, latent_channels: 4, ..raw() };
        gradients_are_right(&SpatialConfig::new(plain).unwrap(), TrainingMode::default());
    }

    fn gradients_are_right(config: &SpatialConfig, mode: TrainingMode) {
        let (x_0, noise) = (wave((1, 3, 16, 16), 0.05), wave((1, config.latent_channels, 8, 8), 1.3));
        let weights = wave((1, 3, 16, 16), 0.37);
        let names = [
            "encoder.levels.0.down.weight",
            "encoder.middle.attention.qkv.weight",
            "to_moments.bias",
            "decoder.levels.0.up.weight",
            "decoder.levels.1.blocks.1.out_layers.3.weight",
            "from_latents.weight",
        ];
        let loss = |parameters: HashMap<String, Tensor>, mode: TrainingMode| -> Result<Tensor> {
            let net = SpatialAutoencoder::new(config, &VarBuilder::from_tensors(parameters, DType::F32, &Device::Cpu))?;
            let posterior = net.posterior(&x_0, mode)?;
            let decoded = net.decode_posterior(&posterior.sample(&noise)?, mode)?;
            let divergence = posterior.divergence()?;
            differentiable([&decoded, &divergence], |[decoded, divergence]| {
                (decoded * &weights)?.mean_all()? + (divergence * 0.1)?
            })
        };
        let mut vars = HashMap::new();
        let mut of_net = parameters(config);
        for name in names {
            let var = Var::from_tensor(&of_net[name]).unwrap();
            of_net.insert(name.to_owned(), var.as_tensor().clone());
            vars.insert(name, var);
        }
        let (value, tape) = record(|| loss(of_net, mode)).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&value, &mut gradients).unwrap();
        for name in names {
            let direction = wave(vars[name].shape(), 0.9);
            let gradient = gradients.get(&vars[name]).expect(name);
            let expected = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let moved = |by: f64| {
                let mut of_net = parameters(config);
                of_net.insert(name.to_owned(), (&of_net[name] + (&direction * by).unwrap()).unwrap());
                f64::from(no_gradients(|| loss(of_net, TrainingMode::default())).unwrap().to_scalar::<f32>().unwrap())
            };
            let step = 2e-3;
            let measured = (moved(step) - moved(-step)) / (2. * step);
            let tolerance = 0.02 * measured.abs() + 1e-4;
            assert!((measured - f64::from(expected)).abs() < tolerance, "{name}: {expected}, measured {measured}");
        }
    }

    #[test]
    fn a_shortcut_carries_the_reduced_picture() {
        let raw = RawSpatialConfig { channel_mult: vec![1, 2, 1], num_groups: 0, shortcut: true, ..raw() };
        assert!(SpatialConfig::new(raw.clone()).unwrap_err().to_string().contains("latent_channels"));
        let config = SpatialConfig::new(RawSpatialConfig { latent_channels: 5, ..raw }).unwrap();
        // All layers compute zeros.
        let zero = |(name, tensor): (String, Tensor)| (name, tensor.zeros_like().unwrap());
        let mut zeros: HashMap<_, _> = parameters(&config).into_iter().map(zero).collect();
        zeros.insert("latents.std".to_owned(), Tensor::ones(5, DType::F32, &Device::Cpu).unwrap());
        let vb = VarBuilder::from_tensors(zeros, DType::F32, &Device::Cpu);
        let net = SpatialAutoencoder::new(&config, &vb).unwrap();
        let x_0 = wave((2, 3, 16, 16), 0.013);
        let latents = net.latents(&x_0).unwrap();
        let reduced = x_0.avg_pool2d(4).unwrap();
        assert!(far(&latents.narrow(1, 0, 3).unwrap(), &reduced) < 1e-6);
        assert!(
            far(&latents.narrow(1, 3, 2).unwrap(), &Tensor::zeros((2, 2, 4, 4), DType::F32, &Device::Cpu).unwrap())
                <= 0.
        );
        assert!(far(&net.pictures(&latents).unwrap(), &reduced.upsample_nearest2d(16, 16).unwrap()) < 1e-6);
        // With other parameters, what is added is the same.
        let without = SpatialConfig::new(RawSpatialConfig { shortcut: false, ..(*config).clone() }).unwrap();
        let (with, without) = (built(&config), built(&without));
        let means = [&with, &without].map(|net| net.posterior(&x_0, TrainingMode::default()).unwrap().mean);
        let added = (&means[0] - &means[1]).unwrap().narrow(1, 0, 3).unwrap();
        assert!(far(&added, &reduced) < 1e-5 && far(&means[1].narrow(1, 0, 3).unwrap(), &added) > 0.1);
    }

    #[test]
    fn without_norms_a_pixel_depends_on_its_surroundings_alone() {
        let raw = RawSpatialConfig { image_size: 64, num_groups: 0, middle_attention: false, ..raw() };
        let net = built(&SpatialConfig::new(raw.clone()).unwrap());
        let x_0 = wave((1, 3, 64, 64), 0.013);
        let crop =
            |x: &Tensor, size: usize| x.narrow(2, 0, size).unwrap().narrow(3, 0, size).unwrap().contiguous().unwrap();
        let of_whole = |net: &SpatialAutoencoder| crop(&net.latents(&x_0).unwrap(), 4);
        let of_crop = |net: &SpatialAutoencoder| crop(&net.latents(&crop(&x_0, 48)).unwrap(), 4);
        assert!(far(&of_whole(&net), &of_crop(&net)) < 1e-5);
        let net = built(&SpatialConfig::new(RawSpatialConfig { num_groups: 4, ..raw }).unwrap());
        assert!(far(&of_whole(&net), &of_crop(&net)) > 1e-3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |raw: RawSpatialConfig| SpatialConfig::new(raw).unwrap_err().to_string();
        assert!(refused(RawSpatialConfig { image_size: 17, ..raw() }).contains("divisible"));
        assert!(refused(RawSpatialConfig { num_groups: 3, ..raw() }).contains("3 groups"));
        assert!(refused(RawSpatialConfig { num_groups: 33, ..raw() }).contains("num_groups"));
        assert!(SpatialConfig::new(RawSpatialConfig { num_groups: 0, ..raw() }).is_ok());
        assert!(SpatialConfig::new(RawSpatialConfig { num_groups: 32, ..raw() }).is_ok());
        assert!(refused(RawSpatialConfig { channel_mult: vec![], ..raw() }).contains("channel_mult"));
        assert!(refused(RawSpatialConfig { channel_mult: vec![1; 9], ..raw() }).contains("channel_mult"));
        assert!(refused(RawSpatialConfig { latent_channels: 0, ..raw() }).contains("latent_channels"));
    }
}
