//! Timesteps that suit a model: the search behind [`Spacing::Tuned`].

use candle_core::Tensor;
use diffae_schedule::{Clip, NoiseSchedule, ReverseProcess, Sampler, Spacing, StepChain, Timestep, no_noise};

use crate::error::{Error, Result, computing};
use crate::model::Model;
use crate::noise::NoiseSource;
use crate::observer::{NetworkCall, Observer, on_step};
use crate::settings::PipelineSettings;

/// Rounds of the search, each with half the stride of the one before.
const NUM_ROUNDS: usize = 6;
/// Minimum of the mean squared error, which keeps the PSNR of equal pictures finite.
const MIN_MSE: f64 = 1e-12;

/// Settings of a search for timesteps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TuningOptions {
    /// Number of steps, N; 2 or more. Default: 5.
    pub steps: usize,
    /// Deterministic sampler that takes them. Default: DPM-Solver++(2M).
    pub sampler: Sampler,
    /// Steps of the chain that is taken for the exact solution: DPM-Solver++(2M), even in log-SNR. Default: 50.
    pub solution_steps: usize,
    /// Seed of the noise maps. Default: 0.
    pub seed: u64,
}

impl Default for TuningOptions {
    fn default() -> Self {
        Self { steps: 5, sampler: Sampler::DpmSolverPp2M, solution_steps: 50, seed: 0 }
    }
}

impl TuningOptions {
    /// Returns the maximum number of [`NetworkCall::Decoder`] calls, times pictures, that a search over `num_pictures` takes.
    #[must_use]
    pub fn max_calls(&self, num_pictures: usize) -> usize {
        let max_trials = 1 + NUM_ROUNDS * 2 * self.steps.saturating_sub(1);
        let num_fitted = num_pictures.div_ceil(2);
        num_pictures * self.solution_steps + (num_fitted * max_trials + 2 * (num_pictures - num_fitted)) * self.steps
    }
}

/// Timesteps that a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct TunedSteps {
    /// The timesteps, strictly increasing.
    pub timesteps: Vec<usize>,
    /// Mean PSNR in dB of held-out pictures to the exact solution, with timesteps even in log-SNR and with those found.
    pub psnr: [f64; 2],
}

/// A search for timesteps on a model.
#[derive(Debug)]
pub struct Tuning<'a> {
    model: &'a Model,
    options: TuningOptions,
    fitted: Solved,
    held_out: Solved,
}

/// Codes of pictures, and the pictures that an exact solver makes of them.
#[derive(Debug)]
struct Solved {
    z_sem: Option<Tensor>,
    x_terminal: Tensor,
    x_0: Tensor,
}

impl<'a> Tuning<'a> {
    /// Computes what the search compares with. Every other picture is held out; each gets a noise map of its own, and the
    /// pictures themselves count by their `z_sem` alone.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`, on the model's device; N of 2 or more.
    /// # Errors
    /// [`Error::OutOfRange`] with fewer than two pictures or steps, or a sampler that adds noise;
    /// [`Error::Conflict`] of a distilled or polished model; [`Error::MissingPart`] in a one-shot autoencoder; [`Error::Schedule`] if the schedule
    /// has no such chain;
    /// [`Error::Cancelled`] if the observer breaks.
    pub fn new(model: &'a Model, x_0: &Tensor, options: TuningOptions, observer: &mut Observer<'_>) -> Result<Self> {
        if model.config().chains().is_some_and(|chains| chains.distilled.is_some()) {
            let problem =
                "the decoder was trained for the timesteps of its own steps alone; tune the model that it was made of";
            return Err(Error::Conflict { problem: problem.to_owned() });
        }
        let count = computing("counting pictures", x_0.dim(0))?;
        for (what, got) in [("the number of pictures", count), ("the number of steps", options.steps)] {
            if got < 2 {
                return Err(Error::OutOfRange { what, got: got.to_string(), expected: "2 or more" });
            }
        }
        if !options.sampler.is_deterministic() {
            let (what, got) = ("the sampler", options.sampler.to_string());
            return Err(Error::OutOfRange { what, got, expected: "one that adds no noise" });
        }
        let mut solve = |first: usize| -> Result<Solved> {
            let rows: Vec<u32> = (0_u32..).take(count).skip(first).step_by(2).collect();
            let numbers: Vec<u64> = rows.iter().copied().map(u64::from).collect();
            let rows = computing("selecting pictures", Tensor::new(rows, x_0.device()))?;
            let x_0 = computing("selecting pictures", x_0.index_select(&rows, 0))?;
            let z_sem = model.has_z_sem().then(|| model.encode_semantic(&x_0)).transpose()?;
            let x_terminal = model.random_x_terminal(NoiseSource::new(options.seed), numbers)?;
            let chain = model.step_chain(Spacing::LogSnr, options.solution_steps)?;
            let process = ReverseProcess::new(Sampler::DpmSolverPp2M, chain, model.clip_of_states(Clip::UnitRange));
            let x_0 = decode(model, (&x_terminal, z_sem.as_ref()), &process, observer)?;
            Ok(Solved { z_sem, x_terminal, x_0 })
        };
        Ok(Self { model, options, fitted: solve(0)?, held_out: solve(1)? })
    }

    /// Searches: begins with timesteps even in log-SNR, and moves one of them at a time towards its neighbors in log-SNR
    /// as long as the mean PSNR to the exact solution rises; the noisiest one stays.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer breaks; as [`Model::decode`].
    pub fn run(&self, observer: &mut Observer<'_>) -> Result<TunedSteps> {
        let schedule = self.model.schedule()?;
        let even = Spacing::LogSnr.timesteps(schedule, self.options.steps)?;
        let mut found = even.clone();
        let mut best = self.psnr(&self.fitted, &found, observer)?;
        let mut stride = 0.5;
        for _ in 0..NUM_ROUNDS {
            for node in 0..found.len() - 1 {
                for towards in [-1.0, 1.0] {
                    let Some(moved) = moved(schedule, &found, node, towards * stride)? else { continue };
                    let psnr = self.psnr(&self.fitted, &moved, observer)?;
                    if psnr > best {
                        (best, found) = (psnr, moved);
                    }
                }
            }
            stride *= 0.5;
        }
        let psnr = [self.psnr(&self.held_out, &even, observer)?, self.psnr(&self.held_out, &found, observer)?];
        Ok(TunedSteps { timesteps: found.into_iter().map(Timestep::get).collect(), psnr })
    }

    /// Computes the mean PSNR, in dB, of pictures along a chain to those of the exact solution.
    fn psnr(&self, solved: &Solved, timesteps: &[Timestep], observer: &mut Observer<'_>) -> Result<f64> {
        let chain = StepChain::from_timesteps(self.model.schedule()?, timesteps.to_vec())?;
        let codes = (&solved.x_terminal, solved.z_sem.as_ref());
        let process = ReverseProcess::new(self.options.sampler, chain, self.model.clip_of_states(Clip::UnitRange));
        let x_0 = decode(self.model, codes, &process, observer)?;
        let mse =
            (x_0 - &solved.x_0).and_then(|difference| difference.sqr()?.flatten_from(1)?.mean(1)?.to_vec1::<f32>());
        let mse = computing("comparing pictures", mse)?;
        // The range of pictures is 2.
        let psnr = mse.iter().map(|&mse| 10.0 * (4.0 / f64::from(mse).max(MIN_MSE)).log10());
        Ok(psnr.sum::<f64>() / mse.len() as f64)
    }
}

/// Decodes codes batch by batch.
fn decode(
    model: &Model,
    (x_terminal, z_sem): (&Tensor, Option<&Tensor>),
    process: &ReverseProcess,
    observer: &mut Observer<'_>,
) -> Result<Tensor> {
    let count = computing("counting codes", x_terminal.dim(0))?;
    let size = PipelineSettings::DEFAULT.batch_size_for(model.config());
    let mut parts = vec![];
    for start in (0..count).step_by(size) {
        let len = size.min(count - start);
        let rows = |tensor: &Tensor| computing("selecting codes", tensor.narrow(0, start, len));
        let (x_terminal, z_sem) = (rows(x_terminal)?, z_sem.map(rows).transpose()?);
        let denoiser = model.denoiser(z_sem.as_ref(), process.chain(), &x_terminal)?;
        let mut on_step = on_step(NetworkCall::Decoder, len, observer);
        let states = process.run(&denoiser, &x_terminal, &mut no_noise, &mut on_step)?;
        parts.push(model.clipped_pictures(&states, Clip::UnitRange)?);
    }
    computing("joining pictures", Tensor::cat(&parts, 0))
}

/// Moves a timestep by a share of the distance, in log-SNR, to its neighbor on that side; the clean picture, which has no
/// log-SNR, is replaced by timestep 0. Returns `None` if the timestep would stay or meet the neighbor.
fn moved(schedule: &NoiseSchedule, timesteps: &[Timestep], node: usize, share: f64) -> Result<Option<Vec<Timestep>>> {
    let log_snr = |t: Timestep| schedule.alpha_bar(t).map(|alpha_bar| (alpha_bar / (1.0 - alpha_bar)).ln());
    let here = timesteps[node];
    let neighbor = match (share < 0.0, node) {
        (true, 0) => Timestep::new(0),
        (true, _) => timesteps[node - 1],
        (false, _) => timesteps[node + 1],
    };
    let wanted = log_snr(here)? + share.abs() * (log_snr(neighbor)? - log_snr(here)?);
    // The log-SNR falls with the timestep.
    let (low, high) = (here.get().min(neighbor.get()), here.get().max(neighbor.get()));
    let mut nearest = (f64::INFINITY, here);
    for t in (low..=high).map(Timestep::new) {
        let distance = (log_snr(t)? - wanted).abs();
        if distance < nearest.0 {
            nearest = (distance, t);
        }
    }
    let is_taken = nearest.1 == here || (nearest.1 == neighbor && (node > 0 || share > 0.0));
    if is_taken {
        return Ok(None);
    }
    let mut moved = timesteps.to_vec();
    moved[node] = nearest.1;
    Ok(Some(moved))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::path::Path;

    use candle_core::Device;
    use diffae_schedule::BetaSchedule;

    use super::*;
    use crate::{CallEvent, LoadOptions, TunedChain, no_observer};

    fn model() -> Model {
        let path = Path::new("../../tests/fixtures/golden/autoenc16_latent/last.ckpt");
        Model::load(path, &LoadOptions::cpu()).unwrap()
    }

    fn pictures(count: usize) -> Tensor {
        let values: Vec<f32> = (0..count * 3 * 256).map(|idx| (idx as f32 * 0.11).sin()).collect();
        Tensor::from_vec(values, (count, 3, 16, 16), &Device::Cpu).unwrap()
    }

    #[test]
    fn what_is_found_is_no_worse_than_the_start_and_a_chain_of_the_model() {
        let model = model();
        let options = TuningOptions { steps: 3, solution_steps: 20, ..TuningOptions::default() };
        let mut num_calls = 0;
        let mut count = |event: &CallEvent<'_>| {
            num_calls += event.num_pictures;
            ControlFlow::Continue(())
        };
        let tuning = Tuning::new(&model, &pictures(4), options, &mut count).unwrap();
        let TunedSteps { timesteps, .. } = tuning.run(&mut count).unwrap();
        assert!(num_calls > 4 * 20 && num_calls <= options.max_calls(4), "{num_calls}");
        let even = Spacing::LogSnr.timesteps(model.schedule().unwrap(), 3).unwrap();
        let found: Vec<Timestep> = timesteps.iter().copied().map(Timestep::new).collect();
        assert_eq!((found.len(), found[2]), (3, even[2]));
        let [before, after] =
            [&even, &found].map(|timesteps| tuning.psnr(&tuning.fitted, timesteps, &mut no_observer).unwrap());
        assert!(after > before, "{after} after {before}");
        let mut chains = model.config().chains().unwrap().clone();
        chains.set_tuned(TunedChain { timesteps, sampler: options.sampler });
        model.config().with_chains(chains).unwrap();
    }

    #[test]
    fn timesteps_move_between_their_neighbors() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let timesteps = [0, 300, 999].map(Timestep::new);
        for node in 0..2 {
            for share in [-0.5, -0.01, 0.01, 0.5] {
                let Some(moved) = moved(&schedule, &timesteps, node, share).unwrap() else { continue };
                assert!(moved.is_sorted_by(|a, b| a < b), "{moved:?}");
                assert_eq!(moved[node] < timesteps[node], share < 0.0, "{moved:?}");
                assert_eq!(moved.iter().zip(timesteps).filter(|(a, b)| **a != *b).count(), 1, "{moved:?}");
            }
        }
        assert_eq!(moved(&schedule, &timesteps, 0, -0.5).unwrap(), None);
    }

    #[test]
    fn too_little_and_noise_are_refused_and_a_search_can_be_cancelled() {
        let model = model();
        let options = TuningOptions { steps: 2, solution_steps: 4, ..TuningOptions::default() };
        let begin = |count: usize, options| Tuning::new(&model, &pictures(count), options, &mut no_observer);
        let fails = |count: usize, options| begin(count, options).unwrap_err().to_string();
        assert!(fails(1, options).contains("the number of pictures is 1"));
        assert!(fails(2, TuningOptions { steps: 1, ..options }).contains("the number of steps is 1"));
        assert!(fails(2, TuningOptions { sampler: Sampler::Ddim { eta: 1.0 }, ..options }).contains("no noise"));
        let stop = &mut |_: &CallEvent<'_>| ControlFlow::Break(());
        assert!(matches!(Tuning::new(&model, &pictures(2), options, stop), Err(Error::Cancelled)));
        assert!(matches!(begin(2, options).unwrap().run(stop), Err(Error::Cancelled)));
    }
}
