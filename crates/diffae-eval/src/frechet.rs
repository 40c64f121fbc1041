//! Frechet and kernel distances between sets of features.

use candle_core::{DType, Tensor};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, MatRef, Side, Spec};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::moments::Moments;

/// Running mean and covariance of features that come batch by batch; memory depends on their width alone.
#[derive(Debug, Clone)]
pub struct FeatureStatistics {
    count: usize,
    mean: Vec<f64>,
    /// Sum of products of deviations from the mean.
    scatter: Mat<f64>,
}

impl FeatureStatistics {
    /// Starts without features, for features of a given width.
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

    /// Returns the number of features added.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns mean and covariance of the features added.
    ///
    /// # Errors
    /// [`Error::TooFew`] if fewer than two were added.
    pub fn moments(&self) -> Result<Moments> {
        if self.count < 2 {
            return Err(Error::TooFew { what: "features for a covariance", got: self.count, least: 2 });
        }
        let (width, divisor) = (self.mean.len(), (self.count - 1) as f64);
        let covariance = Mat::from_fn(width, width, |i, j| self.scatter[(i, j)] / divisor);
        Ok(Moments { count: Some(self.count), mean: self.mean.clone(), covariance })
    }
}

/// Frechet distance of two sets of features, `|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`.
///
/// With `C_x = L L^T`, a pivoted Cholesky factor with as many columns as `C_x` has rank, the trace of the root is the sum
/// of the roots of the eigenvalues of `L^T C_y L`, which is symmetric. So covariances of any rank are fine: with fewer
/// pictures than features, where this is small, and for identical sets, which have distance 0. With Inception's features
/// it is the Frechet Inception distance.
///
/// # Errors
/// [`Error::WidthMismatch`] if the widths differ; [`Error::Eigen`] if the eigenvalues cannot be found.
/// # Source
/// Heusel et al. 2017 (arXiv:1706.08500), Eq. 6; Dowson and Landau 1982.
pub fn frechet_distance(x: &Moments, y: &Moments) -> Result<f64> {
    if x.mean.len() != y.mean.len() {
        return Err(Error::WidthMismatch { got: y.mean.len(), expected: x.mean.len() });
    }
    // The distance is symmetric, and fewer features have a covariance of lower rank.
    let is_x_factored = x.count.unwrap_or(usize::MAX) <= y.count.unwrap_or(usize::MAX);
    let [factored, other] = if is_x_factored { [x, y] } else { [y, x] };
    let factor = cholesky_factor(factored.covariance.as_ref())?;
    let product = factor.transpose() * &other.covariance * &factor;
    // Rounding leaves the product not quite symmetric.
    let product =
        Mat::from_fn(product.nrows(), product.ncols(), |i, j| f64::midpoint(product[(i, j)], product[(j, i)]));
    let eigenvalues = product.self_adjoint_eigenvalues(Side::Lower).map_err(eigen_failed)?;
    let trace_of_root: f64 = eigenvalues.iter().map(|value| value.max(0.).sqrt()).sum();
    let trace = |matrix: &Mat<f64>| (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum::<f64>();
    let between: f64 = x.mean.iter().zip(&y.mean).map(|(x, y)| (x - y).powi(2)).sum();
    // Below zero only by rounding.
    Ok((between + trace(&x.covariance) + trace(&y.covariance) - 2. * trace_of_root).max(0.))
}

fn eigen_failed(error: impl std::fmt::Debug) -> Error {
    Error::Eigen { problem: format!("{error:?}") }
}

/// Returns L, `[D, R]`, with `L L^T` the positive semidefinite matrix of rank R, to rounding.
fn cholesky_factor(matrix: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let (width, par) = (matrix.nrows(), faer::get_global_parallelism());
    if (0..width).all(|i| matrix[(i, i)] <= 0.) {
        return Ok(Mat::zeros(width, 0));
    }
    let mut lower = matrix.to_owned();
    let (mut permutation, mut inverse) = (vec![0_usize; width], vec![0_usize; width]);
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<usize, f64>(width, par, Spec::default()));
    let stack = MemStack::new(&mut memory);
    let (info, _) = cholesky_in_place(lower.as_mut(), &mut permutation, &mut inverse, par, stack, Spec::default())
        .map_err(eigen_failed)?;
    // Rows are in the order of the pivots.
    Ok(Mat::from_fn(width, info.rank, |i, j| if inverse[i] >= j { lower[(inverse[i], j)] } else { 0. }))
}

/// Squared maximum mean discrepancy with the kernel `(a . b / D + 1)^3`, unbiased: it can be below 0 where the sets are
/// alike. With Inception's features, averaged over subsets, it is the Kernel Inception distance.
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

/// Returns mean and standard deviation of [`kernel_distance`] over random subsets of two sets whose features are stored
/// elsewhere, such as in a file: memory depends on the size of the subsets alone.
///
/// - `counts`: number of features of each set; `subset`: number drawn from each, without repeats; `read`: maps a
///   set, 0 or 1, and rows of it in rising order to `[subset, D]`.
///
/// # Errors
/// [`Error::TooFew`] if a set has fewer than `subset`, or there is no subset; others as [`kernel_distance`] and `read`.
/// # Source
/// Binkowski et al. 2018 (arXiv:1801.01401): 100 subsets of 1000, as torchmetrics.
pub fn kernel_distance_of_subsets<E: From<Error>>(
    counts: [usize; 2],
    subset: usize,
    num_subsets: usize,
    seed: u64,
    mut read: impl FnMut(usize, &[usize]) -> std::result::Result<Tensor, E>,
) -> std::result::Result<(f64, f64), E> {
    let fewest = counts.into_iter().min().unwrap_or(0);
    if fewest < subset {
        return Err(Error::TooFew { what: "features for a subset", got: fewest, least: subset }.into());
    }
    if num_subsets == 0 {
        return Err(Error::TooFew { what: "subsets", got: 0, least: 1 }.into());
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut distances = vec![];
    for _ in 0..num_subsets {
        let mut draw = |set: usize| read(set, &draw_rows(&mut random, counts[set], subset));
        distances.push(kernel_distance(&draw(0)?, &draw(1)?)?);
    }
    let count = distances.len() as f64;
    let mean = distances.iter().sum::<f64>() / count;
    let var = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / count;
    Ok((mean, var.sqrt()))
}

/// Draws `subset` of the first `count` numbers, in rising order (Knuth's algorithm S).
fn draw_rows(random: &mut ChaCha8Rng, count: usize, subset: usize) -> Vec<usize> {
    let mut rows = Vec::with_capacity(subset);
    for row in 0..count {
        let (left, wanted) = ((count - row) as f64, (subset - rows.len()) as f64);
        // 53 random bits.
        let share = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        if share * left < wanted {
            rows.push(row);
        }
    }
    rows
}

/// Returns the rows of `[N, D]`, and checks that all values are finite.
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

    fn moments(rows: &[[f64; 2]]) -> Moments {
        statistics(rows).moments().unwrap()
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
        let (parts, whole) = (parts.moments().unwrap(), whole.moments().unwrap());
        for i in 0..2 {
            assert!((parts.mean[i] - whole.mean[i]).abs() < 1e-12);
            for j in 0..2 {
                assert!((parts.covariance[(i, j)] - whole.covariance[(i, j)]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn identical_sets_are_at_no_distance_at_any_rank() {
        let full = [[1., 5.], [2., -1.], [4., 0.5]];
        let line = [[1., 2.], [2., 4.], [3., 6.]];
        let point = [[1., 2.], [1., 2.]];
        for rows in [&full[..], &line, &point] {
            assert!(frechet_distance(&moments(rows), &moments(rows)).unwrap() < 1e-12, "{rows:?}");
        }
        // Of two points only the means differ.
        let moved = moments(&[[4., 6.], [4., 6.]]);
        assert!((frechet_distance(&moments(&point), &moved).unwrap() - 25.).abs() < 1e-9);
    }

    #[test]
    fn the_distance_of_commuting_covariances_is_that_of_their_axes() {
        // Covariances diag(2, 8) and diag(18, 2) of four points each, and a line along the first axis.
        let cross = |a: f64, b: f64| moments(&[[a, 0.], [-a, 0.], [0., b], [0., -b]]);
        let (x, y) = (cross(3_f64.sqrt(), 12_f64.sqrt()), cross(27_f64.sqrt(), 3_f64.sqrt()));
        let line = moments(&[[1., 0.], [-1., 0.]]);
        let gap = |a: f64, b: f64| (a.sqrt() - b.sqrt()).powi(2);
        for (one, other, expected) in
            [(&x, &y, gap(2., 18.) + gap(8., 2.)), (&x, &line, gap(2., 2.) + 8.), (&y, &line, gap(18., 2.) + 2.)]
        {
            let distances = [frechet_distance(one, other).unwrap(), frechet_distance(other, one).unwrap()];
            assert!(distances.iter().all(|got| (got - expected).abs() < 1e-12), "{distances:?}, expected {expected}");
        }
    }

    #[test]
    fn subsets_are_drawn_without_repeats_and_the_whole_set_is_one() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..100 {
            let rows = draw_rows(&mut random, 20, 7);
            assert!(rows.len() == 7 && rows.is_sorted_by(|a, b| a < b) && rows.last() < Some(&20), "{rows:?}");
        }
        let (x, y) = (tensor(&[[1., 5.], [2., -1.], [4., 0.5]]), tensor(&[[0., 1.], [3., 2.], [2., 2.]]));
        let sets = [x.clone(), y.clone()];
        let read = |set: usize, rows: &[usize]| -> Result<Tensor> {
            assert_eq!(rows, [0, 1, 2]);
            Ok(sets[set].clone())
        };
        let (mean, std) = kernel_distance_of_subsets([3, 3], 3, 5, 0, read).unwrap();
        assert!((mean - kernel_distance(&x, &y).unwrap()).abs() < 1e-12 && std < 1e-12);
        let too_many = kernel_distance_of_subsets([3, 2], 3, 5, 0, read);
        assert!(matches!(too_many, Err(Error::TooFew { got: 2, least: 3, .. })));
    }

    #[test]
    fn what_has_no_distance_is_an_error() {
        assert!(matches!(statistics(&[[1., 2.]]).moments(), Err(Error::TooFew { got: 1, .. })));
        let mut wide = FeatureStatistics::new(3);
        wide.add(&Tensor::zeros((2, 3), DType::F64, &Device::Cpu).unwrap()).unwrap();
        let two = moments(&[[1., 2.], [2., 3.]]);
        assert!(matches!(frechet_distance(&two, &wide.moments().unwrap()), Err(Error::WidthMismatch { .. })));
        let mut statistics = FeatureStatistics::new(2);
        for bad in [f64::NAN, f64::INFINITY] {
            let features = Tensor::new(&[[bad, 0.]], &Device::Cpu).unwrap();
            assert!(matches!(statistics.add(&features), Err(Error::NotFinite { .. })));
            assert!(kernel_distance(&features, &features).is_err());
        }
        assert_eq!(statistics.count(), 0);
    }
}
