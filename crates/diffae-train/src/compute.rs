//! Device and numbers of networks under training.

use candle_core::{DType, Device};

/// Device and numbers with which the networks of a run compute.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The device of parameters, optimizer state and arithmetic.
    pub device: Device,
    /// The number type of activations and of the weights that layers read: f32, or bf16 on a GPU (f64 for checks).
    ///
    /// Parameters themselves, their gradients, moments and averages are f32 in any case, and so are statistics of norms,
    /// softmax, losses, compact models and discriminators. The range of bf16 is that of f32, so that losses are not scaled.
    pub dtype: DType,
}

impl From<&Device> for Compute {
    /// Returns a device with f32.
    fn from(device: &Device) -> Self {
        Self { device: device.clone(), dtype: DType::F32 }
    }
}

impl From<&Compute> for Compute {
    fn from(compute: &Compute) -> Self {
        compute.clone()
    }
}
