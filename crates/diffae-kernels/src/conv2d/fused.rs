//! Concatenation, norm, activation, convolution and sum as one operation of a tape.
//!
//! None of the intermediate activations is saved: the backward pass recomputes the normalized ones. The kernels do so inside the
//! transform that the gradient w.r.t. the weights begins with.

use candle_core::{Device, Result, Tensor};

use super::composed;
use super::input::{ConvInput, with_optional, with_planes};
use super::sizes::{Sizes, WeightSizes};
use crate::cpu::algorithm::Algorithm;
use crate::cpu::group_norm::{Backward, Moments};
use crate::cpu::planes::{Activation, Planes};
use crate::group_norm::{NormOp, affine_gradients};
use crate::join::split_channels;
use crate::kept::Kept;
use crate::operation;
use crate::storage::{runs_here, with_all_floats};
use crate::tape;

/// Computes the layer and records it on the tape.
///
/// # Errors
/// If shapes do not fit.
pub(super) fn apply(input: &ConvInput<'_>, [weight, bias]: [&Tensor; 2]) -> Result<Tensor> {
    let sizes = input.check(WeightSizes::of_dims(weight.dims())?)?;
    let has_kernel = Algorithm::supports(sizes.kernel) && runs_here(input.tensors().chain([weight, bias]));
    let (y, moments) = if has_kernel {
        let (y, moments) = with_planes(input, &sizes, |planes, moments| {
            with_all_floats([weight, bias], |[weight, bias]| {
                with_optional(input.residual, |residual| {
                    Ok((sizes.convolve(planes, &sizes.pack(weight)?, Some(bias), residual)?, moments.cloned()))
                })
            })
        })?;
        (Tensor::from_vec(y, sizes.output_shape(), &Device::Cpu)?, moments)
    } else {
        (composed_layer(input, [weight, bias])?, None)
    };
    let norm = input.norm.map(|norm| SavedNorm {
        num_groups: norm.num_groups,
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
    tape::push(&inputs, &y, move |dy, wanted| {
        let wanted = saved.wanted(wanted);
        if has_kernel { saved.gradients(dy, wanted) } else { saved.composed_gradients(dy, wanted) }
    })?;
    Ok(y)
}

/// Computes the layer by Candle's operations.
fn composed_layer(input: &ConvInput<'_>, [weight, bias]: [&Tensor; 2]) -> Result<Tensor> {
    let x = input.x.detach();
    let mut x = input.skip.map_or_else(|| Ok(x.clone()), |skip| Tensor::cat(&[&x, &skip.detach()], 1))?;
    if let Some(norm) = input.norm {
        let op = NormOp { num_groups: norm.num_groups, activation: norm.activation };
        x = operation::forward(&op, [&x, &norm.scale.detach(), &norm.shift.detach()])?;
    }
    composed::convolve(&x, &weight.detach(), &bias.detach(), input.residual.map(Tensor::detach).as_ref())
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
    num_groups: usize,
    activation: Activation,
    /// Mean and deviation, where the kernels have computed them.
    moments: Option<Moments>,
}

/// Flags of the inputs whose gradients are needed.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Weight and bias.
    parameters: [bool; 2],
    /// `x` and the skip connection.
    parts: [bool; 2],
    /// Scale and shift of the norm.
    affine: [bool; 2],
    residual: bool,
}

impl Saved {
    /// Names flags in the order weight, bias, x, skip, scale, shift, residual, of those inputs that are there.
    fn wanted(&self, flags: &[bool]) -> Wanted {
        let mut flags = flags.iter().copied();
        let mut next = || flags.next().unwrap_or(false);
        let parameters = [next(), next()];
        let parts = [next(), self.skip.is_some() && next()];
        let affine = if self.norm.is_some() { [next(), next()] } else { [false; 2] };
        Wanted { parameters, parts, affine, residual: next() }
    }

    /// Lists the gradients of those inputs that are there, in the order of [`wanted`](Self::wanted).
    fn listed(
        &self,
        parameters: [Option<Tensor>; 2],
        parts: [Option<Tensor>; 2],
        affine: [Option<Tensor>; 2],
        residual: Option<Tensor>,
    ) -> Vec<Option<Tensor>> {
        let parts = parts.into_iter().take(1 + usize::from(self.skip.is_some()));
        let affine = affine.into_iter().filter(|_| self.norm.is_some());
        parameters.into_iter().chain(parts).chain(affine).chain([residual]).collect()
    }

    /// Computes gradients by the kernels.
    fn gradients(&self, dy: &Tensor, wanted: Wanted) -> Result<Vec<Option<Tensor>>> {
        let input_wanted = wanted.parts.contains(&true) || wanted.affine.contains(&true);
        let (x, skip) = (self.x.get()?, self.skip.as_ref().map(Kept::get).transpose()?);
        let (parameters, input) = with_all_floats([dy, &self.weight, &x], |[dy_values, weight, x]| {
            with_optional(skip.as_ref(), |skip| {
                let sizes = &self.sizes;
                let planes = sizes.input_planes(x, skip)?;
                let parameters = self.parameter_gradients(wanted.parameters, planes, dy_values)?;
                let input = if input_wanted { Some(sizes.input_gradient(weight, dy_values)?) } else { None };
                let input = input.map(|input| self.norm_gradients(planes, input)).transpose()?;
                Ok((parameters, input))
            })
        })?;
        let (input, sums) = input.unzip();
        let affine = match (&self.norm, sums.flatten()) {
            (Some(norm), Some(sums)) => {
                let sums = Tensor::from_vec(sums, (2, self.sizes.images, ()), &Device::Cpu)?;
                affine_gradients(&sums, [&norm.scale, &norm.shift], wanted.affine)?
            }
            _ => [None, None],
        };
        let parts = Self::parts_of(input, (&x, skip.as_ref()), wanted.parts)?;
        Ok(self.listed(parameters, parts, affine, wanted.residual.then(|| dy.clone())))
    }

    /// Splits the gradient w.r.t. `[x, skip]`.
    fn parts_of(
        gradient: Option<Tensor>,
        (x, skip): (&Tensor, Option<&Tensor>),
        wanted: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        match (gradient, skip) {
            (Some(gradient), Some(skip)) => split_channels(&gradient, [x.dim(1)?, skip.dim(1)?], wanted),
            (gradient, _) => Ok([gradient, None]),
        }
    }

    /// Computes gradients by Candle's operations.
    fn composed_gradients(&self, dy: &Tensor, wanted: Wanted) -> Result<Vec<Option<Tensor>>> {
        let (x, skip) = (self.x.get()?, self.skip.as_ref().map(Kept::get).transpose()?);
        let joined = skip.as_ref().map_or_else(|| Ok(x.clone()), |skip| Tensor::cat(&[&x, skip], 1))?;
        let op = self.norm.as_ref().map(|norm| NormOp { num_groups: norm.num_groups, activation: norm.activation });
        let norm = op.zip(self.norm.as_ref());
        let [weight_wanted, bias_wanted] = wanted.parameters;
        let d_weight = || {
            let input =
                norm.map(|(op, norm)| operation::forward(&op, [&joined, &norm.scale, &norm.shift])).transpose()?;
            composed::weight_gradient(input.as_ref().unwrap_or(&joined), &self.weight, dy)
        };
        let d_weight = weight_wanted.then(d_weight).transpose()?;
        let d_bias = bias_wanted.then(|| composed::bias_gradient(&self.bias, dy)).transpose()?;
        let input_wanted = wanted.parts.contains(&true) || wanted.affine.contains(&true);
        let input = input_wanted.then(|| composed::input_gradient(&self.weight, dy)).transpose()?;
        let [input, d_scale, d_shift] = match (norm, input) {
            (Some((op, norm)), Some(input)) => {
                let flags = [wanted.parts.contains(&true), wanted.affine[0], wanted.affine[1]];
                operation::gradients(&op, [&joined, &norm.scale, &norm.shift], flags, &input)?
            }
            (_, input) => [input, None, None],
        };
        let parts = Self::parts_of(input, (&x, skip.as_ref()), wanted.parts)?;
        Ok(self.listed([d_weight, d_bias], parts, [d_scale, d_shift], wanted.residual.then(|| dy.clone())))
    }

    /// Returns the norm with what the kernels have computed of it.
    fn norm_with_moments(&self) -> Option<(&SavedNorm, &Moments)> {
        self.norm.as_ref().and_then(|norm| Some((norm, norm.moments.as_ref()?)))
    }

    /// Computes the gradients w.r.t. weight and bias. `planes`: `[x, skip]`.
    fn parameter_gradients(&self, wanted: [bool; 2], planes: Planes<'_>, dy: &[f32]) -> Result<[Option<Tensor>; 2]> {
        let parameters = [&self.weight, &self.bias];
        let Some((norm, moments)) = self.norm_with_moments() else {
            return self.sizes.parameter_gradients(parameters, wanted, planes, dy);
        };
        with_all_floats([&norm.scale, &norm.shift], |[scale, shift]| {
            let folded = moments.fold(scale, shift)?;
            let planes = planes.with_affine(folded.affine(norm.activation))?;
            self.sizes.parameter_gradients(parameters, wanted, planes, dy)
        })
    }

    /// Computes the gradients w.r.t. `[x, skip]`, and w.r.t. scale and shift by image and channel, from `gradient`, that
    /// w.r.t. the input of the convolution.
    fn norm_gradients(&self, planes: Planes<'_>, mut gradient: Vec<f32>) -> Result<(Tensor, Option<Vec<f32>>)> {
        let sums = self.norm_with_moments().map(|(norm, moments)| {
            with_all_floats([&norm.scale, &norm.shift], |[scale, shift]| {
                let backward = Backward::new(planes, moments, scale, shift, norm.activation)?;
                Ok(backward.in_place(&mut gradient)?)
            })
        });
        let sums = sums.transpose()?;
        Ok((Tensor::from_vec(gradient, self.sizes.input_shape(), &Device::Cpu)?, sums))
    }
}
