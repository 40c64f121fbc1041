//! Between two codes: straight for `z_sem`, on the sphere for `x_T`.

use candle_core::{Result, Tensor};

/// `(1 - alpha) * from + alpha * to`, for `z_sem`.
///
/// # Shapes
/// - `from`, `to`, result: the same, any.
/// # Errors
/// If shapes differ.
pub fn lerp(from: &Tensor, to: &Tensor, alpha: f64) -> Result<Tensor> {
    (from * (1. - alpha))? + (to * alpha)?
}

/// `(sin((1 - alpha) theta) * from + sin(alpha theta) * to) / sin(theta)`, for `x_T`; theta is the angle between the two
/// as flat vectors.
///
/// Keeps the length that Gaussian noise has, which a straight line would shorten. Where the two are parallel the
/// formula has no value and its limit, the straight line, is taken.
///
/// # Shapes
/// - `from`, `to`, result: the same, any: one noise map, not a batch.
/// # Errors
/// If shapes differ.
/// # Source
/// Shoemake 1985; Song et al. 2020 (arXiv:2010.02502), Eq. 67.
pub fn slerp(from: &Tensor, to: &Tensor, alpha: f64) -> Result<Tensor> {
    let dot = |a: &Tensor, b: &Tensor| -> Result<f64> {
        Ok(f64::from((a * b)?.sum_all()?.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?))
    };
    let cosine = dot(from, to)? / (dot(from, from)? * dot(to, to)?).sqrt();
    let theta = cosine.clamp(-1., 1.).acos();
    let sine = theta.sin();
    if cosine.is_nan() || sine < 1e-6 {
        return lerp(from, to, alpha);
    }
    (from * (((1. - alpha) * theta).sin() / sine))? + (to * ((alpha * theta).sin() / sine))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn vector(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn slerp_keeps_the_length_and_meets_the_ends() {
        let (from, to) = (vector(&[3., 0., 0.]), vector(&[0., 3., 0.]));
        for alpha in [0., 0.25, 0.5, 1.] {
            let got = slerp(&from, &to, alpha).unwrap().to_vec1::<f32>().unwrap();
            let angle = alpha * std::f64::consts::FRAC_PI_2;
            assert!((f64::from(got[0]) - 3. * angle.cos()).abs() < 1e-6);
            assert!((f64::from(got[1]) - 3. * angle.sin()).abs() < 1e-6);
        }
    }

    #[test]
    fn parallel_and_zero_vectors_fall_back_to_a_straight_line() {
        let from = vector(&[1., 1.]);
        assert_eq!(slerp(&from, &from, 0.5).unwrap().to_vec1::<f32>().unwrap(), [1., 1.]);
        assert_eq!(slerp(&vector(&[0., 0.]), &from, 0.5).unwrap().to_vec1::<f32>().unwrap(), [0.5, 0.5]);
    }
}
