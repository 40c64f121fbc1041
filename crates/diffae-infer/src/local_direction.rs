//! Directions of edits that depend on the code.

use candle_core::{DType, Device, Tensor};
use diffae_nets::weights::is_finite;

use crate::error::{Error, Result, computing};

/// What bends local directions, below `classifier.`.
pub(crate) const LOCAL: [&str; 6] =
    ["local_inputs", "local_bias", "local_hidden", "local_hidden_bias", "local_center", "local_outputs"];

/// The way to an attribute: `direction + outputs^T (tanh(hidden tanh(inputs z + bias) + hidden_bias) - center)` at the
/// normalized code z.
#[derive(Debug, Clone)]
pub struct LocalDirection {
    /// `[D]`: the mean of the ways.
    pub direction: Tensor,
    /// `[h, D]`: what of a code the way depends on.
    pub inputs: Tensor,
    /// `[h]`: where each of these turns.
    pub bias: Tensor,
    /// `[h, h]`: how they act together.
    pub hidden: Tensor,
    /// `[h]`: where each of the results turns.
    pub hidden_bias: Tensor,
    /// `[h]`: what of them is part of the mean way.
    pub center: Tensor,
    /// `[h, D]`: how each of them bends the way.
    pub outputs: Tensor,
}

impl LocalDirection {
    /// The same way at every code.
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

    /// What bends it, in the order of [`LOCAL`].
    pub(crate) fn bend(&self) -> [&Tensor; 6] {
        [&self.inputs, &self.bias, &self.hidden, &self.hidden_bias, &self.center, &self.outputs]
    }

    /// How many units of how wide codes it has; an error if the parts do not fit, or one is not finite.
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

    /// What bends it with units that do nothing up to a number of them.
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
