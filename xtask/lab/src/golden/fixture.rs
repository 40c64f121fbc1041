//! Golden tensors.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use diffae_nets::weights::{SafetensorsFile, TensorSource};

/// A file of golden tensors, in the number types of the file.
#[derive(Debug)]
pub(crate) struct Fixture(SafetensorsFile);

impl Fixture {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self(SafetensorsFile::open(path)?))
    }

    /// Returns the names of all tensors, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.names()
    }

    /// Returns the tensor, if there is one of that name.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Tensor>> {
        if self.0.shape(name).is_none() {
            return Ok(None);
        }
        let stored = self.0.read(name)?;
        Ok(Some(Tensor::from_raw_buffer(&stored.bytes, stored.dtype, &stored.shape, &Device::Cpu)?))
    }

    /// Returns the tensor; an error if there is none of that name.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.get(name)?.with_context(|| format!("there is no tensor {name}"))
    }

    /// Returns the tensor as whole numbers.
    pub(crate) fn counts(&self, name: &str) -> Result<Vec<usize>> {
        let values = self.tensor(name)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        values.into_iter().map(|value| Ok(usize::try_from(value)?)).collect()
    }

    /// Returns the tensor as f64.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        super::report::numbers(&self.tensor(name)?)
    }
}
