//! Whole chains against known properties: end points, inverses, and agreement between samplers.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use candle_core::{DType, Device, Result, Tensor};
use diffae_schedule::{
    BetaSchedule, Clip, DdimSampler, DdpmVariance, Denoiser, NoiseSchedule, ReverseProcess, Sampler, Step, StepChain,
    StepIdx, StepSequence, Timestep, eps_from_x_0, no_callback, no_noise,
};
use proptest::prelude::*;

/// Absolute tolerance for f64 chains with values near 1: rounding that grows by `1 / sqrt(1 - alpha_bar)`, at most 100,
/// a step.
const ROUNDING: f64 = 1e-11;

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap()
}

fn sampler(sequence: &StepSequence, clip: Clip) -> DdimSampler {
    DdimSampler::new(StepChain::new(&schedule(), sequence).unwrap(), clip)
}

fn process(sampler: Sampler, sequence: &StepSequence, clip: Clip) -> ReverseProcess {
    ReverseProcess::new(sampler, StepChain::new(&schedule(), sequence).unwrap(), clip)
}

/// Decodes with deterministic DDIM along the chain of `inversion`.
fn decode(inversion: &DdimSampler, clip: Clip, denoiser: &impl Denoiser, x_terminal: &Tensor) -> Tensor {
    let process = ReverseProcess::new(Sampler::DDIM, inversion.chain().clone(), clip);
    process.run(denoiser, x_terminal, &mut no_noise, &mut no_callback).unwrap()
}

/// Returns values in `[-1, 1]` without a simple pattern; `seed` distinguishes tensors that must not be proportional.
fn values(shape: &[usize], seed: usize) -> Result<Tensor> {
    let num_elements: usize = shape.iter().product();
    let values: Vec<f64> = (0..num_elements).map(|i| ((1 + i + 97 * seed) as f64 * 12.9898).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a - b)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar()
}

fn alpha_bar(schedule: &NoiseSchedule, timesteps: &[Timestep]) -> Result<f64> {
    schedule.alpha_bar(timesteps[0]).map_err(candle_core::Error::wrap)
}

/// Returns the optimal prediction for data of independent normal values with mean 0 and standard deviation `data_std`:
/// `E[eps | x_t] = sqrt(1 - alpha_bar) / (alpha_bar * data_std^2 + 1 - alpha_bar) * x_t`.
fn gaussian(data_std: f64) -> impl Fn(&Tensor, &[Timestep]) -> Result<Tensor> {
    let schedule = schedule();
    move |x_t: &Tensor, timesteps: &[Timestep]| {
        let alpha_bar = alpha_bar(&schedule, timesteps)?;
        x_t.affine((1.0 - alpha_bar).sqrt() / (alpha_bar * data_std * data_std + 1.0 - alpha_bar), 0.0)
    }
}

/// Returns the factor by which DDIM with the prediction of [`gaussian`] takes a state from one noise level to another,
/// in either direction: `x_0` and `eps` are proportional to `x_t`.
fn gaussian_factor(data_std: f64, from: f64, to: f64) -> f64 {
    let variance = data_std * data_std;
    ((from * to).sqrt() * variance + ((1.0 - from) * (1.0 - to)).sqrt()) / (from * variance + 1.0 - from)
}

/// Returns the `alpha_bar` of each step of a chain, in the order of inversion.
fn levels(sampler: &DdimSampler) -> Vec<f64> {
    let schedule = schedule();
    sampler.chain().timesteps().iter().map(|&timestep| schedule.alpha_bar(timestep).unwrap()).collect()
}

#[test]
fn decoding_gaussian_data_has_the_closed_form() {
    for sequence in ["ddim10", "10,15,20", "all"] {
        let sampler = sampler(&sequence.parse().unwrap(), Clip::None);
        let mut path: Vec<f64> = levels(&sampler);
        path.reverse();
        path.push(1.0);
        let factor: f64 = path.windows(2).map(|pair| gaussian_factor(0.3, pair[0], pair[1])).product();
        let x_terminal = values(&[2, 5], 0).unwrap();
        let decoded = decode(&sampler, Clip::None, &gaussian(0.3), &x_terminal);
        let error = distance(&decoded, &(x_terminal * factor).unwrap()).unwrap();
        assert!(error < ROUNDING, "{sequence}: {error}");
    }
}

#[test]
fn inverting_gaussian_data_has_the_closed_form() {
    for sequence in ["ddim10", "10,15,20", "all"] {
        let sampler = sampler(&sequence.parse().unwrap(), Clip::None);
        let mut path: Vec<f64> = levels(&sampler);
        path.push(0.0);
        let factor: f64 = path.windows(2).map(|pair| gaussian_factor(0.3, pair[0], pair[1])).product();
        let x_0 = values(&[2, 5], 0).unwrap();
        let x_terminal = sampler.invert(&gaussian(0.3), &x_0, &mut no_callback).unwrap();
        let error = distance(&x_terminal, &(x_0 * factor).unwrap()).unwrap();
        assert!(error < ROUNDING, "{sequence}: {error}");
    }
}

#[test]
fn more_steps_bring_the_round_trip_nearer_to_the_data() {
    let x_0 = (values(&[2, 5], 0).unwrap() * 0.3).unwrap();
    let errors = [10, 20, 50, 100, 250, 1000].map(|num_steps| {
        let sampler = sampler(&StepSequence::Ddim(num_steps), Clip::None);
        let x_terminal = sampler.invert(&gaussian(0.3), &x_0, &mut no_callback).unwrap();
        let decoded = decode(&sampler, Clip::None, &gaussian(0.3), &x_terminal);
        distance(&decoded, &x_0).unwrap()
    });
    assert!(errors.is_sorted_by(|few, more| few > more), "{errors:?}");
    // DDIM is of first order: once the steps are short, twice as many have half the error.
    for (num_steps, error) in [(50.0, errors[2]), (100.0, errors[3]), (250.0, errors[4]), (1000.0, errors[5])] {
        assert!((2.0..3.0).contains(&(num_steps * error)), "{errors:?}");
    }
}

/// For data that is one point, each `eps` is exact: `x_0` and `eps` stay the same along the path.
#[test]
fn one_point_comes_back_exactly_from_its_inversion() {
    for clip in [Clip::UnitRange, Clip::None] {
        for sequence in ["ddim10", "10,15,20", "ddim250"] {
            let (sampler, schedule) = (sampler(&sequence.parse().unwrap(), clip), schedule());
            let x_0 = values(&[2, 5], 0).unwrap();
            let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
                eps_from_x_0(x_t, &x_0, alpha_bar(&schedule, timesteps)?).map_err(candle_core::Error::wrap)
            };
            let x_terminal = sampler.invert(&denoiser, &x_0, &mut no_callback).unwrap();
            let expected = denoiser(&x_0, &[Timestep::new(0)]).unwrap();
            assert!(distance(&x_terminal, &expected).unwrap() < ROUNDING);
            let decoded = decode(&sampler, clip, &denoiser, &x_terminal);
            assert!(distance(&decoded, &x_0).unwrap() < ROUNDING);
        }
    }
}

#[test]
fn single_precision_follows_double_precision() {
    let sampler = sampler(&StepSequence::Ddim(20), Clip::UnitRange);
    let x_0 = values(&[2, 3, 4, 4], 0).unwrap();
    let round_trip = |x_0: &Tensor| {
        let x_terminal = sampler.invert(&gaussian(0.5), x_0, &mut no_callback).unwrap();
        let decoded = decode(&sampler, Clip::UnitRange, &gaussian(0.5), &x_terminal);
        (x_terminal, decoded)
    };
    let (x_terminal, decoded) = round_trip(&x_0);
    let (x_terminal_f32, decoded_f32) = round_trip(&x_0.to_dtype(DType::F32).unwrap());
    for (single, double) in [(x_terminal_f32, x_terminal), (decoded_f32, decoded)] {
        assert_eq!((single.dtype(), double.dtype()), (DType::F32, DType::F64));
        let error = distance(&single.to_dtype(DType::F64).unwrap(), &double).unwrap();
        assert!(error < 1e-4, "{error}");
    }
}

#[test]
fn a_batch_goes_like_its_items_to_the_bit() {
    let x = values(&[3, 2, 4], 0).unwrap().to_dtype(DType::F32).unwrap();
    let noise = |like: &Tensor| like.affine(0.5, 0.25);
    let sequence = StepSequence::Ddim(10);
    let stochastic = Sampler::Ddim { eta: 0.7 };
    let samplers = Sampler::names().map(|name| name.parse().unwrap()).chain([stochastic]).collect::<Vec<Sampler>>();
    let run = |x: &Tensor| {
        let denoiser = gaussian(0.5);
        let mut results = vec![sampler(&sequence, Clip::UnitRange).invert(&denoiser, x, &mut no_callback).unwrap()];
        for &method in &samplers {
            let process = process(method, &sequence, Clip::UnitRange);
            results.push(process.run(&denoiser, x, &mut { noise }, &mut no_callback).unwrap());
        }
        results
    };
    let batch = run(&x);
    for item in 0..3 {
        let of_item = |tensor: &Tensor| tensor.narrow(0, item, 1).unwrap().to_vec3::<f32>().unwrap();
        for (batched, alone) in batch.iter().zip(run(&x.narrow(0, item, 1).unwrap())) {
            assert_eq!(of_item(batched), alone.to_vec3::<f32>().unwrap());
        }
    }
}

/// Returns a prediction that is neither linear nor optimal, and makes `x_0` leave `[-1, 1]`.
fn crooked(x_t: &Tensor, timesteps: &[Timestep]) -> Result<Tensor> {
    (x_t * 1.3)?.affine(1.0, 1e-4 * timesteps[0].get() as f64)?.sin()
}

#[test]
fn full_stochasticity_is_ddpm_with_the_small_variance() {
    let x_terminal = values(&[2, 3], 0).unwrap();
    for clip in [Clip::UnitRange, Clip::None] {
        for sequence in ["all", "ddim20"] {
            let sequence = sequence.parse().unwrap();
            let ddpm = process(Sampler::Ddpm(DdpmVariance::FixedSmall), &sequence, clip);
            let ddim = process(Sampler::Ddim { eta: 1.0 }, &sequence, clip);
            let numbered_noise = || {
                let mut seed = 0;
                move |like: &Tensor| {
                    seed += 1;
                    values(like.dims(), seed)
                }
            };
            let by_ddpm = ddpm.run(&crooked, &x_terminal, &mut numbered_noise(), &mut no_callback).unwrap();
            let by_ddim = ddim.run(&crooked, &x_terminal, &mut numbered_noise(), &mut no_callback).unwrap();
            let error = distance(&by_ddpm, &by_ddim).unwrap();
            assert!(error < 1e-10, "{sequence}, {clip:?}: {error}");
        }
    }
}

/// Returns a training grid on which `lambda`, half the logarithm of `alpha_bar / (1 - alpha_bar)`, goes from 2 to -2:
/// evenly for `bend = 0`, and else with steps whose lengths change along the chain.
fn log_snr_schedule(bend: f64) -> NoiseSchedule {
    let alpha_bar = |t: usize| {
        let along = t as f64 / 960.0;
        let lambda = 2.0 - 4.0 * (along + bend * along * (along - 1.0));
        1.0 / (1.0 + (-2.0 * lambda).exp())
    };
    let beta = |t: usize| 1.0 - alpha_bar(t) / t.checked_sub(1).map_or(1.0, alpha_bar);
    NoiseSchedule::from_betas((0..=960).map(beta).collect()).unwrap()
}

/// Measures the error at the least noisy timestep, with ever shorter steps, against the exact solution for Gaussian
/// data of standard deviation 0.3: `x_t / sqrt(alpha_bar * 0.3^2 + 1 - alpha_bar)` stays the same along the
/// probability-flow ODE.
fn errors_of_shorter_steps(method: Sampler, bend: f64) -> Vec<f64> {
    let schedule = log_snr_schedule(bend);
    let std = |t: usize| {
        let alpha_bar = schedule.alpha_bar(Timestep::new(t)).unwrap();
        (alpha_bar * 0.09 + 1.0 - alpha_bar).sqrt()
    };
    let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
        let alpha_bar = alpha_bar(&schedule, timesteps)?;
        x_t.affine((1.0 - alpha_bar).sqrt() / (alpha_bar * 0.09 + 1.0 - alpha_bar), 0.0)
    };
    let x_terminal = values(&[2, 5], 0).unwrap();
    let exact = (&x_terminal * (std(0) / std(960))).unwrap();
    let error = |num_steps: usize| {
        let chain = StepChain::new(&schedule, &StepSequence::Sections(vec![num_steps])).unwrap();
        let mut states = vec![];
        let mut on_step = |step: &Step<'_>| {
            states.push(step.x_t.clone());
            std::ops::ControlFlow::Continue(())
        };
        let process = ReverseProcess::new(method, chain, Clip::None);
        process.run(&denoiser, &x_terminal, &mut no_noise, &mut on_step).unwrap();
        // The last step leaves the grid for clean data; the one before ends at timestep 0.
        distance(&states[num_steps - 2], &exact).unwrap()
    };
    [121, 241, 481, 961].map(error).to_vec()
}

#[test]
fn the_order_of_convergence_is_that_of_the_sampler() {
    for (method, order) in [(Sampler::DDIM, 1), (Sampler::DpmSolverPp2M, 2)] {
        for bend in [0.0, 0.5] {
            let errors = errors_of_shorter_steps(method, bend);
            for halving in errors.windows(2) {
                let got = (halving[0] / halving[1]).log2();
                assert!((got - f64::from(order)).abs() < 0.25, "{method}, bend {bend}: order {got}, {errors:?}");
            }
        }
    }
}

/// For data that is one point every estimate of `x_0` is that point, whatever the sampler extrapolates from.
#[test]
fn every_deterministic_sampler_finds_the_one_point() {
    let (schedule, x_0) = (schedule(), values(&[2, 5], 0).unwrap());
    let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
        eps_from_x_0(x_t, &x_0, alpha_bar(&schedule, timesteps)?).map_err(candle_core::Error::wrap)
    };
    let samplers = Sampler::names().map(|name| name.parse::<Sampler>().unwrap());
    for method in samplers.filter(|method| method.is_deterministic()) {
        for sequence in ["ddim1", "ddim2", "ddim10", "10,15,20", "all"] {
            let process = process(method, &sequence.parse().unwrap(), Clip::UnitRange);
            let x_terminal = values(&[2, 5], 1).unwrap();
            let decoded = process.run(&denoiser, &x_terminal, &mut no_noise, &mut no_callback).unwrap();
            assert!(distance(&decoded, &x_0).unwrap() < ROUNDING, "{method}, {sequence}");
        }
    }
}

proptest! {
    /// Checks the exact inverse: with the same `eps`, a step towards the data undoes the step towards the noise.
    #[test]
    fn a_step_back_undoes_a_step_ahead(
        num_steps in 2..200_usize,
        position in 0.0..1.0,
        x_t in proptest::collection::vec(-2.0..2.0, 6),
        eps in proptest::collection::vec(-2.0..2.0, 6),
    ) {
        let sampler = sampler(&StepSequence::Sections(vec![num_steps]), Clip::None);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a usize")]
        let idx = (position * (num_steps - 1) as f64) as usize;
        let x_t = Tensor::new(x_t, &Device::Cpu).unwrap();
        let eps = Tensor::new(eps, &Device::Cpu).unwrap();
        let ahead = sampler.invert_step(StepIdx::new(idx), &x_t, &eps).unwrap();
        let back = sampler.denoise_step(StepIdx::new(idx + 1), &ahead.x_next, &eps, None).unwrap();
        prop_assert!(distance(&back.x_prev, &x_t).unwrap() < 1e-12);
        let magnification = sampler.chain().alpha_bar(StepIdx::new(idx)).unwrap().sqrt().recip();
        prop_assert!(distance(&back.x_0, &ahead.x_0).unwrap() < 1e-12 * magnification);
    }

    /// Checks the exact inverse with clipping, for the recomputed `eps`.
    #[test]
    fn a_step_back_undoes_a_clipped_step_ahead(
        num_steps in 2..200_usize,
        position in 0.0..1.0,
        x_t in proptest::collection::vec(-2.0..2.0, 6),
        eps in proptest::collection::vec(-2.0..2.0, 6),
    ) {
        let sampler = sampler(&StepSequence::Sections(vec![num_steps]), Clip::UnitRange);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a usize")]
        let idx = (position * (num_steps - 1) as f64) as usize;
        let x_t = Tensor::new(x_t, &Device::Cpu).unwrap();
        let eps = Tensor::new(eps, &Device::Cpu).unwrap();
        let ahead = sampler.invert_step(StepIdx::new(idx), &x_t, &eps).unwrap();
        let alpha_bar = sampler.chain().alpha_bar(StepIdx::new(idx)).unwrap();
        let eps = eps_from_x_0(&x_t, &ahead.x_0, alpha_bar).unwrap();
        let back = sampler.denoise_step(StepIdx::new(idx + 1), &ahead.x_next, &eps, None).unwrap();
        prop_assert!(distance(&back.x_prev, &x_t).unwrap() < 1e-10);
        prop_assert!(distance(&back.x_0, &ahead.x_0).unwrap() < 1e-10);
    }
}
