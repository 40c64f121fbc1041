//! Concatenation, norm, activation, convolution and sum as one operation of a tape.
//!
//! None of the intermediate activations is saved: the backward pass recomputes the normalized ones, inside the transform
//! that the gradient w.r.t. the weights begins with.

use candle_core::{Device, Result, Tensor};

use super::input::{ConvInput, with_optional, with_planes};
use super::sizes::{Sizes, WeightSizes, convolve};
use crate::cpu::group_norm::{Backward, Moments};
use crate::cpu::planes::{Activation, Planes};
use crate::group_norm::affine_gradients;
use crate::join::split_channels;
use crate::kept::Kept;
use crate::storage::with_all_floats;
use crate::tape;

/// Computes the layer and records it on the tape.
///
/// # Errors
/// If shapes do not fit.
pub(super) fn apply(input: &ConvInput<'_>, [weight, bias]: [&Tensor; 2]) -> Result<Tensor> {
    let sizes = input.check(WeightSizes::of_dims(weight.dims())?)?;
    let (y, moments) = with_planes(input, &sizes, |planes, moments| {
        with_all_floats([weight, bias], |[weight, bias]| {
            with_optional(input.residual, |residual| {
                Ok((convolve(planes, &sizes.pack(weight)?, Some(bias), residual)?, moments.cloned()))
            })
        })
    })?;
    let y = Tensor::from_vec(y, sizes.output_shape(), &Device::Cpu)?;
    let norm = input.norm.zip(moments).map(|(norm, moments)| SavedNorm {
        scale: norm.scale.detach(),
        shift: norm.shift.detach(),
        activation: norm.activation,
        moments,
    });
    let inputs: Vec<&Tensor> = [weight, bias].into_iter().chain(input.tensors()).collect();
    let keep = tape::keeper(&inputs);
    let saved = Saved {
        sizes,
        x: keep(input.x)?,
        skip: input.skip.map(keep).transpose()?,
        norm,
        weight: weight.detach(),
        bias: bias.detach(),
    };
    tape::push(&inputs, &y, move |dy, wanted| saved.gradients(dy, wanted))?;
    Ok(y)
}

/// State saved for the backward pass.
struct Saved {
    sizes: Sizes,
    x: Kept,
    skip: Option<Kept>,
    norm: Option<SavedNorm>,
    weight: Tensor,
    bias: Tensor,
}

/// State of a norm that is saved for the backward pass.
struct SavedNorm {
    scale: Tensor,
    shift: Tensor,
    activation: Activation,
    moments: Moments,
}

impl Saved {
    /// Computes the gradients of those inputs that are there, in the order weight, bias, x, skip, scale, shift, residual.
    fn gradients(&self, dy: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let mut flags = wanted.iter().copied();
        let mut next = || flags.next().unwrap_or(false);
        let parameters_wanted = [next(), next()];
        let parts_wanted = [next(), self.skip.is_some() && next()];
        let affine_wanted = if self.norm.is_some() { [next(), next()] } else { [false; 2] };
        let residual_wanted = next();
        let input_wanted = parts_wanted.contains(&true) || affine_wanted.contains(&true);

        let (x, skip) = (self.x.get()?, self.skip.as_ref().map(Kept::get).transpose()?);
        let (parameters, input) = with_all_floats([dy, &self.weight, &x], |[dy_values, weight, x]| {
            with_optional(skip.as_ref(), |skip| {
                let sizes = &self.sizes;
                let planes = sizes.input_planes(x, skip)?;
                let parameters = self.parameter_gradients(parameters_wanted, planes, dy_values)?;
                let input = if input_wanted { Some(sizes.input_gradient(weight, dy_values)?) } else { None };
                let input = input.map(|input| self.norm_gradients(planes, input)).transpose()?;
                Ok((parameters, input))
            })
        })?;
        let mut gradients = Vec::from(parameters);
        let (input, sums) = input.unzip();
        let skip_channels = skip.as_ref().map_or(Ok(0), |skip| skip.dim(1))?;
        let parts = match input {
            Some(input) if self.skip.is_some() => split_channels(&input, [x.dim(1)?, skip_channels], parts_wanted)?,
            input => [input, None],
        };
        let num_parts = 1 + usize::from(self.skip.is_some());
        gradients.extend(parts.into_iter().take(num_parts));
        if let Some(norm) = &self.norm {
            gradients.extend(match sums.flatten() {
                Some(sums) => affine_gradients(sums, self.sizes.images, [&norm.scale, &norm.shift], affine_wanted)?,
                None => [None, None],
            });
        }
        gradients.push(residual_wanted.then(|| dy.clone()));
        Ok(gradients)
    }

    /// Computes the gradients w.r.t. weight and bias. `planes`: `[x, skip]`.
    fn parameter_gradients(&self, wanted: [bool; 2], planes: Planes<'_>, dy: &[f32]) -> Result<[Option<Tensor>; 2]> {
        let parameters = [&self.weight, &self.bias];
        let Some(norm) = &self.norm else { return self.sizes.parameter_gradients(parameters, wanted, planes, dy) };
        with_all_floats([&norm.scale, &norm.shift], |[scale, shift]| {
            let folded = norm.moments.fold(scale, shift)?;
            let planes = planes.with_affine(folded.affine(norm.activation))?;
            self.sizes.parameter_gradients(parameters, wanted, planes, dy)
        })
    }

    /// Computes the gradients w.r.t. `[x, skip]`, and w.r.t. scale and shift by image and channel, from `gradient`, that
    /// w.r.t. the input of the convolution.
    fn norm_gradients(&self, planes: Planes<'_>, mut gradient: Vec<f32>) -> Result<(Tensor, Option<Vec<f32>>)> {
        let Sizes { images, inputs, height, width, .. } = self.sizes;
        let sums = self.norm.as_ref().map(|norm| {
            with_all_floats([&norm.scale, &norm.shift], |[scale, shift]| {
                let backward = Backward::new(planes, &norm.moments, scale, shift, norm.activation)?;
                Ok(backward.in_place(&mut gradient)?)
            })
        });
        let sums = sums.transpose()?;
        Ok((Tensor::from_vec(gradient, (images, inputs, height, width), &Device::Cpu)?, sums))
    }
}
