//! Conversion between number types.

use candle_core::{DType, Result, Tensor};

use crate::tape;

/// Converts a tensor to a number type; the gradient is converted back. Free where it has that type already.
///
/// # Shapes
/// - `x`, result: any, the same.
/// # Errors
/// If Candle cannot convert between the types on the device.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    if tape::in_graph() {
        return x.to_dtype(dtype);
    }
    let y = if tape::is_recording() { x.detach() } else { x.clone() }.to_dtype(dtype)?;
    let of_input = x.dtype();
    tape::push(&[x], &y, move |dy, _| Ok(vec![Some(dy.to_dtype(of_input)?)]))?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::{Gradients, differentiable, record};

    #[test]
    fn values_and_gradients_are_converted() {
        let x = Var::new(&[1.003_906_3f32, -2.], &Device::Cpu).unwrap();
        let slopes = Tensor::new(&[3f32, 0.5], &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        let ((y, loss), tape) = record(|| {
            let same = cast(&x, DType::F32)?;
            assert_eq!(same.id(), x.id(), "nothing to do");
            let y = cast(&cast(&same, DType::BF16)?, DType::F64)?;
            let loss = differentiable([&y], |[y]| (y * &slopes)?.sum_all())?;
            Ok::<_, candle_core::Error>((y, loss))
        })
        .unwrap();
        assert_eq!(y.to_vec1::<f64>().unwrap(), [1.0, -2.], "seven bits of mantissa");
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        assert_eq!(gradients.remove(&x).unwrap().to_vec1::<f32>().unwrap(), [3., 0.5]);
    }
}
