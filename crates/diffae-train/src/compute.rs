//! Device and numbers of networks under training.

use candle_core::{DType, Device};

use crate::error::{Error, Result};

/// Device and numbers with which the networks of a run compute.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The device of parameters, optimizer state and arithmetic.
    pub device: Device,
    /// The number type of activations and of the weights that layers read: f32, or bf16 or f16 on a GPU (f64 for checks).
    ///
    /// Parameters themselves, their gradients, moments and averages are f32 in any case, and so are statistics of norms,
    /// softmax, losses, compact models, discriminators and classifiers. The range of bf16 is that of f32. For
    /// f16 the loss is scaled by a power of two, which falls when a gradient overflows (such steps are skipped) and rises after
    /// 2,000 steps without; it is part of checkpoints.
    pub dtype: DType,
}

impl Compute {
    /// Returns a device with a number type for training on it.
    ///
    /// # Errors
    /// [`Error::Setting`] for bf16 on a CPU, which Candle has no products for, and f16, which takes longer there than f32.
    pub fn new(device: Device, dtype: DType) -> Result<Self> {
        if device.is_cpu() && [DType::BF16, DType::F16].contains(&dtype) {
            let expected =
                "f32 on a CPU; objective.activations=bf16 saves activations for the backward pass in half the memory";
            return Err(Error::Setting { key: "dtype", got: dtype.as_str().to_owned(), expected });
        }
        Ok(Self { device, dtype })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_training_would_not_follow_are_refused() {
        let of_cpu = |dtype| Compute::new(Device::Cpu, dtype);
        assert_eq!(of_cpu(DType::F32).unwrap().dtype, DType::F32);
        assert_eq!(of_cpu(DType::F64).unwrap().dtype, DType::F64);
        let problem = |dtype| of_cpu(dtype).unwrap_err().to_string();
        assert!(problem(DType::F16).starts_with("dtype is f16, expected f32 on a CPU"));
        assert!(problem(DType::BF16).starts_with("dtype is bf16, expected f32 on a CPU"));
    }
}
