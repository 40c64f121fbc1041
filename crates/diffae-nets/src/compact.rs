//! The compact one-shot autoencoder: strided convolutions encode a picture, transposed ones decode it.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use diffae_kernels::{Activation, GroupNorm, conv2d, differentiable, group_norm, no_gradients, run_in_pool};
use serde::{Deserialize, Serialize};

use crate::config::{Check, Valid};
use crate::error::{Error, Result as NetsResult};
use crate::init;
use crate::linear::Linear;
use crate::plan::{at_most, positive};
use crate::unet::check_images;

/// Maximum channel multiplier: channels of the widest layers in those of the first.
const MAX_WIDENING: usize = 8;
/// Kernel size of the strided convolutions.
const KERNEL: usize = 4;
/// Weight of a new batch in the running statistics.
const MOMENTUM: f64 = 0.1;
/// Negative slope of the leaky `ReLU` in the discriminator.
const LEAK: f64 = 0.2;
const MAX_CHANNELS: usize = 1 << 13;

/// Unvalidated config of a compact autoencoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCompactConfig {
    /// Height and width of pictures: a power of two, 8 at least.
    pub image_size: usize,
    /// Number of channels of pictures, C.
    pub image_channels: usize,
    /// Channels of the widest maps; each halving doubles them, up to eight times.
    pub model_channels: usize,
    /// D: width of `z_sem`.
    pub z_channels: usize,
    /// Width of the noise from which the decoder may generate details.
    pub noise_channels: usize,
    /// Noise levels that training draws from, evenly spaced over `[0, 1]`.
    pub noise_levels: usize,
}

/// Validated config of a compact autoencoder.
pub type CompactConfig = Valid<RawCompactConfig>;

/// Height and width of the smallest maps.
const LAST_SIZE: usize = RawCompactConfig::LAST_SIZE;

impl RawCompactConfig {
    /// Height and width of the smallest maps.
    pub const LAST_SIZE: usize = 4;
    /// Stabilizer that is added to the variance in batch norms.
    pub const BATCH_NORM_EPS: f64 = 1e-5;

    /// Returns the channels of the maps of a [`Valid`] config, from `image_size / 2` down to 4 pixels.
    #[must_use]
    pub fn widths(&self) -> Vec<usize> {
        widths(self.image_size, self.model_channels)
    }
}

impl Check for RawCompactConfig {
    fn check(&self) -> NetsResult<()> {
        const NETWORK: &str = "compact autoencoder";
        for (field, got, most) in [
            ("image_channels", self.image_channels, MAX_CHANNELS),
            ("model_channels", self.model_channels, MAX_CHANNELS),
            ("z_channels", self.z_channels, MAX_CHANNELS),
            ("noise_channels", self.noise_channels, MAX_CHANNELS),
            ("noise_levels", self.noise_levels, 1 << 20),
            ("image_size", self.image_size, 1 << 12),
        ] {
            positive(NETWORK, field, got)?;
            at_most(NETWORK, field, got, most)?;
        }
        check_size(NETWORK, self.image_size)
    }
}

fn check_size(network: &'static str, image_size: usize) -> NetsResult<()> {
    let fits = image_size > LAST_SIZE && image_size.is_power_of_two();
    if fits { Ok(()) } else { Err(Error::ImageNotPowerOfTwo { network, image_size }) }
}

/// Returns the channels after each halving down to [`LAST_SIZE`].
fn widths(image_size: usize, first: usize) -> Vec<usize> {
    let halvings = image_size.max(LAST_SIZE).ilog2() - LAST_SIZE.ilog2();
    (0..halvings).map(|level| first * (1 << level).min(MAX_WIDENING)).collect()
}

/// Statistics of a batch in a norm.
#[derive(Debug, Clone)]
pub struct BatchMoments {
    /// Path of the norm's parameters.
    pub path: String,
    /// Mean, `[C]`.
    pub mean: Tensor,
    /// Variance, `[C]`, divided by n - 1.
    pub variance: Tensor,
}

impl BatchMoments {
    /// Returns a running statistic after a batch: 0.9 of its previous value, and 0.1 of the batch's.
    ///
    /// # Shapes
    /// - `running`, `of_batch`: `[C]`.
    /// # Errors
    /// If shapes differ.
    pub fn moved(running: &Tensor, of_batch: &Tensor) -> Result<Tensor> {
        (running.detach() * (1. - MOMENTUM))? + (of_batch * MOMENTUM)?
    }
}

/// Encoder from pictures to `z_sem`.
#[derive(Debug, Clone)]
pub struct CompactEncoder {
    config: CompactConfig,
    levels: Vec<(Strided, BatchNorm)>,
    out: Linear,
}

/// Decoder from `z_sem`, noise level and noise to pictures.
#[derive(Debug, Clone)]
pub struct CompactDecoder {
    config: CompactConfig,
    first: Linear,
    first_norm: BatchNorm,
    levels: Vec<(Strided, Option<BatchNorm>)>,
}

/// Inputs of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct CompactCode<'a> {
    /// Semantic codes, `[N, D]`.
    pub z_sem: &'a Tensor,
    /// Noise levels, `[N, 1]` in `[0, 1]`: how much of the detail is random.
    pub level: &'a Tensor,
    /// Standard normal noise, `[N, noise_channels]`; the level scales it.
    pub noise: &'a Tensor,
}

impl CompactEncoder {
    /// Reads the parameters below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &CompactConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let mut channels = config.image_channels;
        let mut levels = vec![];
        for (level, width) in config.widths().into_iter().enumerate() {
            let conv = Strided::new(Direction::Down, channels, width, &vb.pp(format!("conv{level}")))?;
            levels.push((conv, BatchNorm::new(width, &vb.pp(format!("norm{level}")))?));
            channels = width;
        }
        let out = Linear::kaiming(channels * LAST_SIZE * LAST_SIZE, config.z_channels, &vb.pp("out"))?;
        Ok(Self { config: config.clone(), levels, out })
    }

    /// Encodes pictures.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`; result: `[N, D]`.
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x_0: &Tensor) -> Result<Tensor> {
        run_in_pool(x_0.device(), || self.run(x_0, &mut None))
    }

    /// Encodes pictures with the statistics of the batch, and adds the updated running statistics to `moments`.
    ///
    /// # Shapes
    /// As for [`CompactEncoder::forward`].
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_training(&self, x_0: &Tensor, moments: &mut Vec<BatchMoments>) -> Result<Tensor> {
        self.run(x_0, &mut Some(moments))
    }

    fn run(&self, x_0: &Tensor, moments: &mut Option<&mut Vec<BatchMoments>>) -> Result<Tensor> {
        check_images(x_0, self.config.image_channels, self.config.image_size)?;
        let mut h = x_0.to_dtype(DType::F32)?;
        for (conv, norm) in &self.levels {
            h = norm.forward(&conv.forward(&h)?, moments)?;
        }
        self.out.forward(&differentiable([&h], |[h]| h.flatten_from(1))?)
    }
}

impl CompactDecoder {
    /// Reads the parameters below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &CompactConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let widths: Vec<usize> = config.widths().into_iter().rev().collect();
        let widest = widths.first().copied().unwrap_or(config.model_channels);
        let inputs = config.z_channels + 1 + config.noise_channels;
        let first = Linear::kaiming(inputs, widest * LAST_SIZE * LAST_SIZE, &vb.pp("in"))?;
        let mut levels = vec![];
        for (level, &width) in widths.iter().enumerate() {
            let next = widths.get(level + 1).copied();
            let outputs = next.unwrap_or(config.image_channels);
            let conv = Strided::new(Direction::Up, width, outputs, &vb.pp(format!("conv{level}")))?;
            let norm = next.map(|next| BatchNorm::new(next, &vb.pp(format!("norm{}", level + 1)))).transpose()?;
            levels.push((conv, norm));
        }
        Ok(Self { config: config.clone(), first, first_norm: BatchNorm::new(widest, &vb.pp("norm0"))?, levels })
    }

    /// Decodes pictures.
    ///
    /// # Shapes
    /// - result: `[N, C, H, W]` in `[-1, 1]`.
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, code: CompactCode<'_>) -> Result<Tensor> {
        run_in_pool(code.z_sem.device(), || self.run(code, &mut None))
    }

    /// Decodes pictures with the statistics of the batch, and adds the updated running statistics to `moments`.
    ///
    /// # Shapes
    /// As for [`CompactDecoder::forward`].
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_training(&self, code: CompactCode<'_>, moments: &mut Vec<BatchMoments>) -> Result<Tensor> {
        self.run(code, &mut Some(moments))
    }

    fn run(&self, code: CompactCode<'_>, moments: &mut Option<&mut Vec<BatchMoments>>) -> Result<Tensor> {
        let CompactCode { z_sem, level, noise } = code;
        let widths = [z_sem, level, noise].map(|part| part.dim(1).unwrap_or(0));
        if widths != [self.config.z_channels, 1, self.config.noise_channels] {
            let expected = [self.config.z_channels, 1, self.config.noise_channels];
            bail!("z_sem, level and noise have widths {widths:?}, the model expects {expected:?}")
        }
        let scaled = noise.broadcast_mul(level)?;
        let input = differentiable([z_sem], |[z_sem]| Tensor::cat(&[z_sem, level, &scaled], 1))?;
        let h = self.first.forward(&input)?;
        let h = differentiable([&h], |[h]| h.reshape((h.dim(0)?, (), LAST_SIZE, LAST_SIZE)))?;
        let mut h = self.first_norm.forward(&h, moments)?;
        for (conv, norm) in &self.levels {
            h = conv.forward(&h)?;
            if let Some(norm) = norm {
                h = norm.forward(&h, moments)?;
            }
        }
        differentiable([&h], |[h]| h.tanh())
    }
}

/// Discriminator between real images and decoder outputs: one logit per image, positive for real.
#[derive(Debug, Clone)]
pub struct Discriminator {
    image_channels: usize,
    image_size: usize,
    levels: Vec<Strided>,
    out: Linear,
}

impl Discriminator {
    /// Reads the parameters below `vb`, for pictures of `image_channels` channels and `image_size` pixels.
    ///
    /// # Errors
    /// If the size is no power of two from 8 on, a tensor is missing or has another shape.
    pub fn new(image_channels: usize, image_size: usize, model_channels: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        check_size("discriminator", image_size).map_err(candle_core::Error::wrap)?;
        let mut channels = image_channels;
        let mut levels = vec![];
        for (level, width) in widths(image_size, model_channels).into_iter().enumerate() {
            levels.push(Strided::new(Direction::Down, channels, width, &vb.pp(format!("conv{level}")))?);
            channels = width;
        }
        let out = Linear::kaiming(channels * LAST_SIZE * LAST_SIZE, 1, &vb.pp("out"))?;
        Ok(Self { image_channels, image_size, levels, out })
    }

    /// Computes one logit per picture.
    ///
    /// # Shapes
    /// - `x`: `[N, C, H, W]`; result: `[N, 1]`.
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_images(x, self.image_channels, self.image_size)?;
        let mut h = x.clone();
        for conv in &self.levels {
            let y = conv.forward(&h)?;
            h = differentiable([&y], |[y]| (y.relu()? * (1. - LEAK))? + (y * LEAK)?)?;
        }
        self.out.forward(&differentiable([&h], |[h]| h.flatten_from(1))?)
    }
}

/// Resampling of a strided convolution: halving or doubling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Down,
    Up,
}

/// A 4x4 convolution of stride 2 with one pixel of zeros around, or its transpose.
///
/// Both are 3x3 convolutions of stride 1 between the small picture and the large one with its 2x2 blocks as channels,
/// which is what the kernels of this workspace are fast at; the weights are laid out anew at each call.
#[derive(Debug, Clone)]
struct Strided {
    direction: Direction,
    /// Kernel, `[O, C, 4, 4]`; transposed `[C, O, 4, 4]`.
    weight: Tensor,
    bias: Tensor,
    /// Map `[16, 36]` from each tap of the 4x4 kernel to its place in four 3x3 kernels, one for each pixel of a block.
    layout: Tensor,
}

impl Strided {
    fn new(direction: Direction, inputs: usize, outputs: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let shape = match direction {
            Direction::Down => (outputs, inputs, KERNEL, KERNEL),
            Direction::Up => (inputs, outputs, KERNEL, KERNEL),
        };
        let weight = vb.get_with_hints(shape, "weight", init::KAIMING_NORMAL)?;
        let bias = vb.get_with_hints(outputs, "bias", init::ZERO)?;
        let layout = Tensor::from_vec(direction.layout(), (KERNEL * KERNEL, 36), vb.device())?;
        Ok(Self { direction, weight, bias, layout: layout.to_dtype(vb.dtype())? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let layout = self.layout.to_dtype(x.dtype())?;
        let weight = differentiable([&self.weight], |[weight]| {
            let (first, second, _, _) = weight.dims4()?;
            let taps = weight.to_dtype(x.dtype())?.reshape((first * second, KERNEL * KERNEL))?.matmul(&layout)?;
            let by_pixel = taps.reshape((first, second, 4, 9))?;
            match self.direction {
                // [O, C, 4, 9] -> [O, 4C, 3, 3]
                Direction::Down => by_pixel.reshape((first, second * 4, 3, 3)),
                // [C, O, 4, 9] -> [4O, C, 3, 3]
                Direction::Up => by_pixel.permute((1, 2, 0, 3))?.contiguous()?.reshape((second * 4, first, 3, 3)),
            }
        })?;
        match self.direction {
            Direction::Down => {
                let bias = differentiable([&self.bias], |[bias]| bias.to_dtype(x.dtype()))?;
                conv2d(&differentiable([x], |[x]| blocks_to_channels(x))?, &weight, &bias)
            }
            Direction::Up => {
                let bias = differentiable([&self.bias], |[bias]| {
                    bias.to_dtype(x.dtype())?.reshape(((), 1))?.broadcast_as((bias.elem_count(), 4))?.flatten_all()
                })?;
                let y = conv2d(x, &weight, &bias)?;
                differentiable([&y], |[y]| channels_to_blocks(y))
            }
        }
    }
}

impl Direction {
    /// Returns the layout of taps for [`Strided`], row-major.
    ///
    /// Row `4k + l`: tap `(k, l)`; column `9 (2a + b) + 3 (d + 1) + (e + 1)`: pixel `(a, b)` of the block that lies
    /// `(d, e)` away.
    fn layout(self) -> Vec<f32> {
        let mut layout = vec![0.; 16 * 36];
        for (k, l) in (0..KERNEL).flat_map(|k| (0..KERNEL).map(move |l| (k, l))) {
            let ((d, a), (e, b)) = (self.place(k), self.place(l));
            layout[(KERNEL * k + l) * 36 + 9 * (2 * a + b) + 3 * d + e] = 1.;
        }
        layout
    }

    /// Returns the block of a tap along one axis, counted from the one before, and the pixel of that block.
    fn place(self, tap: usize) -> (usize, usize) {
        match (self, tap) {
            // The block itself; its row a gets tap a + 1 in both directions.
            (_, 1) => (1, 0),
            (_, 2) => (1, 1),
            // Down, row 2i - 1 + k is pixel (k - 1) mod 2 of block i + floor((k - 1) / 2).
            (Self::Down, 0) => (0, 1),
            (Self::Down, _) => (2, 0),
            // Up, row 2i + a gets tap a + 1 - 2d of row i + d.
            (Self::Up, 0) => (2, 1),
            (Self::Up, _) => (0, 0),
        }
    }
}

/// Moves 2x2 blocks to channels, `[N, C, 2H, 2W] -> [N, 4C, H, W]`: channel `4c + 2a + b` is pixel `(a, b)` of the
/// blocks of channel c.
fn blocks_to_channels(x: &Tensor) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    let (height, width) = (height >> 1, width >> 1);
    let split = x.reshape(&[images, channels, height, 2, width, 2][..])?;
    split.permute(&[0, 1, 3, 5, 2, 4][..])?.contiguous()?.reshape((images, channels * 4, height, width))
}

/// Moves channels to 2x2 blocks, the inverse of [`blocks_to_channels`].
fn channels_to_blocks(x: &Tensor) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    let channels = channels >> 2;
    let split = x.reshape(&[images, channels, 2, 2, height, width][..])?;
    split.permute(&[0, 1, 4, 2, 5, 3][..])?.contiguous()?.reshape((images, channels, 2 * height, 2 * width))
}

/// Batch norm and `ReLU`.
///
/// # Source
/// Ioffe and Szegedy 2015 (arXiv:1502.03167).
#[derive(Debug, Clone)]
struct BatchNorm {
    path: String,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    fn new(channels: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            path: vb.prefix(),
            weight: vb.get_with_hints(channels, "weight", init::ONE)?,
            bias: vb.get_with_hints(channels, "bias", init::ZERO)?,
            running_mean: vb.get_with_hints(channels, "running_mean", init::ZERO)?,
            running_var: vb.get_with_hints(channels, "running_var", init::ONE)?,
        })
    }

    /// Normalizes with the statistics of the batch if `moments` is there to take them, else with the running ones.
    fn forward(&self, x: &Tensor, moments: &mut Option<&mut Vec<BatchMoments>>) -> Result<Tensor> {
        let (images, channels, height, width) = x.dims4()?;
        let Some(moments) = moments else {
            let row = |t: &Tensor| t.detach().to_dtype(x.dtype())?.reshape((1, channels, 1, 1));
            return no_gradients(|| {
                let scale =
                    (row(&self.weight)? / (row(&self.running_var)? + RawCompactConfig::BATCH_NORM_EPS)?.sqrt()?)?;
                let shift = (row(&self.bias)? - (row(&self.running_mean)? * &scale)?)?;
                x.broadcast_mul(&scale)?.broadcast_add(&shift)?.relu()
            });
        };
        // Each channel of the whole batch is a group of its own.
        let rows =
            differentiable([x], |[x]| x.transpose(0, 1)?.contiguous()?.reshape((1, channels, images * height, width)))?;
        moments.push(no_gradients(|| self.moments(&rows.detach()))?);
        let norm = GroupNorm {
            num_groups: channels,
            scale: &self.weight,
            shift: &self.bias,
            activation: Activation::Identity,
        };
        let y = group_norm(&rows, &norm)?;
        differentiable([&y], |[y]| y.reshape((channels, images, height, width))?.transpose(0, 1)?.contiguous()?.relu())
    }

    /// Computes the statistics of rows `[1, C, ..]`.
    fn moments(&self, rows: &Tensor) -> Result<BatchMoments> {
        let rows = rows.squeeze(0)?.flatten_from(1)?;
        let count = rows.dim(1)?;
        let mean = rows.mean_keepdim(1)?;
        let variance = (rows.broadcast_sub(&mean)?.sqr()?.sum(1)? / (count.max(2) - 1) as f64)?;
        Ok(BatchMoments { path: self.path.clone(), mean: mean.squeeze(1)?, variance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use candle_nn::VarMap;

    fn numbers(shape: &[usize], seed: f64) -> Tensor {
        let count = shape.iter().product::<usize>();
        let value = |i: usize| (i as f64 * 12.9898 + seed * 78.233).sin();
        let values = (0..count).map(value).collect::<Vec<_>>();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    }

    fn largest(x: &Tensor, y: &Tensor) -> f32 {
        assert_eq!(x.dims(), y.dims());
        (x - y).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn strided_convolutions_are_candles() {
        let x = numbers(&[2, 3, 8, 12], 1.);
        for (direction, shape) in [(Direction::Down, [5, 3, 4, 4]), (Direction::Up, [3, 5, 4, 4])] {
            let layout = Tensor::from_vec(direction.layout(), (16, 36), &Device::Cpu).unwrap();
            let conv = Strided { direction, weight: numbers(&shape, 2.), bias: numbers(&[5], 3.), layout };
            let bias = conv.bias.reshape((1, 5, 1, 1)).unwrap();
            let expected = match direction {
                Direction::Down => x.conv2d(&conv.weight, 1, 2, 1, 1),
                Direction::Up => x.conv_transpose2d(&conv.weight, 1, 0, 2, 1),
            };
            let expected = expected.unwrap().broadcast_add(&bias).unwrap();
            assert!(largest(&conv.forward(&x).unwrap(), &expected) < 1e-4, "{direction:?}");
        }
    }

    #[test]
    fn pixels_of_blocks_come_back() {
        let x = numbers(&[2, 3, 4, 6], 1.);
        assert!(largest(&channels_to_blocks(&blocks_to_channels(&x).unwrap()).unwrap(), &x) < f32::MIN_POSITIVE);
    }

    fn config() -> CompactConfig {
        CompactConfig::new(RawCompactConfig {
            image_size: 16,
            image_channels: 3,
            model_channels: 4,
            z_channels: 6,
            noise_channels: 2,
            noise_levels: 1000,
        })
        .unwrap()
    }

    #[test]
    fn running_statistics_reach_those_of_the_batch() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let encoder = CompactEncoder::new(&config(), &vb).unwrap();
        let x = numbers(&[8, 3, 16, 16], 1.);
        let mut last = None;
        for _ in 0..120 {
            let mut moments = vec![];
            last = Some(encoder.forward_training(&x, &mut moments).unwrap());
            assert_eq!(moments.len(), 2);
            for BatchMoments { path, mean, variance } in moments {
                let data = vars.data().lock().unwrap();
                for (name, of_batch) in [("running_mean", mean), ("running_var", variance)] {
                    let running = &data[&format!("{path}.{name}")];
                    running.set(&BatchMoments::moved(running, &of_batch).unwrap()).unwrap();
                }
            }
        }
        // The running variance is divided by n - 1, that of a batch by n.
        assert!(largest(&encoder.forward(&x).unwrap(), &last.unwrap()) < 0.05);
    }

    #[test]
    fn the_level_scales_the_noise() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let decoder = CompactDecoder::new(&config(), &vb).unwrap();
        let z_sem = numbers(&[2, 6], 1.);
        let decode = |level: f32, seed| {
            let (level, noise) = (Tensor::full(level, (2, 1), &Device::Cpu).unwrap(), numbers(&[2, 2], seed));
            decoder.forward(CompactCode { z_sem: &z_sem, level: &level, noise: &noise }).unwrap()
        };
        assert_eq!(decode(0., 1.).dims(), [2, 3, 16, 16]);
        assert!(largest(&decode(0., 1.), &decode(0., 2.)) < f32::MIN_POSITIVE);
        assert!(largest(&decode(1., 1.), &decode(1., 2.)) > 0.);
        assert!(largest(&decode(1., 1.), &decode(0., 1.)) > 0.);
    }

    #[test]
    fn gradients_reach_every_parameter() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let (encoder, decoder) = (
            CompactEncoder::new(&config(), &vb.pp("e")).unwrap(),
            CompactDecoder::new(&config(), &vb.pp("d")).unwrap(),
        );
        let discriminator = Discriminator::new(3, 16, 4, &vb.pp("j")).unwrap();
        let x = numbers(&[4, 3, 16, 16], 1.);
        let (level, noise) = (Tensor::full(0.5f32, (4, 1), &Device::Cpu).unwrap(), numbers(&[4, 2], 2.));
        let forward = || -> Result<Tensor> {
            let mut moments = vec![];
            let z_sem = encoder.forward_training(&x, &mut moments)?;
            let code = CompactCode { z_sem: &z_sem, level: &level, noise: &noise };
            let made = decoder.forward_training(code, &mut moments)?;
            let logits = discriminator.forward(&made)?;
            differentiable([&logits], |[logits]| logits.sqr()?.mean_all())
        };
        let (loss, tape) = diffae_kernels::record(forward).unwrap();
        let mut gradients = diffae_kernels::Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        let named: Vec<(String, Var)> = vars.data().lock().unwrap().clone().into_iter().collect();
        for (name, var) in named.iter().filter(|(name, _)| !name.contains("running")) {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            // A bias before a norm changes nothing.
            assert!(norm > 0. || name.ends_with("bias"), "{name}");
        }
    }

    #[test]
    fn sizes_that_cannot_be_halved_down_to_four_are_refused() {
        for image_size in [4, 12, 20, 63] {
            let raw = RawCompactConfig { image_size, ..(*config()).clone() };
            assert!(CompactConfig::new(raw).unwrap_err().to_string().contains("power of two"), "{image_size}");
        }
        assert_eq!(widths(64, 64), [64, 128, 256, 512]);
        assert_eq!(widths(256, 64), [64, 128, 256, 512, 512, 512]);
    }
}
