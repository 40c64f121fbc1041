//! Dropout that recomputes its mask in the backward pass instead of saving it.

use candle_core::{DType, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cuda::{self, DropoutMask};
use crate::operation::{Operation, View, apply};
use crate::storage::with_floats;

/// Settings of one dropout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, in `[0, 1)`.
    pub probability: f64,
    /// Seed that determines the mask.
    pub seed: u64,
}

/// Number of elements of a task, a multiple of four: the mask of each such block depends on its number alone.
const BLOCK: usize = 1 << 14;

/// Zeroes elements with a probability p and multiplies the others by `1 / (1 - p)`.
///
/// The same seed gives the same mask on every device and with any number of threads. p is rounded to 1/65536.
///
/// # Shapes
/// - `x`, result: any, the same.
/// # Errors
/// If the probability is not in `[0, 1)`.
/// # Source
/// Srivastava et al. 2014 (JMLR 15), in its inverted form.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if !(0. ..1.).contains(&dropout.probability) {
        bail!("a dropout probability lies in [0, 1), not {}", dropout.probability)
    }
    apply([x], Mask::new(dropout))
}

/// A dropout mask, as a function of positions.
#[derive(Debug, Clone, Copy)]
struct Mask {
    /// Elements whose sixteen random bits are below this are dropped.
    threshold: u16,
    factor: f32,
    seed: u64,
}

impl Mask {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a probability below one, rounded")]
    fn new(Dropout { probability, seed }: Dropout) -> Self {
        let threshold = (probability * 65536.).round().min(65535.) as u16;
        let kept = 1. - f64::from(threshold) / 65536.;
        Self { threshold, factor: kept.recip() as f32, seed }
    }

    fn apply(self, values: &mut [f32]) {
        values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
            let mut state = mix(self.seed ^ mix(block as u64));
            for four in values.chunks_mut(4) {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut bits = mix(state);
                for value in four {
                    let dropped = (bits & 0xffff) < u64::from(self.threshold);
                    *value *= if dropped { 0. } else { self.factor };
                    bits >>= 16;
                }
            }
        });
    }

    /// Returns the factors of the elements of `x`, on its device and in its number type.
    fn factors(self, x: &Tensor) -> Result<Tensor> {
        let mut factors = vec![1f32; x.elem_count()];
        self.apply(&mut factors);
        Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())
    }

    /// Returns the mask as the kernels for cards take it.
    fn on_cards(self) -> DropoutMask {
        DropoutMask { seed: self.seed, threshold: self.threshold, factor: self.factor, block: BLOCK }
    }

    fn of(self, values: &[f32]) -> Vec<f32> {
        let mut values = values.to_vec();
        self.apply(&mut values);
        values
    }
}

/// Applies the finalizer of `SplitMix64` (Steele et al. 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Operation<1> for Mask {
    fn forward(&self, [(x, dims)]: [View<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        Ok((self.of(x), Shape::from(dims)))
    }

    fn gradients(&self, [x]: [&Tensor; 1], [wanted]: [bool; 1], dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let gradient =
            || with_floats(&dy.to_dtype(DType::F32)?, |dy| Tensor::from_vec(self.of(dy), x.shape(), x.device()));
        Ok([wanted.then(gradient).transpose()?])
    }

    fn on_card(&self, [x]: [&Tensor; 1]) -> Result<Option<Tensor>> {
        cuda::dropout(x, &self.on_cards())
    }

    fn gradients_on_card(
        &self,
        _: [&Tensor; 1],
        [wanted]: [bool; 1],
        dy: &Tensor,
    ) -> Result<Option<[Option<Tensor>; 1]>> {
        let gradient = wanted.then(|| cuda::dropout(dy, &self.on_cards())).transpose()?;
        Ok(gradient.map_or(Some([None]), |gradient| gradient.map(|gradient| [Some(gradient)])))
    }

    fn composed(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        x * self.factors(x)?
    }

    fn composed_gradients(&self, [x]: [&Tensor; 1], [wanted]: [bool; 1], dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted.then(|| dy * self.factors(x)?).transpose()?])
    }
}

/// Returns the mask of some settings as the kernels for cards take it.
#[cfg(test)]
pub(crate) fn mask_on_cards(dropout: Dropout) -> DropoutMask {
    Mask::new(dropout).on_cards()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    use crate::{Gradients, differentiable, record};

    #[test]
    fn a_tenth_is_dropped_and_the_mean_stays() {
        let x = Var::ones(100_003, DType::F32, &Device::Cpu).unwrap();
        let ((y, sum), tape) = record(|| {
            let y = dropout(&x, Dropout { probability: 0.1, seed: 3 })?;
            Ok::<_, candle_core::Error>((y.clone(), differentiable([&y], |[y]| y.sum_all())?))
        })
        .unwrap();
        let values = y.to_vec1::<f32>().unwrap();
        let dropped = values.iter().filter(|value| **value == 0.).count();
        assert!((9_500..10_500).contains(&dropped), "{dropped}");
        assert!((values.iter().sum::<f32>() / 100_003. - 1.).abs() < 0.01);
        // The gradient of a sum is the mask itself.
        let mut gradients = Gradients::default();
        tape.backward(&sum, &mut gradients).unwrap();
        let gradient = gradients.get(&x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(gradient, values);
    }

    #[test]
    fn seeds_give_other_masks_and_probabilities_are_checked() {
        let x = Tensor::ones(64, DType::F32, &Device::Cpu).unwrap();
        let masked = |seed| dropout(&x, Dropout { probability: 0.5, seed }).unwrap().to_vec1::<f32>().unwrap();
        assert_ne!(masked(1), masked(2));
        assert_eq!(masked(1), masked(1));
        assert!(dropout(&x, Dropout { probability: 1., seed: 0 }).is_err());
    }
}
