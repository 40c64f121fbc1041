//! The loss of the first stage.

use candle_core::{Device, Tensor};
use diffae_kernels::differentiable;
use diffae_schedule::{NoiseSchedule, Timestep};

use crate::config::LossWeight;
use crate::error::Result;
use crate::random::{Purpose, below, normal, stream};

/// The bound of `min-snr`'s weights.
const MIN_SNR_GAMMA: f64 = 5.;

/// What is added to pictures in a step.
#[derive(Debug)]
pub(crate) struct Noised {
    /// The noisy pictures, `[N, C, H, W]`.
    pub(crate) x_t: Tensor,
    /// The noise, `[N, C, H, W]`.
    pub(crate) noise: Tensor,
    pub(crate) timesteps: Vec<Timestep>,
}

impl Noised {
    /// Draws timestep and noise for pictures `first..first + N` of the sequence.
    pub(crate) fn draw(
        schedule: &NoiseSchedule,
        x_0: &Tensor,
        seed: u64,
        purpose: Purpose,
        first: usize,
    ) -> Result<Self> {
        let count = x_0.dim(0)?;
        let len = x_0.elem_count().checked_div(count).unwrap_or(0);
        let (mut noise, mut timesteps) = (Vec::with_capacity(x_0.elem_count()), Vec::with_capacity(count));
        for idx in first..first + count {
            let mut stream = stream(seed, purpose, idx as u64);
            timesteps.push(Timestep::new(below(&mut stream, schedule.num_train_timesteps())));
            noise.extend(normal(&mut stream, len));
        }
        let noise = Tensor::from_vec(noise, x_0.shape(), &Device::Cpu)?;
        let x_t = schedule.q_sample(x_0, &noise, &timesteps)?;
        Ok(Self { x_t, noise, timesteps })
    }

    /// Timesteps as the network takes them.
    pub(crate) fn numbers(&self) -> Vec<f32> {
        self.timesteps.iter().map(|t| t.get() as f32).collect()
    }
}

/// `mean over pictures of weight(t) * mean over pixels of (noise - predicted)^2`, a scalar.
pub(crate) fn noise_loss(
    schedule: &NoiseSchedule,
    noised: &Noised,
    predicted: &Tensor,
    weight: LossWeight,
) -> Result<Tensor> {
    let weights =
        noised.timesteps.iter().map(|&t| Ok(weight.at(schedule.alpha_bar(t)?))).collect::<Result<Vec<f32>>>()?;
    let weights = Tensor::from_vec(weights, noised.timesteps.len(), &Device::Cpu)?;
    let noise = &noised.noise;
    Ok(differentiable([predicted], |[predicted]| {
        (noise - predicted)?.sqr()?.flatten_from(1)?.mean(1)?.mul(&weights)?.mean_all()
    })?)
}

impl LossWeight {
    /// At one noise level.
    #[expect(clippy::cast_possible_truncation, reason = "losses are f32")]
    fn at(self, alpha_bar: f64) -> f32 {
        let snr = alpha_bar / (1. - alpha_bar);
        let weight = match self {
            Self::Uniform => 1.,
            Self::MinSnr => MIN_SNR_GAMMA.min(snr) / snr,
            Self::P2 => (1. + snr).recip(),
        };
        weight as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffae_schedule::BetaSchedule;

    #[test]
    fn weights_follow_their_formulas() {
        // alpha_bar 0.9: snr 9.
        assert!((LossWeight::MinSnr.at(0.9) - 5. / 9.).abs() < 1e-6);
        assert!((LossWeight::MinSnr.at(0.5) - 1.).abs() < 1e-6);
        assert!((LossWeight::P2.at(0.9) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn noise_depends_on_the_place_in_the_sequence_alone() {
        let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
        let x_0 = Tensor::zeros((4, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let whole = Noised::draw(&schedule, &x_0, 1, Purpose::Noise, 8).unwrap();
        let half = Noised::draw(&schedule, &x_0.narrow(0, 0, 2).unwrap(), 1, Purpose::Noise, 10).unwrap();
        assert_eq!(whole.timesteps[2..], half.timesteps[..]);
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&whole.noise)[8..], values(&half.noise)[..]);
    }
}
