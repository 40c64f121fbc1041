//! Noise schedules, samplers (DDIM, DDPM, iPNDM, DPM-Solver++, `UniPC`), DDIM inversion, exact inversion and step
//! sequences for Diffusion Autoencoders.
//!
//! The crate depends on no network: a noise predictor implements [`Denoiser`]. It draws no random numbers: noise is an
//! argument. It computes its tables in f64, and runs chains in the dtype of the state, f32 or f64.
//!
//! A [`BetaSchedule`] defines a [`NoiseSchedule`] over the training grid. A [`StepSequence`] selects its timesteps
//! for a [`StepChain`], along which a [`ReverseProcess`] goes from noise to data with any [`Sampler`], and a
//! [`DdimSampler`] the other way.
//!
//! # Notation
//!
//! | Here | Papers | Meaning |
//! |---|---|---|
//! | `x_0`, `x_t` | same | clean data, and data with the noise of timestep t |
//! | `x_prev`, `x_next` | `x_{t-1}`, `x_{t+1}` | the states next to `x_t` on the path: less and more noisy |
//! | `x_terminal` | `x_T` | the noise at the end of the path; after inversion, the stochastic code |
//! | `eps` | epsilon | the noise in `x_t`, or its prediction |
//! | `beta` | `beta_t` | the variance that a timestep adds |
//! | `alpha_bar` | `alpha_bar_t`; `alpha_t` in the DDIM and Diff-AE papers | product of `1 - beta` up to and including t |
//! | `alpha_bar_prev`, `alpha_bar_next` | `alpha_{t-1}`, `alpha_{t+1}` | the neighbors' in the chain; 1 and 0 beyond |
//! | `eta`, `sigma` | same | stochasticity in `[0, 1]`, and standard deviation of the noise that a step adds |
//! | [`Timestep`], `num_train_timesteps` | t, T | position on the training grid, and its length |
//! | [`StepIdx`], `num_sampling_steps` | i and S of `tau_i` | position in the short chain, and its length |
//!
//! # Example
//!
//! Data whose values are normal with variance 1/4 has a known best prediction of the noise, so no network is needed to
//! find the `x_terminal` that belongs to some data, and the data again:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use diffae_schedule::{
//!     BetaSchedule, Clip, DdimSampler, NoiseSchedule, ReverseProcess, Sampler, StepChain, StepSequence, Timestep,
//!     no_callback, no_noise,
//! };
//!
//! let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000)?;
//! let chain = StepChain::new(&schedule, &"ddim250".parse::<StepSequence>()?)?;
//! let inversion = DdimSampler::new(chain.clone(), Clip::None);
//! let decoding = ReverseProcess::new(Sampler::DDIM, chain, Clip::None);
//! let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
//!     let alpha_bar = schedule.alpha_bar(timesteps[0]).map_err(candle_core::Error::wrap)?;
//!     x_t.affine((1.0 - alpha_bar).sqrt() / (alpha_bar / 4.0 + 1.0 - alpha_bar), 0.0)
//! };
//!
//! let x_0 = Tensor::new(&[[0.1, -0.6, 0.4]], &Device::Cpu)?; // [N, D]
//! let x_terminal = inversion.invert(&denoiser, &x_0, &mut no_callback)?;
//! let decoded = decoding.run(&denoiser, &x_terminal, &mut no_noise, &mut no_callback)?;
//!
//! // The path stretches the data to variance 1, and leads back.
//! let largest = |x: Tensor| x.abs()?.max_all()?.to_scalar::<f64>();
//! assert!(largest((x_terminal - (&x_0 * 2.0)?)?)? < 0.03);
//! assert!(largest((decoded - x_0)?)? < 0.03);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod analytic;
mod beta;
mod chain;
mod denoiser;
mod error;
mod exact;
mod fixed_point;
mod noise_schedule;
mod posterior;
mod prediction;
mod sampler;
mod spacing;
mod step;
mod target;
mod tensor_checks;
mod timesteps;

pub use beta::BetaSchedule;
pub use chain::StepChain;
pub use denoiser::Denoiser;
pub use error::{Error, Result};
pub use exact::{ExactChain, ExactCode, ExactCoefficients, ExactWeights};
pub use fixed_point::FixedPoint;
pub use noise_schedule::NoiseSchedule;
pub use posterior::Posterior;
pub use prediction::{Clip, Prediction, eps_from_x_0, x_0_from_eps};
pub use sampler::{DdimSampler, DdpmSampler, DdpmVariance, ReverseDistribution, ReverseProcess, Sampler};
pub use spacing::Spacing;
pub use step::{Denoised, Inverted, NoiseFn, OnStep, Step, no_callback, no_noise};
pub use target::PredictionTarget;
pub use timesteps::{StepIdx, StepSequence, Timestep};
