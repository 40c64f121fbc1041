//! The network of the latent diffusion: `(z_t, t) -> eps`.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use diffae_kernels::{cast, differentiable};

use crate::config::{LatentNetConfig, RawLatentNetConfig};
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::precision::compute_dtype;
use crate::time_embedding::{TimeEmbedding, TimeEmbeddingConfig, silu};

/// Noise predictor for normalized semantic codes: an MLP whose skip layers take its input again.
///
/// Layer k: `h = Linear([h, z_t] or h)`, and for all but the last `h = SiLU(LayerNorm(h * (1 + Linear(SiLU(t_emb)))))`.
///
/// # Source
/// Preechakul et al. 2022 (arXiv:2111.15640), appendix A.1.
#[derive(Debug, Clone)]
pub struct LatentNet {
    config: LatentNetConfig,
    time_embedding: TimeEmbedding,
    hidden: Vec<HiddenLayer>,
    last: Linear,
    dtype: DType,
}

#[derive(Debug, Clone)]
struct HiddenLayer {
    linear: Linear,
    project_t: Linear,
    norm: LayerNorm,
}

impl LatentNet {
    /// Reads the parameters below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &LatentNetConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let RawLatentNetConfig { z_channels, hidden_channels, time_embed_channels, .. } = **config;
        let last_idx = config.num_layers.saturating_sub(1);
        let mut hidden = Vec::with_capacity(last_idx);
        for layer in 0..last_idx {
            let vb = vb.pp("layers").pp(layer);
            hidden.push(HiddenLayer {
                linear: Linear::kaiming(config.layer_width(layer), hidden_channels, &vb.pp("linear"))?,
                project_t: Linear::kaiming(z_channels, hidden_channels, &vb.pp("linear_emb"))?,
                norm: LayerNorm::new(hidden_channels, &vb.pp("norm"))?,
            });
        }
        let time = TimeEmbeddingConfig { sinusoid_channels: time_embed_channels, embed_channels: z_channels };
        Ok(Self {
            time_embedding: TimeEmbedding::new(time, &vb.pp("time_embed"))?,
            hidden,
            last: Linear::kaiming(
                config.layer_width(last_idx),
                z_channels,
                &vb.pp("layers").pp(last_idx).pp("linear"),
            )?,
            dtype: compute_dtype(vb.dtype(), vb.device()),
            config: config.clone(),
        })
    }

    /// Returns the config of the network.
    #[must_use]
    pub fn config(&self) -> &LatentNetConfig {
        &self.config
    }

    /// Predicts the noise in `z_t`.
    ///
    /// # Shapes
    /// - `z_t`: `[N, D]`, noise added to a normalized `z_sem`; `timesteps`: one number in `0..T`, or N; result: `[N, D]`,
    ///   dtype of `z_t`.
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, z_t: &Tensor, timesteps: &[f32]) -> Result<Tensor> {
        let (count, width) = z_t.dims2()?;
        if width != self.config.z_channels {
            bail!("z_t has width {width}, the latent network expects {}", self.config.z_channels)
        }
        if timesteps.len() != 1 && timesteps.len() != count {
            bail!("there are {} timesteps, expected one, or {count}", timesteps.len())
        }
        let z = cast(z_t, self.dtype)?;
        let silu_t_emb = silu(&self.time_embedding.forward(timesteps, &z)?)?; // [M, D]
        let mut h = z.clone();
        for (k, layer) in self.hidden.iter().enumerate() {
            h = layer.linear.forward(&self.layer_input(k, &h, &z)?)?;
            let scale = layer.project_t.forward(&silu_t_emb)?;
            h = differentiable([&h, &scale], |[h, scale]| h.broadcast_mul(&(scale + 1.)?))?;
            h = silu(&layer.norm.forward(&h)?)?;
        }
        let eps = self.last.forward(&self.layer_input(self.hidden.len(), &h, &z)?)?;
        cast(&eps, z_t.dtype())
    }

    fn layer_input(&self, layer: usize, h: &Tensor, z: &Tensor) -> Result<Tensor> {
        if self.config.skip_layers.contains(&layer) {
            differentiable([h, z], |both| Tensor::cat(&both, 1))
        } else {
            Ok(h.clone())
        }
    }
}
