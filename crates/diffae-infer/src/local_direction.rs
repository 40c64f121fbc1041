//! Edit directions that depend on the code.

use candle_core::{DType, Device, Tensor};
use diffae_nets::weights::is_finite;

use crate::error::{Error, Result, computing};

/// Names of the tensors of the code-dependent part of local directions, below `classifier.`.
pub(crate) const LOCAL: [&str; 6] =
    ["local_inputs", "local_bias", "local_hidden", "local_hidden_bias", "local_center", "local_outputs"];

/// An edit direction that depends on the code:
/// `direction + outputs^T (tanh(hidden tanh(inputs z + bias) + hidden_bias) - center)` at the normalized code z.
#[derive(Debug, Clone)]
pub struct LocalDirection {
    /// Mean edit direction, `[D]`.
    pub direction: Tensor,
    /// Weights of the first hidden layer, `[h, D]`.
    pub inputs: Tensor,
    /// Biases of the first hidden layer, `[h]`.
    pub bias: Tensor,
    /// Weights of the second hidden layer, `[h, h]`.
    pub hidden: Tensor,
    /// Biases of the second hidden layer, `[h]`.
    pub hidden_bias: Tensor,
    /// Mean activations of the second hidden layer, already part of `direction`; `[h]`.
    pub center: Tensor,
    /// Output weights, which add the code-dependent part, `[h, D]`.
    pub outputs: Tensor,
}

impl LocalDirection {
    /// Creates a direction that is the same at every code.
    ///
    /// # Shapes
    /// - `direction`: `[D]`.
    /// # Errors
    /// If it is no vector.
    pub fn fixed(direction: &Tensor) -> Result<Self> {
        let none = || -> candle_core::Result<Self> {
            let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
            let width = direction.dims1()?;
            Ok(Self {
                direction: direction.clone(),
                inputs: zeros(&[0, width])?,
                bias: zeros(&[0])?,
                hidden: zeros(&[0, 0])?,
                hidden_bias: zeros(&[0])?,
                center: zeros(&[0])?,
                outputs: zeros(&[0, width])?,
            })
        };
        computing("fixing a direction", none())
    }

    /// Returns the tensors of the code-dependent part, in the order of [`LOCAL`].
    pub(crate) fn bend(&self) -> [&Tensor; 6] {
        [&self.inputs, &self.bias, &self.hidden, &self.hidden_bias, &self.center, &self.outputs]
    }

    /// Returns the number of hidden units and the width of the codes; fails if shapes do not fit, or a value is not
    /// finite.
    pub(crate) fn size(&self) -> Result<(usize, usize)> {
        let (units, width) = self.inputs.dims2().unwrap_or((0, 0));
        let expected: [&[usize]; 6] = [&[units, width], &[units], &[units, units], &[units], &[units], &[units, width]];
        for tensor in [&self.direction].into_iter().chain(self.bend()) {
            if !computing("checking a direction", is_finite(tensor))? {
                let (what, expected) = ("a direction of edits", "finite numbers");
                return Err(Error::OutOfRange { what, got: "a value that is not finite".to_owned(), expected });
            }
        }
        for ((name, tensor), shape) in LOCAL.iter().zip(self.bend()).zip(expected) {
            if tensor.dims() != shape {
                let (what, got) = (format!("the shape of {name}"), format!("{:?}", tensor.dims()));
                return Err(Error::Mismatch { what, got, expected: format!("{shape:?}") });
            }
        }
        Ok((units, width))
    }

    /// Returns the tensors of the code-dependent part, padded with zeros to a number of hidden units.
    pub(crate) fn padded(&self, units: usize) -> candle_core::Result<[Tensor; 6]> {
        let padded = |tensor: &Tensor, axis: usize| {
            tensor.to_dtype(DType::F32)?.pad_with_zeros(axis, 0, units.saturating_sub(tensor.dim(axis)?))
        };
        let [inputs, bias, hidden, hidden_bias, center, outputs] = self.bend();
        let hidden = padded(&padded(hidden, 0)?, 1)?;
        let [bias, hidden_bias, center] = [bias, hidden_bias, center].map(|tensor| padded(tensor, 0));
        Ok([padded(inputs, 0)?, bias?, hidden, hidden_bias?, center?, padded(outputs, 0)?])
    }
}
