//! Timestep embedding: sinusoids and a two-layer MLP.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::differentiable;

use crate::linear::Linear;

/// Longest period of the sinusoids, in timesteps (over 2 pi).
const MAX_PERIOD: f64 = 10_000.;

/// Returns the frequencies of the sinusoids of an embedding of width `dim`: `f_i = 10000^(-i / h)`, i = 0, .., h - 1, with
/// `h = dim / 2`, in f32.
///
/// # Source
/// Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
#[must_use]
pub fn timestep_frequencies(dim: usize) -> Vec<f32> {
    let half = dim >> 1;
    #[expect(clippy::cast_possible_truncation, reason = "the embedding is defined in f32")]
    let frequency = |i: usize| {
        let exponent = -MAX_PERIOD.ln() as f32 * i as f32 / half as f32;
        f64::from(exponent).exp() as f32
    };
    (0..half).map(frequency).collect()
}

/// Computes the sinusoids of `timesteps`: `[cos(t f_0), .., cos(t f_{h-1}), sin(t f_0), .., sin(t f_{h-1})]`,
/// with the [`timestep_frequencies`] f, `h = dim / 2`, and one zero appended where `dim` is odd.
///
/// Angles are rounded to f32 before the cosine, as in the released model: at t = 999 that is the larger part of
/// the difference between implementations.
///
/// # Shapes
/// - `timesteps`: M numbers in `0..T`; result: `[M, dim]`, f32.
/// # Errors
/// If the tensor cannot be made on `device`.
/// # Source
/// Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, with all cosines first.
pub fn timestep_embedding(timesteps: &[f32], dim: usize, device: &Device) -> Result<Tensor> {
    let frequencies = timestep_frequencies(dim);
    let mut values = Vec::with_capacity(timesteps.len() * dim);
    for &t in timesteps {
        values.extend(frequencies.iter().map(|f| (t * f).cos()));
        values.extend(frequencies.iter().map(|f| (t * f).sin()));
        values.extend((2 * frequencies.len() < dim).then_some(0.));
    }
    Tensor::from_vec(values, (timesteps.len(), dim), device)
}

/// Time embedding, `t -> Linear(SiLU(Linear(sinusoids(t))))`.
#[derive(Debug, Clone)]
pub(crate) struct TimeEmbedding {
    sinusoid_channels: usize,
    first: Linear,
    second: Linear,
}

/// Sizes of a [`TimeEmbedding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeEmbeddingConfig {
    /// Number of sinusoids.
    pub(crate) sinusoid_channels: usize,
    /// Width of the result, E.
    pub(crate) embed_channels: usize,
}

impl TimeEmbedding {
    /// Reads the two layers `0` and `2` below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(config: TimeEmbeddingConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let TimeEmbeddingConfig { sinusoid_channels, embed_channels } = config;
        let first = Linear::new(sinusoid_channels, embed_channels, &vb.pp("0"))?;
        let second = Linear::new(embed_channels, embed_channels, &vb.pp("2"))?;
        Ok(Self { sinusoid_channels, first, second })
    }

    /// Embeds timesteps.
    ///
    /// # Shapes
    /// - `timesteps`: M numbers; `like`: any tensor, gives dtype and device; result: `[M, E]`.
    /// # Errors
    /// If the tensor cannot be made on the device.
    pub(crate) fn forward(&self, timesteps: &[f32], like: &Tensor) -> Result<Tensor> {
        let sinusoids = timestep_embedding(timesteps, self.sinusoid_channels, like.device())?.to_dtype(like.dtype())?;
        self.second.forward(&silu(&self.first.forward(&sinusoids)?)?)
    }
}

/// Computes `x * sigmoid(x)` of a few values, such as an embedding.
pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    differentiable([x], |[x]| x.silu())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_come_first_and_odd_widths_end_in_zero() {
        let embedding = timestep_embedding(&[0., 2.], 5, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(embedding[0], [1., 1., 0., 0., 0.]);
        let expected = [2f32.cos(), 0.02f32.cos(), 2f32.sin(), 0.02f32.sin(), 0.];
        for (got, expected) in embedding[1].iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6);
        }
    }
}
