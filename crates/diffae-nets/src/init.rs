//! Initial values of parameters, for networks that are trained from scratch.
//!
//! They are hints to the [`VarBuilder`](candle_nn::VarBuilder): one that reads a file ignores them.

use candle_nn::Init;
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};

/// Initialization with zeros: the last convolution of every residual block, attention block and of the `UNet`, so that
/// each block starts as the identity.
pub(crate) const ZERO: Init = Init::Const(0.);

/// Initialization with ones: scales of norms.
pub(crate) const ONE: Init = Init::Const(1.);

/// Normal initialization with standard deviation `sqrt(2 / fan_in)`: the linear layers of the latent network.
pub(crate) const KAIMING_NORMAL: Init =
    Init::Kaiming { dist: NormalOrUniform::Normal, fan: FanInOut::FanIn, non_linearity: NonLinearity::ReLU };

/// Returns a uniform initialization in `+-1 / sqrt(fan_in)`: `PyTorch`'s default for convolutions and linear layers.
pub(crate) fn uniform_by_fan_in(fan_in: usize) -> Init {
    let bound = 1. / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}
