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
        let moments = self.latent_moments()?;
        let centered = z_sem.broadcast_sub(&moments.mean);
        computing("normalizing z_sem", centered.and_then(|centered| centered.broadcast_div(&moments.std)))
    }

    /// Reverses [`normalize`](Self::normalize): `z_sem_normalized * std + mean`.
    ///
    /// # Shapes
    /// - `z_sem_normalized`, result: `[N, D]`, f32.
    /// # Errors
    /// [`MissingPart`](crate::Error::MissingPart) if the model has no latent statistics.
    pub fn denormalize(&self, z_sem_normalized: &Tensor) -> Result<Tensor> {
        let moments = self.latent_moments()?;
        let scaled = z_sem_normalized.broadcast_mul(&moments.std);
        computing("denormalizing z_sem", scaled.and_then(|scaled| scaled.broadcast_add(&moments.mean)))
    }
}
