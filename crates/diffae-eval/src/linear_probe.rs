//! What a linear classifier reads out of codes.

use candle_core::Tensor;
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use crate::error::{Error, Result};
use crate::frechet::rows;

/// Newton steps, at most; convergence takes about ten.
const MAX_STEPS: usize = 100;
/// The gradient, relative to the number of rows, below which nothing moves any more.
const TOLERANCE: f64 = 1e-10;

/// A logistic regression: `P(present | x) = 1 / (1 + exp(-(w . x + b)))`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbe {
    /// `[D]`
    pub weight: Vec<f64>,
    /// The logit of an all-zero row.
    pub bias: f64,
}

impl LinearProbe {
    /// Minimizes `inverse_penalty * sum of the cross-entropies + |w|^2 / 2` with Newton's method, in f64. The bias is not
    /// penalized. scikit-learn's `LogisticRegression(C=inverse_penalty)` has the same minimum.
    ///
    /// # Shapes
    /// - `x`: `[N, D]`, f32 or f64.
    /// # Errors
    /// [`Error::Lengths`] if there are not N labels; [`Error::OneClass`] if they are all the same; others if `x` is no
    /// such batch or holds values that are not finite.
    pub fn fit(x: &Tensor, present: &[bool], inverse_penalty: f64) -> Result<Self> {
        Self::fit_rows(&rows("x", x)?, present, inverse_penalty)
    }

    /// The logits of rows.
    ///
    /// # Shapes
    /// - `x`: `[N, D]`, f32 or f64; result: N.
    /// # Errors
    /// [`Error::WidthMismatch`] if the width is another than that of [`LinearProbe::fit`].
    pub fn logits(&self, x: &Tensor) -> Result<Vec<f64>> {
        let rows = rows("x", x)?;
        match rows.iter().find(|row| row.len() != self.weight.len()) {
            Some(row) => Err(Error::WidthMismatch { got: row.len(), expected: self.weight.len() }),
            None => Ok(rows.iter().map(|row| self.logit(row)).collect()),
        }
    }

    fn logit(&self, row: &[f64]) -> f64 {
        row.iter().zip(&self.weight).map(|(x, w)| x * w).sum::<f64>() + self.bias
    }

    pub(crate) fn fit_rows(rows: &[Vec<f64>], present: &[bool], inverse_penalty: f64) -> Result<Self> {
        if rows.len() != present.len() {
            return Err(Error::Lengths { scores: rows.len(), labels: present.len() });
        }
        if present.iter().all(|&value| value) || !present.contains(&true) {
            return Err(Error::OneClass);
        }
        let width = rows.first().map_or(0, Vec::len);
        // One column more, of ones, for the bias.
        let x = Mat::from_fn(rows.len(), width + 1, |i, j| rows[i].get(j).copied().unwrap_or(1.));
        let target: Vec<f64> = present.iter().map(|&present| f64::from(u8::from(present))).collect();
        let problem = Problem { x, target, inverse_penalty };
        let mut w = Mat::zeros(width + 1, 1);
        let mut loss = problem.loss(&w);
        for _ in 0..MAX_STEPS {
            let (gradient, hessian) = problem.derivatives(&w);
            if gradient.norm_max() <= TOLERANCE * inverse_penalty * rows.len() as f64 {
                break;
            }
            let solver = hessian.llt(Side::Lower).map_err(|error| Error::Eigen { problem: format!("{error:?}") })?;
            let step = solver.solve(&gradient);
            // Halved until the loss falls: far from the minimum a full step can overshoot.
            let mut share = 1.;
            let (next, next_loss) = loop {
                let next = &w - faer::Scale(share) * &step;
                let next_loss = problem.loss(&next);
                if next_loss <= loss || share < 1e-9 {
                    break (next, next_loss);
                }
                share *= 0.5;
            };
            (w, loss) = (next, next_loss);
        }
        let mut weight: Vec<f64> = (0..=width).map(|j| w[(j, 0)]).collect();
        let bias = weight.pop().unwrap_or_default();
        Ok(Self { weight, bias })
    }
}

/// What is minimized.
struct Problem {
    x: Mat<f64>,
    target: Vec<f64>,
    inverse_penalty: f64,
}

impl Problem {
    fn loss(&self, w: &Mat<f64>) -> f64 {
        let logits = &self.x * w;
        // log(1 + exp(a)) - y a, written so that nothing overflows.
        let entropy = |(i, y): (usize, &f64)| {
            let a = logits[(i, 0)];
            a.max(0.) + (-a.abs()).exp().ln_1p() - y * a
        };
        let penalized = w.nrows() - 1;
        let penalty: f64 = (0..penalized).map(|j| w[(j, 0)].powi(2)).sum();
        self.inverse_penalty * self.target.iter().enumerate().map(entropy).sum::<f64>() + penalty / 2.
    }

    fn derivatives(&self, w: &Mat<f64>) -> (Mat<f64>, Mat<f64>) {
        let c = self.inverse_penalty;
        let logits = &self.x * w;
        let p: Vec<f64> = (0..logits.nrows()).map(|i| 1. / (1. + (-logits[(i, 0)]).exp())).collect();
        let error = Mat::from_fn(p.len(), 1, |i, _| c * (p[i] - self.target[i]));
        let scaled = Mat::from_fn(p.len(), w.nrows(), |i, j| self.x[(i, j)] * (c * p[i] * (1. - p[i])));
        let mut gradient = self.x.transpose() * error;
        let mut hessian = self.x.transpose() * scaled;
        for j in 0..w.nrows() - 1 {
            gradient[(j, 0)] += w[(j, 0)];
            hessian[(j, j)] += 1.;
        }
        // The bias has no penalty; where all chances are sure its curvature vanishes.
        let bias = w.nrows() - 1;
        hessian[(bias, bias)] += 1e-12;
        (gradient, hessian)
    }
}

/// The logit of each row from a probe that has not seen it: `num_folds` probes, each fitted to the rows of the other folds.
/// Row i is in fold `i mod num_folds`. Columns are standardized with the mean and deviation of the rows fitted to.
///
/// # Shapes
/// - `x`: `[N, D]`; result: N.
/// # Errors
/// [`Error::TooFew`] with fewer rows than folds or fewer than two folds; else as [`LinearProbe::fit`].
pub fn cross_validated_logits(
    x: &Tensor,
    present: &[bool],
    num_folds: usize,
    inverse_penalty: f64,
) -> Result<Vec<f64>> {
    let rows = rows("x", x)?;
    for (what, got, least) in [("folds", num_folds, 2), ("rows for the folds", rows.len(), num_folds)] {
        if got < least {
            return Err(Error::TooFew { what, got, least });
        }
    }
    if rows.len() != present.len() {
        return Err(Error::Lengths { scores: rows.len(), labels: present.len() });
    }
    let mut logits = vec![0.; rows.len()];
    for fold in 0..num_folds {
        let fitted: Vec<usize> = (0..rows.len()).filter(|row| row % num_folds != fold).collect();
        let scale = Standardization::of(fitted.iter().map(|&row| rows[row].as_slice()));
        let x: Vec<Vec<f64>> = fitted.iter().map(|&row| scale.apply(&rows[row])).collect();
        let labels: Vec<bool> = fitted.iter().map(|&row| present[row]).collect();
        let probe = LinearProbe::fit_rows(&x, &labels, inverse_penalty)?;
        for row in (fold..rows.len()).step_by(num_folds) {
            logits[row] = probe.logit(&scale.apply(&rows[row]));
        }
    }
    Ok(logits)
}

/// Rows with columns of mean 0 and variance 1; a column that does not vary becomes zero.
pub(crate) fn standardized(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let scale = Standardization::of(rows.iter().map(Vec::as_slice));
    rows.iter().map(|row| scale.apply(row)).collect()
}

/// Mean and deviation of columns.
struct Standardization {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Standardization {
    fn of<'a>(rows: impl Iterator<Item = &'a [f64]> + Clone) -> Self {
        let count = rows.clone().count().max(1) as f64;
        let width = rows.clone().next().map_or(0, <[f64]>::len);
        let mut mean = vec![0.; width];
        rows.clone().for_each(|row| mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / count));
        let mut variance = vec![0.; width];
        for row in rows {
            variance
                .iter_mut()
                .zip(row)
                .zip(&mean)
                .for_each(|((variance, x), mean)| *variance += (x - mean).powi(2) / count);
        }
        // A column that does not vary says nothing, and stays zero.
        let deviation = variance.iter().map(|variance| if *variance > 0. { variance.sqrt() } else { 1. }).collect();
        Self { mean, deviation }
    }

    fn apply(&self, row: &[f64]) -> Vec<f64> {
        row.iter().zip(&self.mean).zip(&self.deviation).map(|((x, mean), deviation)| (x - mean) / deviation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(rows: &[[f64; 2]]) -> Tensor {
        Tensor::from_vec(rows.as_flattened().to_vec(), (rows.len(), 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_separable_attribute_is_found_along_its_axis() {
        let rows: Vec<[f64; 2]> = (0..40).map(|i| [f64::from(i) / 20. - 1., f64::from(i % 3)]).collect();
        let present: Vec<bool> = (0..40).map(|i| i >= 20).collect();
        let probe = LinearProbe::fit(&tensor(&rows), &present, 1.).unwrap();
        assert!(probe.weight[0] > 3. * probe.weight[1].abs(), "{probe:?}");
        let logits = cross_validated_logits(&tensor(&rows), &present, 5, 1.).unwrap();
        assert!(crate::auroc(&logits, &present).unwrap() > 0.99);
    }

    #[test]
    fn the_gradient_vanishes_at_the_fit() {
        let rows = [[0.5, -1.], [2., 0.3], [-1., 1.], [0.1, 0.1], [3., -2.], [-0.4, 0.9]];
        let present = [true, false, true, true, false, false];
        let (c, h) = (0.7, 1e-5);
        let probe = LinearProbe::fit(&tensor(&rows), &present, c).unwrap();
        let loss = |probe: &LinearProbe| {
            let logits = probe.logits(&tensor(&rows)).unwrap();
            let entropy = logits.iter().zip(&present).map(|(a, &y)| a.exp().ln_1p() - f64::from(u8::from(y)) * a);
            c * entropy.sum::<f64>() + probe.weight.iter().map(|w| w * w).sum::<f64>() / 2.
        };
        for j in 0..3 {
            let moved = |by: f64| {
                let mut probe = probe.clone();
                if j < 2 {
                    probe.weight[j] += by;
                } else {
                    probe.bias += by;
                }
                loss(&probe)
            };
            assert!(((moved(h) - moved(-h)) / (2. * h)).abs() < 1e-7);
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_an_error() {
        let x = tensor(&[[0., 1.], [1., 0.]]);
        assert!(matches!(LinearProbe::fit(&x, &[true, true], 1.), Err(Error::OneClass)));
        assert!(matches!(LinearProbe::fit(&x, &[true], 1.), Err(Error::Lengths { .. })));
        assert!(matches!(cross_validated_logits(&x, &[true, false], 5, 1.), Err(Error::TooFew { .. })));
        let probe = LinearProbe { weight: vec![1.], bias: 0. };
        assert!(matches!(probe.logits(&x), Err(Error::WidthMismatch { got: 2, expected: 1 })));
    }
}
