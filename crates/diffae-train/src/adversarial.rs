//! The adversarial term: a discriminator learns to tell real images from generated ones, and the decoder to pass for
//! real (Goodfellow et al. 2014, arXiv:1406.2661, with the non-saturating loss).

use candle_core::Tensor;
use diffae_kernels::differentiable;
use diffae_nets::Discriminator;

use crate::error::Result;
use crate::objective::binary_cross_entropy_with_logits;

/// Computes the generator loss, `mean of -ln sigmoid(D(generated))`.
pub(crate) fn generator_loss(discriminator: &Discriminator, generated: &Tensor) -> Result<Tensor> {
    let logits = discriminator.forward(generated)?;
    Ok(differentiable([&logits], |[logits]| binary_cross_entropy_with_logits(logits, &logits.ones_like()?))?)
}

/// Computes the discriminator loss, the mean of `-ln sigmoid(D(real))` and `-ln(1 - sigmoid(D(generated)))`.
pub(crate) fn discriminator_loss(discriminator: &Discriminator, real: &Tensor, generated: &Tensor) -> Result<Tensor> {
    let (real, generated) = (discriminator.forward(real)?, discriminator.forward(generated)?);
    Ok(differentiable([&real, &generated], |[real, generated]| {
        let of_real = binary_cross_entropy_with_logits(real, &real.ones_like()?)?;
        let of_generated = binary_cross_entropy_with_logits(generated, &generated.zeros_like()?)?;
        (of_real + of_generated)? * 0.5
    })?)
}
