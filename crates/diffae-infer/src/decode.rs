//! Decoding: `(z_sem, x_T) -> x_0`.

use candle_core::{DType, Tensor};
use diffae_nets::{CompactCode, CompactDecoder};
use diffae_schedule::{Clip, NoiseFn, OnStep, ReverseProcess, Sampler, Spacing};

use crate::chain::UnetDenoiser;
use crate::error::{Error, Result, computing};
use crate::model::{Decoder, Model};
use crate::noise::{NoisePurpose, NoiseSource};

/// Settings of a chain from noise to pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeOptions {
    /// Number of steps. Reconstructions and interpolations need 20, edits 100.
    pub num_steps: usize,
    /// Spacing of the timesteps.
    pub spacing: Spacing,
    /// The sampling method; deterministic DDIM in the paper.
    pub sampler: Sampler,
    /// Clamping of the estimate of `x_0` to the range of pictures at each step; of latents, which have none, that of the
    /// pictures at the end.
    pub clip: Clip,
}

impl DecodeOptions {
    /// Returns the options of the paper: deterministic DDIM with clipping, on evenly spaced timesteps.
    #[must_use]
    pub fn ddim(num_steps: usize) -> Self {
        Self { num_steps, spacing: Spacing::Leading, sampler: Sampler::DDIM, clip: Clip::UnitRange }
    }
}

impl DecodeOptions {
    /// Returns the options of a latent diffusion: the same without clipping; DDIM in place of samplers that add noise, and
    /// even steps in log-SNR in place of those tuned for pictures.
    #[must_use]
    pub fn latent(self, num_steps: usize) -> Self {
        let sampler = if self.sampler.is_deterministic() { self.sampler } else { Sampler::DDIM };
        let spacing = if self.spacing == Spacing::Tuned { Spacing::LogSnr } else { self.spacing };
        Self { num_steps, spacing, sampler, clip: Clip::None }
    }
}

impl Model {
    /// Decodes pictures with the sampler of the options.
    ///
    /// # Shapes
    /// - `x_terminal`: `x_T`, `[N, ..]` as [`x_terminal_shape`](Self::x_terminal_shape), f32; `z_sem`: `[N, D]`, absent in a
    ///   plain DDPM; result: `x_0`, `[N, C, H, W]`, in `[-1, 1]` if clipped.
    /// - `noise`: standard normal noise like its argument; called only by samplers that add noise.
    /// # Errors
    /// [`Schedule`](crate::Error::Schedule) if there is no sequence of so many steps;
    /// [`Cancelled`](crate::Error::Cancelled) if `on_step` breaks; [`Tensor`](crate::Error::Tensor) if shapes do not
    /// fit.
    pub fn decode(
        &self,
        x_terminal: &Tensor,
        z_sem: Option<&Tensor>,
        options: &DecodeOptions,
        noise: &mut NoiseFn<'_>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        if let Decoder::OneShot(decoder) = self.decoder() {
            return one_shot(decoder, x_terminal, z_sem);
        }
        let chain = self.step_chain(options.spacing, options.num_steps)?;
        let process = ReverseProcess::new(options.sampler, chain, self.clip_of_states(options.clip));
        let denoiser = UnetDenoiser::new(self, z_sem, process.chain(), x_terminal)?;
        self.clipped_pictures(&process.run(&denoiser, x_terminal, noise, on_step)?, options.clip)
    }

    /// Converts states to pictures, and clamps those of latents; where states are pictures, the chain has clamped them.
    pub(crate) fn clipped_pictures(&self, states: &Tensor, clip: Clip) -> Result<Tensor> {
        let pictures = self.pictures(states)?;
        match clip {
            Clip::UnitRange if self.config().spatial().is_some() => computing("clipping", pictures.clamp(-1f32, 1f32)),
            Clip::UnitRange | Clip::None => Ok(pictures),
        }
    }
}

impl Model {
    /// Returns the shape of the `x_T` of one picture: the shape of the picture, or of its latents where there is a spatial
    /// autoencoder; in a one-shot autoencoder `[1 + noise_channels]`, the noise level in `[0, 1]` and the noise.
    #[must_use]
    pub fn x_terminal_shape(&self) -> Vec<usize> {
        match self.config().one_shot() {
            Some(compact) => vec![1 + compact.noise_channels],
            None => self.config().state_shape().unwrap_or_else(|| self.image_shape()).dims(),
        }
    }

    /// Draws `x_T` for the pictures with the given numbers: standard normal noise, at level 1 in a one-shot
    /// autoencoder.
    ///
    /// # Shapes
    /// - result: `[N, ..]` as [`x_terminal_shape`](Self::x_terminal_shape), f32 on the model's device.
    /// # Errors
    /// If there is no number, or the tensor cannot be made.
    pub fn random_x_terminal(&self, noise: NoiseSource, indices: impl IntoIterator<Item = u64>) -> Result<Tensor> {
        let shape = self.x_terminal_shape();
        let drawn = || {
            let drawn = noise.batch(NoisePurpose::XTerminal, indices, &shape, self.device())?;
            if self.config().one_shot().is_none() {
                return Ok(drawn);
            }
            let (count, width) = drawn.dims2()?;
            let level = Tensor::ones((count, 1), DType::F32, self.device())?;
            Tensor::cat(&[level, drawn.narrow(1, 1, width - 1)?], 1)
        };
        computing("drawing noise", drawn())
    }

    /// Computes the `x_T` that the model's endpoint network gives to codes.
    ///
    /// # Shapes
    /// - `z_sem`: `[N, D]`, f32; result: as for [`random_x_terminal`](Self::random_x_terminal).
    /// # Errors
    /// [`Error::MissingPart`] if the model has none; [`Error::Tensor`](crate::Error::Tensor) if the width differs.
    pub fn endpoint(&self, z_sem: &Tensor) -> Result<Tensor> {
        computing("computing endpoints", self.endpoint_net()?.forward(z_sem))
    }

    /// Returns the `x_T` that adds no detail: zeros.
    ///
    /// # Shapes
    /// - result: as for [`random_x_terminal`](Self::random_x_terminal).
    /// # Errors
    /// If the tensor cannot be made.
    pub fn zero_x_terminal(&self, count: usize) -> Result<Tensor> {
        let shape = [&[count], self.x_terminal_shape().as_slice()].concat();
        computing("making zeros", Tensor::zeros(shape, DType::F32, self.device()))
    }
}

/// Decodes with a compact decoder, whose `x_T` is the noise level and the noise side by side.
fn one_shot(decoder: &CompactDecoder, x_terminal: &Tensor, z_sem: Option<&Tensor>) -> Result<Tensor> {
    let hint = "the decoder makes pictures of it";
    let z_sem = z_sem.ok_or(Error::MissingPart { part: "z_sem", hint })?;
    let decoded = || {
        let (_, width) = x_terminal.dims2()?;
        let (level, noise) = (x_terminal.narrow(1, 0, 1)?, x_terminal.narrow(1, 1, width.saturating_sub(1))?);
        decoder.forward(CompactCode { z_sem, level: &level, noise: &noise })
    };
    computing("decoding", decoded())
}
