//! Checks of dtypes and shapes before arithmetic.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// Rejects a dtype that cannot carry the arithmetic of a chain.
pub(crate) fn check_dtype(name: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        got => Err(Error::UnsupportedDtype { name, got }),
    }
}

/// Rejects a tensor whose dtype or shape is not that of `expected`: nothing is broadcast or cast.
pub(crate) fn check_like(name: &'static str, tensor: &Tensor, expected: &Tensor) -> Result<()> {
    if tensor.dtype() != expected.dtype() {
        return Err(Error::DtypeMismatch { name, got: tensor.dtype(), expected: expected.dtype() });
    }
    if tensor.dims() != expected.dims() {
        let (got, expected) = (tensor.dims().to_vec(), expected.dims().to_vec());
        return Err(Error::ShapeMismatch { name, got, expected });
    }
    Ok(())
}

/// Returns the length of the first axis of a tensor that a chain can work on.
pub(crate) fn num_items(name: &'static str, tensor: &Tensor) -> Result<usize> {
    check_dtype(name, tensor)?;
    tensor.dims().first().copied().ok_or(Error::NoBatchAxis { name })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
    }

    #[test]
    fn single_and_double_precision_are_accepted() {
        assert!(check_dtype("x_t", &zeros(&[2], DType::F32)).is_ok());
        assert!(check_dtype("x_t", &zeros(&[], DType::F64)).is_ok());
    }

    #[test]
    fn integers_and_half_precision_are_rejected() {
        for dtype in [DType::U8, DType::U32, DType::I64, DType::F16, DType::BF16] {
            let error = check_dtype("x_t", &zeros(&[2], dtype)).unwrap_err();
            assert!(matches!(error, Error::UnsupportedDtype { name: "x_t", got } if got == dtype), "{error}");
        }
    }

    #[test]
    fn another_dtype_is_rejected() {
        let error = check_like("eps", &zeros(&[2], DType::F64), &zeros(&[2], DType::F32)).unwrap_err();
        assert!(
            matches!(error, Error::DtypeMismatch { name: "eps", got: DType::F64, expected: DType::F32 }),
            "{error}"
        );
    }

    #[test]
    fn another_shape_is_rejected_even_if_it_broadcasts() {
        let error = check_like("eps", &zeros(&[1, 3], DType::F32), &zeros(&[2, 3], DType::F32)).unwrap_err();
        let Error::ShapeMismatch { name, got, expected } = error else { panic!("{error}") };
        assert_eq!((name, got, expected), ("eps", vec![1, 3], vec![2, 3]));
    }

    #[test]
    fn the_number_of_items_is_the_first_axis() {
        assert_eq!(num_items("x_0", &zeros(&[4, 3, 2], DType::F32)).unwrap(), 4);
    }

    #[test]
    fn a_scalar_has_no_items() {
        let error = num_items("x_0", &zeros(&[], DType::F32)).unwrap_err();
        assert!(matches!(error, Error::NoBatchAxis { name: "x_0" }), "{error}");
    }
}
