//! Precision, recall, density and coverage: neighborhoods in feature space.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::frechet::rows;

/// Overlap of two sets of features. See [`manifold_overlap`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ManifoldOverlap {
    /// Share of samples that lie in the neighborhood of a real picture.
    pub precision: f64,
    /// Share of real pictures that lie in the neighborhood of a sample.
    pub recall: f64,
    /// Mean number of neighborhoods of real pictures that a sample lies in, over k: a precision that counts crowds; may
    /// exceed 1.
    pub density: f64,
    /// Share of real pictures whose neighborhood holds a sample.
    pub coverage: f64,
}

/// Contribution of each item to [`ManifoldOverlap`], whose figures are the means; bootstrap intervals need it.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifoldMembers {
    /// For each sample, 1 if it lies in the neighborhood of a real picture.
    pub precision: Vec<f64>,
    /// For each real picture, 1 if it lies in the neighborhood of a sample.
    pub recall: Vec<f64>,
    /// For each sample, the number of neighborhoods of real pictures that it lies in, over k.
    pub density: Vec<f64>,
    /// For each real picture, 1 if its neighborhood holds a sample.
    pub coverage: Vec<f64>,
}

/// Computes precision, recall, density and coverage of samples.
///
/// The neighborhood of a picture is the ball up to the k-th nearest other picture of its own set, that one left out; k is 3
/// for precision and recall and 5 for density and coverage in the papers, one k for all here. Time and memory of a thread
/// grow with `M * N * D` and `M + N`.
///
/// # Shapes
/// - `real`: `[M, D]`, `samples`: `[N, D]`; f32 or f64.
/// # Errors
/// [`Error::WidthMismatch`]; [`Error::TooFew`] unless both sets have more than k, and k is 1 or more;
/// [`Error::NotFinite`].
/// # Source
/// Kynkäänniemi et al. 2019 (arXiv:1904.06991), Eq. 1 and 2; Naeem et al. 2020 (arXiv:2002.09797), Eq. 3 and 4.
pub fn manifold_overlap(real: &Tensor, samples: &Tensor, k: usize) -> Result<ManifoldOverlap> {
    let members = manifold_members(real, samples, k)?;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    Ok(ManifoldOverlap {
        precision: mean(&members.precision),
        recall: mean(&members.recall),
        density: mean(&members.density),
        coverage: mean(&members.coverage),
    })
}

/// Computes the contribution of each item to [`manifold_overlap`].
///
/// # Errors
/// As [`manifold_overlap`].
pub fn manifold_members(real: &Tensor, samples: &Tensor, k: usize) -> Result<ManifoldMembers> {
    let (real, samples) = (rows("real", real)?, rows("samples", samples)?);
    for set in [&real, &samples] {
        if set.len() <= k || k == 0 {
            return Err(Error::TooFew { what: "features for neighborhoods", got: set.len(), least: k.max(1) + 1 });
        }
    }
    if real[0].len() != samples[0].len() {
        return Err(Error::WidthMismatch { got: samples[0].len(), expected: real[0].len() });
    }
    let (radius_of_real, radius_of_samples) = (radii(&real, k), radii(&samples, k));
    // For each sample, in how many real neighborhoods it lies.
    let hits: Vec<usize> = samples
        .par_iter()
        .map(|sample| {
            real.iter().zip(&radius_of_real).filter(|(real, radius)| squared(real, sample) < **radius).count()
        })
        .collect();
    // For each real picture, whether it lies in a sample's neighborhood, and whether a sample lies in its own.
    let found: Vec<(bool, bool)> = real
        .par_iter()
        .zip(&radius_of_real)
        .map(|(real, own_radius)| {
            let distances = samples.iter().map(|sample| squared(real, sample));
            distances.zip(&radius_of_samples).fold((false, false), |(recalled, covered), (distance, radius)| {
                (recalled || distance < *radius, covered || distance < *own_radius)
            })
        })
        .collect();
    let one = |holds: bool| f64::from(u8::from(holds));
    Ok(ManifoldMembers {
        precision: hits.iter().map(|&hits| one(hits > 0)).collect(),
        recall: found.iter().map(|&(recalled, _)| one(recalled)).collect(),
        density: hits.iter().map(|&hits| hits as f64 / k as f64).collect(),
        coverage: found.iter().map(|&(_, covered)| one(covered)).collect(),
    })
}

/// Returns the squared distance of each row to the k-th nearest other row.
fn radii(set: &[Vec<f64>], k: usize) -> Vec<f64> {
    let radius = |(i, row): (usize, &Vec<f64>)| {
        let others = set.iter().enumerate().filter(|(j, _)| *j != i);
        let mut distances: Vec<f64> = others.map(|(_, other)| squared(row, other)).collect();
        let (_, radius, _) = distances.select_nth_unstable_by(k - 1, f64::total_cmp);
        *radius
    };
    set.par_iter().enumerate().map(radius).collect()
}

fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn line(places: &[f64]) -> Tensor {
        Tensor::from_slice(places, (places.len(), 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_set_covers_itself_and_nothing_that_is_far() {
        let set = line(&[0., 1., 2., 3.5]);
        let same = manifold_overlap(&set, &set, 1).unwrap();
        assert_eq!((same.precision, same.recall, same.coverage), (1., 1., 1.));
        let far = manifold_overlap(&set, &line(&[100., 101., 102.]), 2).unwrap();
        assert_eq!(far, ManifoldOverlap { precision: 0., recall: 0., density: 0., coverage: 0. });
    }

    #[test]
    fn samples_of_one_kind_are_real_but_do_not_cover() {
        // Two groups of real pictures; samples of the first alone.
        let real = line(&[0., 1., 2., 100., 101., 102.]);
        let overlap = manifold_overlap(&real, &line(&[0.5, 1.5, 1.2]), 1).unwrap();
        assert_eq!((overlap.precision, overlap.coverage), (1., 0.5));
        assert!(overlap.recall <= 0.5);
    }

    #[test]
    fn what_has_no_neighborhood_is_an_error() {
        let set = line(&[0., 1., 2.]);
        assert!(matches!(manifold_overlap(&set, &set, 3), Err(Error::TooFew { got: 3, least: 4, .. })));
        assert!(matches!(manifold_overlap(&set, &set, 0), Err(Error::TooFew { .. })));
        assert!(matches!(manifold_overlap(&set, &line(&[0., f64::NAN]), 1), Err(Error::NotFinite { .. })));
        let wide = Tensor::zeros((3, 2), candle_core::DType::F64, &Device::Cpu).unwrap();
        assert!(matches!(manifold_overlap(&set, &wide, 1), Err(Error::WidthMismatch { .. })));
    }
}
