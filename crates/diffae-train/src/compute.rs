//! Device and numbers of networks under training.

use candle_core::{DType, Device};

use crate::error::{Error, Result};

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

impl Compute {
    /// Returns a device with a number type for training on it.
    ///
    /// # Errors
    /// [`Error::Setting`] for f16, for which gradients are too small, and for bf16 on a CPU, which Candle has no products for.
    pub fn new(device: Device, dtype: DType) -> Result<Self> {
        let expected = match dtype {
            DType::F16 => "f32, or bf16 on a GPU: gradients are too small for f16",
            DType::BF16 if device.is_cpu() => {
                "f32 on a CPU; objective.activations=bf16 saves activations for the backward pass in half the memory"
            }
            _ => return Ok(Self { device, dtype }),
        };
        Err(Error::Setting { key: "dtype", got: dtype.as_str().to_owned(), expected })
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
        assert!(problem(DType::F16).starts_with("dtype is f16, expected f32, or bf16 on a GPU"));
        assert!(problem(DType::BF16).starts_with("dtype is bf16, expected f32 on a CPU"));
    }
}
