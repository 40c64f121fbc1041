//! Normalization of `z_sem` to zero mean and unit variance over the training set, and its inverse.

use candle_core::Tensor;

use crate::error::{Result, computing};
use crate::model::Model;

impl Model {
    /// Normalizes codes: `(z_sem - mean) / std`.
    ///
    /// # Shapes
    /// - `z_sem`, result: `[N, D]`, f32.
    /// # Errors
    /// [`MissingPart`](crate::Error::MissingPart) if the model has no latent statistics.
    pub fn normalize(&self, z_sem: &Tensor) -> Result<Tensor> {
        computing("normalizing z_sem", self.latent_moments()?.normalize(z_sem))
    }

    /// Reverses [`normalize`](Self::normalize): `z_sem_normalized * std + mean`.
    ///
    /// # Shapes
    /// - `z_sem_normalized`, result: `[N, D]`, f32.
    /// # Errors
    /// [`MissingPart`](crate::Error::MissingPart) if the model has no latent statistics.
    pub fn denormalize(&self, z_sem_normalized: &Tensor) -> Result<Tensor> {
        computing("denormalizing z_sem", self.latent_moments()?.denormalize(z_sem_normalized))
    }
}
