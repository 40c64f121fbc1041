//! Dynamic loss scale for training in f16, whose smallest numbers are larger than most gradients.

use candle_core::DType;
use serde::{Deserialize, Serialize};

/// Exponent of the first scale.
const FIRST_EXPONENT: u32 = 16;
/// Exponent of the largest scale: a loss stays far below the largest f32, gradients of single outputs below the largest f16.
const MAX_EXPONENT: u32 = 24;
/// Number of steps without overflow after which the scale doubles.
const STEPS_TO_DOUBLE: usize = 2000;

/// The scale s of the loss: gradients of `s * loss` are computed in f16, and divided by s in f32.
///
/// It is a power of two, so that neither rounds. A step whose gradients overflow is skipped and halves it; after 2,000 steps without
/// overflow it doubles.
/// # Source
/// Micikevicius et al. 2018 (arXiv:1710.03740), section 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LossScale {
    /// Binary logarithm of the scale.
    exponent: u32,
    /// Number of steps since the scale has changed.
    since: usize,
    /// Number of steps that were skipped.
    skipped: usize,
}

impl LossScale {
    /// Returns the scale to begin with; `None` for number types with the range of f32.
    pub(crate) fn first(dtype: DType) -> Option<Self> {
        (dtype == DType::F16).then_some(Self { exponent: FIRST_EXPONENT, since: 0, skipped: 0 })
    }

    /// Returns the scale.
    pub(crate) fn factor(self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// Returns the number of steps that were skipped.
    pub(crate) fn skipped(self) -> usize {
        self.skipped
    }

    /// Returns whether the scale can be halved.
    pub(crate) fn can_fall(self) -> bool {
        self.exponent > 0
    }

    /// Returns the scale after a step whose gradients have overflowed.
    pub(crate) fn after_overflow(self) -> Self {
        Self { exponent: self.exponent.saturating_sub(1), since: 0, skipped: self.skipped + 1 }
    }

    /// Returns the scale after any other step.
    pub(crate) fn after_step(self) -> Self {
        match self.since + 1 {
            STEPS_TO_DOUBLE.. => Self { exponent: MAX_EXPONENT.min(self.exponent + 1), since: 0, ..self },
            since => Self { since, ..self },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_falls_with_each_overflow_and_rises_after_two_thousand_steps() {
        assert_eq!([DType::F32, DType::BF16, DType::F64].map(LossScale::first), [None; 3]);
        let first = LossScale::first(DType::F16).unwrap();
        let after = |scale: LossScale, steps: usize| (0..steps).fold(scale, |scale, _| scale.after_step());
        let fallen = after(first, 1999).after_overflow();
        let least = (0..20).fold(first, |scale, _| scale.after_overflow());
        for (scale, expected) in [
            (first, 65536.),
            (after(first, 1999), 65536.),
            (after(first, 2000), 131_072.),
            (after(first, 40_000), 16_777_216.),
            (fallen, 32768.),
            (after(fallen, 1999), 32768.),
            (least, 1.),
        ] {
            assert!((scale.factor() - expected).abs() < f64::EPSILON, "{scale:?} {expected}");
        }
        assert_eq!((least.can_fall(), first.can_fall()), (false, true));
        assert_eq!([first, after(first, 9000), fallen, least].map(LossScale::skipped), [0, 0, 1, 20]);
    }
}
