//! Positions on the training grid and in the short chain, and the sequences that choose them.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A position on the training grid, `0..num_train_timesteps`; the time input of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestep(usize);

impl Timestep {
    /// Creates a position; 0 is the least noisy. The schedule that uses it checks the range.
    #[must_use]
    pub const fn new(t: usize) -> Self {
        Self(t)
    }

    /// Returns the position as a number.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

impl fmt::Display for Timestep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the short chain, `0..num_sampling_steps`; the step counter of samplers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepIdx(usize);

impl StepIdx {
    /// Creates a position; 0 is the least noisy. The chain that uses it checks the range.
    #[must_use]
    pub const fn new(idx: usize) -> Self {
        Self(idx)
    }

    /// Returns the position as a number.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

impl fmt::Display for StepIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A choice of the training timesteps that a sampler visits.
///
/// [`Display`](fmt::Display) and [`FromStr`] use `ddim20`, `10,15,20` and `all`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StepSequence {
    /// Exactly this many timesteps `0, i, 2 i, ..`, where `i` is the smallest stride that has this number of steps.
    ///
    /// The last training timestep is visited only where the stride happens to meet it.
    /// # Source
    /// Song et al. 2020 (arXiv:2010.02502), Section 4.2, for sub-sequences of the timesteps; the choice of the stride
    /// is the released code's.
    Ddim(usize),
    /// Timesteps spaced within equal sections of the grid: one section per number, with that many timesteps.
    ///
    /// The sections have equal sizes, but for the first `num_train_timesteps % num_sections`, which get one timestep
    /// more. In a section of size `m` with `n > 1` steps, step `j` is `round(j * (m - 1) / (n - 1))` from its start,
    /// ties to even; with one step it is the start.
    /// # Source
    /// Nichol and Dhariwal 2021 (arXiv:2102.09672), Section 4, for one section; several are the released code's.
    Sections(Vec<usize>),
    /// All training timesteps.
    All,
}

impl StepSequence {
    /// Lists the timesteps on a training grid, strictly increasing. The formulas stand at the variants.
    /// # Errors
    /// - [`Error::NoTrainTimesteps`] if the grid is empty;
    /// - [`Error::StepCountUnavailable`], with the nearest numbers below and above, if no stride has so many steps;
    /// - [`Error::NoSections`], or [`Error::SectionCountOutOfRange`] unless each section has at least one step and not
    ///   more than it has timesteps.
    pub fn timesteps(&self, num_train_timesteps: usize) -> Result<Vec<Timestep>> {
        if num_train_timesteps == 0 {
            return Err(Error::NoTrainTimesteps);
        }
        match self {
            Self::Ddim(num_steps) => strided(*num_steps, num_train_timesteps),
            Self::Sections(counts) => sectioned(counts, num_train_timesteps),
            Self::All => Ok((0..num_train_timesteps).map(Timestep).collect()),
        }
    }
}

fn strided(num_steps: usize, num_train_timesteps: usize) -> Result<Vec<Timestep>> {
    let count = |stride: usize| num_train_timesteps.div_ceil(stride);
    let unavailable = |below, above| Error::StepCountUnavailable { got: num_steps, num_train_timesteps, below, above };
    if num_steps == 0 {
        return Err(unavailable(None, Some(1)));
    }
    // The count never grows with the stride, and this is the first stride for which it is not above `num_steps`.
    let stride = num_train_timesteps.div_ceil(num_steps);
    if count(stride) != num_steps {
        return Err(unavailable(Some(count(stride)), (stride > 1).then(|| count(stride - 1))));
    }
    Ok((0..num_train_timesteps).step_by(stride).map(Timestep).collect())
}

#[expect(clippy::integer_division, reason = "the remainder goes to the first sections")]
fn sectioned(counts: &[usize], num_train_timesteps: usize) -> Result<Vec<Timestep>> {
    if counts.is_empty() {
        return Err(Error::NoSections);
    }
    let (size, num_longer) = (num_train_timesteps / counts.len(), num_train_timesteps % counts.len());
    let mut timesteps = Vec::new();
    let mut start = 0;
    for (section_idx, &count) in counts.iter().enumerate() {
        let size = size + usize::from(section_idx < num_longer);
        if count == 0 || count > size {
            return Err(Error::SectionCountOutOfRange { section_idx, got: count, num_timesteps: size });
        }
        let intervals = (count - 1).max(1);
        timesteps.extend((0..count).map(|j| Timestep(start + div_round_ties_even(j * (size - 1), intervals))));
        start += size;
    }
    Ok(timesteps)
}

/// Computes `round(numerator / denominator)`, ties to even, without the rounding of a floating-point quotient.
#[expect(clippy::integer_division, reason = "the remainder decides how to round")]
fn div_round_ties_even(numerator: usize, denominator: usize) -> usize {
    let (quotient, remainder) = (numerator / denominator, numerator % denominator);
    match (2 * remainder).cmp(&denominator) {
        std::cmp::Ordering::Less => quotient,
        std::cmp::Ordering::Equal => quotient + quotient % 2,
        std::cmp::Ordering::Greater => quotient + 1,
    }
}

impl fmt::Display for StepSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ddim(num_steps) => write!(f, "ddim{num_steps}"),
            Self::Sections(counts) => {
                let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
                f.write_str(&counts.join(","))
            }
            Self::All => f.write_str("all"),
        }
    }
}

impl FromStr for StepSequence {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let sequence = match text.strip_prefix("ddim") {
            Some(count) => parse_count(count).map(Self::Ddim),
            None if text == "all" => Some(Self::All),
            None => text.split(',').map(parse_count).collect::<Option<_>>().map(Self::Sections),
        };
        sequence.ok_or_else(|| Error::UnknownStepSequence { got: text.to_owned() })
    }
}

/// Parses a count; unlike [`usize::from_str`], rejects a plus sign.
fn parse_count(text: &str) -> Option<usize> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(sequence: &str, num_train_timesteps: usize) -> Vec<usize> {
        let sequence: StepSequence = sequence.parse().unwrap();
        sequence.timesteps(num_train_timesteps).unwrap().into_iter().map(Timestep::get).collect()
    }

    #[test]
    fn twenty_ddim_steps_have_a_stride_of_fifty() {
        assert_eq!(list("ddim20", 1000), (0..20).map(|i| 50 * i).collect::<Vec<_>>());
    }

    #[test]
    fn the_smallest_of_several_strides_is_taken() {
        // 5, 6, .. 9 all have two members below 10.
        assert_eq!(list("ddim2", 10), [0, 5]);
        assert_eq!(list("ddim1", 10), [0]);
        assert_eq!(list("ddim10", 10), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn sections_round_ties_to_even() {
        assert_eq!(list("7", 1000), [0, 166, 333, 500, 666, 832, 999]);
        assert_eq!(list("3", 4), [0, 2, 3]);
        assert_eq!(list("3", 6), [0, 2, 5]);
    }

    #[test]
    fn the_first_sections_are_longer() {
        // Sizes 4, 3, 3.
        assert_eq!(list("2,2,2", 10), [0, 3, 4, 6, 7, 9]);
        assert_eq!(list("1,1,1", 10), [0, 4, 7]);
        assert_eq!(list("4,1,3", 10), [0, 1, 2, 3, 4, 7, 8, 9]);
    }

    #[test]
    fn all_is_each_timestep() {
        assert_eq!(list("all", 3), [0, 1, 2]);
    }

    #[test]
    fn an_unavailable_step_count_names_its_neighbors() {
        for (num_steps, neighbors) in [
            (60, (Some(59), Some(63))),
            (501, (Some(500), Some(1000))),
            (1001, (Some(1000), None)),
            (0, (None, Some(1))),
        ] {
            let error = StepSequence::Ddim(num_steps).timesteps(1000).unwrap_err();
            let Error::StepCountUnavailable { got, num_train_timesteps, below, above } = error else {
                panic!("{error}")
            };
            assert_eq!((got, num_train_timesteps, (below, above)), (num_steps, 1000, neighbors));
        }
    }

    #[test]
    fn an_empty_grid_is_rejected() {
        for sequence in [StepSequence::All, StepSequence::Ddim(1), StepSequence::Sections(vec![1])] {
            assert!(matches!(sequence.timesteps(0), Err(Error::NoTrainTimesteps)));
        }
    }

    #[test]
    fn no_sections_are_rejected() {
        assert!(matches!(StepSequence::Sections(vec![]).timesteps(10), Err(Error::NoSections)));
    }

    #[test]
    fn a_section_without_steps_or_with_too_many_is_rejected() {
        for (sequence, facts) in [("2,0", (1, 0, 5)), ("11", (0, 11, 10)), ("4,4,3", (1, 4, 3)), ("1,1,1,1", (3, 1, 0))]
        {
            let num_train_timesteps = if facts.2 == 0 { 3 } else { 10 };
            let error = sequence.parse::<StepSequence>().unwrap().timesteps(num_train_timesteps).unwrap_err();
            let Error::SectionCountOutOfRange { section_idx, got, num_timesteps } = error else { panic!("{error}") };
            assert_eq!((section_idx, got, num_timesteps), facts);
        }
    }

    #[test]
    fn a_text_that_names_no_sequence_is_rejected() {
        for text in ["", "ddim", "ddim-1", "ddim+5", "DDIM20", "ddim20 ", "10,", ",10", "10, 15", "+3", "10;15", "ALL"]
        {
            let error = text.parse::<StepSequence>().unwrap_err();
            assert!(matches!(&error, Error::UnknownStepSequence { got } if got == text), "{text}: {error}");
        }
        assert!("ddim99999999999999999999999".parse::<StepSequence>().is_err());
    }

    fn any_sequence() -> impl Strategy<Value = StepSequence> {
        prop_oneof![
            any::<usize>().prop_map(StepSequence::Ddim),
            proptest::collection::vec(any::<usize>(), 1..5).prop_map(StepSequence::Sections),
            Just(StepSequence::All),
        ]
    }

    proptest! {
        #[test]
        fn every_sequence_round_trips_as_text(sequence in any_sequence()) {
            prop_assert_eq!(sequence.to_string().parse::<StepSequence>().unwrap(), sequence);
        }

        #[test]
        fn strides_agree_with_trying_each(num_train_timesteps in 1..300_usize, num_steps in 0..310_usize) {
            let counts: Vec<usize> =
                (1..=num_train_timesteps).map(|stride| (0..num_train_timesteps).step_by(stride).count()).collect();
            let smallest = counts.iter().position(|&n| n == num_steps);
            match (StepSequence::Ddim(num_steps).timesteps(num_train_timesteps), smallest) {
                (Ok(timesteps), Some(i)) => {
                    let expected: Vec<Timestep> = (0..num_train_timesteps).step_by(i + 1).map(Timestep).collect();
                    prop_assert_eq!(timesteps, expected);
                }
                (Err(Error::StepCountUnavailable { below, above, .. }), None) => {
                    prop_assert_eq!(below, counts.iter().copied().filter(|&n| n < num_steps).max());
                    prop_assert_eq!(above, counts.iter().copied().filter(|&n| n > num_steps).min());
                }
                (result, stride) => prop_assert!(false, "{:?} for {:?}", result, stride),
            }
        }

        #[test]
        fn sections_have_their_counts_in_order(
            (num_train_timesteps, counts) in (1..2000_usize, 1..6_usize).prop_flat_map(|(num, num_sections)| {
                let size = num.div_euclid(num_sections).max(1);
                (Just(num.max(num_sections)), proptest::collection::vec(1..=size, num_sections))
            })
        ) {
            let timesteps = StepSequence::Sections(counts.clone()).timesteps(num_train_timesteps).unwrap();
            prop_assert_eq!(timesteps.len(), counts.iter().sum::<usize>());
            prop_assert!(timesteps.is_sorted_by(|a, b| a < b));
            prop_assert!(timesteps.iter().all(|t| t.get() < num_train_timesteps));
            prop_assert_eq!(timesteps[0].get(), 0);
        }
    }
}
