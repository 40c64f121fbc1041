//! Noise schedules on the training grid, and the forward process.

use candle_core::{Device, Tensor};

use crate::beta::check_betas;
use crate::tensor_checks::{check_like, num_items};
use crate::{BetaSchedule, Error, Posterior, Result, Timestep};

/// Tables over the training grid, in f64.
///
/// `alpha_bar_t = (1 - beta_0) * .. * (1 - beta_t)`. It is in `(0, 1)` and strictly decreases.
/// # Source
/// Ho et al. 2020 (arXiv:2006.11239), Section 2. The DDIM and Diff-AE papers write alpha for our `alpha_bar`.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    betas: Vec<f64>,
    alpha_bars: Vec<f64>,
    posteriors: Vec<Posterior>,
}

impl NoiseSchedule {
    /// Builds the tables of a beta schedule.
    ///
    /// # Errors
    /// As [`BetaSchedule::betas`] and [`from_betas`](Self::from_betas).
    pub fn new(schedule: &BetaSchedule, num_train_timesteps: usize) -> Result<Self> {
        Self::from_betas(schedule.betas(num_train_timesteps)?)
    }

    /// Builds the tables from explicit betas, each in `(0, 1)`.
    ///
    /// # Errors
    /// [`Error::NoTrainTimesteps`] if there are none; [`Error::BetaOutOfRange`]; [`Error::AlphaBarNotDecreasing`] if in
    /// f64 a beta is too small to lower `alpha_bar`, or `alpha_bar` reaches 0.
    pub fn from_betas(betas: Vec<f64>) -> Result<Self> {
        if betas.is_empty() {
            return Err(Error::NoTrainTimesteps);
        }
        check_betas(&betas)?;
        let alpha_bars = cumulative_alphas(&betas)?;
        let posteriors = Posterior::table(&betas, &alpha_bars);
        Ok(Self { betas, alpha_bars, posteriors })
    }

    /// Returns the length of the training grid, at least 1.
    #[must_use]
    pub fn num_train_timesteps(&self) -> usize {
        self.betas.len()
    }

    /// Returns beta at each timestep, in `(0, 1)`.
    #[must_use]
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// Returns `alpha_bar` at each timestep, in `(0, 1)`, strictly decreasing.
    #[must_use]
    pub fn alpha_bars(&self) -> &[f64] {
        &self.alpha_bars
    }

    /// Returns beta at one timestep, in `(0, 1)`.
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`].
    pub fn beta(&self, timestep: Timestep) -> Result<f64> {
        self.at(&self.betas, timestep)
    }

    /// Returns `alpha_bar` at one timestep, in `(0, 1)`.
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`].
    pub fn alpha_bar(&self, timestep: Timestep) -> Result<f64> {
        self.at(&self.alpha_bars, timestep)
    }

    /// Returns the posterior of the step from one timestep to the one before.
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`].
    pub fn posterior(&self, timestep: Timestep) -> Result<Posterior> {
        self.at(&self.posteriors, timestep)
    }

    /// Noises each item of a batch to its own timestep: a draw from `q(x_t | x_0)`, if `noise` is standard normal.
    ///
    /// `x_t = sqrt(alpha_bar) * x_0 + sqrt(1 - alpha_bar) * noise`
    /// # Shapes
    /// - `x_0`, `noise`, result: `[N, ..]`, the same; f32 or f64;
    /// - `timesteps`: N of them.
    /// # Errors
    /// [`Error::TimestepOutOfRange`]; [`Error::NumTimestepsMismatch`]; [`Error::NoBatchAxis`],
    /// [`Error::UnsupportedDtype`], [`Error::DtypeMismatch`] and [`Error::ShapeMismatch`] for tensors that do not fit;
    /// [`Error::Tensor`] if the arithmetic fails.
    /// # Source
    /// Ho et al. 2020 (arXiv:2006.11239), Eq. 4.
    pub fn q_sample(&self, x_0: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<Tensor> {
        let alpha_bars = self.check_batch((x_0, noise), timesteps)?;
        let signal = per_item(alpha_bars.iter().map(|alpha_bar| alpha_bar.sqrt()).collect(), x_0)?;
        let spread = per_item(alpha_bars.iter().map(|alpha_bar| (1.0 - alpha_bar).sqrt()).collect(), x_0)?;
        Ok((x_0.broadcast_mul(&signal)? + noise.broadcast_mul(&spread)?)?)
    }

    /// Checks that the parts of a batch fit together, and returns the `alpha_bar` of each item.
    pub(crate) fn check_batch(&self, (x_0, noise): (&Tensor, &Tensor), timesteps: &[Timestep]) -> Result<Vec<f64>> {
        let num_items = num_items("x_0", x_0)?;
        check_like("noise", noise, x_0)?;
        if timesteps.len() != num_items {
            return Err(Error::NumTimestepsMismatch { got: timesteps.len(), expected: num_items });
        }
        timesteps.iter().map(|&timestep| self.alpha_bar(timestep)).collect()
    }

    fn at<V: Copy>(&self, table: &[V], timestep: Timestep) -> Result<V> {
        let num_train_timesteps = self.num_train_timesteps();
        table.get(timestep.get()).copied().ok_or(Error::TimestepOutOfRange { got: timestep, num_train_timesteps })
    }
}

fn cumulative_alphas(betas: &[f64]) -> Result<Vec<f64>> {
    let mut previous = 1.0;
    let mut alpha_bars = Vec::with_capacity(betas.len());
    for (t, beta) in betas.iter().enumerate() {
        let alpha_bar = previous * (1.0 - beta);
        if !(alpha_bar > 0.0 && alpha_bar < previous) {
            return Err(Error::AlphaBarNotDecreasing { timestep: Timestep::new(t), got: alpha_bar, previous });
        }
        alpha_bars.push(alpha_bar);
        previous = alpha_bar;
    }
    Ok(alpha_bars)
}

/// Converts a value per batch item to a tensor that broadcasts against `like`, with its dtype and device.
fn per_item(values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[0] = values.len();
    // Cast first: not every device has f64.
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())?)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use proptest::prelude::*;

    use super::*;

    fn linear() -> NoiseSchedule {
        NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap()
    }

    fn ramp(shape: &[usize]) -> Tensor {
        let num_elements: usize = shape.iter().product();
        let values: Vec<f64> = (0..num_elements).map(|i| i as f64 / 10.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn alpha_bar_is_the_running_product() {
        let schedule = NoiseSchedule::from_betas(vec![0.5, 0.25, 0.75]).unwrap();
        let alpha_bars: Vec<f64> = (0..3).map(|t| schedule.alpha_bar(Timestep::new(t)).unwrap()).collect();
        assert_eq!(alpha_bars, [0.5, 0.375, 0.093_75]);
        assert_eq!(schedule.num_train_timesteps(), 3);
        assert!((schedule.beta(Timestep::new(2)).unwrap() - 0.75).abs() < f64::EPSILON);
        assert!((schedule.posterior(Timestep::new(1)).unwrap().variance - 0.2).abs() < f64::EPSILON);
    }

    #[test]
    fn each_item_is_noised_to_its_own_timestep() {
        let (x_0, noise) = (ramp(&[3, 2, 2]), (ramp(&[3, 2, 2]) * -0.5).unwrap());
        let timesteps = [0, 999, 500].map(Timestep::new);
        let schedule = linear();
        let x_t = schedule.q_sample(&x_0, &noise, &timesteps).unwrap();
        assert_eq!(x_t.dims(), x_0.dims());
        let expected = flat(&x_0).into_iter().zip(flat(&noise)).enumerate().map(|(i, (x_0, noise))| {
            let alpha_bar = schedule.alpha_bar(timesteps[i.div_euclid(4)]).unwrap();
            alpha_bar.sqrt() * x_0 + (1.0 - alpha_bar).sqrt() * noise
        });
        for (got, expected) in flat(&x_t).into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-15, "got {got}, expected {expected}");
        }
    }

    #[test]
    fn any_rank_from_one_is_noised_and_the_dtype_kept() {
        for shape in [&[2][..], &[2, 3], &[2, 3, 4, 5]] {
            let x_0 = ramp(shape).to_dtype(DType::F32).unwrap();
            let x_t = linear().q_sample(&x_0, &x_0, &[Timestep::new(3); 2]).unwrap();
            assert_eq!((x_t.dims(), x_t.dtype()), (shape, DType::F32));
        }
    }

    #[test]
    fn a_batch_is_noised_like_its_items() {
        let (x_0, noise) = (ramp(&[3, 4]), ramp(&[3, 4]).neg().unwrap());
        let timesteps = [1, 10, 100].map(Timestep::new);
        let x_t = linear().q_sample(&x_0, &noise, &timesteps).unwrap();
        for (i, timestep) in timesteps.into_iter().enumerate() {
            let item = |tensor: &Tensor| tensor.narrow(0, i, 1).unwrap();
            let expected = linear().q_sample(&item(&x_0), &item(&noise), &[timestep]).unwrap();
            assert_eq!(flat(&item(&x_t)), flat(&expected));
        }
    }

    #[test]
    fn a_timestep_beyond_the_grid_is_rejected() {
        let schedule = linear();
        let beyond = Timestep::new(1000);
        let x_0 = ramp(&[2, 2]);
        for error in [
            schedule.beta(beyond).unwrap_err(),
            schedule.alpha_bar(beyond).unwrap_err(),
            schedule.posterior(beyond).unwrap_err(),
            schedule.q_sample(&x_0, &x_0, &[Timestep::new(0), beyond]).unwrap_err(),
        ] {
            let Error::TimestepOutOfRange { got, num_train_timesteps } = error else { panic!("{error}") };
            assert_eq!((got, num_train_timesteps), (beyond, 1000));
        }
    }

    #[test]
    fn as_many_timesteps_as_items_are_needed() {
        let x_0 = ramp(&[2, 2]);
        for num_timesteps in [0, 1, 3] {
            let error = linear().q_sample(&x_0, &x_0, &vec![Timestep::new(0); num_timesteps]).unwrap_err();
            assert!(
                matches!(error, Error::NumTimestepsMismatch { got, expected: 2 } if got == num_timesteps),
                "{error}"
            );
        }
    }

    #[test]
    fn noise_that_does_not_fit_is_rejected() {
        let error = linear().q_sample(&ramp(&[2, 2]), &ramp(&[2, 1]), &[Timestep::new(0); 2]).unwrap_err();
        assert!(matches!(error, Error::ShapeMismatch { name: "noise", .. }), "{error}");
    }

    #[test]
    fn an_empty_schedule_is_rejected() {
        assert!(matches!(NoiseSchedule::from_betas(vec![]), Err(Error::NoTrainTimesteps)));
    }

    #[test]
    fn a_beta_outside_its_range_is_rejected() {
        let error = NoiseSchedule::from_betas(vec![0.1, 1.0]).unwrap_err();
        assert!(matches!(error, Error::BetaOutOfRange { timestep, .. } if timestep.get() == 1), "{error}");
    }

    #[test]
    fn an_alpha_bar_that_stands_still_or_reaches_zero_is_rejected() {
        for betas in [vec![0.1, 1e-20], vec![0.999_999; 60]] {
            let error = NoiseSchedule::from_betas(betas).unwrap_err();
            assert!(matches!(error, Error::AlphaBarNotDecreasing { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn alpha_bar_strictly_decreases_within_its_range(num_train_timesteps in 21..3000_usize, value in 1e-4..0.02) {
            for schedule in [BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Constant { value }] {
                let schedule = NoiseSchedule::new(&schedule, num_train_timesteps).unwrap();
                prop_assert!(schedule.alpha_bars().is_sorted_by(|a, b| a > b));
                prop_assert!(schedule.alpha_bars().iter().all(|&alpha_bar| alpha_bar > 0.0 && alpha_bar < 1.0));
            }
        }
    }
}
