//! The adversarial term: a discriminator learns to tell pictures from what a decoder made, and the decoder to be taken
//! for real (Goodfellow et al. 2014, arXiv:1406.2661, with the non-saturating loss).

use candle_core::Tensor;
use diffae_kernels::differentiable;
use diffae_nets::Discriminator;

use crate::error::Result;
use crate::objective::cross_entropy;

/// `mean of -ln sigmoid(D(made))`: small where the discriminator takes what was made for real.
pub(crate) fn judged_loss(discriminator: &Discriminator, made: &Tensor) -> Result<Tensor> {
    let logits = discriminator.forward(made)?;
    Ok(differentiable([&logits], |[logits]| cross_entropy(logits, &logits.ones_like()?))?)
}

/// The mean of `-ln sigmoid(D(real))` and `-ln(1 - sigmoid(D(made)))`: small where they are told apart.
pub(crate) fn told_apart_loss(discriminator: &Discriminator, real: &Tensor, made: &Tensor) -> Result<Tensor> {
    let (real, made) = (discriminator.forward(real)?, discriminator.forward(made)?);
    Ok(differentiable([&real, &made], |[real, made]| {
        let both = (cross_entropy(real, &real.ones_like()?)? + cross_entropy(made, &made.zeros_like()?)?)?;
        both * 0.5
    })?)
}
