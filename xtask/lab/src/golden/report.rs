//! Report of comparisons, one line per quantity.

use anyhow::{Result, bail};
use candle_core::{DType, Tensor};

/// Allowed relative error of a quantity, by the reason for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tolerance {
    /// f64 tables: rounding of a few operations.
    Table,
    /// f32 formulas without a network.
    Formula,
    /// One network call in f32.
    Network,
    /// Ten network calls, each fed with the former's result.
    Chain,
    /// A mean over all pixels.
    Loss,
    /// Sums over all pixels of products that cancel.
    Gradient,
}

impl Tolerance {
    fn value(self) -> f64 {
        match self {
            Self::Table => 1e-12,
            Self::Formula | Self::Loss => 1e-5,
            Self::Network => 1e-4,
            Self::Chain | Self::Gradient => 1e-3,
        }
    }
}

/// Collects comparisons.
#[derive(Debug)]
pub(crate) struct Report {
    model: String,
    sink: fn(&str),
    num_checks: usize,
    failures: Vec<String>,
}

impl Report {
    /// Starts a report that prints each line as it comes.
    pub(crate) fn printing() -> Self {
        Self { model: String::new(), sink: |line| println!("{line}"), num_checks: 0, failures: Vec::new() }
    }

    /// Starts a report that only tells in the end which quantities failed.
    #[cfg(test)]
    pub(crate) fn silent() -> Self {
        Self { sink: |_| {}, ..Self::printing() }
    }

    /// Names the model that the following quantities belong to.
    pub(crate) fn begin(&mut self, model: &str) {
        model.clone_into(&mut self.model);
    }

    /// Adds a line; an error that is not a number fails.
    pub(crate) fn add(&mut self, quantity: &str, error: f64, tolerance: Tolerance) {
        let tolerance = tolerance.value();
        let passed = error <= tolerance;
        let verdict = if passed { "ok" } else { "FAIL" };
        let line = format!("{} {quantity} {error:.2e} {tolerance:.0e} {verdict}", self.model);
        (self.sink)(&line);
        self.num_checks += 1;
        self.failures.extend((!passed).then_some(line));
    }

    /// Compares tensors: largest difference over largest expected magnitude.
    pub(crate) fn tensors(
        &mut self,
        quantity: &str,
        got: &Tensor,
        expected: &Tensor,
        tolerance: Tolerance,
    ) -> Result<()> {
        self.add(quantity, relative_error(got, expected)?, tolerance);
        Ok(())
    }

    /// Compares tables number by number: largest difference over the expected number's magnitude.
    pub(crate) fn tables(&mut self, quantity: &str, got: &[f64], expected: &[f64]) {
        let each = got.iter().zip(expected).map(|(got, expected)| relative(*got, *expected));
        let error = if got.len() == expected.len() { each.fold(0., largest) } else { f64::INFINITY };
        self.add(quantity, error, Tolerance::Table);
    }

    /// Fails if any quantity did, or if there was none.
    pub(crate) fn conclude(self) -> Result<()> {
        if self.num_checks == 0 {
            bail!("nothing was checked")
        }
        if !self.failures.is_empty() {
            bail!("{} of {} quantities differ:\n{}", self.failures.len(), self.num_checks, self.failures.join("\n"))
        }
        (self.sink)(&format!("{} quantities, all within tolerance", self.num_checks));
        Ok(())
    }
}

/// Returns `max |got - expected| / max |expected|`, infinite if shapes differ or a number is NaN.
pub(crate) fn relative_error(got: &Tensor, expected: &Tensor) -> Result<f64> {
    if got.dims() != expected.dims() {
        return Ok(f64::INFINITY);
    }
    let (got, expected) = (numbers(got)?, numbers(expected)?);
    let difference = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0., largest);
    let magnitude = expected.iter().map(|value| value.abs()).fold(0., largest);
    Ok(if difference == 0. { 0. } else { difference / magnitude })
}

/// Returns `|got - expected| / |expected|`; zero where both are the same, zero or infinite too.
fn relative(got: f64, expected: f64) -> f64 {
    if got.to_bits() == expected.to_bits() { 0. } else { (got - expected).abs() / expected.abs() }
}

/// Returns the larger of two; NaN counts as infinite.
pub(crate) fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// Returns all numbers of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn differences_nan_and_shapes_fail() {
        for got in [&[1.1, -2.][..], &[f32::NAN, -2.], &[1.]] {
            let mut report = Report::silent();
            report.tensors("q", &tensor(got), &tensor(&[1., -2.]), Tolerance::Network).unwrap();
            assert!(report.conclude().is_err(), "{got:?}");
        }
    }

    #[test]
    fn small_differences_pass() {
        let mut report = Report::silent();
        report.tensors("q", &tensor(&[1.000_05, -2.]), &tensor(&[1., -2.]), Tolerance::Network).unwrap();
        report.tables("t", &[1., 0.], &[1., 0.]);
        report.conclude().unwrap();
    }

    #[test]
    fn nothing_checked_is_a_failure() {
        assert!(Report::silent().conclude().is_err());
    }
}
