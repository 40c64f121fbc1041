//! Interpolation between two codes: linear for `z_sem`, spherical for `x_T`.

use candle_core::{Result, Tensor};

use crate::error::Error;

/// Interpolates `z_sem` linearly: `(1 - alpha) * from + alpha * to`.
///
/// # Shapes
/// - `from`, `to`, result: the same, any.
/// # Errors
/// If shapes differ.
pub fn lerp(from: &Tensor, to: &Tensor, alpha: f64) -> Result<Tensor> {
    (from * (1. - alpha))? + (to * alpha)?
}

/// Interpolates `x_T` on an arc: `(sin((1 - alpha) theta) * from + sin(alpha theta) * to) / sin(theta)`, with theta the
/// angle between the two as flat vectors.
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

/// The end of a path through several pictures: open or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEnd {
    /// Ends at the last picture.
    Last,
    /// Returns to the first picture, without repeating its frame, so that the animation loops smoothly. Two pictures
    /// make a path there and back.
    First,
}

/// A frame of a path: the point at the fraction `alpha` between pictures `from` and `to`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathFrame {
    /// Number of the picture before the frame.
    pub from: usize,
    /// Number of the picture after the frame.
    pub to: usize,
    /// Fraction of the leg: 0 at `from`, 1 at the end of an open path, and in `[0, 1)` elsewhere.
    pub alpha: f64,
}

/// Lists the frames of a path through pictures `0..num_pictures`, `frames_per_leg` a leg, both of its ends included.
/// Legs share the picture where they meet: an open path has `(num_pictures - 1) * (frames_per_leg - 1) + 1` frames, a
/// closed one `num_pictures * (frames_per_leg - 1)`.
///
/// With two pictures, the last leg passes the frames of the first in reverse.
///
/// # Errors
/// [`Error::OutOfRange`] for fewer than two pictures; for fewer than two frames a leg, but for the one frame of an open path
/// between two pictures, which shows the first.
pub fn path_frames(
    num_pictures: usize,
    frames_per_leg: usize,
    end: PathEnd,
) -> std::result::Result<Vec<PathFrame>, Error> {
    if num_pictures < 2 {
        let (what, expected) = ("the number of pictures of an interpolation", "two or more");
        return Err(Error::OutOfRange { what, got: num_pictures.to_string(), expected });
    }
    if frames_per_leg == 1 && (num_pictures, end) == (2, PathEnd::Last) {
        return Ok(vec![PathFrame { from: 0, to: 1, alpha: 0. }]);
    }
    if frames_per_leg < 2 {
        let (what, expected) = ("the number of frames from one picture to the next", "two or more");
        return Err(Error::OutOfRange { what, got: frames_per_leg.to_string(), expected });
    }
    let steps = frames_per_leg - 1;
    let mut frames = Vec::new();
    for from in 0..num_pictures - 1 {
        frames.extend((0..steps).map(|step| PathFrame { from, to: from + 1, alpha: step as f64 / steps as f64 }));
    }
    let last = num_pictures - 1;
    match end {
        PathEnd::Last => frames.push(PathFrame { from: last - 1, to: last, alpha: 1. }),
        PathEnd::First if num_pictures == 2 => {
            let back = (1..=steps).rev().map(|step| PathFrame { from: 0, to: 1, alpha: step as f64 / steps as f64 });
            frames.extend(back);
        }
        PathEnd::First => {
            frames.extend((0..steps).map(|step| PathFrame { from: last, to: 0, alpha: step as f64 / steps as f64 }));
        }
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_path_visits_every_picture_once() {
        let open = path_frames(3, 4, PathEnd::Last).unwrap();
        assert_eq!(open.len(), 2 * 3 + 1);
        let at = |from, to, alpha| PathFrame { from, to, alpha };
        assert_eq!([open[0], open[3], open[6]], [at(0, 1, 0.), at(1, 2, 0.), at(1, 2, 1.)]);
        let closed = path_frames(3, 4, PathEnd::First).unwrap();
        assert_eq!(closed.len(), 3 * 3);
        assert_eq!([closed[6], closed[8]], [at(2, 0, 0.), at(2, 0, 2. / 3.)]);
        let there_and_back = path_frames(2, 5, PathEnd::First).unwrap();
        let alphas: Vec<f64> = there_and_back.iter().map(|frame| frame.alpha).collect();
        assert_eq!(alphas, [0., 0.25, 0.5, 0.75, 1., 0.75, 0.5, 0.25]);
        assert_eq!(path_frames(2, 1, PathEnd::Last).unwrap(), [at(0, 1, 0.)]);
        for (pictures, frames, end) in [(1, 5, PathEnd::Last), (3, 1, PathEnd::Last), (2, 1, PathEnd::First)] {
            assert!(matches!(path_frames(pictures, frames, end), Err(Error::OutOfRange { .. })));
        }
    }

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
