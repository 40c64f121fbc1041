//! Linear probes: logistic regression on codes.

use candle_core::Tensor;
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::frechet::rows;

/// Maximum number of Newton steps; convergence takes about ten.
const MAX_STEPS: usize = 100;
/// Newton's method stops when the gradient, relative to the number of rows, is below this.
const TOLERANCE: f64 = 1e-10;

/// Choices of [`InversePenalty::Chosen`], rising: the powers of ten that matter for standardized rows.
const CHOICES: [f64; 9] = [1e-3, 1e-2, 0.1, 1., 10., 100., 1e3, 1e4, 1e5];
/// One row in five is held out to select the penalty.
const HELD_OUT_ONE_IN: usize = 5;

/// Inverse regularization strength, scikit-learn's `C`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InversePenalty {
    /// A fixed value, above 0.
    Fixed(f64),
    /// Selected on held-out rows: the power of ten from 0.001 to 100,000 with which a probe fitted to four fifths of
    /// the rows has the lowest cross-entropy on the last fifth. 1 if one of these parts has rows of one class only.
    ///
    /// Codes hold some information in directions of low variance. A penalty that suits the other directions keeps a
    /// probe from reading it.
    Chosen,
}

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

    /// Returns the logits of rows.
    ///
    /// # Shapes
    /// - `x`: `[N, D]`, f32 or f64; result: N.
    /// # Errors
    /// [`Error::WidthMismatch`] if the width differs from that of [`LinearProbe::fit`].
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
        Self::fit_from(None, rows, present, inverse_penalty)
    }

    /// Fits as [`LinearProbe::fit_rows`] does, starting from a probe near the minimum if there is one.
    fn fit_from(near: Option<&Self>, rows: &[Vec<f64>], present: &[bool], inverse_penalty: f64) -> Result<Self> {
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
        let start = |j: usize| near.map_or(0., |near| near.weight.get(j).copied().unwrap_or(near.bias));
        let mut w = Mat::from_fn(width + 1, 1, |j, _| start(j));
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

impl InversePenalty {
    /// Returns the inverse penalty for the rows that a probe will be fitted to.
    fn of(self, rows: &[Vec<f64>], present: &[bool]) -> Result<f64> {
        const DEFAULT: f64 = 1.;
        if let Self::Fixed(value) = self {
            return Ok(value);
        }
        let part = |is_chosen: fn(usize) -> bool| {
            let chosen = rows.iter().zip(present).enumerate().filter(|(idx, _)| is_chosen(*idx));
            chosen.map(|(_, (row, &present))| (row.clone(), present)).unzip::<_, _, Vec<Vec<f64>>, Vec<bool>>()
        };
        let (fitted, labels) = part(|idx| !idx.is_multiple_of(HELD_OUT_ONE_IN));
        let (held_out, truth) = part(|idx| idx.is_multiple_of(HELD_OUT_ONE_IN));
        if [&labels, &truth].into_iter().any(|part| !part.contains(&true) || !part.contains(&false)) {
            return Ok(DEFAULT);
        }
        let (mut best, mut probe) = ((f64::INFINITY, DEFAULT), None);
        for choice in CHOICES {
            let next = LinearProbe::fit_from(probe.as_ref(), &fitted, &labels, choice)?;
            let entropy = |(row, y): (&Vec<f64>, &bool)| cross_entropy(next.logit(row), f64::from(u8::from(*y)));
            let loss: f64 = held_out.iter().zip(&truth).map(entropy).sum();
            if loss < best.0 {
                best = (loss, choice);
            }
            probe = Some(next);
        }
        Ok(best.1)
    }
}

/// `log(1 + exp(logit)) - y logit`, written so that nothing overflows.
fn cross_entropy(logit: f64, y: f64) -> f64 {
    logit.max(0.) + (-logit.abs()).exp().ln_1p() - y * logit
}

/// Objective of the fit.
struct Problem {
    x: Mat<f64>,
    target: Vec<f64>,
    inverse_penalty: f64,
}

impl Problem {
    fn loss(&self, w: &Mat<f64>) -> f64 {
        let logits = &self.x * w;
        let entropy = |(i, y): (usize, &f64)| cross_entropy(logits[(i, 0)], *y);
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

/// Returns the cross-validated logit of each row: `num_folds` probes, each fitted to the rows of the other folds. Row i
/// is in fold `i mod num_folds`. Columns are standardized with the mean and standard deviation of the rows fitted to,
/// and a penalty is chosen among these rows alone.
///
/// # Shapes
/// - `x`: `[N, D]`; result: N.
/// # Errors
/// [`Error::TooFew`] with fewer rows than folds or fewer than two folds; else as [`LinearProbe::fit`].
pub fn cross_validated_logits(
    x: &Tensor,
    present: &[bool],
    num_folds: usize,
    inverse_penalty: InversePenalty,
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
    let scores = (0..num_folds).into_par_iter().map(|fold| {
        let fitted: Vec<usize> = (0..rows.len()).filter(|row| row % num_folds != fold).collect();
        let x: Vec<&[f64]> = fitted.iter().map(|&row| rows[row].as_slice()).collect();
        let labels: Vec<bool> = fitted.iter().map(|&row| present[row]).collect();
        let probe = StandardizedProbe::fit(&x, &labels, inverse_penalty)?;
        Ok((fold..rows.len()).step_by(num_folds).map(|row| (row, probe.logit(&rows[row]))).collect())
    });
    let mut logits = vec![0.; rows.len()];
    for (row, logit) in scores.collect::<Result<Vec<Vec<_>>>>()?.into_iter().flatten() {
        logits[row] = logit;
    }
    Ok(logits)
}

/// Returns the logits of `others` from a probe that is fitted to `x`. Columns are standardized with the mean and
/// standard deviation of `x`, and a penalty is chosen among the rows of `x` alone.
///
/// # Shapes
/// - `x`, to which the probe is fitted: `[N, D]`, with N labels; `others`: `[M, D]`; result: M.
/// # Errors
/// [`Error::WidthMismatch`] if the widths differ; else as [`LinearProbe::fit`].
pub fn logits_of_others(
    (x, present): (&Tensor, &[bool]),
    others: &Tensor,
    inverse_penalty: InversePenalty,
) -> Result<Vec<f64>> {
    let (x, others) = (rows("x", x)?, rows("others", others)?);
    let (width, got) = (x.first().map_or(0, Vec::len), others.first().map_or(0, Vec::len));
    if got != width {
        return Err(Error::WidthMismatch { got, expected: width });
    }
    if x.len() != present.len() {
        return Err(Error::Lengths { scores: x.len(), labels: present.len() });
    }
    let x: Vec<&[f64]> = x.iter().map(Vec::as_slice).collect();
    let probe = StandardizedProbe::fit(&x, present, inverse_penalty)?;
    Ok(others.iter().map(|row| probe.logit(row)).collect())
}

/// A probe with the standardization of its input rows.
struct StandardizedProbe {
    scale: Standardization,
    probe: LinearProbe,
}

impl StandardizedProbe {
    fn fit(rows: &[&[f64]], present: &[bool], inverse_penalty: InversePenalty) -> Result<Self> {
        let scale = Standardization::of(rows.iter().copied());
        let x: Vec<Vec<f64>> = rows.iter().map(|row| scale.apply(row)).collect();
        let probe = LinearProbe::fit_rows(&x, present, inverse_penalty.of(&x, present)?)?;
        Ok(Self { scale, probe })
    }

    fn logit(&self, row: &[f64]) -> f64 {
        self.probe.logit(&self.scale.apply(row))
    }
}

/// Standardizes columns to mean 0 and variance 1; a column that does not vary becomes zero.
pub(crate) fn standardized(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let scale = Standardization::of(rows.iter().map(Vec::as_slice));
    rows.iter().map(|row| scale.apply(row)).collect()
}

/// Mean and standard deviation of each column.
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
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn tensor<const WIDTH: usize>(rows: &[[f64; WIDTH]]) -> Tensor {
        Tensor::from_vec(rows.as_flattened().to_vec(), (rows.len(), WIDTH), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_separable_attribute_is_found_along_its_axis() {
        let rows: Vec<[f64; 2]> = (0..40).map(|i| [f64::from(i) / 20. - 1., f64::from(i % 3)]).collect();
        let present: Vec<bool> = (0..40).map(|i| i >= 20).collect();
        let probe = LinearProbe::fit(&tensor(&rows), &present, 1.).unwrap();
        assert!(probe.weight[0] > 3. * probe.weight[1].abs(), "{probe:?}");
        let logits = cross_validated_logits(&tensor(&rows), &present, 5, InversePenalty::Fixed(1.)).unwrap();
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
    fn a_faint_direction_asks_for_a_loose_probe_and_chance_for_a_tight_one() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut uniform = || f64::from(random.next_u32()) / f64::from(u32::MAX);
        // What little the first two columns differ by decides; the others mean nothing.
        let row = |_| {
            let mut row: [f64; 12] = std::array::from_fn(|_| uniform());
            row[1] = row[0] + 0.01 * row[1];
            row
        };
        let rows: Vec<[f64; 12]> = (0..400).map(row).collect();
        let present: Vec<bool> = rows.iter().map(|row| row[1] - row[0] > 0.005).collect();
        let auroc_of = |penalty| {
            let logits = cross_validated_logits(&tensor(&rows), &present, 5, penalty).unwrap();
            crate::auroc(&logits, &present).unwrap()
        };
        let (fixed, chosen) = (auroc_of(InversePenalty::Fixed(1.)), auroc_of(InversePenalty::Chosen));
        assert!(fixed < 0.9 && chosen > 0.99, "{fixed} {chosen}");

        let rows: Vec<Vec<f64>> = (0..100).map(|_| (0..20).map(|_| uniform()).collect()).collect();
        let chance: Vec<bool> = (0..100).map(|_| uniform() > 0.5).collect();
        let tight = InversePenalty::Chosen.of(&standardized(&rows), &chance).unwrap();
        assert!(tight < 1., "{tight}");
        let few: Vec<bool> = (0..100).map(|i| i == 0).collect();
        assert!((InversePenalty::Chosen.of(&rows, &few).unwrap() - 1.).abs() < 1e-9);
    }

    #[test]
    fn others_are_scored_by_a_probe_of_the_first() {
        let rows = |offset: i32| -> Vec<[f64; 2]> {
            (0..40).map(|i| [f64::from(i + offset) / 20. - 1., f64::from(i % 3)]).collect()
        };
        let (first, others): (Vec<bool>, Vec<bool>) =
            ((0..40).map(|i| i >= 20).collect(), (0..40).map(|i| i >= 10).collect());
        let logits =
            |x: &[bool]| logits_of_others((&tensor(&rows(0)), x), &tensor(&rows(10)), InversePenalty::Fixed(1.));
        let scored = logits(&first).unwrap();
        assert!(crate::auroc(&scored, &others).unwrap() > 0.99);
        // The threshold is that of the first, not of the others.
        assert!(scored[5] < 0. && scored[15] > 0., "{scored:?}");
        assert!(matches!(logits(&[true; 40]), Err(Error::OneClass)));
        assert!(matches!(logits(&[true; 3]), Err(Error::Lengths { .. })));
        let narrow = logits_of_others((&tensor(&rows(0)), &first), &tensor(&[[1.]]), InversePenalty::Fixed(1.));
        assert!(matches!(narrow, Err(Error::WidthMismatch { got: 1, expected: 2 })));
    }

    #[test]
    fn what_cannot_be_fitted_is_an_error() {
        let x = tensor(&[[0., 1.], [1., 0.]]);
        assert!(matches!(LinearProbe::fit(&x, &[true, true], 1.), Err(Error::OneClass)));
        assert!(matches!(LinearProbe::fit(&x, &[true], 1.), Err(Error::Lengths { .. })));
        assert!(matches!(
            cross_validated_logits(&x, &[true, false], 5, InversePenalty::Chosen),
            Err(Error::TooFew { .. })
        ));
        let probe = LinearProbe { weight: vec![1.], bias: 0. };
        assert!(matches!(probe.logits(&x), Err(Error::WidthMismatch { got: 2, expected: 1 })));
    }
}
