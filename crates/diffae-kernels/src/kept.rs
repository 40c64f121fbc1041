//! Saved activations, in f32 or rounded to bf16.

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::storage::with_floats;

/// Number of elements that a thread converts at once.
const CHUNK: usize = 1 << 14;

/// Number type in which a tape saves activations for the backward pass.
///
/// Parameters, gradients and all arithmetic stay f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ActivationStorage {
    /// f32, as they were computed.
    #[default]
    F32,
    /// bf16: half the memory, gradients with a relative error of some 2^-9 for each operation.
    Bf16,
}

/// An activation saved for the backward pass.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    tensor: Tensor,
    is_rounded: bool,
}

impl Kept {
    /// Saves a tensor unrounded.
    pub(crate) fn whole(tensor: &Tensor) -> Self {
        Self { tensor: tensor.detach(), is_rounded: false }
    }

    /// Saves a tensor rounded to bf16; other than f32, it is saved unrounded.
    ///
    /// # Errors
    /// If Candle cannot read the tensor.
    pub(crate) fn rounded(tensor: &Tensor) -> Result<Self> {
        if tensor.dtype() != DType::F32 {
            return Ok(Self::whole(tensor));
        }
        if !tensor.device().is_cpu() {
            return Ok(Self { tensor: tensor.detach().to_dtype(DType::BF16)?, is_rounded: true });
        }
        let mut rounded = vec![bf16::ZERO; tensor.elem_count()];
        with_floats(tensor, |values| {
            let pairs = rounded.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
            pairs.for_each(|(to, from)| to.convert_from_f32_slice(from));
            Ok(())
        })?;
        Ok(Self { tensor: Tensor::from_vec(rounded, tensor.shape(), &Device::Cpu)?, is_rounded: true })
    }

    /// Returns the activation, contiguous, in its original number type.
    ///
    /// # Errors
    /// If Candle cannot make a tensor of it.
    pub(crate) fn get(&self) -> Result<Tensor> {
        if !self.is_rounded {
            return self.tensor.contiguous();
        }
        if !self.tensor.device().is_cpu() {
            return self.tensor.to_dtype(DType::F32);
        }
        let (storage, _) = self.tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("expected a tensor on the CPU") };
        let rounded = storage.as_slice::<bf16>()?;
        let mut values = vec![0.; rounded.len()];
        let pairs = values.par_chunks_mut(CHUNK).zip(rounded.par_chunks(CHUNK));
        pairs.for_each(|(to, from)| from.convert_to_f32_slice(to));
        Tensor::from_vec(values, self.tensor.shape(), &Device::Cpu)
    }

    /// Returns the size of the saved activation, in bytes.
    pub(crate) fn num_bytes(&self) -> usize {
        self.tensor.elem_count() * self.tensor.dtype().size_in_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_shape_and_eight_bits() {
        let values: Vec<f32> = (0..40_000u16).map(|i| f32::from(i).sin() * 3.).collect();
        let tensor = Tensor::from_vec(values.clone(), (2, 20_000), &Device::Cpu).unwrap();
        let kept = Kept::rounded(&tensor).unwrap();
        assert_eq!(kept.num_bytes(), 80_000);
        let back = kept.get().unwrap();
        assert_eq!(back.dims(), [2, 20_000]);
        for (value, back) in values.iter().zip(back.flatten_all().unwrap().to_vec1::<f32>().unwrap()) {
            assert!((value - back).abs() <= value.abs() / 256., "{value} {back}");
        }
        let doubles = tensor.to_dtype(DType::F64).unwrap();
        assert_eq!(Kept::rounded(&doubles).unwrap().get().unwrap().dtype(), DType::F64);
        let halves = tensor.to_dtype(DType::BF16).unwrap().narrow(1, 5, 7).unwrap();
        let back = Kept::whole(&halves).get().unwrap();
        assert_eq!((back.dtype(), back.dims()), (DType::BF16, &[2, 7][..]));
    }
}
