//! Disentanglement of codes: DCI and total AUROC difference.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::classification::auroc;
use crate::error::{Error, Result};
use crate::frechet::rows;
use crate::linear_probe::{LinearProbe, standardized};

/// A dimension captures an attribute if its AUROC, in either direction, is at least this.
const CAPTURED: f64 = 0.75;

/// Disentanglement and completeness of a code, each in `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dci {
    /// Disentanglement: 1 if each dimension matters for a single attribute.
    pub disentanglement: f64,
    /// Completeness: 1 if a single dimension matters for each attribute.
    pub completeness: f64,
}

/// Computes disentanglement and completeness from the weights of linear probes.
///
/// The importance `R_ij` of dimension i for attribute j is the absolute weight of a logistic regression on the standardized
/// code. With `p_ij = R_ij / sum_j R_ij` and J attributes, the disentanglement of dimension i is
/// `1 + sum_j p_ij log_J p_ij`; the mean weighs dimensions by their share of all importance. Completeness is the same over
/// the dimensions of each attribute, and a plain mean. Informativeness, the third of the three, is the probes' AUROC.
///
/// # Shapes
/// - `codes`: `[N, D]`; `present`: for each attribute, N labels.
/// # Errors
/// [`Error::TooFew`] with fewer than two attributes or dimensions; as [`LinearProbe::fit`].
/// # Source
/// Eastwood and Williams 2018, "A framework for the quantitative evaluation of disentangled representations".
pub fn dci(codes: &Tensor, present: &[Vec<bool>], inverse_penalty: f64) -> Result<Dci> {
    let codes = standardized(&rows("codes", codes)?);
    let width = codes.first().map_or(0, Vec::len);
    for (what, got) in [("attributes", present.len()), ("dimensions of a code", width)] {
        if got < 2 {
            return Err(Error::TooFew { what, got, least: 2 });
        }
    }
    let probes = present.par_iter().map(|present| LinearProbe::fit_rows(&codes, present, inverse_penalty));
    let probes = probes.collect::<Result<Vec<_>>>()?;
    let importance = |dimension: usize, attribute: usize| probes[attribute].weight[dimension].abs();
    let total: f64 = probes.iter().flat_map(|probe| &probe.weight).map(|weight| weight.abs()).sum();
    let disentanglement = (0..width).map(|dimension| {
        let row: Vec<f64> = (0..probes.len()).map(|attribute| importance(dimension, attribute)).collect();
        one_sidedness(&row) * row.iter().sum::<f64>() / total
    });
    let completeness = (0..probes.len()).map(|attribute| {
        let column: Vec<f64> = (0..width).map(|dimension| importance(dimension, attribute)).collect();
        one_sidedness(&column) / probes.len() as f64
    });
    Ok(Dci { disentanglement: disentanglement.sum(), completeness: completeness.sum() })
}

/// Returns one minus the normalized entropy of shares: 1 if one has everything, 0 if all are equal.
fn one_sidedness(parts: &[f64]) -> f64 {
    let total: f64 = parts.iter().sum();
    let shares = parts.iter().map(|part| part / total).filter(|share| *share > 0.);
    1. + shares.map(|share| share * share.ln()).sum::<f64>() / (parts.len() as f64).ln()
}

/// Margin of the best dimension of each attribute over the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AurocDifference {
    /// The sum, over captured attributes, of the best dimension's AUROC less the second best's.
    pub total: f64,
    /// Number of attributes that a dimension captures: AUROC at least 0.75.
    pub num_captured: usize,
}

/// Computes the total AUROC difference (TAD) of a code. The AUROC of a dimension is that of its plain value, in
/// whichever direction is better.
///
/// # Shapes
/// - `codes`: `[N, D]`; `present`: for each attribute, N labels.
/// # Errors
/// [`Error::TooFew`] with fewer than two dimensions; as [`auroc`].
/// # Source
/// Yeats et al. 2022, "`NashAE`: disentangling representations through adversarial covariance minimization"
/// (arXiv:2209.10677), section 4.
pub fn total_auroc_difference(codes: &Tensor, present: &[Vec<bool>]) -> Result<AurocDifference> {
    let codes = rows("codes", codes)?;
    let width = codes.first().map_or(0, Vec::len);
    if width < 2 {
        return Err(Error::TooFew { what: "dimensions of a code", got: width, least: 2 });
    }
    let columns: Vec<Vec<f64>> = (0..width).map(|column| codes.iter().map(|row| row[column]).collect()).collect();
    let mut difference = AurocDifference { total: 0., num_captured: 0 };
    for present in present {
        let of_column = |column: &Vec<f64>| auroc(column, present).map(|area| area.max(1. - area));
        let mut areas = columns.par_iter().map(of_column).collect::<Result<Vec<f64>>>()?;
        areas.sort_by(|a, b| b.total_cmp(a));
        if areas[0] >= CAPTURED {
            difference.total += areas[0] - areas[1];
            difference.num_captured += 1;
        }
    }
    Ok(difference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Codes of 64 items with two independent attributes, `mix` being how much each dimension takes of the other.
    fn code(mix: f64) -> (Tensor, Vec<Vec<bool>>) {
        let present: Vec<Vec<bool>> = (0..2).map(|bit| (0..64).map(|i| (i >> bit) & 1 == 1).collect()).collect();
        let values = (0..64).flat_map(|i| {
            let [a, b] = [0, 1].map(|bit: usize| f64::from(u8::from(present[bit][i])));
            let jitter = (i as f64 * 0.7).sin() * 0.3; // no attribute is told without doubt
            [a + mix * b + jitter, b + mix * a - jitter]
        });
        (Tensor::from_vec(values.collect::<Vec<f64>>(), (64, 2), &Device::Cpu).unwrap(), present)
    }

    #[test]
    fn a_dimension_an_attribute_is_disentangled() {
        let (pure, present) = code(0.);
        let (mixed, _) = code(0.9);
        let of_pure = dci(&pure, &present, 0.1).unwrap();
        let of_mixed = dci(&mixed, &present, 0.1).unwrap();
        assert!(of_pure.disentanglement > 0.5 && of_pure.completeness > 0.5, "{of_pure:?}");
        assert!(of_mixed.disentanglement < of_pure.disentanglement - 0.3, "{of_mixed:?}");
        let difference = total_auroc_difference(&pure, &present).unwrap();
        assert_eq!(difference.num_captured, 2);
        assert!(difference.total > 0.7, "{difference:?}");
        assert!(total_auroc_difference(&mixed, &present).unwrap().total < 0.5 * difference.total);
    }

    #[test]
    fn one_sidedness_goes_from_even_to_single() {
        assert!(one_sidedness(&[1., 1., 1.]).abs() < 1e-12);
        assert!((one_sidedness(&[0., 5., 0.]) - 1.).abs() < 1e-12);
    }

    #[test]
    fn one_attribute_or_one_dimension_is_too_few() {
        let (codes, present) = code(0.);
        assert!(matches!(dci(&codes, &present[..1], 1.), Err(Error::TooFew { got: 1, .. })));
        let narrow = codes.narrow(1, 0, 1).unwrap();
        assert!(matches!(total_auroc_difference(&narrow, &present), Err(Error::TooFew { got: 1, .. })));
    }
}
