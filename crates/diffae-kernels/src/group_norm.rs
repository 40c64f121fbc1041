//! Group normalization with an affine map for each image and channel, and SiLU, in one operation.

use candle_core::{D, DType, Device, Result, Shape, Tensor, bail};

pub use crate::cpu::group_norm::NORM_EPS;
pub use crate::cpu::planes::Activation;

use crate::cpu::group_norm::{Backward, Moments, apply};
use crate::cpu::planes::Planes;
use crate::operation::{Operation, View, apply_3};
use crate::storage::{runs_here, with_all_floats};
use crate::tape::differentiable;

/// A group norm, its affine map and its activation.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Number of groups; divides C.
    pub num_groups: usize,
    /// Scale, `[N, C]`, or `[1, C]` or `[C]` for all images.
    pub scale: &'a Tensor,
    /// Shift, `[N, C]`, or `[1, C]` or `[C]` for all images.
    pub shift: &'a Tensor,
    /// Activation that follows the affine map.
    pub activation: Activation,
}

impl GroupNorm<'_> {
    /// Fails if the norm does not fit `channels` channels of `images` images.
    pub(crate) fn check(&self, images: usize, channels: usize) -> Result<()> {
        if self.num_groups == 0 || !channels.is_multiple_of(self.num_groups) {
            bail!("{channels} channels cannot be cut into {} groups", self.num_groups)
        }
        for tensor in [self.scale, self.shift] {
            let fits = match *tensor.dims() {
                [width] => width == channels,
                [rows, width] => width == channels && (rows == 1 || rows == images),
                _ => false,
            };
            if !fits {
                bail!("scale or shift of shape {:?} for {images} images of {channels} channels", tensor.dims())
            }
        }
        Ok(())
    }
}

/// Normalizes groups of channels, then applies an affine map and an activation.
///
/// `y = activation(x_hat * scale + shift)`, `x_hat = (x - mean) / sqrt(variance + 1e-5)`, with mean and variance over each
/// group of channels of an image. The variance is the biased one; statistics are in f32 at least. The backward pass
/// saves `x` only.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; result: as `x`, of its dtype.
/// # Errors
/// If shapes do not fit.
/// # Source
/// Wu and He 2018 (arXiv:1803.08494).
pub fn group_norm(x: &Tensor, norm: &GroupNorm<'_>) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    norm.check(images, channels)?;
    let GroupNorm { num_groups, scale, shift, activation } = *norm;
    if runs_here([x, scale, shift]) {
        return apply_3([x, scale, shift], Op { num_groups, activation });
    }
    let statistics = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    differentiable([x, scale, shift], |[x, scale, shift]| {
        let groups = x.to_dtype(statistics)?.reshape((images, num_groups, ()))?;
        let centered = groups.broadcast_sub(&groups.mean_keepdim(D::Minus1)?)?;
        let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
        let x_hat = centered.broadcast_div(&(variance + NORM_EPS)?.sqrt()?)?;
        let x_hat = x_hat.reshape((images, channels, height, width))?;
        let by_channel = |t: &Tensor| t.to_dtype(statistics)?.reshape(((), channels, 1, 1));
        let u = x_hat.broadcast_mul(&by_channel(scale)?)?.broadcast_add(&by_channel(shift)?)?;
        let y = match activation {
            Activation::Identity => u,
            Activation::Silu => u.silu()?,
        };
        y.to_dtype(x.dtype())
    })
}

/// Group norm with an affine map and an activation, as an operation on x, scale and shift.
#[derive(Debug, Clone, Copy)]
struct Op {
    num_groups: usize,
    activation: Activation,
}

impl Operation<3> for Op {
    const NAME: &'static str = "group-norm";

    fn forward(&self, [(x, dims), (scale, _), (shift, _)]: [View<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let shape = Shape::from(dims);
        let (images, channels, height, width) = shape.dims4()?;
        let planes = Planes::new(x, [images, channels, height, width])?;
        let folded = Moments::new(&planes, self.num_groups)?.fold(scale, shift)?;
        Ok((apply(&planes.with_affine(folded.affine(self.activation))?), shape))
    }

    fn gradients(
        &self,
        [x, scale, shift]: [&Tensor; 3],
        wanted: [bool; 3],
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (images, channels, height, width) = x.dims4()?;
        let (d_x, sums) = with_all_floats([x, dy, scale, shift], |[x, dy, scale, shift]| {
            let planes = Planes::new(x, [images, channels, height, width])?;
            let moments = Moments::new(&planes, self.num_groups)?;
            Ok(Backward::new(planes, &moments, scale, shift, self.activation)?.to_vec(dy)?)
        })?;
        let d_x = wanted[0].then(|| Tensor::from_vec(d_x, x.shape(), &Device::Cpu)).transpose()?;
        let [d_scale, d_shift] = affine_gradients(sums, images, [scale, shift], [wanted[1], wanted[2]])?;
        Ok([d_x, d_scale, d_shift])
    }
}

/// Sums gradients by image and channel, `[2, N, C]`, to the shapes of scale and shift.
///
/// # Errors
/// If sizes do not fit.
pub(crate) fn affine_gradients(
    sums: Vec<f32>,
    images: usize,
    of: [&Tensor; 2],
    wanted: [bool; 2],
) -> Result<[Option<Tensor>; 2]> {
    let sums = Tensor::from_vec(sums, (2, images, ()), &Device::Cpu)?;
    let part = |part: usize| {
        if !wanted[part] {
            return Ok(None);
        }
        let (sums, of) = (sums.get(part)?, of[part]); // [N, C]
        let sums = if sums.elem_count() == of.elem_count() { sums } else { sums.sum(0)? };
        sums.reshape(of.shape()).map(Some)
    };
    Ok([part(0)?, part(1)?])
}
