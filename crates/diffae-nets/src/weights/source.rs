//! Sources of tensors, and tracking that each tensor is used exactly once.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::bytes::tensor_bytes;
use crate::error::{Error, Result};

/// A file, or part of one, that holds named tensors.
pub trait TensorSource: Send + Sync + std::fmt::Debug {
    /// Returns all names, sorted.
    fn names(&self) -> Vec<String>;

    /// Returns the shape of a tensor, if it is there.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// Returns the bytes of a tensor.
    ///
    /// # Errors
    /// [`Error::TensorMissing`] if it is not there; others if the file is damaged.
    fn read(&self, name: &str) -> Result<StoredTensor<'_>>;
}

/// Tensors in memory.
#[derive(Debug, Clone, Default)]
pub struct TensorMap(pub BTreeMap<String, Tensor>);

impl TensorSource for TensorMap {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.get(name).map(Tensor::dims)
    }

    fn read(&self, name: &str) -> Result<StoredTensor<'_>> {
        let Some(tensor) = self.0.get(name) else { return Err(Error::TensorMissing { name: name.to_owned() }) };
        let bytes = tensor_bytes(tensor).map_err(|source| Error::Tensor { part: "reading a tensor", source })?;
        let (name, dtype, shape) = (name.to_owned(), tensor.dtype(), tensor.dims().to_vec());
        Ok(StoredTensor { name, dtype, shape, bytes: Cow::Owned(bytes) })
    }
}

/// A tensor as it is stored: contiguous, little-endian.
#[derive(Debug, Clone)]
pub struct StoredTensor<'a> {
    /// Name of the tensor.
    pub name: String,
    /// Number type of the tensor.
    pub dtype: DType,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Values of the tensor.
    pub bytes: Cow<'a, [u8]>,
}

impl StoredTensor<'_> {
    /// Converts the stored bytes to a tensor.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] if it holds no floats, [`Error::NotFinite`] if one of them is NaN or infinite (also
    /// after rounding to `dtype`), [`Error::Tensor`] if the device fails.
    pub fn to_tensor(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let failed = |source| Error::Tensor { part: "reading a tensor", source };
        if !self.dtype.is_float() {
            return Err(Error::UnsupportedDtype { name: self.name.clone(), dtype: format!("{:?}", self.dtype) });
        }
        let tensor = Tensor::from_raw_buffer(&self.bytes, self.dtype, &self.shape, &Device::Cpu).map_err(failed)?;
        let tensor = tensor.to_dtype(dtype).map_err(failed)?;
        if !is_finite(&tensor).map_err(failed)? {
            return Err(Error::NotFinite { name: self.name.clone() });
        }
        tensor.to_device(device).map_err(failed)
    }
}

/// Returns whether a float tensor holds neither NaN nor infinities.
///
/// # Errors
/// If the tensor cannot be read.
pub fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    if tensor.elem_count() == 0 {
        return Ok(true);
    }
    // 0 x is zero for finite x and NaN otherwise; a sum of zeros and NaNs is zero only without NaNs.
    let sum = tensor.affine(0., 0.)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    Ok(sum == 0.)
}

/// A [`TensorSource`] that records which tensors were read, so that loading a model can prove that it used them all.
#[derive(Debug, Clone)]
pub struct Weights {
    source: Arc<dyn TensorSource>,
    uses: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Weights {
    /// Wraps a source from which nothing has been read yet.
    #[must_use]
    pub fn new(source: Arc<dyn TensorSource>) -> Self {
        Self { source, uses: Arc::default() }
    }

    /// Returns the same tensors with no reads recorded.
    #[must_use]
    pub fn unread(&self) -> Self {
        Self::new(Arc::clone(&self.source))
    }

    /// Returns the underlying source.
    #[must_use]
    pub fn source(&self) -> &dyn TensorSource {
        self.source.as_ref()
    }

    /// Returns a builder whose layers read these tensors, in `dtype`, on `device`.
    #[must_use]
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// Reads one tensor and records its use.
    ///
    /// # Errors
    /// As [`TensorSource::read`] and [`StoredTensor::to_tensor`].
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.source.read(name)?.to_tensor(dtype, device)?;
        self.note_use(name);
        Ok(tensor)
    }

    /// Records the use of a tensor that is read by other means.
    pub fn note_use(&self, name: &str) {
        *self.uses.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() += 1;
    }

    /// Checks that every tensor was read exactly once.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`] or [`Error::TensorUsedTwice`], with the name.
    pub fn check_each_used_once(&self) -> Result<()> {
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, _)) = uses.iter().find(|&(_, &count)| count > 1) {
            return Err(Error::TensorUsedTwice { name: name.clone() });
        }
        let names: BTreeSet<String> = self.source.names().into_iter().collect();
        let mut unused = names.into_iter().filter(|name| !uses.contains_key(name));
        match unused.next() {
            Some(name) => Err(Error::UnusedTensors { count: 1 + unused.count(), name }),
            None => Ok(()),
        }
    }
}

impl SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self.source.shape(name) {
            Some(got) if got != shape.dims() => Err(candle_core::Error::wrap(Error::ShapeMismatch {
                name: name.to_owned(),
                got: got.to_vec(),
                expected: shape.dims().to_vec(),
            })),
            _ => self.get_unchecked(name, dtype, device),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, dtype, device).map_err(candle_core::Error::wrap)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }
}
