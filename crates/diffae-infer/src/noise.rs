//! Seeded Gaussian noise, the same on every device.

use candle_core::{DType, Device, Result, Tensor};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use crate::error::computing;

/// The purpose of noise. Different purposes never share values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoisePurpose {
    /// The start of a chain over pictures.
    XTerminal,
    /// The start of a chain over semantic codes.
    ZTerminal,
    /// The noise that a stochastic sampler adds at each step.
    Step,
}

impl NoisePurpose {
    fn number(self) -> u64 {
        match self {
            Self::XTerminal => 0,
            Self::ZTerminal => 1,
            Self::Step => 2,
        }
    }
}

/// Maximum differences of noise from standard normal noise, in mean, standard deviation and correlation, beside what is left to
/// chance. Inversions of few steps end with a standard deviation of 0.66 or more, which decodes.
const MAX_DIFFERENCES: [f64; 3] = [0.15, 0.4, 0.15];

/// Returns a warning about noise that a user gives, if it is not close to standard normal noise: by its mean, its standard
/// deviation and the correlation of neighbors in a row, all over the whole tensor. `None` of noise that is close.
///
/// # Shapes
/// - `noise`: any; of maps `[N, C, H, W]`, the last axis is the row.
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) if the values cannot be read.
pub fn noise_warning(name: &str, noise: &Tensor) -> crate::Result<Option<String>> {
    let figures = || -> Result<[f64; 3]> {
        let values = noise.to_dtype(DType::F64)?;
        let mean = values.mean_all()?.to_scalar::<f64>()?;
        let centered = (values - mean)?;
        let variance = centered.sqr()?.mean_all()?.to_scalar::<f64>()?;
        let width = centered.dims().last().copied().unwrap_or(0);
        let row = centered.rank().saturating_sub(1);
        if width < 2 || centered.rank() < 2 || variance <= 0. {
            return Ok([mean, variance.sqrt(), 0.]);
        }
        let neighbors = (centered.narrow(row, 0, width - 1)? * centered.narrow(row, 1, width - 1)?)?;
        Ok([mean, variance.sqrt(), neighbors.mean_all()?.to_scalar::<f64>()? / variance])
    };
    let [mean, std, correlation] = computing("measuring noise", figures())?;
    let by_chance = 4. / (noise.elem_count() as f64).sqrt();
    let differences = [mean, std - 1., correlation].into_iter().zip(MAX_DIFFERENCES);
    if differences.into_iter().all(|(difference, allowed)| difference.abs() <= allowed + by_chance) {
        return Ok(None);
    }
    Ok(Some(format!(
        "{name} has mean {mean:.2}, standard deviation {std:.2} and, of neighbors in a row, correlation {correlation:.2}, and \
         the model expects standard normal noise, of mean 0, standard deviation 1 and no correlation: draw it with a function \
         named randn, not rand, or invert a picture by `diffae encode`"
    )))
}

/// Standard normal noise, `N(0, 1)`, that depends on the seed, the purpose and the picture's index alone: neither on the
/// batch that the picture is in nor on the device.
///
/// The generator is `ChaCha20`; values are drawn on the CPU in f32 and moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoiseSource {
    seed: u64,
}

impl NoiseSource {
    /// Creates the noise source of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Draws noise for one picture or code, by its index.
    ///
    /// # Shapes
    /// - result: `shape`, f32.
    /// # Errors
    /// If the tensor cannot be made on `device`.
    pub fn standard_normal(&self, purpose: NoisePurpose, idx: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
        let mut stream = self.stream(purpose, idx);
        Tensor::from_vec(draw(&mut stream, shape.iter().product()), shape, device)
    }

    /// Draws noise for a batch of pictures or codes with the given indices.
    ///
    /// # Shapes
    /// - result: `[N, shape..]`, f32, N the number of indices.
    /// # Errors
    /// If there is no index, or the tensor cannot be made on `device`.
    pub fn batch(
        &self,
        purpose: NoisePurpose,
        indices: impl IntoIterator<Item = u64>,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor> {
        let each: Result<Vec<_>> =
            indices.into_iter().map(|idx| self.standard_normal(purpose, idx, shape, device)).collect();
        Tensor::stack(&each?, 0)
    }

    /// Returns a source of noise for the steps of a stochastic chain over a batch; each call draws the next tensor like
    /// its argument.
    pub fn steps<I: IntoIterator<Item = u64>>(&self, indices: I) -> impl FnMut(&Tensor) -> Result<Tensor> + use<I> {
        let mut streams: Vec<_> = indices.into_iter().map(|idx| self.stream(NoisePurpose::Step, idx)).collect();
        move |like| {
            let count = like.elem_count().checked_div(streams.len()).unwrap_or(0);
            let values: Vec<f32> = streams.iter_mut().flat_map(|stream| draw(stream, count)).collect();
            Tensor::from_vec(values, like.shape(), like.device())?.to_dtype(like.dtype())
        }
    }

    fn stream(self, purpose: NoisePurpose, idx: u64) -> ChaCha20Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&purpose.number().to_le_bytes());
        let mut stream = ChaCha20Rng::from_seed(key);
        stream.set_stream(idx);
        stream
    }
}

fn draw(stream: &mut ChaCha20Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| StandardNormal.sample(stream)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, purpose: NoisePurpose, idx: u64) -> Vec<f32> {
        NoiseSource::new(seed).standard_normal(purpose, idx, &[4], &Device::Cpu).unwrap().to_vec1().unwrap()
    }

    /// Checks that the generator stays: a change would change every picture that people sampled with a seed.
    #[test]
    fn the_first_values_of_seed_0_stay_what_they_are() {
        let got = values(0, NoisePurpose::XTerminal, 0);
        assert_eq!(got, PINNED, "{got:?}");
    }

    const PINNED: [f32; 4] = [0.203_504_77, -1.380_961_9, -0.883_035_9, 0.702_953_6];

    #[test]
    fn seed_purpose_and_index_each_change_the_noise() {
        let base = values(1, NoisePurpose::XTerminal, 0);
        assert_eq!(base, values(1, NoisePurpose::XTerminal, 0));
        assert_ne!(base, values(2, NoisePurpose::XTerminal, 0));
        assert_ne!(base, values(1, NoisePurpose::ZTerminal, 0));
        assert_ne!(base, values(1, NoisePurpose::XTerminal, 1));
    }

    #[test]
    fn a_batch_is_its_members() {
        let source = NoiseSource::new(3);
        let batch = source.batch(NoisePurpose::Step, 5..8, &[2, 3], &Device::Cpu).unwrap();
        let member = source.standard_normal(NoisePurpose::Step, 6, &[2, 3], &Device::Cpu).unwrap();
        assert_eq!(batch.get(1).unwrap().to_vec2::<f32>().unwrap(), member.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn noise_has_mean_zero_and_variance_one() {
        let noise = NoiseSource::new(0).standard_normal(NoisePurpose::XTerminal, 0, &[100_000], &Device::Cpu).unwrap();
        let noise = noise.to_vec1::<f32>().unwrap();
        let count = noise.len() as f64;
        let mean = noise.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let variance = noise.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count;
        assert!(mean.abs() < 0.02 && (variance - 1.).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn noise_of_another_kind_is_told_from_normal_noise() {
        let of = |values: Vec<f64>| {
            let count = values.len();
            noise_warning("x_T", &Tensor::from_vec(values, (1, 1, count.div_euclid(20), 20), &Device::Cpu).unwrap())
                .unwrap()
        };
        let uniform: Vec<f64> = (0..1000).map(|idx| f64::from(idx * 7919 % 1000) / 1000.).collect();
        let warning = of(uniform).unwrap();
        assert!(warning.starts_with("x_T has mean 0.50, standard deviation 0.29 and"), "{warning}");
        // Plus and minus one have the mean and the standard deviation, but not the neighbors.
        let warning = of((0..1000).map(|idx| f64::from(idx % 2) * 2. - 1.).collect()).unwrap();
        assert!(warning.contains("correlation -1.00"), "{warning}");
        let drawn =
            NoiseSource::new(1).standard_normal(NoisePurpose::XTerminal, 0, &[3, 16, 16], &Device::Cpu).unwrap();
        assert_eq!(noise_warning("x_T", &drawn.unsqueeze(0).unwrap()).unwrap(), None);
        assert!(noise_warning("x_T", &(drawn * 0.3).unwrap()).unwrap().is_some());
    }
}
