//! Beta schedules: how much noise each training timestep adds.

use std::f64::consts::FRAC_PI_2;
use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, Timestep};

/// The names that parse, for messages.
pub(crate) const NAMES: &str = "`linear`, `linear-zsnr`, `cosine`, `cosine-shift` and a scale as in `cosine-shift4`, or `const` and one of \
    0.01, 0.015, 0.008, 0.0065, 0.0055, 0.0045, 0.0035, 0.0025, 0.0015";

/// The values of `Constant` schedules that have a name.
const NAMED_CONSTANTS: [f64; 9] = [0.01, 0.015, 0.008, 0.0065, 0.0055, 0.0045, 0.0035, 0.0025, 0.0015];

/// The number of training timesteps for which the linear and constant schedules are stated.
const REFERENCE_TIMESTEPS: f64 = 1000.0;
const LINEAR_FIRST: f64 = 1e-4;
const LINEAR_LAST: f64 = 0.02;
/// The prefix of the name of a shifted cosine schedule; its scale follows.
const SHIFT_PREFIX: &str = "cosine-shift";
/// Keeps beta from being too small near t = 0.
const COSINE_OFFSET: f64 = 0.008;
/// The remaining share of the data, as `sqrt(alpha_bar)`, at the end of a schedule without signal. Small enough to be
/// negligible, and large enough for f32: dividing by it costs a rounding error of 0.002 at most, at a step whose result
/// is noise.
const MIN_SIGNAL: f64 = 1.0 / 4096.0;
/// Keeps beta from reaching 1 at the end, where `alpha_bar` would be 0.
const COSINE_BETA_LIMIT: f64 = 0.999;

/// A beta schedule: beta as a function of the timestep.
///
/// Images use [`Linear`](Self::Linear); the latent diffusion of the released models uses `const0.008`.
///
/// [`Display`](fmt::Display) and [`FromStr`] use the names `linear`, `linear-zsnr`, `cosine`, `cosine-shift4` and `const0.008`. Only the constants of
/// the released models have a name that parses, which catches a mistyped one: 0.01, 0.015, 0.008, 0.0065, 0.0055,
/// 0.0045, 0.0035, 0.0025 and 0.0015.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BetaSchedule {
    /// Evenly spaced from `s * 1e-4` to `s * 0.02`, both included, with `s = 1000 / num_train_timesteps`.
    ///
    /// # Source
    /// Ho et al. 2020 (arXiv:2006.11239), Section 4, for 1000 timesteps; the scaling is the released code's.
    Linear,
    /// The cosine schedule: `beta_t = min(1 - f((t + 1) / num_train_timesteps) / f(t / num_train_timesteps), 0.999)`
    /// with `f(u) = cos((u + 0.008) / 1.008 * pi / 2)^2`.
    ///
    /// # Source
    /// Nichol and Dhariwal 2021 (arXiv:2102.09672), Eq. 17.
    Cosine,
    /// The cosine schedule with its signal-to-noise ratio divided by `scale^2` at each timestep: more noise, which large
    /// flat areas need before their mean color is lost.
    ///
    /// `alpha_bar' = alpha_bar / (alpha_bar + scale^2 (1 - alpha_bar))`; betas are limited to 0.999.
    ///
    /// # Source
    /// Hoogeboom et al. 2023 (arXiv:2301.11093), Eq. 4.
    ShiftedCosine {
        /// The divisor of `sqrt(SNR)`, more than 0; 1 is the cosine schedule.
        scale: f64,
    },
    /// The linear schedule, rescaled so that nothing is left of the data at the last timestep: `sqrt(alpha_bar)` is shifted
    /// and scaled to begin where it did and to end at 2^-12, which stands for the 0 of the source so that every formula
    /// keeps its meaning. Networks that predict the noise learn nothing there: predict v or `x_0`.
    ///
    /// # Source
    /// Lin et al. 2023 (arXiv:2305.08891), Algorithm 1.
    LinearZeroSnr,
    /// A constant beta: `beta_t = value * 1000 / num_train_timesteps`.
    Constant {
        /// Beta at 1000 timesteps: more than 0, and small enough that the betas are less than 1.
        value: f64,
    },
}

impl BetaSchedule {
    /// Returns whether the terminal SNR is (nearly) zero, so that a network cannot be trained to predict
    /// the noise.
    #[must_use]
    pub fn ends_without_signal(&self) -> bool {
        matches!(self, Self::LinearZeroSnr)
    }

    /// Computes beta for each training timestep, in f64.
    ///
    /// The formulas stand at the variants. For few timesteps the scaled betas of [`Linear`](Self::Linear) and
    /// [`Constant`](Self::Constant) exceed 1: the linear schedule needs more than 20 timesteps, except for a single
    /// one.
    /// # Errors
    /// [`Error::NoTrainTimesteps`] if there are none; [`Error::BetaOutOfRange`] unless each beta is in `(0, 1)`.
    pub fn betas(&self, num_train_timesteps: usize) -> Result<Vec<f64>> {
        if num_train_timesteps == 0 {
            return Err(Error::NoTrainTimesteps);
        }
        let mut betas: Vec<f64> =
            (0..num_train_timesteps).map(|t| self.unchecked_beta(t, num_train_timesteps)).collect();
        if self.ends_without_signal() {
            check_betas(&betas)?;
            betas = without_signal_at_the_end(&betas);
        }
        check_betas(&betas)?;
        Ok(betas)
    }

    fn unchecked_beta(self, t: usize, num_train_timesteps: usize) -> f64 {
        let (t, num) = (t as f64, num_train_timesteps as f64);
        let scale = REFERENCE_TIMESTEPS / num;
        match self {
            Self::Linear | Self::LinearZeroSnr => {
                let (first, last) = (scale * LINEAR_FIRST, scale * LINEAR_LAST);
                let increment = (last - first) / (num - 1.0).max(1.0);
                first + t * increment
            }
            Self::Cosine => {
                (1.0 - cosine_alpha_bar((t + 1.0) / num) / cosine_alpha_bar(t / num)).min(COSINE_BETA_LIMIT)
            }
            Self::ShiftedCosine { scale } => {
                let alpha_bar = |t: f64| shifted(cosine_alpha_bar(t / num) / cosine_alpha_bar(0.), scale);
                // A scale that is not positive, or has no finite square, gives NaN, which is refused.
                let beta = if scale > 0. { 1.0 - alpha_bar(t + 1.0) / alpha_bar(t) } else { f64::NAN };
                if beta > COSINE_BETA_LIMIT { COSINE_BETA_LIMIT } else { beta }
            }
            Self::Constant { value } => scale * value,
        }
    }
}

/// Rescales betas so that `sqrt(alpha_bar)` begins where it did and ends at [`MIN_SIGNAL`].
fn without_signal_at_the_end(betas: &[f64]) -> Vec<f64> {
    let mut alpha_bar = 1.0;
    let signals: Vec<f64> = betas
        .iter()
        .map(|beta| {
            alpha_bar *= 1.0 - beta;
            f64::sqrt(alpha_bar)
        })
        .collect();
    let (Some(&first), Some(&last)) = (signals.first(), signals.last()) else { return vec![] };
    if first <= last {
        return betas.to_vec();
    }
    let mut before = 1.0;
    let rescaled = signals.iter().map(|signal| {
        let alpha_bar = (MIN_SIGNAL + (signal - last) * (first - MIN_SIGNAL) / (first - last)).powi(2);
        1.0 - alpha_bar / std::mem::replace(&mut before, alpha_bar)
    });
    rescaled.collect()
}

/// Divides the signal-to-noise ratio of `alpha_bar` by `scale^2`.
fn shifted(alpha_bar: f64, scale: f64) -> f64 {
    alpha_bar / (alpha_bar + scale.powi(2) * (1.0 - alpha_bar))
}

/// Evaluates the `f` of Eq. 17: `alpha_bar` at the fraction `u` of the training grid, up to a factor.
fn cosine_alpha_bar(u: f64) -> f64 {
    ((u + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * FRAC_PI_2).cos().powi(2)
}

/// Rejects a beta outside `(0, 1)`, and NaN.
pub(crate) fn check_betas(betas: &[f64]) -> Result<()> {
    match betas.iter().position(|&beta| !(beta > 0.0 && beta < 1.0)) {
        Some(t) => Err(Error::BetaOutOfRange { timestep: Timestep::new(t), got: betas[t] }),
        None => Ok(()),
    }
}

impl fmt::Display for BetaSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => f.write_str("linear"),
            Self::LinearZeroSnr => f.write_str("linear-zsnr"),
            Self::Cosine => f.write_str("cosine"),
            Self::ShiftedCosine { scale } => write!(f, "{SHIFT_PREFIX}{scale}"),
            Self::Constant { value } => write!(f, "const{value}"),
        }
    }
}

impl FromStr for BetaSchedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let scale = name.strip_prefix(SHIFT_PREFIX).and_then(|scale| scale.parse::<f64>().ok());
        if let Some(scale) = scale.filter(|scale| scale.is_finite() && *scale > 0.0) {
            return Ok(Self::ShiftedCosine { scale });
        }
        let constants = NAMED_CONSTANTS.iter().map(|&value| Self::Constant { value });
        [Self::Linear, Self::LinearZeroSnr, Self::Cosine]
            .into_iter()
            .chain(constants)
            .find(|schedule| schedule.to_string() == name)
            .ok_or_else(|| Error::UnknownBetaSchedule { got: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_close(got: f64, expected: f64) {
        assert!((got - expected).abs() <= 1e-14 * expected.abs(), "got {got}, expected {expected}");
    }

    #[test]
    fn rescaling_keeps_the_beginning_and_leaves_nothing_at_the_end() {
        let [plain, rescaled] = [BetaSchedule::Linear, BetaSchedule::LinearZeroSnr].map(|schedule| {
            let mut alpha_bar = 1.0;
            let betas = schedule.betas(1000).unwrap();
            betas
                .iter()
                .map(|beta| {
                    alpha_bar *= 1.0 - beta;
                    alpha_bar
                })
                .collect::<Vec<f64>>()
        });
        assert!((plain[0] - rescaled[0]).abs() < 1e-12);
        assert!((rescaled[999] - MIN_SIGNAL.powi(2)).abs() < 1e-12 && plain[999] > 4e-5);
        assert!(rescaled.windows(2).all(|pair| pair[0] > pair[1]));
        // Half way between, by the formula of the source with sqrt(alpha_bar) of 0, 500 and 999.
        let [first, middle, last] = [0, 500, 999].map(|t| plain[t].sqrt());
        let expected = (middle - last) * first / (first - last);
        assert!((rescaled[500].sqrt() - expected).abs() < 2e-4);
    }

    #[test]
    fn linear_betas_are_evenly_spaced_between_the_ends() {
        let betas = BetaSchedule::Linear.betas(1000).unwrap();
        assert_eq!(betas.len(), 1000);
        assert_close(betas[0], 1e-4);
        assert_close(betas[999], 0.02);
        assert_close(betas[333], 1e-4 + (0.02 - 1e-4) / 3.0);
    }

    #[test]
    fn linear_betas_scale_with_the_number_of_timesteps() {
        let betas = BetaSchedule::Linear.betas(100).unwrap();
        assert_close(betas[0], 1e-3);
        assert_close(betas[99], 0.2);
    }

    #[test]
    fn one_linear_beta_is_the_first() {
        assert_close(BetaSchedule::Linear.betas(1).unwrap()[0], 0.1);
    }

    #[test]
    fn cosine_betas_are_limited_at_the_end_only() {
        let betas = BetaSchedule::Cosine.betas(1000).unwrap();
        assert!(betas[..999].iter().all(|&beta| beta < COSINE_BETA_LIMIT));
        assert_close(betas[999], COSINE_BETA_LIMIT);
    }

    #[test]
    fn cosine_betas_multiply_to_the_cosine() {
        let betas = BetaSchedule::Cosine.betas(50).unwrap();
        let product: f64 = betas[..25].iter().map(|beta| 1.0 - beta).product();
        assert!((product - cosine_alpha_bar(0.5) / cosine_alpha_bar(0.0)).abs() < 1e-14);
    }

    #[test]
    fn a_shift_divides_the_signal_to_noise_ratio_by_the_square_of_its_scale() {
        let alpha_bar =
            |schedule: BetaSchedule| schedule.betas(100).unwrap()[..60].iter().map(|beta| 1.0 - beta).product::<f64>();
        let snr = |alpha_bar: f64| alpha_bar / (1.0 - alpha_bar);
        let plain = snr(alpha_bar(BetaSchedule::Cosine));
        let moved = snr(alpha_bar(BetaSchedule::ShiftedCosine { scale: 4.0 }));
        assert!((plain / moved - 16.0).abs() < 1e-9, "{plain} {moved}");
        for name in ["cosine-shift4", "cosine-shift0.5"] {
            assert_eq!(name.parse::<BetaSchedule>().unwrap().to_string(), name);
        }
        for name in ["cosine-shift", "cosine-shift0", "cosine-shift-1", "cosine-shiftinf"] {
            assert!(name.parse::<BetaSchedule>().is_err(), "{name}");
        }
    }

    #[test]
    fn constant_betas_scale_with_the_number_of_timesteps() {
        for beta in (BetaSchedule::Constant { value: 0.008 }).betas(500).unwrap() {
            assert_close(beta, 0.016);
        }
    }

    #[test]
    fn no_timesteps_are_rejected() {
        for schedule in [BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Constant { value: 0.008 }] {
            assert!(matches!(schedule.betas(0), Err(Error::NoTrainTimesteps)));
        }
    }

    #[test]
    fn a_beta_outside_its_range_is_rejected_where_it_stands() {
        let error = BetaSchedule::Linear.betas(20).unwrap_err();
        assert!(matches!(error, Error::BetaOutOfRange { timestep, .. } if timestep.get() == 19), "{error}");
        for value in [0.0, -0.01, 1.0, f64::NAN, f64::INFINITY] {
            let error = BetaSchedule::Constant { value }.betas(1000).unwrap_err();
            assert!(matches!(error, Error::BetaOutOfRange { timestep, .. } if timestep.get() == 0), "{error}");
        }
        for scale in [0.0, -4.0, 1e200, f64::NAN, f64::INFINITY] {
            let error = BetaSchedule::ShiftedCosine { scale }.betas(50).unwrap_err();
            assert!(matches!(error, Error::BetaOutOfRange { .. }), "{scale}: {error}");
        }
    }

    #[test]
    fn every_name_round_trips() {
        let names = ["linear", "cosine", "const0.01", "const0.015", "const0.008", "const0.0065", "const0.0055"];
        for name in names.into_iter().chain(["const0.0045", "const0.0035", "const0.0025", "const0.0015"]) {
            assert_eq!(name.parse::<BetaSchedule>().unwrap().to_string(), name);
        }
        for value in NAMED_CONSTANTS {
            assert!(NAMES.contains(&value.to_string()), "{value}");
            let schedule = BetaSchedule::Constant { value };
            assert_eq!(schedule.to_string().parse::<BetaSchedule>().unwrap(), schedule);
        }
    }

    #[test]
    fn another_name_is_rejected() {
        for name in
            ["", "Linear", " linear", "const", "const0.5", "const0.0080", "const.008", "constant0.008", "constNaN"]
        {
            let error = name.parse::<BetaSchedule>().unwrap_err();
            assert!(matches!(&error, Error::UnknownBetaSchedule { got } if got == name), "{error}");
        }
    }

    proptest! {
        #[test]
        fn betas_never_decrease(num_train_timesteps in 21..3000_usize) {
            for schedule in [BetaSchedule::Linear, BetaSchedule::Cosine] {
                let betas = schedule.betas(num_train_timesteps).unwrap();
                prop_assert!(betas.is_sorted());
            }
        }
    }
}
