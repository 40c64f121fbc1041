//! Spacings: how the timesteps of a chain are spread over the training grid.

use std::fmt;
use std::str::FromStr;

use crate::{Error, NoiseSchedule, Result, StepSequence, Timestep};

/// The exponent of [`Spacing::Karras`].
const KARRAS_RHO: f64 = 7.0;
/// Largest noise-to-signal ratio of [`Spacing::Interior`].
const MAX_INTERIOR_RATIO: f64 = 12.0;

/// A rule for placing N timesteps on a training grid of length T.
///
/// Positions that are not whole are rounded to the nearest timesteps such that all N are different. The clean picture,
/// at which no network is evaluated, is the neighbor of the first timestep in any chain.
///
/// [`Display`](fmt::Display) and [`FromStr`] use the names of [`Spacing::names`], such as `log-snr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Spacing {
    /// `0, i, 2 i, ..`, the chain of the paper: [`StepSequence::Ddim`]. Only some N exist, and the last timestep is
    /// visited only where the stride happens to meet it.
    #[default]
    Leading,
    /// `round(k T / N) - 1` for k = 1, .., N: the last timestep is always visited, the first only for N = T.
    ///
    /// # Source
    /// Lin et al. 2023 (arXiv:2305.08891), Section 3.3.
    Trailing,
    /// Evenly spaced from timestep 0 to T - 1, both included.
    Linspace,
    /// Evenly spaced in `lambda = log(alpha / sigma)`, half the log-SNR, from timestep 0 to T - 1: steps are short where
    /// there is little noise.
    ///
    /// # Source
    /// Lu et al. 2022 (arXiv:2206.00927), Section 3.
    LogSnr,
    /// Evenly spaced in `log(s + s_0)`, where `s = sigma / alpha` and `s_0` is that of timestep 0, up to `s` = 12 or the end of the
    /// schedule: as [`Spacing::LogSnr`], but with a longer first step, and without those in which all is noise. For
    /// [`ExactChain`](crate::ExactChain) of few steps; found by measurement, see docs/fewer-steps.md.
    Interior,
    /// Evenly spaced in `(sigma / alpha)^(1/7)`, from timestep 0 to T - 1.
    ///
    /// # Source
    /// Karras et al. 2022 (arXiv:2206.00364), Eq. 5, with rho = 7.
    Karras,
    /// Found by a search on one model, which keeps them; a schedule alone does not have them.
    Tuned,
}

impl Spacing {
    /// All spacings, each with its name.
    const NAMED: [(&'static str, Self); 7] = [
        ("leading", Self::Leading),
        ("trailing", Self::Trailing),
        ("linspace", Self::Linspace),
        ("log-snr", Self::LogSnr),
        ("interior", Self::Interior),
        ("karras", Self::Karras),
        ("tuned", Self::Tuned),
    ];

    /// Returns the names of all spacings, for help texts and completions.
    #[must_use]
    pub fn names() -> impl ExactSizeIterator<Item = &'static str> {
        Self::NAMED.iter().map(|(name, _)| *name)
    }

    /// Lists `num_steps` timesteps of a schedule, strictly increasing. The formulas stand at the variants; a single
    /// timestep is the last one, but for [`Spacing::Leading`].
    ///
    /// # Errors
    /// [`Error::StepCountOutOfRange`] unless `num_steps` is from 1 to the length of the training grid;
    /// [`Error::StepCountUnavailable`] for [`Spacing::Leading`] if no stride has so many; [`Error::NotTuned`] for
    /// [`Spacing::Tuned`].
    pub fn timesteps(self, schedule: &NoiseSchedule, num_steps: usize) -> Result<Vec<Timestep>> {
        let num_train_timesteps = schedule.num_train_timesteps();
        if self == Self::Leading {
            return StepSequence::Ddim(num_steps).timesteps(num_train_timesteps);
        }
        if !(1..=num_train_timesteps).contains(&num_steps) {
            return Err(Error::StepCountOutOfRange { got: num_steps, num_train_timesteps });
        }
        let last = (num_train_timesteps - 1) as f64;
        let places: Vec<f64> = match self {
            Self::Leading | Self::Trailing => {
                let stride = num_train_timesteps as f64 / num_steps as f64;
                (1..=num_steps).map(|k| (k as f64 * stride).round_ties_even() - 1.0).collect()
            }
            Self::Linspace => fractions(num_steps).map(|fraction| fraction * last).collect(),
            Self::LogSnr => placed(schedule, num_steps, (&f64::ln, &f64::exp), f64::INFINITY),
            Self::Interior => {
                let offset = schedule.alpha_bars().first().map_or(0.0, |&alpha_bar| noise_to_signal(alpha_bar));
                let maps: (Map<'_>, Map<'_>) = (&|s| (s + offset).ln(), &|x| x.exp() - offset);
                placed(schedule, num_steps, maps, MAX_INTERIOR_RATIO)
            }
            Self::Karras => {
                let maps: (Map<'_>, Map<'_>) = (&|s| s.powf(KARRAS_RHO.recip()), &|x| x.powf(KARRAS_RHO));
                placed(schedule, num_steps, maps, f64::INFINITY)
            }
            Self::Tuned => return Err(Error::NotTuned { got: num_steps, tuned: vec![] }),
        };
        Ok(distinct(&places, num_train_timesteps))
    }
}

/// A transformation of noise-to-signal ratios.
type Map<'a> = &'a dyn Fn(f64) -> f64;

/// Returns `num_steps` evenly spaced fractions from 0 to 1, both included; 1 alone for one.
fn fractions(num_steps: usize) -> impl Iterator<Item = f64> {
    let intervals = (num_steps - 1).max(1) as f64;
    let skipped = usize::from(num_steps == 1);
    (skipped..num_steps + skipped).map(move |k| k as f64 / intervals)
}

/// Returns the places on the training grid whose noise-to-signal ratios, up to `limit`, are evenly spaced after a transformation,
/// which is given with its inverse.
///
/// Between timesteps the logarithm of the ratio is interpolated.
fn placed(schedule: &NoiseSchedule, num_steps: usize, (to, from): (Map<'_>, Map<'_>), limit: f64) -> Vec<f64> {
    let logs: Vec<f64> = schedule.alpha_bars().iter().map(|&alpha_bar| noise_to_signal(alpha_bar).ln()).collect();
    let (Some(&first), Some(&last)) = (logs.first(), logs.last()) else { return vec![] };
    let (start, end) = (to(first.exp()), to(last.exp().min(limit)));
    let place = |fraction: f64| {
        let wanted = from(start + fraction * (end - start)).ln();
        // Ratios increase with the timestep.
        let above = logs.partition_point(|&log| log < wanted).min(logs.len() - 1);
        let below = above.saturating_sub(1);
        if below == above {
            return 0.0;
        }
        let part = (wanted - logs[below]) / (logs[above] - logs[below]);
        below as f64 + part.clamp(0.0, 1.0)
    };
    fractions(num_steps).map(place).collect()
}

/// Returns `sigma / alpha` of a noise level.
pub(crate) fn noise_to_signal(alpha_bar: f64) -> f64 {
    ((1.0 - alpha_bar) / alpha_bar).sqrt()
}

/// Returns half the logarithm of the signal-to-noise ratio, `log(alpha / sigma)`; infinite for clean data.
pub(crate) fn half_log_snr(alpha_bar: f64) -> f64 {
    0.5 * (alpha_bar / (1.0 - alpha_bar)).ln()
}

/// Rounds increasing places to different timesteps below `num_train_timesteps`, of which there are enough.
fn distinct(places: &[f64], num_train_timesteps: usize) -> Vec<Timestep> {
    let mut timesteps: Vec<usize> = Vec::with_capacity(places.len());
    for &place in places {
        let lowest = timesteps.last().map_or(0, |last| last + 1);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place on the training grid")]
        timesteps.push((place.max(0.0).round_ties_even() as usize).max(lowest));
    }
    let mut limit = num_train_timesteps;
    for timestep in timesteps.iter_mut().rev() {
        limit -= 1;
        *timestep = (*timestep).min(limit);
        limit = *timestep;
    }
    timesteps.into_iter().map(Timestep::new).collect()
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMED.iter().find(|(_, spacing)| spacing == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Spacing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, spacing)| *spacing).ok_or_else(|| Error::UnknownSpacing { got: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BetaSchedule;

    fn list(spacing: Spacing, num_steps: usize, beta: BetaSchedule) -> Vec<usize> {
        let schedule = NoiseSchedule::new(&beta, 1000).unwrap();
        spacing.timesteps(&schedule, num_steps).unwrap().into_iter().map(Timestep::get).collect()
    }

    #[test]
    fn every_name_is_read_back() {
        for (name, spacing) in Spacing::NAMED {
            assert_eq!((name.parse::<Spacing>().unwrap(), spacing.to_string().as_str()), (spacing, name));
        }
        let error = "cubic".parse::<Spacing>().unwrap_err().to_string();
        assert!(Spacing::names().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn leading_trailing_and_linspace_are_those_of_diffusers() {
        // `DDIMScheduler(timestep_spacing=..).set_timesteps(..)` of diffusers 0.35, reversed; leading without its offset.
        assert_eq!(list(Spacing::Leading, 5, BetaSchedule::Linear), [0, 200, 400, 600, 800]);
        assert_eq!(list(Spacing::Trailing, 5, BetaSchedule::Linear), [199, 399, 599, 799, 999]);
        assert_eq!(list(Spacing::Trailing, 7, BetaSchedule::Linear), [142, 285, 428, 570, 713, 856, 999]);
        assert_eq!(list(Spacing::Linspace, 5, BetaSchedule::Linear), [0, 250, 500, 749, 999]);
    }

    #[test]
    fn log_snr_steps_have_equal_ratios_of_noise_to_signal() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let timesteps = Spacing::LogSnr.timesteps(&schedule, 10).unwrap();
        let log = |t: Timestep| noise_to_signal(schedule.alpha_bar(t).unwrap()).ln();
        let step = (log(timesteps[9]) - log(timesteps[0])) / 9.0;
        // Rounding to timesteps moves the least noisy by more than the others.
        for pair in timesteps[2..].windows(2) {
            assert!(((log(pair[1]) - log(pair[0])) / step - 1.0).abs() < 0.1, "{timesteps:?}");
        }
    }

    #[test]
    fn interior_steps_end_where_hardly_any_signal_is_left() {
        let without_signal = NoiseSchedule::new(&BetaSchedule::LinearZeroSnr, 1000).unwrap();
        // A constant beta of 0.004 leaves a seventh of the signal.
        let short = NoiseSchedule::new(&BetaSchedule::Constant { value: 0.004 }, 1000).unwrap();
        for (schedule, end) in [(&without_signal, MAX_INTERIOR_RATIO), (&short, 7.354)] {
            let ratio = |t: Timestep| noise_to_signal(schedule.alpha_bar(t).unwrap());
            let timesteps = Spacing::Interior.timesteps(schedule, 7).unwrap();
            assert_eq!(timesteps[0].get(), 0);
            assert!((ratio(timesteps[6]) / end - 1.0).abs() < 0.02, "{timesteps:?}");
            let place = |idx: usize| (ratio(timesteps[idx]) + ratio(timesteps[0])).ln();
            let step = (place(6) - place(0)) / 6.0;
            // Rounding to timesteps moves the least noisy by more than the others.
            for idx in 2..6 {
                assert!(((place(idx + 1) - place(idx)) / step - 1.0).abs() < 0.1, "{timesteps:?}");
            }
        }
    }

    #[test]
    fn karras_steps_are_even_in_the_seventh_root() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let timesteps = Spacing::Karras.timesteps(&schedule, 8).unwrap();
        let root = |t: Timestep| noise_to_signal(schedule.alpha_bar(t).unwrap()).powf(1.0 / 7.0);
        let step = (root(timesteps[7]) - root(timesteps[0])) / 7.0;
        for pair in timesteps[2..].windows(2) {
            assert!(((root(pair[1]) - root(pair[0])) / step - 1.0).abs() < 0.1, "{timesteps:?}");
        }
    }

    #[test]
    fn a_single_step_starts_from_the_noise() {
        for spacing in [Spacing::Trailing, Spacing::Linspace, Spacing::LogSnr, Spacing::Karras] {
            assert_eq!(list(spacing, 1, BetaSchedule::LinearZeroSnr), [999], "{spacing}");
        }
    }

    #[test]
    fn a_schedule_alone_has_no_tuned_timesteps() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let error = Spacing::Tuned.timesteps(&schedule, 5).unwrap_err();
        assert!(matches!(error, Error::NotTuned { got: 5, .. }), "{error}");
    }

    #[test]
    fn a_count_that_does_not_exist_is_refused_with_what_does() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        for num_steps in [0, 1001] {
            let error = Spacing::LogSnr.timesteps(&schedule, num_steps).unwrap_err();
            assert!(matches!(error, Error::StepCountOutOfRange { num_train_timesteps: 1000, .. }), "{error}");
        }
        let error = Spacing::Leading.timesteps(&schedule, 60).unwrap_err().to_string();
        assert!(error.contains("59 and 63") && error.contains("log-snr"), "{error}");
    }

    proptest! {
        #[test]
        fn any_number_of_different_timesteps_can_be_had(
            (num_train_timesteps, num_steps) in (25..400_usize).prop_flat_map(|num| (Just(num), 1..=num)),
            beta in prop_oneof![Just(BetaSchedule::Linear), Just(BetaSchedule::Cosine), Just(BetaSchedule::LinearZeroSnr)],
        ) {
            let schedule = NoiseSchedule::new(&beta, num_train_timesteps).unwrap();
            for spacing in [Spacing::Trailing, Spacing::Linspace, Spacing::LogSnr, Spacing::Karras] {
                let timesteps = spacing.timesteps(&schedule, num_steps).unwrap();
                prop_assert_eq!(timesteps.len(), num_steps);
                prop_assert!(timesteps.is_sorted_by(|a, b| a < b));
                prop_assert_eq!(timesteps[num_steps - 1].get(), num_train_timesteps - 1);
            }
        }
    }
}
