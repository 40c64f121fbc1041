//! Distances between sets of pictures, as sets of features.

use candle_core::{DType, Tensor};
use faer::linalg::evd::EvdError;
use faer::{Mat, MatRef, Side};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Mean and covariance of features that come batch by batch; memory depends on their width alone.
#[derive(Debug, Clone)]
pub struct FeatureStatistics {
    count: usize,
    mean: Vec<f64>,
    /// Sum of products of deviations from the mean.
    scatter: Mat<f64>,
}

impl FeatureStatistics {
    /// Nothing yet, of a width.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self { count: 0, mean: vec![0.; width], scatter: Mat::zeros(width, width) }
    }

    /// Adds a batch, in f64 throughout.
    ///
    /// # Shapes
    /// - `features`: `[N, D]`, f32 or f64; D as before.
    /// # Errors
    /// If the width differs, or a value is not finite.
    /// # Source
    /// Chan, Golub and `LeVeque` 1979: means and scatters of two parts of a set.
    pub fn add(&mut self, features: &Tensor) -> Result<()> {
        let rows = rows("features", features)?;
        let width = self.mean.len();
        if rows.first().is_some_and(|row| row.len() != width) {
            let got = rows.first().map_or(0, Vec::len);
            return Err(Error::WidthMismatch { got, expected: width });
        }
        let (old, new) = (self.count as f64, rows.len() as f64);
        if rows.is_empty() {
            return Ok(());
        }
        let mut mean = vec![0.; width];
        for row in &rows {
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value / new);
        }
        let centered = Mat::from_fn(rows.len(), width, |i, j| rows[i][j] - mean[j]);
        self.scatter += centered.transpose() * &centered;
        let shift: Vec<f64> = mean.iter().zip(&self.mean).map(|(new, old)| new - old).collect();
        let weight = old * new / (old + new);
        self.scatter += Mat::from_fn(width, width, |i, j| shift[i] * shift[j] * weight);
        self.mean.iter_mut().zip(&shift).for_each(|(mean, shift)| *mean += shift * new / (old + new));
        self.count += rows.len();
        Ok(())
    }

    /// How many were added.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// `[D]`
    #[must_use]
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// `[D, D]`, divided by n - 1.
    ///
    /// # Errors
    /// [`Error::TooFew`] if fewer than two were added.
    pub fn covariance(&self) -> Result<Mat<f64>> {
        if self.count < 2 {
            return Err(Error::TooFew { what: "features for a covariance", got: self.count, least: 2 });
        }
        let divisor = (self.count - 1) as f64;
        Ok(Mat::from_fn(self.mean.len(), self.mean.len(), |i, j| self.scatter[(i, j)] / divisor))
    }
}

/// `|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))` of two sets of features.
///
/// The trace of the root is the sum of the roots of the eigenvalues of `C_x^(1/2) C_y C_x^(1/2)`, which is symmetric, so
/// covariances of any rank are fine: with fewer pictures than features, and for identical sets, which have distance 0.
/// With Inception's features it is the Frechet Inception distance.
///
/// # Errors
/// [`Error::WidthMismatch`] if the widths differ, [`Error::TooFew`] if a set has fewer than two; [`Error::Eigen`] if the
/// eigenvalues cannot be found.
/// # Source
/// Heusel et al. 2017 (arXiv:1706.08500), Eq. 6; Dowson and Landau 1982.
pub fn frechet_distance(x: &FeatureStatistics, y: &FeatureStatistics) -> Result<f64> {
    if x.mean.len() != y.mean.len() {
        return Err(Error::WidthMismatch { got: y.mean.len(), expected: x.mean.len() });
    }
    let (cov_x, cov_y) = (x.covariance()?, y.covariance()?);
    let root = symmetric_root(cov_x.as_ref())?;
    let product = &root * &cov_y * &root;
    // Rounding leaves the product not quite symmetric.
    let product =
        Mat::from_fn(product.nrows(), product.ncols(), |i, j| f64::midpoint(product[(i, j)], product[(j, i)]));
    let eigenvalues = product.self_adjoint_eigenvalues(Side::Lower).map_err(eigen_failed)?;
    let trace_of_root: f64 = eigenvalues.iter().map(|value| value.max(0.).sqrt()).sum();
    let trace = |matrix: &Mat<f64>| (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum::<f64>();
    let between: f64 = x.mean.iter().zip(&y.mean).map(|(x, y)| (x - y).powi(2)).sum();
    // Below zero only by rounding.
    Ok((between + trace(&cov_x) + trace(&cov_y) - 2. * trace_of_root).max(0.))
}

fn eigen_failed(error: EvdError) -> Error {
    Error::Eigen { problem: format!("{error:?}") }
}

/// The symmetric square root of a positive semidefinite matrix.
fn symmetric_root(matrix: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(eigen_failed)?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| vectors[(i, j)] * values[j].max(0.).sqrt());
    Ok(scaled * vectors.transpose())
}

/// The squared maximum mean discrepancy with the kernel `(a . b / D + 1)^3`, without bias: it can be below 0 where the sets
/// are alike. With Inception's features, averaged over subsets, it is the Kernel Inception distance.
///
/// # Shapes
/// - `x`: `[M, D]`, `y`: `[N, D]`; f32 or f64.
/// # Errors
/// [`Error::WidthMismatch`], [`Error::TooFew`] with fewer than two in a set; others if a value is not finite.
/// # Source
/// Binkowski et al. 2018 (arXiv:1801.01401), Eq. 4.
pub fn kernel_distance(x: &Tensor, y: &Tensor) -> Result<f64> {
    let (x, y) = (rows("x", x)?, rows("y", y)?);
    for set in [&x, &y] {
        if set.len() < 2 {
            return Err(Error::TooFew { what: "features for a kernel distance", got: set.len(), least: 2 });
        }
    }
    if x[0].len() != y[0].len() {
        return Err(Error::WidthMismatch { got: y[0].len(), expected: x[0].len() });
    }
    let width = x[0].len() as f64;
    let kernel = |a: &[f64], b: &[f64]| {
        let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        (product / width + 1.).powi(3)
    };
    let sum_over = |a: &[Vec<f64>], b: &[Vec<f64>]| -> f64 {
        let of_row: Vec<f64> = a.par_iter().map(|a| b.iter().map(|b| kernel(a, b)).sum()).collect();
        of_row.iter().sum()
    };
    let within = |set: &[Vec<f64>]| {
        let diagonal: f64 = set.iter().map(|a| kernel(a, a)).sum();
        let count = set.len() as f64;
        (sum_over(set, set) - diagonal) / (count * (count - 1.))
    };
    Ok(within(&x) + within(&y) - 2. * sum_over(&x, &y) / (x.len() as f64 * y.len() as f64))
}

/// The rows of `[N, D]`, all values finite.
pub(crate) fn rows(batch: &'static str, features: &Tensor) -> Result<Vec<Vec<f64>>> {
    if features.rank() != 2 {
        return Err(Error::FeatureRank { got: features.dims().to_vec() });
    }
    let rows = features.to_dtype(DType::F64).and_then(|features| features.to_vec2::<f64>());
    let rows = rows.map_err(|source| Error::Tensor { batch, source })?;
    if rows.iter().flatten().all(|value| value.is_finite()) { Ok(rows) } else { Err(Error::NotFinite { batch }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn statistics(rows: &[[f64; 2]]) -> FeatureStatistics {
        let mut statistics = FeatureStatistics::new(2);
        statistics.add(&tensor(rows)).unwrap();
        statistics
    }

    fn tensor(rows: &[[f64; 2]]) -> Tensor {
        Tensor::from_vec(rows.as_flattened().to_vec(), (rows.len(), 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn batches_add_up_to_the_whole() {
        let rows = [[1., 5.], [2., -1.], [4., 0.5], [-3., 2.], [0., 0.]];
        let whole = statistics(&rows);
        let mut parts = statistics(&rows[..2]);
        parts.add(&tensor(&rows[2..])).unwrap();
        assert_eq!(parts.count(), 5);
        for i in 0..2 {
            assert!((parts.mean()[i] - whole.mean()[i]).abs() < 1e-12);
            for j in 0..2 {
                let (parts, whole) = (parts.covariance().unwrap(), whole.covariance().unwrap());
                assert!((parts[(i, j)] - whole[(i, j)]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn identical_sets_are_at_no_distance_at_any_rank() {
        let full = [[1., 5.], [2., -1.], [4., 0.5]];
        let line = [[1., 2.], [2., 4.], [3., 6.]];
        let point = [[1., 2.], [1., 2.]];
        for rows in [&full[..], &line, &point] {
            assert!(frechet_distance(&statistics(rows), &statistics(rows)).unwrap() < 1e-7, "{rows:?}");
        }
        // Of two points only the means differ.
        let moved = statistics(&[[4., 6.], [4., 6.]]);
        assert!((frechet_distance(&statistics(&point), &moved).unwrap() - 25.).abs() < 1e-9);
    }

    #[test]
    fn what_has_no_distance_is_an_error() {
        let one = statistics(&[[1., 2.]]);
        assert!(matches!(frechet_distance(&one, &one), Err(Error::TooFew { got: 1, .. })));
        let wide = FeatureStatistics::new(3);
        assert!(matches!(frechet_distance(&one, &wide), Err(Error::WidthMismatch { .. })));
        let mut statistics = FeatureStatistics::new(2);
        for bad in [f64::NAN, f64::INFINITY] {
            let features = Tensor::new(&[[bad, 0.]], &Device::Cpu).unwrap();
            assert!(matches!(statistics.add(&features), Err(Error::NotFinite { .. })));
            assert!(kernel_distance(&features, &features).is_err());
        }
        assert_eq!(statistics.count(), 0);
    }
}
