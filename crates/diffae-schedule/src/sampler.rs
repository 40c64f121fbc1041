//! Samplers as values, and the one loop that runs them.

mod ddim;
mod ddpm;
mod dpm_solver;
mod ipndm;
mod uni_pc;

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;

pub use self::ddim::DdimSampler;
pub use self::ddpm::{DdpmSampler, DdpmVariance, ReverseDistribution};
use self::dpm_solver::DpmSolverPp;
use self::ipndm::Ipndm;
use self::uni_pc::UniPc;
use crate::denoiser::predict_eps;
use crate::step::{Stepper, draw_noise, report};
use crate::tensor_checks::num_items;
use crate::{Clip, Denoised, Denoiser, Error, NoiseFn, OnStep, Result, Step, StepChain};

/// A method of generating data from noise along a chain.
///
/// [`Display`](fmt::Display) and [`FromStr`] use the names of [`Sampler::names`], such as `ddim`; the name does not hold
/// `eta`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Sampler {
    /// [`DdimSampler`]: first order; deterministic for `eta = 0`, DDPM with the small variance for `eta = 1`.
    Ddim {
        /// Stochasticity, in `[0, 1]`.
        eta: f64,
    },
    /// [`DdpmSampler`]: ancestral sampling.
    Ddpm(DdpmVariance),
    /// iPNDM: deterministic; the weights of equal steps, of order 1 to 4.
    Ipndm {
        /// Number of predictions that a step combines, from 1 (DDIM) to 4.
        order: usize,
    },
    /// DPM-Solver++(2M): second order, deterministic, one evaluation per step.
    DpmSolverPp2M,
    /// DPM-Solver++(3M): third order, deterministic, one evaluation per step.
    DpmSolverPp3M,
    /// `UniPC` with `bh2`: deterministic, one evaluation per step, each of which also corrects the step before.
    UniPc {
        /// Order of the predictor, 2 or 3.
        order: usize,
    },
}

impl Sampler {
    /// Deterministic DDIM, the sampler of the paper.
    pub const DDIM: Self = Self::Ddim { eta: 0.0 };

    /// All samplers, each with its name.
    const NAMED: [(&'static str, Self); 10] = [
        ("ddim", Self::DDIM),
        ("ddpm", Self::Ddpm(DdpmVariance::FixedLarge)),
        ("ddpm-small", Self::Ddpm(DdpmVariance::FixedSmall)),
        ("ipndm2", Self::Ipndm { order: 2 }),
        ("ipndm3", Self::Ipndm { order: 3 }),
        ("ipndm4", Self::Ipndm { order: 4 }),
        ("dpm++2m", Self::DpmSolverPp2M),
        ("dpm++3m", Self::DpmSolverPp3M),
        ("unipc2", Self::UniPc { order: 2 }),
        ("unipc3", Self::UniPc { order: 3 }),
    ];

    /// Returns the names of all samplers, for help texts and completions.
    #[must_use]
    pub fn names() -> impl ExactSizeIterator<Item = &'static str> {
        Self::NAMED.iter().map(|(name, _)| *name)
    }

    /// Returns whether no step adds noise, so that `x_terminal` alone determines the result.
    #[must_use]
    pub fn is_deterministic(self) -> bool {
        match self {
            Self::Ddim { eta } => eta <= 0.0,
            Self::Ddpm(_) => false,
            Self::Ipndm { .. } | Self::DpmSolverPp2M | Self::DpmSolverPp3M | Self::UniPc { .. } => true,
        }
    }

    /// Sets the stochasticity of DDIM.
    ///
    /// # Errors
    /// [`Error::EtaOutOfRange`]; [`Error::EtaUnused`] for any other sampler, unless `eta` is 0.
    pub fn with_eta(self, eta: f64) -> Result<Self> {
        match self {
            _ if !(0.0..=1.0).contains(&eta) => Err(Error::EtaOutOfRange { got: eta }),
            Self::Ddim { .. } => Ok(Self::Ddim { eta }),
            _ if eta > 0.0 => Err(Error::EtaUnused { sampler: self }),
            _ => Ok(self),
        }
    }

    fn stepper(self, chain: StepChain, clip: Clip) -> Result<Box<dyn Stepper>> {
        Ok(match self {
            Self::Ddim { eta } => Box::new(DdimSampler::new(chain, clip).with_eta(eta)?),
            Self::Ddpm(variance) => Box::new(DdpmSampler::new(chain, clip, variance)),
            Self::Ipndm { order } => Box::new(Ipndm::new(chain, clip, order)),
            Self::DpmSolverPp2M => Box::new(DpmSolverPp::new(chain, clip, 2)),
            Self::DpmSolverPp3M => Box::new(DpmSolverPp::new(chain, clip, 3)),
            Self::UniPc { order } => Box::new(UniPc::new(chain, clip, order)),
        })
    }
}

impl Default for Sampler {
    /// Returns [`Sampler::DDIM`].
    fn default() -> Self {
        Self::DDIM
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ddim { .. } => f.write_str("ddim"),
            Self::Ddpm(DdpmVariance::FixedLarge) => f.write_str("ddpm"),
            Self::Ddpm(DdpmVariance::FixedSmall) => f.write_str("ddpm-small"),
            Self::Ipndm { order } => write!(f, "ipndm{order}"),
            Self::DpmSolverPp2M => f.write_str("dpm++2m"),
            Self::DpmSolverPp3M => f.write_str("dpm++3m"),
            Self::UniPc { order } => write!(f, "unipc{order}"),
        }
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, sampler)| *sampler).ok_or_else(|| Error::UnknownSampler { got: text.to_owned() })
    }
}

/// The reverse process, from noise to data: a sampler, its chain, and whether estimates of `x_0` are clipped.
///
/// States are never inspected for NaN, which would cost a pass per step: what the denoiser returns reaches the result.
/// No graph for gradients is built, whatever the denoiser's weights are.
#[derive(Debug, Clone, PartialEq)]
pub struct ReverseProcess {
    sampler: Sampler,
    chain: StepChain,
    clip: Clip,
}

impl ReverseProcess {
    /// Combines a sampler with a chain.
    #[must_use]
    pub const fn new(sampler: Sampler, chain: StepChain, clip: Clip) -> Self {
        Self { sampler, chain, clip }
    }

    /// Returns the chain of this process.
    #[must_use]
    pub const fn chain(&self) -> &StepChain {
        &self.chain
    }

    /// Runs the chain from noise to data, with one call of the denoiser per step, the noisiest first.
    ///
    /// `noise` is called only for steps that add some; for a deterministic sampler pass [`no_noise`](crate::no_noise).
    /// # Shapes
    /// - `x_terminal`, result: `[N, ..]`, the same; f32 or f64, which is also the precision of the arithmetic.
    /// # Errors
    /// [`Error::EtaOutOfRange`]; [`Error::Cancelled`] if the callback breaks; [`Error::Denoiser`] and
    /// [`Error::NoiseSource`] if these fail; [`Error::NoBatchAxis`], [`Error::UnsupportedDtype`],
    /// [`Error::DtypeMismatch`] and [`Error::ShapeMismatch`] for tensors that do not fit, the denoiser's included;
    /// [`Error::Tensor`] if the arithmetic fails.
    /// # Source
    /// Ho et al. 2020 (arXiv:2006.11239), Algorithm 2; the steps are those of the samplers.
    pub fn run(
        &self,
        denoiser: &(impl Denoiser + ?Sized),
        x_terminal: &Tensor,
        noise: &mut NoiseFn<'_>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        num_items("x_terminal", x_terminal)?;
        let mut stepper = self.sampler.stepper(self.chain.clone(), self.clip)?;
        let num_steps = self.chain.len();
        let mut x_t = x_terminal.detach();
        for (number, idx) in (1..).zip(self.chain.indices().rev()) {
            let timestep = self.chain.timestep(idx)?;
            let eps = predict_eps(denoiser, &x_t, timestep)?;
            let noise = draw_noise(noise, &x_t, stepper.sigma(idx)?, timestep)?;
            let Denoised { x_prev, x_0 } = stepper.step(idx, &x_t, &eps, noise.as_ref())?;
            report(on_step, &Step { number, num_steps, timestep, x_t: &x_prev, x_0: &x_0 })?;
            x_t = x_prev;
        }
        Ok(x_t)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::{NoiseSchedule, StepSequence, Timestep, no_callback, no_noise};

    fn samplers() -> impl Iterator<Item = Sampler> {
        Sampler::NAMED.iter().map(|(_, sampler)| *sampler)
    }

    /// Returns a process with `alpha_bar` = 0.64, then 0.36: all roots are rational.
    fn two_steps(sampler: Sampler, clip: Clip) -> ReverseProcess {
        let schedule = NoiseSchedule::from_betas(vec![0.36, 0.4375]).unwrap();
        ReverseProcess::new(sampler, StepChain::new(&schedule, &StepSequence::All).unwrap(), clip)
    }

    fn row(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
    }

    fn number(tensor: &Tensor) -> f64 {
        tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap()[0]
    }

    fn assert_close(got: &Tensor, expected: f64) {
        let got = number(got);
        assert!((got - expected).abs() < 1e-14, "got {got}, expected {expected}");
    }

    fn zero_eps(x_t: &Tensor, _: &[Timestep]) -> candle_core::Result<Tensor> {
        x_t.zeros_like()
    }

    #[test]
    fn every_name_is_read_back() {
        for (name, sampler) in Sampler::NAMED {
            assert_eq!(name.parse::<Sampler>().unwrap(), sampler);
            assert_eq!(sampler.to_string(), name);
        }
        let error = "euler".parse::<Sampler>().unwrap_err();
        assert!(matches!(error, Error::UnknownSampler { .. }));
        assert!(Sampler::names().all(|name| error.to_string().contains(name)), "{error}");
    }

    #[test]
    fn eta_is_for_ddim_alone() {
        assert_eq!(Sampler::DDIM.with_eta(0.5).unwrap(), Sampler::Ddim { eta: 0.5 });
        assert!(!Sampler::Ddim { eta: 0.5 }.is_deterministic());
        for sampler in samplers().filter(|&sampler| sampler != Sampler::DDIM) {
            assert_eq!(sampler.with_eta(0.0).unwrap(), sampler);
            assert!(matches!(sampler.with_eta(0.5), Err(Error::EtaUnused { .. })));
        }
        for eta in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(Sampler::DDIM.with_eta(eta), Err(Error::EtaOutOfRange { .. })));
            let process = two_steps(Sampler::Ddim { eta }, Clip::None);
            let error = process.run(&zero_eps, &row(&[1.0]), &mut no_noise, &mut no_callback).unwrap_err();
            assert!(matches!(error, Error::EtaOutOfRange { .. }), "{error}");
        }
    }

    #[test]
    fn noise_is_drawn_once_per_step_but_the_last_if_at_all() {
        for sampler in samplers() {
            let mut num_draws = 0;
            let mut noise = |like: &Tensor| {
                num_draws += 1;
                like.ones_like()
            };
            let x_0 = two_steps(sampler, Clip::None).run(&zero_eps, &row(&[0.6]), &mut noise, &mut no_callback);
            assert_eq!(num_draws, usize::from(!sampler.is_deterministic()), "{sampler}");
            if sampler == Sampler::Ddpm(DdpmVariance::FixedLarge) {
                // The first step goes from 0.6 to 0.8 and adds noise, the last one divides by 0.8.
                assert_close(&x_0.unwrap(), (0.8 + 0.4375_f64.sqrt()) / 0.8);
            }
        }
    }

    #[test]
    fn an_only_step_is_noiseless_and_returns_x_0() {
        let schedule = NoiseSchedule::from_betas(vec![0.36]).unwrap();
        let chain = StepChain::new(&schedule, &StepSequence::All).unwrap();
        for sampler in samplers() {
            let process = ReverseProcess::new(sampler, chain.clone(), Clip::None);
            assert_close(&process.run(&zero_eps, &row(&[0.8]), &mut no_noise, &mut no_callback).unwrap(), 1.0);
        }
    }

    #[test]
    fn the_denoiser_is_told_training_timesteps_from_the_noisiest() {
        let schedule = NoiseSchedule::from_betas(vec![0.1; 100]).unwrap();
        let chain = StepChain::new(&schedule, &StepSequence::Ddim(4)).unwrap();
        for sampler in samplers() {
            let told = std::cell::RefCell::new(Vec::new());
            let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
                told.borrow_mut().push(timesteps[0].get());
                x_t.zeros_like()
            };
            let process = ReverseProcess::new(sampler, chain.clone(), Clip::None);
            process.run(&denoiser, &row(&[1.0]), &mut Tensor::zeros_like, &mut no_callback).unwrap();
            assert_eq!(told.take(), [75, 50, 25, 0], "{sampler}");
        }
    }

    #[test]
    fn the_callback_is_told_each_new_state() {
        let mut told = Vec::new();
        let mut on_step = |step: &Step<'_>| {
            told.push((step.number, step.num_steps, step.timestep.get(), step.x_t.clone(), step.x_0.clone()));
            ControlFlow::Continue(())
        };
        let process = two_steps(Sampler::DDIM, Clip::None);
        let decoded = process.run(&zero_eps, &row(&[0.6]), &mut no_noise, &mut on_step).unwrap();
        let [first, last] = &told[..] else { panic!("{} steps", told.len()) };
        assert_eq!((first.0, first.1, first.2), (1, 2, 1));
        assert_close(&first.3, 0.8);
        assert_close(&first.4, 1.0);
        assert_eq!((last.0, last.1, last.2), (2, 2, 0));
        assert_close(&last.3, number(&decoded));
    }

    #[test]
    fn the_callback_can_stop() {
        for sampler in samplers() {
            let stop = &mut |_: &Step<'_>| ControlFlow::Break(());
            let process = two_steps(sampler, Clip::None);
            let error = process.run(&zero_eps, &row(&[1.0]), &mut Tensor::zeros_like, stop).unwrap_err();
            assert!(matches!(error, Error::Cancelled { after_steps: 1 }), "{error}");
        }
    }

    #[test]
    fn a_failing_source_of_noise_says_at_which_timestep() {
        let process = two_steps(Sampler::Ddpm(DdpmVariance::FixedSmall), Clip::None);
        let error = process.run(&zero_eps, &row(&[1.0]), &mut no_noise, &mut no_callback).unwrap_err();
        assert!(matches!(error, Error::NoiseSource { timestep, .. } if timestep.get() == 1), "{error}");
    }

    #[test]
    fn a_state_that_no_chain_can_work_on_is_rejected() {
        for sampler in samplers() {
            let process = two_steps(sampler, Clip::UnitRange);
            let run = |x_terminal: &Tensor| {
                process.run(&zero_eps, x_terminal, &mut Tensor::zeros_like, &mut no_callback).unwrap_err()
            };
            let error = run(&Tensor::new(1.0, &Device::Cpu).unwrap());
            assert!(matches!(error, Error::NoBatchAxis { name: "x_terminal" }), "{error}");
            let error = run(&row(&[1.0]).to_dtype(DType::U8).unwrap());
            assert!(matches!(error, Error::UnsupportedDtype { name: "x_terminal", got: DType::U8 }), "{error}");
        }
    }

    #[test]
    fn nan_from_the_denoiser_reaches_the_result() {
        let denoiser = |x_t: &Tensor, _: &[Timestep]| x_t * f64::NAN;
        for sampler in samplers() {
            let process = two_steps(sampler, Clip::UnitRange);
            let decoded = process.run(&denoiser, &row(&[1.0]), &mut Tensor::zeros_like, &mut no_callback).unwrap();
            assert!(number(&decoded).is_nan(), "{sampler}");
        }
    }

    #[test]
    fn no_graph_is_built() {
        let weight = Var::from_tensor(&row(&[1.0])).unwrap();
        let denoiser = |x_t: &Tensor, _: &[Timestep]| x_t * weight.as_tensor();
        for sampler in samplers() {
            let process = two_steps(sampler, Clip::None);
            let decoded = process.run(&denoiser, weight.as_tensor(), &mut Tensor::zeros_like, &mut no_callback);
            assert!(!decoded.unwrap().track_op(), "{sampler}");
        }
    }

    /// Standard deviation of the normal data of the convergence tests.
    const DATA_STD: f64 = 0.3;
    /// Steps that start from the exact solution, so that a method has its history.
    const NUM_EXACT: usize = 3;

    /// Steps at the end that are of lower order.
    const NUM_LAST: usize = 3;

    /// Returns a chain of `num_steps` even steps in `place`, from `begin` to `end`, which gives the noise-to-signal ratio.
    fn even_chain(num_steps: usize, [begin, end]: [f64; 2], ratio: fn(f64) -> f64) -> StepChain {
        let place = |step: usize| begin + (end - begin) * step as f64 / (num_steps - 1) as f64;
        let alpha_bars: Vec<f64> = (0..num_steps).map(|step| (1.0 + ratio(place(step)).powi(2)).recip()).collect();
        let before = std::iter::once(1.0).chain(alpha_bars.iter().copied());
        let betas = alpha_bars.iter().zip(before).map(|(alpha_bar, before)| 1.0 - alpha_bar / before).collect();
        StepChain::new(&NoiseSchedule::from_betas(betas).unwrap(), &StepSequence::All).unwrap()
    }

    /// Measures the error at the node before the steps of lower order at the end, for normal data, for which the exact solution is
    /// `x_t / sqrt(alpha_bar DATA_STD^2 + 1 - alpha_bar) = const`; `x_0` and eps are proportional to `x_t`.
    fn error_of(sampler: Sampler, chain: &StepChain) -> f64 {
        let variance = |idx| {
            let alpha_bar = chain.alpha_bar(idx).unwrap();
            alpha_bar * DATA_STD * DATA_STD + 1.0 - alpha_bar
        };
        let mut stepper = sampler.stepper(chain.clone(), Clip::None).unwrap();
        let mut x_t = row(&[1.0]);
        for (number, idx) in (0..).zip(chain.indices().rev().take(chain.len() - NUM_LAST)) {
            if number < NUM_EXACT {
                x_t = row(&[variance(idx).sqrt()]);
            }
            let eps = (&x_t * ((1.0 - chain.alpha_bar(idx).unwrap()).sqrt() / variance(idx))).unwrap();
            x_t = stepper.step(idx, &x_t, &eps, None).unwrap().x_prev;
        }
        (number(&x_t) - variance(crate::StepIdx::new(NUM_LAST - 1)).sqrt()).abs()
    }

    #[test]
    fn the_order_of_convergence_is_that_of_the_method() {
        // UniPC-p is of order p + 1, as its corrector raises the order of its predictor by one.
        let by_log_snr = [
            (Sampler::DDIM, 1.0),
            (Sampler::DpmSolverPp2M, 2.0),
            (Sampler::DpmSolverPp3M, 3.0),
            (Sampler::UniPc { order: 2 }, 3.0),
            (Sampler::UniPc { order: 3 }, 4.0),
        ];
        // The weights of iPNDM are those of equal steps in the noise-to-signal ratio.
        let by_ratio = (1..=4).map(|order| (Sampler::Ipndm { order }, order as f64));
        let even_logs: fn(usize) -> StepChain = |num_steps| even_chain(num_steps, [-3.0, 3.0], f64::exp);
        let even_ratios: fn(usize) -> StepChain = |num_steps| even_chain(num_steps, [0.5, 3.0], |ratio| ratio);
        let by_log_snr = by_log_snr.into_iter().map(|(sampler, order)| (sampler, order, even_logs));
        for (sampler, order, chain) in by_log_snr.chain(by_ratio.map(|(sampler, order)| (sampler, order, even_ratios)))
        {
            let errors = [321, 641].map(|num_steps| error_of(sampler, &chain(num_steps)));
            let observed = (errors[0] / errors[1]).log2();
            assert!((observed - order).abs() < 0.2, "{sampler} converges with order {observed}: {errors:?}");
        }
    }
}
