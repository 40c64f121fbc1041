//! Noising, regression targets and losses of the first stage.

use candle_core::{D, Device, Tensor};
use diffae_kernels::differentiable;
use diffae_schedule::{NoiseSchedule, PredictionTarget, Timestep};

use crate::config::{LossWeight, ObjectiveSettings};
use crate::error::Result;

/// The gamma of `min-snr`: upper bound of the signal-to-noise ratio in its weights.
const MIN_SNR_GAMMA: f64 = 5.;

/// A noise schedule and the quantity that a network predicts on it.
#[derive(Debug)]
pub(crate) struct Diffusion {
    pub(crate) schedule: NoiseSchedule,
    pub(crate) prediction: PredictionTarget,
}

/// A batch of noised images with its regression target.
#[derive(Debug)]
pub(crate) struct Noised {
    /// Noised images, `[N, C, H, W]`.
    pub(crate) x_t: Tensor,
    /// Regression target of the network, `[N, C, H, W]`.
    pub(crate) target: Tensor,
    /// Timestep of each image.
    pub(crate) timesteps: Vec<Timestep>,
}

impl Noised {
    /// Timesteps as the network takes them.
    pub(crate) fn numbers(&self) -> Vec<f32> {
        self.timesteps.iter().map(|t| t.get() as f32).collect()
    }
}

impl Diffusion {
    /// Adds noise to images.
    pub(crate) fn noised(&self, x_0: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<Noised> {
        let x_t = self.schedule.q_sample(x_0, noise, timesteps)?;
        let target = self.prediction.of(&self.schedule, (x_0, noise), timesteps)?;
        Ok(Noised { x_t, target, timesteps: timesteps.to_vec() })
    }

    /// Computes the loss of predictions, a scalar.
    ///
    /// `mean over images of weight(t) * mean over pixels of focus(pixel) * (target - predicted)^2`
    pub(crate) fn loss(&self, noised: &Noised, predicted: &Tensor, objective: &ObjectiveSettings) -> Result<Tensor> {
        let at = |&t: &Timestep| Ok(objective.loss_weight.at(self.prediction, self.schedule.alpha_bar(t)?));
        let weights = noised.timesteps.iter().map(at).collect::<Result<Vec<f32>>>()?;
        let weights = Tensor::from_vec(weights, noised.timesteps.len(), predicted.device())?;
        let target = &noised.target;
        let (width, height) = (target.dim(D::Minus1)?, target.dim(D::Minus2)?);
        let focus = pixel_weights(objective, (height, width), target.device())?;
        Ok(differentiable([predicted], |[predicted]| {
            let squares = (target - predicted)?.sqr()?;
            let squares = focus.as_ref().map_or(Ok(squares.clone()), |focus| squares.broadcast_mul(focus))?;
            squares.flatten_from(1)?.mean(1)?.mul(&weights)?.mean_all()
        })?)
    }

    /// Computes the images implied by the network's predictions (`x_0` estimates), `[N, C, ..]`.
    pub(crate) fn x_0_estimates(&self, noised: &Noised, predicted: &Tensor) -> Result<Tensor> {
        let (mut of_x_t, mut of_predicted) = (vec![], vec![]);
        for &t in &noised.timesteps {
            let alpha_bar = self.schedule.alpha_bar(t)?;
            let (signal, noise) = (alpha_bar.sqrt(), (1. - alpha_bar).sqrt());
            let (a, b) = match self.prediction {
                PredictionTarget::Eps => (signal.recip(), -noise / signal),
                PredictionTarget::V => (signal, -noise),
                PredictionTarget::X0 => (0., 1.),
            };
            of_x_t.push(a);
            of_predicted.push(b);
        }
        let column = |values: Vec<f64>| {
            let count = values.len();
            let mut shape = vec![1; predicted.rank()];
            shape[0] = count;
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(predicted.dtype())?.to_device(predicted.device())
        };
        let (of_x_t, of_predicted) = (column(of_x_t)?, column(of_predicted)?);
        let from_x_t = noised.x_t.broadcast_mul(&of_x_t)?;
        Ok(differentiable([predicted], |[predicted]| from_x_t.add(&predicted.broadcast_mul(&of_predicted)?))?)
    }
}

/// Computes the loss weights of pixels of a picture or of each slice, `[H, W]`, of mean 1; `None` if all are equal. A pixel is in focus if its center is.
#[expect(clippy::cast_possible_truncation, reason = "losses are f32")]
fn pixel_weights(
    objective: &ObjectiveSettings,
    (height, width): (usize, usize),
    device: &Device,
) -> Result<Option<Tensor>> {
    if (objective.focus_weight - 1.).abs() < f64::EPSILON {
        return Ok(None);
    }
    let [left, top, right, bottom] = objective.focus;
    let within = |idx: usize, len: usize, (low, high): (f64, f64)| {
        let center = (idx as f64 + 0.5) / len as f64;
        low <= center && center < high
    };
    let mut weights = Vec::with_capacity(height * width);
    for row in 0..height {
        for column in 0..width {
            let focused = within(row, height, (top, bottom)) && within(column, width, (left, right));
            weights.push(if focused { objective.focus_weight } else { 1. });
        }
    }
    let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
    let weights: Vec<f32> = weights.iter().map(|weight| (weight / mean) as f32).collect();
    Ok(Some(Tensor::from_vec(weights, (height, width), device)?))
}

/// Computes the mean binary cross-entropy of logits l and targets y, `max(l, 0) - l y + ln(1 + exp(-|l|))`.
pub(crate) fn binary_cross_entropy_with_logits(logits: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
    let tail = (logits.abs()?.neg()?.exp()? + 1.)?.log()?;
    ((logits.relu()? - (logits * targets)?)? + tail)?.mean_all()
}

impl LossWeight {
    /// Computes the loss weight at one noise level.
    #[expect(clippy::cast_possible_truncation, reason = "losses are f32")]
    fn at(self, target: PredictionTarget, alpha_bar: f64) -> f32 {
        let snr = alpha_bar / (1. - alpha_bar);
        let weight = match (self, target) {
            (Self::Uniform, _) => 1.,
            (Self::MinSnr, PredictionTarget::Eps) => MIN_SNR_GAMMA.min(snr) / snr,
            (Self::MinSnr, PredictionTarget::V) => MIN_SNR_GAMMA.min(snr) / (snr + 1.),
            (Self::MinSnr, PredictionTarget::X0) => MIN_SNR_GAMMA.min(snr),
            (Self::P2, _) => (1. + snr).recip(),
        };
        weight as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffae_schedule::BetaSchedule;

    #[test]
    fn cross_entropy_is_that_of_the_sigmoid_and_stays_finite() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let value = |l: f32, y: f32| {
            binary_cross_entropy_with_logits(&tensor(&[l]), &tensor(&[y])).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!((value(0.7, 1.) - (1. + (-0.7f32).exp()).ln()).abs() < 1e-6);
        assert!((value(0.7, 0.) - (1. + 0.7f32.exp()).ln()).abs() < 1e-6);
        assert!((value(500., 0.) - 500.).abs() < 1e-3);
        assert!(value(500., 1.).abs() < 1e-6);
    }

    #[test]
    fn perfect_predictions_imply_the_images() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap().reshape((2, 1, 1, 2)).unwrap();
        let (x_0, noise) = (tensor(&[0.3, -0.9, 0.1, 1.]), tensor(&[1.2, 0.4, -2., 0.5]));
        for target in PredictionTarget::ALL {
            let timesteps = [20, 400].map(Timestep::new);
            let schedule = NoiseSchedule::new(&BetaSchedule::Linear, 1000).unwrap();
            let diffusion = Diffusion { schedule, prediction: target };
            let noised = diffusion.noised(&x_0, &noise, &timesteps).unwrap();
            let estimates = diffusion.x_0_estimates(&noised, &noised.target).unwrap();
            let difference = (estimates - &x_0).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{target}");
        }
    }

    #[test]
    fn weights_follow_their_formulas() {
        // alpha_bar 0.9: snr 9.
        assert!((LossWeight::MinSnr.at(PredictionTarget::Eps, 0.9) - 5. / 9.).abs() < 1e-6);
        assert!((LossWeight::MinSnr.at(PredictionTarget::Eps, 0.5) - 1.).abs() < 1e-6);
        assert!((LossWeight::P2.at(PredictionTarget::Eps, 0.9) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn pixels_in_focus_weigh_more_and_the_mean_stays() {
        let mut objective = crate::presets::config("smoke", &[]).unwrap().objective;
        assert!(pixel_weights(&objective, (4, 4), &Device::Cpu).unwrap().is_none());
        (objective.focus, objective.focus_weight) = ([0.5, 0., 1., 0.25], 9.);
        let weights = pixel_weights(&objective, (4, 4), &Device::Cpu).unwrap().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(weights[0], [0.5, 0.5, 4.5, 4.5]);
        assert_eq!(weights[3], [0.5; 4]);
    }
}
