//! Input of a convolution layer: a tensor, with a norm, a skip connection and a residual.

use candle_core::{Result, Tensor, bail};

use super::sizes::{Sizes, WeightSizes};
use crate::cpu::group_norm::Moments;
use crate::cpu::planes::Planes;
use crate::group_norm::GroupNorm;
use crate::storage::{image_dims, with_all_floats, with_floats};

/// Input of a convolution layer, which computes `conv(act(norm([x, skip]))) + residual`, of images or of volumes.
#[derive(Debug, Clone, Copy)]
pub struct ConvInput<'a> {
    /// Input, `[N, C_x, H, W]` or `[N, C_x, D, H, W]`.
    pub x: &'a Tensor,
    /// Skip connection, `[N, C - C_x, ..]`: its channels follow those of `x`.
    pub skip: Option<&'a Tensor>,
    /// Norm and activation applied to the concatenated input.
    pub norm: Option<&'a GroupNorm<'a>>,
    /// Residual that is added to the result, `[N, O, ..]`.
    pub residual: Option<&'a Tensor>,
}

impl<'a> ConvInput<'a> {
    /// Wraps a tensor that is convolved as it is.
    #[must_use]
    pub fn plain(x: &'a Tensor) -> Self {
        Self { x, skip: None, norm: None, residual: None }
    }

    /// Iterates over all tensors of the input.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &'a Tensor> {
        let norm_tensors = self.norm.into_iter().flat_map(|norm| [norm.scale, norm.shift]);
        [self.x].into_iter().chain(self.skip).chain(norm_tensors).chain(self.residual)
    }

    /// Returns the sizes of a convolution with a weight of these sizes.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub(super) fn check(&self, weight: WeightSizes) -> Result<Sizes> {
        let WeightSizes { outputs, inputs, kernel, axes } = weight;
        let ConvInput { x, skip, norm, residual } = *self;
        let (images, x_channels, ..) = image_dims(x.dims())?;
        let (depth, height, width) = match *x.dims() {
            [_, _, depth, height, width] => (Some(depth), height, width),
            [.., height, width] => (None, height, width),
            _ => (None, 0, 0),
        };
        let skip_channels = skip.map_or(Ok(0), |skip| skip.dim(1))?;
        let is_like_x = |tensor: &Tensor, channels| {
            tensor.dims().get(..2) == Some(&[images, channels]) && tensor.dims().get(2..) == x.dims().get(2..)
        };
        let skip_fits = skip.is_none_or(|skip| is_like_x(skip, skip_channels));
        let residual_fits = residual.is_none_or(|residual| is_like_x(residual, outputs));
        let axes_fit = axes.is_none_or(|axes| axes + 2 == x.rank());
        if x_channels + skip_channels != inputs || !skip_fits || !residual_fits || !axes_fit {
            let (skip, residual) = (skip.map(Tensor::dims), residual.map(Tensor::dims));
            bail!(
                "an input of shape {:?}, skip {skip:?} and residual {residual:?} do not fit a convolution from \
                 {inputs} to {outputs} channels{}",
                x.dims(),
                axes.map_or_else(String::new, |axes| format!(" along {axes} axes"))
            )
        }
        norm.map(|norm| norm.check(images, inputs)).transpose()?;
        Ok(Sizes { images, inputs, outputs, depth, height, width, kernel })
    }
}

/// Hands the planes that are convolved to `f`, with the moments of their norm, if there is one.
///
/// # Errors
/// That of `f`, or if a length does not fit.
pub(super) fn with_planes<R>(
    input: &ConvInput<'_>,
    sizes: &Sizes,
    f: impl FnOnce(Planes<'_>, Option<&Moments>) -> Result<R>,
) -> Result<R> {
    let ConvInput { x, skip, norm, .. } = *input;
    with_floats(x, |x_values| {
        with_optional(skip, |skip_values| {
            let planes = sizes.input_planes(x_values, skip_values)?;
            let Some(norm) = norm else { return f(planes, None) };
            with_all_floats([norm.scale, norm.shift], |[scale, shift]| {
                let moments = Moments::new(&planes, norm.num_groups)?;
                let folded = moments.fold(scale, shift)?;
                f(planes.with_affine(folded.affine(norm.activation))?, Some(&moments))
            })
        })
    })
}

/// Hands the elements of a tensor that may be absent to `f`.
///
/// # Errors
/// That of `f`, or if the tensor is not f32 on the CPU.
pub(super) fn with_optional<R>(tensor: Option<&Tensor>, f: impl FnOnce(Option<&[f32]>) -> Result<R>) -> Result<R> {
    match tensor {
        Some(tensor) => with_floats(tensor, |values| f(Some(values))),
        None => f(None),
    }
}
