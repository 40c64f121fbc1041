//! Prediction targets of networks.

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;

use crate::prediction::{check_alpha_bar, eps_from_x_0, weighted_sum};
use crate::tensor_checks::check_like;
use crate::{Error, NoiseSchedule, Result, Timestep};

/// The quantity that a network is trained to predict. Each follows from any other, given `x_t`; they weight noise
/// levels differently.
///
/// [`Display`](fmt::Display) and [`FromStr`] use the names `eps`, `v` and `x_0`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PredictionTarget {
    /// The noise that was added to the data.
    #[default]
    Eps,
    /// The velocity, `v = sqrt(alpha_bar) * eps - sqrt(1 - alpha_bar) * x_0`.
    ///
    /// # Source
    /// Salimans and Ho 2022 (arXiv:2202.00512), section 4.
    V,
    /// The clean data, `x_0`.
    X0,
}

impl PredictionTarget {
    /// All prediction targets.
    pub const ALL: [Self; 3] = [Self::Eps, Self::V, Self::X0];

    /// Computes the regression target for each item of a batch, with one timestep per item.
    ///
    /// # Shapes
    /// - `x_0`, `noise`, result: `[N, ..]`, the same; f32 or f64; `timesteps`: N.
    /// # Errors
    /// As [`NoiseSchedule::q_sample`].
    pub fn of(
        self,
        schedule: &NoiseSchedule,
        (x_0, noise): (&Tensor, &Tensor),
        timesteps: &[Timestep],
    ) -> Result<Tensor> {
        schedule.check_batch((x_0, noise), timesteps)?;
        match self {
            Self::Eps => Ok(noise.clone()),
            Self::X0 => Ok(x_0.clone()),
            // v is what q_sample makes of the noise in place of the data, and of the negated data as noise.
            Self::V => schedule.q_sample(noise, &x_0.neg()?, timesteps),
        }
    }

    /// Converts a prediction for a batch at one noise level to the noise.
    ///
    /// # Shapes
    /// - `predicted`, `x_t`, result: the same, any; f32 or f64; `alpha_bar` in `(0, 1)`.
    /// # Errors
    /// As [`eps_from_x_0`].
    pub fn eps(self, predicted: &Tensor, x_t: &Tensor, alpha_bar: f64) -> Result<Tensor> {
        check_like("the prediction", predicted, x_t)?;
        check_alpha_bar(alpha_bar)?;
        match self {
            Self::Eps => Ok(predicted.clone()),
            Self::X0 => eps_from_x_0(x_t, predicted, alpha_bar),
            Self::V => weighted_sum(alpha_bar.sqrt(), predicted, (1.0 - alpha_bar).sqrt(), x_t),
        }
    }
}

impl fmt::Display for PredictionTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eps => "eps",
            Self::V => "v",
            Self::X0 => "x_0",
        })
    }
}

impl FromStr for PredictionTarget {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|target| target.to_string() == name);
        found.ok_or_else(|| Error::UnknownPredictionTarget { got: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BetaSchedule;
    use candle_core::Device;

    #[test]
    fn what_does_not_fit_is_refused_for_every_target() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let (two, three) = ([2usize, 1], [3usize, 1]);
        let zeros = |shape: [usize; 2]| Tensor::zeros(&shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let t = Timestep::new(4);
        for target in PredictionTarget::ALL {
            assert!(target.of(&schedule, (&zeros(two), &zeros(three)), &[t, t]).is_err(), "{target}");
            assert!(target.of(&schedule, (&zeros(two), &zeros(two)), &[t]).is_err(), "{target}");
            let error = target.eps(&zeros(two), &zeros(two), 1.5).unwrap_err();
            assert!(matches!(error, Error::AlphaBarOutOfRange { .. }), "{target}: {error}");
        }
    }

    #[test]
    fn the_noise_follows_from_each_target() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let tensor = |values: [f64; 3]| Tensor::new(&[values], &Device::Cpu).unwrap();
        let (x_0, noise) = (tensor([0.3, -0.9, 0.1]), tensor([1.2, 0.4, -2.0]));
        for t in [0, 400, 999].map(Timestep::new) {
            let x_t = schedule.q_sample(&x_0, &noise, &[t]).unwrap();
            for target in PredictionTarget::ALL {
                let said = target.of(&schedule, (&x_0, &noise), &[t]).unwrap();
                let eps = target.eps(&said, &x_t, schedule.alpha_bar(t).unwrap()).unwrap();
                let difference = (eps - &noise).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f64>().unwrap() < 1e-9, "{target} at {t:?}");
            }
        }
    }

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for target in PredictionTarget::ALL {
            assert_eq!(target.to_string().parse::<PredictionTarget>().unwrap(), target);
        }
        assert!("epsilon".parse::<PredictionTarget>().unwrap_err().to_string().contains("x_0"));
    }
}
