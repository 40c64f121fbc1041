//! Every table and one ancestral step against the numbers of the reference implementation; see `manifest.toml`.

use std::collections::HashMap;
use std::fmt::Display;

use candle_core::{DType, Device, Tensor};
use diffae_schedule::{
    BetaSchedule, Clip, DdpmSampler, DdpmVariance, NoiseSchedule, Result, ReverseProcess, Step, StepChain, StepIdx,
    StepSequence, Timestep, no_noise,
};

/// Relative tolerance for f64 tables: the formulas are the same up to the order of a few operations, and
/// `1 - alpha_bar` loses four of sixteen digits where `alpha_bar` is nearest to 1.
const TABLE_TOLERANCE: f64 = 1e-12;
/// Tolerance for f32 tensors, relative to the largest magnitude: a handful of operations with a relative error of 6e-8
/// each.
const TENSOR_TOLERANCE: f64 = 1e-5;

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load() -> candle_core::Result<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/data/math.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).map(Self)
    }

    fn tensor(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    fn table(&self, name: &str) -> candle_core::Result<Vec<f64>> {
        self.tensor(name).to_vec1()
    }

    /// Returns the names with a prefix, without it, in order.
    fn suffixes<'a>(&'a self, prefix: &'a str) -> Vec<&'a str> {
        let mut suffixes: Vec<&str> = self.0.keys().filter_map(|name| name.strip_prefix(prefix)).collect();
        suffixes.sort_unstable();
        suffixes
    }
}

fn assert_table(what: impl Display, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= TABLE_TOLERANCE * expected.abs(), "{what} at {i}: got {got}, expected {expected}");
    }
}

fn assert_tensor(what: &str, got: &Tensor, expected: &Tensor) -> candle_core::Result<()> {
    assert_eq!((got.dims(), got.dtype()), (expected.dims(), expected.dtype()), "{what}");
    let magnitude = f64::from(expected.abs()?.max_all()?.to_scalar::<f32>()?);
    let error = f64::from((got - expected)?.abs()?.max_all()?.to_scalar::<f32>()?);
    assert!(error <= TENSOR_TOLERANCE * magnitude, "{what}: error {error} at magnitude {magnitude}");
    Ok(())
}

fn linear_chain(sequence: &StepSequence) -> Result<StepChain> {
    StepChain::new(&NoiseSchedule::new(&BetaSchedule::Linear, 1000)?, sequence)
}

fn column(chain: &StepChain, value: impl Fn(&StepChain, StepIdx) -> Result<f64>) -> Result<Vec<f64>> {
    chain.indices().map(|idx| value(chain, idx)).collect()
}

#[test]
fn beta_schedules_match_the_reference() {
    let golden = Golden::load().unwrap();
    let cases = golden.suffixes("betas.");
    assert_eq!(cases.len(), 8, "{cases:?}");
    for case in cases {
        let (name, num_train_timesteps) = case.rsplit_once('.').unwrap();
        let schedule: BetaSchedule = name.parse().unwrap();
        let schedule = NoiseSchedule::new(&schedule, num_train_timesteps.parse().unwrap()).unwrap();
        assert_table(case, schedule.betas(), &golden.table(&format!("betas.{case}")).unwrap());
        assert_table(case, schedule.alpha_bars(), &golden.table(&format!("alphas_cumprod.{case}")).unwrap());
    }
}

#[test]
fn step_sequences_match_the_reference() {
    let golden = Golden::load().unwrap();
    let cases = golden.suffixes("timesteps.");
    assert_eq!(cases.len(), 15, "{cases:?}");
    for case in cases {
        let sequence: StepSequence = case.strip_prefix("sections.").unwrap_or(case).parse().unwrap();
        let got: Vec<usize> = sequence.timesteps(1000).unwrap().into_iter().map(Timestep::get).collect();
        let expected: Vec<i64> = golden.tensor(&format!("timesteps.{case}")).to_vec1().unwrap();
        let expected: Vec<usize> = expected.into_iter().map(|t| t.try_into().unwrap()).collect();
        assert_eq!(got, expected, "{case}");
    }
}

#[test]
fn the_chain_of_twenty_steps_matches_the_reference() {
    let golden = Golden::load().unwrap();
    let chain = linear_chain(&StepSequence::Ddim(20)).unwrap();
    for (name, got) in [
        ("alphas_cumprod", column(&chain, StepChain::alpha_bar)),
        ("alphas_cumprod_prev", column(&chain, StepChain::alpha_bar_prev)),
        ("alphas_cumprod_next", column(&chain, StepChain::alpha_bar_next)),
        ("betas", column(&chain, StepChain::beta)),
        ("posterior_variance", column(&chain, |chain, idx| Ok(chain.posterior(idx)?.variance))),
        ("posterior_log_variance_clipped", column(&chain, |chain, idx| Ok(chain.posterior(idx)?.log_variance_clipped))),
        ("posterior_mean_coef1", column(&chain, |chain, idx| Ok(chain.posterior(idx)?.x_0_coefficient))),
        ("posterior_mean_coef2", column(&chain, |chain, idx| Ok(chain.posterior(idx)?.x_t_coefficient))),
    ] {
        assert_table(name, &got.unwrap(), &golden.table(&format!("spaced20.{name}")).unwrap());
    }
    let timesteps: Vec<i64> = golden.tensor("spaced20.timestep_map").to_vec1().unwrap();
    let got: Vec<i64> = chain.timesteps().iter().map(|t| t.get().try_into().unwrap()).collect();
    assert_eq!(got, timesteps);
    assert_eq!(golden.suffixes("spaced20.").len(), 9);
}

#[test]
fn an_ancestral_step_matches_the_reference() {
    let golden = Golden::load().unwrap();
    let chain = linear_chain(&StepSequence::All).unwrap();
    let sampler = DdpmSampler::new(chain, Clip::UnitRange, DdpmVariance::FixedLarge);
    let timesteps: Vec<i64> = golden.tensor("ancestral.t").to_vec1().unwrap();
    assert_eq!(timesteps.len(), 2);
    for (item, timestep) in timesteps.into_iter().enumerate() {
        let of_item = |name: &str| golden.tensor(&format!("ancestral.{name}")).narrow(0, item, 1).unwrap();
        let (x_t, eps) = (of_item("x_t"), of_item("eps"));
        assert_eq!(x_t.dtype(), DType::F32);
        let idx = StepIdx::new(timestep.try_into().unwrap());
        let reverse = sampler.posterior(idx, &x_t, &eps).unwrap();
        assert_tensor("mean", &reverse.mean, &of_item("mean")).unwrap();
        assert_tensor("pred_xstart", &reverse.x_0, &of_item("pred_xstart")).unwrap();
        for (name, value) in [("variance", reverse.variance), ("log_variance", reverse.log_variance)] {
            let got = x_t.zeros_like().and_then(|zeros| zeros.affine(0.0, value)).unwrap();
            assert_tensor(name, &got, &of_item(name)).unwrap();
        }
    }
}

/// Returns the largest difference between the states of a sampler and those of a peer, step by step, along the chain of the
/// peer.
fn difference_from_peer(golden: &Golden, name: &str, spacing: &str) -> Result<f64> {
    let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000)?;
    let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
        let alpha_bar = schedule.alpha_bar(timesteps[0]).map_err(candle_core::Error::wrap)?;
        let x_0 = ((x_t * (alpha_bar.sqrt() / (1.0 - alpha_bar + 0.25 * alpha_bar)))?.tanh()? * 0.5)?;
        (x_t - (x_0 * alpha_bar.sqrt())?)? / (1.0 - alpha_bar).sqrt()
    };
    let timesteps = golden.tensor(&format!("{name}/{spacing}/timesteps")).to_vec1::<i64>()?;
    let timesteps = timesteps.into_iter().rev().map(|t| Timestep::new(usize::try_from(t).unwrap_or(usize::MAX)));
    let chain = StepChain::from_timesteps(&schedule, timesteps.collect())?;
    let mut states = vec![];
    let mut on_step = |step: &Step<'_>| {
        states.push(step.x_t.clone());
        std::ops::ControlFlow::Continue(())
    };
    let process = ReverseProcess::new(name.parse()?, chain, Clip::None);
    process.run(&denoiser, &golden.tensor("x_T").unsqueeze(0)?, &mut no_noise, &mut on_step)?;
    let states = Tensor::cat(&states, 0)?; // [steps, 4]
    let differences = (states - golden.tensor(&format!("{name}/{spacing}/states")))?.abs()?;
    Ok(differences.max_all()?.to_scalar::<f64>()?)
}

fn peer(file: &str) -> candle_core::Result<Golden> {
    let path = format!("{}/tests/parity/data/{file}", env!("CARGO_MANIFEST_DIR"));
    candle_core::safetensors::load(path, &Device::Cpu).map(Golden)
}

/// Steps of the samplers against the schedulers of diffusers; see `xtask/peer/scheduler_fixtures.py`. diffusers keeps its
/// noise levels in f32.
#[test]
fn samplers_take_the_steps_of_diffusers() {
    let golden = peer("diffusers.safetensors").unwrap();
    for name in ["ddim", "dpm++2m", "dpm++3m", "ipndm4", "unipc2", "unipc3"] {
        for spacing in ["linspace", "trailing"] {
            let largest = difference_from_peer(&golden, name, spacing).unwrap();
            // 3M of diffusers has half the weight of the second derivative; see `dpm_solver.rs`. Its DDIM steps to the noise
            // level a stride away, which with this spacing is not that of the next timestep.
            let is_like_theirs = name != "dpm++3m" && (name, spacing) != ("ddim", "linspace");
            assert_eq!(largest < TENSOR_TOLERANCE, is_like_theirs, "{name}, {spacing}: {largest}");
            assert!(largest < 0.1, "{name}, {spacing}: {largest}");
        }
    }
}

/// Steps of the samplers against those of k-diffusion; see `xtask/peer/k_diffusion_fixtures.py`.
#[test]
fn samplers_take_the_steps_of_k_diffusion() {
    let golden = peer("k_diffusion.safetensors").unwrap();
    for name in ["ddim", "dpm++2m", "dpm++3m"] {
        for spacing in ["linspace", "log-snr"] {
            let largest = difference_from_peer(&golden, name, spacing).unwrap();
            // 3M has half the weight of the second derivative here, too.
            assert_eq!(largest < 1e-10, name != "dpm++3m", "{name}, {spacing}: {largest}");
            assert!(largest < 0.1, "{name}, {spacing}: {largest}");
        }
    }
}
