//! Encoder and noise predictor as one model.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use diffae_kernels::Winograd;

use crate::config::AutoencoderConfig;
use crate::frozen_encoder::SemanticNetwork;
use crate::unet::{TrainingMode, Unet};

/// The Diffusion Autoencoder: a semantic encoder and the `UNet` that it conditions.
#[derive(Debug, Clone)]
pub struct DiffusionAutoencoder {
    encoder: SemanticNetwork,
    unet: Unet,
}

impl DiffusionAutoencoder {
    /// Reads `encoder.*` and `unet.*` below `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &AutoencoderConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            encoder: SemanticNetwork::new(config.encoder(), &vb.pp("encoder"))?,
            unet: Unet::new(config.unet(), &vb.pp("unet"))?,
        })
    }

    /// Freezes the model for inference: no gradients may be requested afterwards; see [`Unet::freeze`].
    pub fn freeze(&mut self, winograd: Winograd) {
        self.encoder.freeze(winograd);
        self.unet.freeze(winograd);
    }

    /// Splits the model into encoder and `UNet`.
    #[must_use]
    pub fn into_parts(self) -> (SemanticNetwork, Unet) {
        (self.encoder, self.unet)
    }

    /// Returns the semantic encoder, `x_0 -> z_sem`.
    #[must_use]
    pub fn encoder(&self) -> &SemanticNetwork {
        &self.encoder
    }

    /// Returns the noise predictor, `(x_t, t, z_sem) -> eps`.
    #[must_use]
    pub fn unet(&self) -> &Unet {
        &self.unet
    }

    /// Predicts the noise in `x_t` as training does, from the code of `x_0`: `unet(x_t, t, encoder(x_0))`.
    ///
    /// # Shapes
    /// - `x_0`, `x_t`: `[N, C, H, W]`; `timesteps`: N numbers in `0..T`; result: as `x_t`.
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x_0: &Tensor, x_t: &Tensor, timesteps: &[f32]) -> Result<Tensor> {
        self.forward_training(x_0, x_t, timesteps, TrainingMode::default())
    }

    /// Runs [`DiffusionAutoencoder::forward`] with the training-only behavior of `mode`.
    ///
    /// # Shapes
    /// As for [`DiffusionAutoencoder::forward`].
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_training(
        &self,
        x_0: &Tensor,
        x_t: &Tensor,
        timesteps: &[f32],
        mode: TrainingMode,
    ) -> Result<Tensor> {
        let z_sem = self.encoder.forward(x_0)?;
        self.unet.forward_training(x_t, timesteps, Some(&z_sem), mode)
    }
}
