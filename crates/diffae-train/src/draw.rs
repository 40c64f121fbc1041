//! Random timesteps and noise of batches.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use candle_core::{Device, Tensor};
use diffae_kernels::to_device;
use diffae_schedule::{NoiseSchedule, Timestep};

use crate::error::Result;
use crate::random::{Purpose, below, normal, stream, unit};

/// Minimum number of values of a batch that is drawn ahead; with fewer, as of codes, a thread has little to do.
const MIN_AHEAD: usize = 1 << 16;

/// A random timestep and noise for each sample of a batch.
#[derive(Debug)]
pub(crate) struct Draw {
    /// Standard normal noise, of the shape of the batch.
    pub(crate) noise: Tensor,
    pub(crate) timesteps: Vec<Timestep>,
}

/// The random numbers that a batch takes its timesteps and noise from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawing {
    pub(crate) seed: u64,
    pub(crate) purpose: Purpose,
    /// Place of the batch's first sample in the sequence of all samples.
    pub(crate) first: usize,
    /// Number of samples at the beginning of the sequence that get the last timestep.
    pub(crate) terminal: usize,
    /// Probability that a later sample gets the last timestep.
    pub(crate) terminal_share: f64,
}

impl Drawing {
    /// Draws every timestep uniformly.
    pub(crate) fn uniform(seed: u64, purpose: Purpose, first: usize) -> Self {
        Self { seed, purpose, first, terminal: 0, terminal_share: 0. }
    }
}

/// Draws the batches of a training, large ones for GPUs ahead: while a card computes a step, a thread draws the batch that follows.
///
/// What is drawn depends on the place of a batch in the sequence alone, and a guess of the next place that is wrong costs time only.
#[derive(Debug, Default)]
pub(crate) struct Draws {
    state: Mutex<State>,
}

/// The last batch, and the one that may follow.
#[derive(Debug, Default)]
struct State {
    last: Option<Batch>,
    ahead: Option<Ahead>,
}

/// A batch that is drawn before it is asked for.
#[derive(Debug)]
struct Ahead {
    batch: Batch,
    drawn: JoinHandle<Numbers>,
}

/// All that a draw depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Batch {
    how: Drawing,
    /// Number of samples.
    count: usize,
    /// Values of a sample.
    len: usize,
    num_train_timesteps: usize,
}

/// Numbers of a batch.
#[derive(Debug, PartialEq)]
struct Numbers {
    noise: Vec<f32>,
    timesteps: Vec<Timestep>,
}

impl Batch {
    fn new(schedule: &NoiseSchedule, x_0: &Tensor, how: Drawing) -> Result<Self> {
        let count = x_0.dim(0)?;
        let len = x_0.elem_count().checked_div(count).unwrap_or(0);
        Ok(Self { how, count, len, num_train_timesteps: schedule.num_train_timesteps() })
    }

    fn draw(&self) -> Numbers {
        let Self { how, count, len, num_train_timesteps } = *self;
        let (mut noise, mut timesteps) = (Vec::with_capacity(count * len), Vec::with_capacity(count));
        for idx in how.first..how.first + count {
            let mut stream = stream(how.seed, how.purpose, idx as u64);
            let drawn = below(&mut stream, num_train_timesteps);
            noise.extend(normal(&mut stream, len));
            // Drawn after the noise, so that the share does not change the noise.
            let is_terminal = idx < how.terminal || unit(&mut stream) < how.terminal_share;
            timesteps.push(Timestep::new(if is_terminal { num_train_timesteps - 1 } else { drawn }));
        }
        Numbers { noise, timesteps }
    }

    /// Guesses the batch that follows: as far away as this one was from the one before, or right behind it.
    fn following(self, before: Option<Self>) -> Self {
        let first = self.how.first;
        let before = before.filter(|before| before.how.purpose == self.how.purpose && before.how.first < first);
        let distance = before.map_or(self.count, |before| first - before.how.first);
        Self { how: Drawing { first: first + distance, ..self.how }, ..self }
    }
}

impl Draws {
    /// Draws timesteps and noise for `x_0`, `[N, ..]`.
    pub(crate) fn next(&self, schedule: &NoiseSchedule, x_0: &Tensor, how: Drawing) -> Result<Draw> {
        let batch = Batch::new(schedule, x_0, how)?;
        // On a CPU, its threads have enough to do, and validations are far apart.
        let is_ahead =
            !x_0.device().is_cpu() && x_0.elem_count() >= MIN_AHEAD && !matches!(how.purpose, Purpose::Preview);
        let numbers = if is_ahead { self.numbers(batch) } else { batch.draw() };
        Draw::of(numbers, x_0)
    }

    /// Returns the numbers of a batch, and has those of the next one drawn.
    fn numbers(&self, batch: Batch) -> Numbers {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = state.ahead.take().filter(|ahead| ahead.batch == batch);
        // A thread that has failed is as good as none.
        let drawn = ahead.and_then(|ahead| ahead.drawn.join().ok());
        let following = batch.following(state.last.replace(batch));
        let thread = thread::Builder::new().name("noise".to_owned()).spawn(move || following.draw());
        state.ahead = thread.ok().map(|drawn| Ahead { batch: following, drawn });
        drop(state);
        drawn.unwrap_or_else(|| batch.draw())
    }
}

impl Draw {
    /// Draws timesteps and noise for `x_0`, `[N, ..]`.
    pub(crate) fn new(schedule: &NoiseSchedule, x_0: &Tensor, how: Drawing) -> Result<Self> {
        Self::of(Batch::new(schedule, x_0, how)?.draw(), x_0)
    }

    fn of(Numbers { noise, timesteps }: Numbers, x_0: &Tensor) -> Result<Self> {
        let noise = Tensor::from_vec(noise, x_0.shape(), &Device::Cpu)?;
        Ok(Self { noise: to_device(&noise, x_0.device())?, timesteps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffae_schedule::BetaSchedule;

    #[test]
    fn noise_depends_on_the_place_in_the_sequence_alone() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let x_0 = Tensor::zeros((4, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let drawing = |first| Drawing { seed: 1, purpose: Purpose::Noise, first, terminal: 9, terminal_share: 0. };
        let whole = Draw::new(&schedule, &x_0, drawing(8)).unwrap();
        let half = Draw::new(&schedule, &x_0.narrow(0, 0, 2).unwrap(), drawing(10)).unwrap();
        assert_eq!(whole.timesteps[2..], half.timesteps[..]);
        assert_eq!(whole.timesteps[0], Timestep::new(999));
        let half_terminal = Draw::new(&schedule, &x_0, Drawing { terminal_share: 0.5, ..drawing(10) }).unwrap();
        for (drawn, plain) in
            half_terminal.timesteps.iter().zip(&Draw::new(&schedule, &x_0, drawing(10)).unwrap().timesteps)
        {
            assert!(drawn == plain || *drawn == Timestep::new(999));
        }
        let all_terminal = Draw::new(&schedule, &x_0, Drawing { terminal_share: 1., ..drawing(10) }).unwrap();
        assert_eq!(all_terminal.timesteps, [Timestep::new(999); 4]);
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&whole.noise)[8..], values(&half.noise)[..]);
    }

    #[test]
    fn what_is_drawn_ahead_is_what_would_be_drawn_in_time() {
        let batch = |purpose: Purpose, first: usize| Batch {
            how: Drawing { terminal_share: 0.5, ..Drawing::uniform(1, purpose, first) },
            count: 2,
            len: 3,
            num_train_timesteps: 1000,
        };
        let draws = Draws::default();
        // Neighbors, every third batch, a validation between them, another run from the beginning.
        let places = [0, 2, 4, 10, 16].map(|first| (Purpose::Noise, first));
        let others = [(Purpose::Preview, 0), (Purpose::Noise, 22), (Purpose::Noise, 24), (Purpose::Noise, 0)];
        let mut guessed = vec![];
        for (purpose, first) in places.into_iter().chain(others) {
            let batch = batch(purpose, first);
            let is_ahead = |ahead: &Ahead| ahead.batch == batch;
            guessed.push(draws.state.lock().unwrap().ahead.as_ref().is_some_and(is_ahead));
            assert_eq!(draws.numbers(batch), batch.draw(), "{first}");
        }
        assert_eq!(guessed, [false, true, true, false, true, false, false, true, false]);
    }
}
