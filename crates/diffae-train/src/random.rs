//! Random numbers that depend on the seed, their purpose and a counter alone, so that there is no generator state to
//! save.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// Purpose of random numbers. Different purposes never share values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The order of an epoch; counter: the epoch.
    Order,
    /// Horizontal flip of a picture; counter: its place in the sequence of all pictures.
    Flip,
    /// Timestep and noise of a picture; counter: its place in the sequence of all pictures.
    Noise,
    /// Timestep and noise of a code of the latent stage; counter: its place in the sequence of all codes.
    LatentNoise,
    /// Seeds of dropout; counter: step and part of the batch.
    Dropout,
    /// Initial weights; counter: a hash of the parameter's name.
    Weights,
    /// Noise of previews and validation; counter: the picture.
    Preview,
    /// Crop of a picture and noise of its latents in the stage of the spatial autoencoder; counter: its place in the sequence of
    /// all pictures.
    SpatialNoise,
}

/// Creates the generator of a purpose and a counter.
pub(crate) fn stream(seed: u64, purpose: Purpose, counter: u64) -> ChaCha20Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let (number, counter) = purpose.place(counter);
    key[8..16].copy_from_slice(&number.to_le_bytes());
    key[16..22].copy_from_slice(b"train\0");
    let mut stream = ChaCha20Rng::from_seed(key);
    stream.set_stream(counter);
    stream
}

/// First counter of the latent stage's noise, above the number of pictures that any first stage sees.
const FIRST_LATENT_NOISE: u64 = 1 << 48;

impl Purpose {
    /// Number and counter of the generator. Existing ones never change, since a seed stands for the numbers they give.
    fn place(self, counter: u64) -> (u64, u64) {
        match self {
            Self::Order => (0, counter),
            Self::Flip => (1, counter),
            Self::Noise => (2, counter),
            Self::LatentNoise => (2, FIRST_LATENT_NOISE + counter),
            Self::Dropout => (3, counter),
            Self::Weights => (4, counter),
            Self::Preview => (5, counter),
            Self::SpatialNoise => (6, counter),
        }
    }
}

/// Draws standard normal numbers.
pub(crate) fn normal(stream: &mut ChaCha20Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| StandardNormal.sample(stream)).collect()
}

/// Draws a number in `0..bound`, uniform to one part in 2^32 or better.
pub(crate) fn below(stream: &mut ChaCha20Rng, bound: usize) -> usize {
    let wide = u128::from(stream.next_u64()) * bound as u128;
    usize::try_from(wide >> 64).unwrap_or(0)
}

/// Draws a uniform number in `[0, 1)`.
pub(crate) fn unit(stream: &mut ChaCha20Rng) -> f64 {
    (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Shuffles `0..count`.
pub(crate) fn permutation(seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    let mut stream = stream(seed, Purpose::Order, epoch);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, below(&mut stream, last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_picture_once_and_another_order_than_the_next() {
        let (first, second) = (permutation(1, 0, 100), permutation(1, 1, 100));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(first, second);
        assert_eq!(first, permutation(1, 0, 100));
    }

    #[test]
    fn purposes_share_no_values() {
        use Purpose::{Dropout, Flip, LatentNoise, Noise, Order, Preview, Weights};
        let first = |purpose| below(&mut stream(7, purpose, 3), usize::MAX);
        let all = [Order, Flip, Noise, LatentNoise, Dropout, Weights, Preview].map(first);
        let different: std::collections::BTreeSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut stream = stream(0, Purpose::Flip, 3);
        let drawn: Vec<usize> = (0..1000).map(|_| below(&mut stream, 3)).collect();
        assert!((0..3).all(|n| drawn.iter().filter(|&&d| d == n).count() > 250));
        assert!((0..1000).all(|_| (0. ..1.).contains(&unit(&mut stream))));
    }
}
