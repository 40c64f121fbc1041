//! The interface between samplers and networks.

use candle_core::Tensor;

use crate::tensor_checks::{check_like, num_items};
use crate::{Error, Result, Timestep};

/// Predicts the noise in noisy data; conditioning such as `z_sem` is up to the implementor.
///
/// Every `Fn(&Tensor, &[Timestep]) -> candle_core::Result<Tensor>` is one. A closure that is passed on the spot needs
/// its parameter types written out.
pub trait Denoiser {
    /// Predicts `eps` in `x_t = sqrt(alpha_bar) * x_0 + sqrt(1 - alpha_bar) * eps`.
    ///
    /// # Shapes
    /// - `x_t`, result: `[N, ..]`, the same, with the same dtype;
    /// - `timesteps`: N positions on the training grid; the samplers pass the same one N times.
    /// # Errors
    /// Whatever fails in the network; the samplers add at which timestep it was.
    fn eps(&self, x_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor>;
}

impl<F> Denoiser for F
where
    F: Fn(&Tensor, &[Timestep]) -> candle_core::Result<Tensor>,
{
    fn eps(&self, x_t: &Tensor, timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        self(x_t, timesteps)
    }
}

/// Predicts the noise in a batch that is at one timestep, and checks the prediction.
///
/// The result is detached, so that a network with trainable weights does not keep the activations of each step alive.
pub(crate) fn predict_eps(denoiser: &(impl Denoiser + ?Sized), x_t: &Tensor, timestep: Timestep) -> Result<Tensor> {
    let timesteps = vec![timestep; num_items("x_t", x_t)?];
    let eps = denoiser.eps(x_t, &timesteps).map_err(|source| Error::Denoiser { timestep, source })?;
    check_like("eps", &eps, x_t)?;
    Ok(eps.detach())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn x_t() -> Tensor {
        Tensor::ones((3, 2), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_closure_gets_the_timestep_once_per_item() {
        let denoiser = |x_t: &Tensor, timesteps: &[Timestep]| {
            assert_eq!(timesteps, [Timestep::new(50); 3]);
            x_t * 2.0
        };
        let eps = predict_eps(&denoiser, &x_t(), Timestep::new(50)).unwrap();
        assert_eq!(eps.to_vec2::<f32>().unwrap(), [[2.0; 2]; 3]);
    }

    #[test]
    fn a_trait_object_is_a_denoiser() {
        let closure = |x_t: &Tensor, _: &[Timestep]| Ok(x_t.clone());
        let denoiser: &dyn Denoiser = &closure;
        assert!(predict_eps(denoiser, &x_t(), Timestep::new(0)).is_ok());
    }

    #[test]
    fn a_failure_says_at_which_timestep() {
        let denoiser = |_: &Tensor, _: &[Timestep]| Err(candle_core::Error::Msg("no weights".to_owned()));
        let error = predict_eps(&denoiser, &x_t(), Timestep::new(50)).unwrap_err();
        assert!(matches!(error, Error::Denoiser { timestep, .. } if timestep.get() == 50), "{error}");
    }

    #[test]
    fn a_prediction_that_does_not_fit_is_rejected() {
        let narrow = |x_t: &Tensor, _: &[Timestep]| x_t.narrow(1, 0, 1);
        let error = predict_eps(&narrow, &x_t(), Timestep::new(0)).unwrap_err();
        assert!(matches!(error, Error::ShapeMismatch { name: "eps", .. }), "{error}");
        let half = |x_t: &Tensor, _: &[Timestep]| x_t.to_dtype(DType::F16);
        let error = predict_eps(&half, &x_t(), Timestep::new(0)).unwrap_err();
        assert!(matches!(error, Error::DtypeMismatch { name: "eps", .. }), "{error}");
    }

    #[test]
    fn the_graph_of_a_trainable_network_is_dropped() {
        let weight = Var::from_tensor(&x_t()).unwrap();
        let denoiser = |x_t: &Tensor, _: &[Timestep]| x_t * weight.as_tensor();
        assert!(!predict_eps(&denoiser, &x_t(), Timestep::new(0)).unwrap().track_op());
    }
}
