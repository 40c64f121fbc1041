//! The perceptual network of losses: LPIPS with the backbone VGG-16.

use std::path::Path;

use candle_core::{Device, Tensor};
use diffae_kernels::differentiable;
use diffae_nets::features::{LpipsBackbone, LpipsNetwork};
use diffae_nets::weights::read_state_dict;

use crate::error::Result;

/// Reads the perceptual network.
pub(crate) fn open_perceptual(path: &Path, device: &Device) -> Result<LpipsNetwork> {
    let failed = |source| diffae_infer::Error::Weights { path: path.to_owned(), source };
    let tensors = read_state_dict(path).map_err(failed)?;
    Ok(LpipsNetwork::new(LpipsBackbone::Vgg, &tensors, device).map_err(failed)?)
}

/// Checks that a file has the weights of VGG-16, which losses take, before a run is begun.
///
/// # Errors
/// If it cannot be read, or is of another network.
pub fn check_lpips_weights(path: &Path) -> Result<()> {
    open_perceptual(path, &Device::Cpu).map(|_| ())
}

/// Repeats gray pictures to the three channels that the perceptual network takes.
pub(crate) fn color(x: &Tensor) -> candle_core::Result<Tensor> {
    if x.dim(1)? == 1 { differentiable([x], |[x]| x.repeat((1, 3, 1, 1))) } else { Ok(x.clone()) }
}
