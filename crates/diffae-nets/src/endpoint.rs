//! The endpoint network: `z_sem -> x_T`, the noise map that decodes to the likeliest picture of a code.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use diffae_kernels::{Activation, Winograd, cast, differentiable, run_in_pool};
use serde::{Deserialize, Serialize};

use crate::config::{Check, Valid};
use crate::conv::{Conv, ConvConfig};
use crate::error::Result as NetsResult;
use crate::linear::Linear;
use crate::norm::GroupNorm;
use crate::plan::{ResPlan, Resample, at_most, check_groups, positive};
use crate::precision::compute_dtype;
use crate::res_block::PlainResBlock;

const NETWORK: &str = "endpoint network";
const MAX_CHANNELS: usize = 1 << 12;
/// Maximum channel multiplier: channels of the smallest maps in those of the largest.
const MAX_WIDENING: usize = 8;
/// Maps are halved down to this many pixels at most.
const LAST_SIZE: usize = 4;

/// Unvalidated config of an [`EndpointNet`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEndpointConfig {
    /// Height and width of pictures. Maps are halved from there as long as the size is even and above 4.
    pub image_size: usize,
    /// Number of channels of pictures, C.
    pub image_channels: usize,
    /// D: width of `z_sem`.
    pub z_channels: usize,
    /// Channels of the largest maps; each halving doubles them, up to eight times.
    pub model_channels: usize,
}

/// Validated config of an [`EndpointNet`].
pub type EndpointConfig = Valid<RawEndpointConfig>;

impl RawEndpointConfig {
    /// Returns height and width of the maps with their channels, from the smallest to those of the picture.
    #[must_use]
    pub fn levels(&self) -> Vec<(usize, usize)> {
        let (mut levels, mut size, mut widening) = (vec![], self.image_size, 1);
        loop {
            levels.push((size, self.model_channels * widening));
            if size % 2 == 1 || size <= LAST_SIZE {
                levels.reverse();
                return levels;
            }
            (size, widening) = (size >> 1, (2 * widening).min(MAX_WIDENING));
        }
    }

    /// Returns the plans of the two residual blocks of each level, in the same order.
    #[must_use]
    pub fn blocks(&self) -> Vec<[ResPlan; 2]> {
        let levels = self.levels();
        let mut in_channels = levels.first().map_or(self.model_channels, |&(_, channels)| channels);
        let mut blocks = vec![];
        for (level, (_, out_channels)) in levels.into_iter().enumerate() {
            let resample = if level == 0 { Resample::Keep } else { Resample::Up };
            let second = ResPlan { in_channels: out_channels, out_channels, resample: Resample::Keep, axes: 2 };
            blocks.push([ResPlan { in_channels, resample, ..second }, second]);
            in_channels = out_channels;
        }
        blocks
    }
}

impl Check for RawEndpointConfig {
    fn check(&self) -> NetsResult<()> {
        for (field, got, most) in [
            ("image_size", self.image_size, 1 << 12),
            ("image_channels", self.image_channels, MAX_CHANNELS),
            ("z_channels", self.z_channels, MAX_CHANNELS),
            ("model_channels", self.model_channels, MAX_CHANNELS),
        ] {
            positive(NETWORK, field, got)?;
            at_most(NETWORK, field, got, most)?;
        }
        self.levels().into_iter().try_for_each(|(_, channels)| check_groups(NETWORK, "block", channels))
    }
}

/// Predictor of `x_T` from `z_sem`: a linear layer makes the smallest maps, and at each larger size two residual blocks
/// follow, of which the first doubles height and width.
///
/// Trained through the chain that decodes, its `x_T` stands where random noise would, and the picture is that which the code
/// determines.
///
/// # Source
/// The idea that `z_sem` determines the endpoint is that of Diffusion Bridge `AutoEncoders`, Kim et al. 2024 (arXiv:2405.17111).
#[derive(Debug, Clone)]
pub struct EndpointNet {
    config: EndpointConfig,
    first: Linear,
    levels: Vec<[PlainResBlock; 2]>,
    out_norm: GroupNorm,
    out_conv: Conv,
    dtype: DType,
}

impl EndpointNet {
    /// Reads the parameters below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &EndpointConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (smallest, channels) = config.levels().first().copied().unwrap_or_default();
        let first = Linear::new(config.z_channels, channels * smallest * smallest, &vb.pp("first"))?;
        let mut levels = vec![];
        for (level, [first, second]) in config.blocks().into_iter().enumerate() {
            let vb = vb.pp("levels").pp(level);
            levels.push([PlainResBlock::new(first, &vb.pp(0))?, PlainResBlock::new(second, &vb.pp(1))?]);
        }
        let channels = config.model_channels;
        Ok(Self {
            first,
            levels,
            out_norm: GroupNorm::new(channels, &vb.pp("out.0"))?,
            out_conv: Conv::zero_initialized(ConvConfig::three(channels, config.image_channels), &vb.pp("out.2"))?,
            dtype: compute_dtype(vb.dtype(), vb.device()),
            config: config.clone(),
        })
    }

    /// Returns the config of the network.
    #[must_use]
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Predicts `x_T`.
    ///
    /// # Shapes
    /// - `z_sem`: codes as the encoder gives them, not normalized, `[N, D]`; result: `[N, C, H, W]`, dtype of `z_sem`.
    /// # Errors
    /// If the width does not fit.
    pub fn forward(&self, z_sem: &Tensor) -> Result<Tensor> {
        let (_, width) = z_sem.dims2()?;
        if width != self.config.z_channels {
            bail!("z_sem has width {width}, the endpoint network expects {}", self.config.z_channels)
        }
        run_in_pool(z_sem.device(), || self.run(z_sem))
    }

    fn run(&self, z_sem: &Tensor) -> Result<Tensor> {
        let (smallest, channels) = self.config.levels().first().copied().unwrap_or_default();
        let h = self.first.forward(&cast(z_sem, self.dtype)?)?;
        let mut h = differentiable([&h], |[h]| h.reshape(((), channels, smallest, smallest)))?;
        for [first, second] in &self.levels {
            h = second.forward(&first.forward(&h)?)?;
        }
        let x_terminal = self.out_conv.forward(&self.out_norm.forward(&h, Activation::Silu)?)?;
        differentiable([&x_terminal], |[x_terminal]| x_terminal.to_dtype(z_sem.dtype()))
    }

    /// Freezes the network for inference: no gradients may be requested afterwards; see
    /// [`Unet::freeze`](crate::Unet::freeze).
    pub fn freeze(&mut self, winograd: Winograd) {
        let blocks = self.levels.iter_mut().flatten().flat_map(PlainResBlock::convs_mut);
        blocks.chain(std::iter::once(&mut self.out_conv)).for_each(|conv| conv.freeze(winograd));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;

    fn config(image_size: usize, image_channels: usize) -> EndpointConfig {
        let raw = RawEndpointConfig { image_size, image_channels, z_channels: 5, model_channels: 8 };
        EndpointConfig::new(raw).unwrap()
    }

    /// Builds a network whose parameters are small waves.
    fn built(config: &EndpointConfig) -> EndpointNet {
        let vars = candle_nn::VarMap::new();
        EndpointNet::new(config, &VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
        let wave = |shape: &candle_core::Shape| {
            let values = (0..shape.elem_count()).map(|idx| (idx as f32 * 0.7).sin() * 0.2).collect::<Vec<_>>();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let data = vars.data().lock().unwrap();
        let tensors: HashMap<String, Tensor> =
            data.iter().map(|(name, var)| (name.clone(), wave(var.shape()))).collect();
        EndpointNet::new(config, &VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap()
    }

    #[test]
    fn a_code_becomes_a_map_of_the_size_of_the_pictures() {
        for (size, channels, smallest) in [(4, 1, 4), (8, 3, 4), (12, 3, 3), (28, 1, 7), (25, 2, 25)] {
            let config = config(size, channels);
            assert_eq!(config.levels()[0].0, smallest, "{size}");
            let z_sem = Tensor::new(&[[0.3f32, -1., 0.5, 2., 0.], [1., 1., -0.2, 0., 0.4]], &Device::Cpu).unwrap();
            let mut net = built(&config);
            let x_terminal = net.forward(&z_sem).unwrap();
            assert_eq!(x_terminal.dims(), [2, channels, size, size]);
            let alone = net.forward(&z_sem.narrow(0, 1, 1).unwrap()).unwrap();
            let row = |x: &Tensor, idx| x.get(idx).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(row(&x_terminal, 1), row(&alone, 0), "a code depends on no other");
            net.freeze(Winograd::Process);
            let frozen = net.forward(&z_sem).unwrap();
            let far = (frozen - &x_terminal).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(far < 1e-4, "{far}");
            assert!(net.forward(&Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap()).is_err());
        }
    }

    #[test]
    fn channels_double_up_to_eight_times() {
        assert_eq!(config(64, 3).levels(), [(4, 64), (8, 64), (16, 32), (32, 16), (64, 8)]);
        let refused = |raw: RawEndpointConfig| EndpointConfig::new(raw).unwrap_err().to_string();
        let raw = || RawEndpointConfig { image_size: 64, image_channels: 3, z_channels: 5, model_channels: 8 };
        assert!(refused(RawEndpointConfig { image_size: 0, ..raw() }).contains("image_size"));
        assert!(refused(RawEndpointConfig { model_channels: 1 << 20, ..raw() }).contains("model_channels"));
        assert!(refused(RawEndpointConfig { model_channels: 9, ..raw() }).contains("groups"));
    }
}
