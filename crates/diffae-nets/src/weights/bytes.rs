//! Tensors as little-endian bytes.

use std::borrow::Cow;

use candle_core::{DType, Tensor};

/// Returns the little-endian bytes of a tensor.
pub(super) fn tensor_bytes(tensor: &Tensor) -> candle_core::Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F64 => bytes_of(&flat.to_vec1::<f64>()?, f64::to_le_bytes),
        DType::F32 => float_bytes(&flat.to_vec1()?).into_owned(),
        DType::F16 => bytes_of(&flat.to_vec1::<half::f16>()?, half::f16::to_le_bytes),
        DType::BF16 => bytes_of(&flat.to_vec1::<half::bf16>()?, half::bf16::to_le_bytes),
        DType::I64 => bytes_of(&flat.to_vec1::<i64>()?, i64::to_le_bytes),
        DType::U32 => bytes_of(&flat.to_vec1::<u32>()?, u32::to_le_bytes),
        DType::U8 => flat.to_vec1::<u8>()?,
        other => candle_core::bail!("tensors of {other:?} are not stored"),
    })
}

/// Returns the little-endian bytes of values: those in memory, where the machine has this order.
#[must_use]
pub fn float_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(bytes_of(values, f32::to_le_bytes))
    }
}

fn bytes_of<T: Copy, const WIDTH: usize>(values: &[T], to_bytes: impl Fn(T) -> [u8; WIDTH]) -> Vec<u8> {
    values.iter().flat_map(|&value| to_bytes(value)).collect()
}
