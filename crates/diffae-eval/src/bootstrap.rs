//! Bootstrap confidence intervals.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// Minimum share of resamples with figures for an interval to be reported.
const MIN_SHARE: f64 = 0.5;
/// The quantiles that bound an interval: 95% of the resampled figures lie between them.
const BOUNDS: [f64; 2] = [0.025, 0.975];

/// A figure with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The figure of all items.
    pub value: f64,
    /// Lower and upper bound; `None` where they are not known: for one item, without resamples, or if fewer than half
    /// of the resamples have figures.
    pub bounds: Option<[f64; 2]>,
}

/// Returns the mean of values, with its bootstrap interval.
///
/// # Errors
/// As [`bootstrap`].
pub fn bootstrap_mean(values: &[f64], num_resamples: usize, seed: u64) -> Result<Interval> {
    bootstrap(values.len(), num_resamples, seed, |items| {
        Some(items.iter().filter_map(|&item| values.get(item)).sum::<f64>() / items.len() as f64)
    })
}

/// Returns a figure of `count` items and its percentile interval; see [`bootstrap_all`].
///
/// # Errors
/// As [`bootstrap_all`].
pub fn bootstrap(
    count: usize,
    num_resamples: usize,
    seed: u64,
    mut figure: impl FnMut(&[usize]) -> Option<f64>,
) -> Result<Interval> {
    let [interval] = bootstrap_all(count, num_resamples, seed, |items| figure(items).map(|figure| [figure]))?;
    Ok(interval)
}

/// Returns figures of `count` items and their percentile intervals: `figures` is called once with all items, then with
/// resamples of the same size, drawn with replacement. A resample that has no figures (one class only, say) is left
/// out.
///
/// # Errors
/// [`Error::TooFew`] without items; [`Error::NotFinite`] if all items together have no finite figures.
/// # Source
/// Efron 1979; percentile intervals.
pub fn bootstrap_all<const N: usize>(
    count: usize,
    num_resamples: usize,
    seed: u64,
    mut figures: impl FnMut(&[usize]) -> Option<[f64; N]>,
) -> Result<[Interval; N]> {
    if count == 0 {
        return Err(Error::TooFew { what: "items for an interval", got: 0, least: 1 });
    }
    let is_finite = |figures: &[f64; N]| figures.iter().all(|figure| figure.is_finite());
    let mut items: Vec<usize> = (0..count).collect();
    let values = figures(&items).filter(is_finite).ok_or(Error::NotFinite { batch: "figures" })?;
    let mut generator = ChaCha20Rng::seed_from_u64(seed);
    let mut resampled = Vec::with_capacity(num_resamples);
    for _ in 0..num_resamples {
        items.fill_with(|| below(count, &mut generator));
        resampled.extend(figures(&items).filter(is_finite));
    }
    let is_known = count > 1 && resampled.len() as f64 >= MIN_SHARE * num_resamples as f64;
    Ok(std::array::from_fn(|place| {
        let mut sorted: Vec<f64> = resampled.iter().map(|figures| figures[place]).collect();
        sorted.sort_by(f64::total_cmp);
        let bounds = BOUNDS.map(|bound| quantile(&sorted, bound));
        let bounds = if let ([Some(low), Some(high)], true) = (bounds, is_known) { Some([low, high]) } else { None };
        Interval { value: values[place], bounds }
    }))
}

/// Draws a number in `0..count`; counts of pictures are far too small for the bias of a product to matter.
fn below(count: usize, generator: &mut ChaCha20Rng) -> usize {
    let product = u128::from(generator.next_u64()) * count as u128;
    usize::try_from(product >> 64).unwrap_or(0)
}

/// Returns the quantile `at` of sorted values, interpolated linearly between the two nearest; `None` without values.
pub(crate) fn quantile(sorted: &[f64], at: f64) -> Option<f64> {
    let position = at * (sorted.len() as f64 - 1.);
    let (below, share) = (position.floor(), position.fract());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number of values")]
    let below = below.max(0.) as usize;
    let low = *sorted.get(below)?;
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    Some(low + (high - low) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_narrows_with_the_root_of_the_count() {
        let values: Vec<f64> = (0..400).map(|idx| f64::from(idx % 2)).collect();
        let interval = bootstrap_mean(&values, 2000, 1).unwrap();
        assert!((interval.value - 0.5).abs() < 1e-12);
        // The standard error of the mean is 0.5 / sqrt(400) = 0.025, and 95% lie within 1.96 of it.
        let [low, high] = interval.bounds.unwrap();
        assert!((interval.value - low - 0.049).abs() < 0.006, "{interval:?}");
        assert!((high - interval.value - 0.049).abs() < 0.006, "{interval:?}");
        assert_eq!(interval, bootstrap_mean(&values, 2000, 1).unwrap());
    }

    #[test]
    fn what_does_not_vary_has_no_width() {
        let interval = bootstrap_mean(&[3.; 5], 100, 0).unwrap();
        assert_eq!(interval, Interval { value: 3., bounds: Some([3., 3.]) });
    }

    #[test]
    fn what_is_not_known_has_no_interval() {
        let unknown = Interval { value: 3., bounds: None };
        assert_eq!(bootstrap_mean(&[3.; 5], 0, 0).unwrap(), unknown);
        assert_eq!(bootstrap_mean(&[3.], 100, 0).unwrap(), unknown);
        let mut call = 0;
        let mut one_in = |of: usize| {
            call = 0;
            let figure = |_: &[usize]| {
                call += 1;
                (call == 1 || call % of == 0).then_some(3.)
            };
            bootstrap(5, 100, 0, figure).unwrap()
        };
        assert_eq!(one_in(2).bounds, Some([3., 3.]));
        assert_eq!(one_in(3), unknown);
    }

    #[test]
    fn nothing_has_no_interval() {
        assert!(matches!(bootstrap_mean(&[], 10, 0), Err(Error::TooFew { .. })));
        assert!(matches!(bootstrap_mean(&[f64::NAN], 10, 0), Err(Error::NotFinite { .. })));
    }

    #[test]
    fn quantiles_lie_between_neighbors() {
        assert_eq!(quantile(&[0., 1., 2.], 0.25), Some(0.5));
        assert_eq!(quantile(&[0., 1., 2.], 1.), Some(2.));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
