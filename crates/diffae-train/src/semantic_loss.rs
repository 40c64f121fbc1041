//! The perceptual term of distillation: the distance of two pictures in the semantic code of a frozen encoder.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{differentiable, no_gradients};
use diffae_nets::{EncoderConfig, SemanticEncoder};

use crate::error::Result;

/// `weight * mean over pictures of |E(x) - E(y)|^2 / |E(y)|^2` for generated pictures x, wanted ones y and a semantic
/// encoder E, whose parameters are constants.
///
/// A perceptual loss compares the activations of a network that was trained on the same kind of picture. The encoder of a
/// Diffusion Autoencoder is one, and comes with every model.
/// # Source
/// Johnson et al. 2016 (arXiv:1603.08155), section 3.2, with one layer, the last.
#[derive(Debug)]
pub(crate) struct SemanticLoss {
    encoder: Box<SemanticEncoder>,
    weight: f64,
}

impl SemanticLoss {
    /// Builds the encoder from parameters, by their names in a model (`encoder.*`), that receive no gradient.
    pub(crate) fn new(
        config: &EncoderConfig,
        (parameters, device): (HashMap<String, Tensor>, &Device),
        weight: f64,
    ) -> Result<Self> {
        let vb = VarBuilder::from_tensors(parameters, DType::F32, device);
        Ok(Self { encoder: Box::new(SemanticEncoder::new(config, &vb.pp("encoder"))?), weight })
    }

    /// Computes the codes E(y) of wanted pictures, `[N, D]`.
    pub(crate) fn codes(&self, y: &Tensor) -> Result<Tensor> {
        Ok(no_gradients(|| self.encoder.forward(y))?)
    }

    /// Adds the term to a loss, for generated pictures x, `[N, C, H, W]`, and the codes of the wanted ones.
    pub(crate) fn added_to(&self, loss: &Tensor, x: &Tensor, codes: &Tensor) -> Result<Tensor> {
        let generated = self.encoder.forward(x)?;
        Ok(differentiable([loss, &generated], |[loss, generated]| {
            let squares = |tensor: Tensor| tensor.sqr()?.sum(1);
            let relative = (squares((generated - codes)?)? / squares(codes.clone())?)?;
            loss + (relative.mean_all()? * self.weight)?
        })?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use diffae_kernels::{Gradients, record};

    use super::*;
    use crate::{Trainer, presets};

    #[test]
    fn gradients_reach_the_pictures_alone_and_agree_with_differences() {
        let config = presets::config("smoke", &[]).unwrap();
        let model = config.model_config().unwrap();
        let parameters: HashMap<String, Tensor> =
            Trainer::new(&config, HashMap::new()).unwrap().averages().unwrap().into_iter().collect();
        let term =
            SemanticLoss::new(model.encoder().unwrap().trained().unwrap(), (parameters, &Device::Cpu), 0.5).unwrap();
        let picture = |phase: f32| {
            let values = (0..2 * 3 * 256).map(|idx| (idx as f32 * 0.37 + phase).sin()).collect::<Vec<f32>>();
            Tensor::from_vec(values, (2, 3, 16, 16), &Device::Cpu).unwrap()
        };
        let codes = term.codes(&picture(0.)).unwrap();
        let none = Tensor::new(0f32, &Device::Cpu).unwrap();
        let scalar = |tensor: Tensor| f64::from(tensor.to_scalar::<f32>().unwrap());
        let value = |x: &Tensor| scalar(no_gradients(|| term.added_to(&none, x, &codes)).unwrap());
        assert!(value(&picture(0.)).abs() < 1e-9);
        let x = Var::from_tensor(&picture(0.7)).unwrap();
        let (loss, tape) = record(|| term.added_to(&none, &x, &codes)).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        let gradient = gradients.get(&x).unwrap();
        // Along the unit vector of the gradient the slope is its length.
        let slope = scalar(gradient.sqr().unwrap().sum_all().unwrap()).sqrt();
        let direction = (gradient / slope).unwrap();
        let step = 0.05;
        let moved = |sign: f64| (x.as_tensor() + (&direction * (sign * step)).unwrap()).unwrap();
        let difference = (value(&moved(1.)) - value(&moved(-1.))) / (2. * step);
        assert!(slope > 0. && (difference / slope - 1.).abs() < 0.02, "{difference} {slope}");
    }
}
