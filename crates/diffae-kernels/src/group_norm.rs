//! Group normalization with an affine map for each image and channel, and SiLU, in one operation.

use candle_core::{D, DType, Device, Result, Shape, Tensor, bail};

pub use crate::cpu::group_norm::NORM_EPS;
pub use crate::cpu::planes::Activation;

use crate::cpu::group_norm as cpu;
use crate::cpu::group_norm::{Backward, Moments};
use crate::cpu::planes::Planes;
use crate::cuda;
use crate::operation::{self, Operation, View};
use crate::storage::{as_images, image_dims, with_all_floats};
use crate::tape;

/// A group norm, its affine map and its activation.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Number of groups; divides C. 0 turns the normalization off: `x_hat = x`.
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
        if self.num_groups > 0 && !channels.is_multiple_of(self.num_groups) {
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
/// group of channels of an image. The variance is the biased one; statistics are in f32 at least. Without groups, `x_hat = x`.
/// The backward pass saves `x` only.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`, or volumes, `[N, C, D, H, W]`; result: as `x`, of its dtype.
/// # Errors
/// If shapes do not fit.
/// # Source
/// Wu and He 2018 (arXiv:1803.08494).
pub fn group_norm(x: &Tensor, norm: &GroupNorm<'_>) -> Result<Tensor> {
    let (images, channels, ..) = image_dims(x.dims())?;
    norm.check(images, channels)?;
    let GroupNorm { num_groups, scale, shift, activation } = *norm;
    operation::apply([x, scale, shift], NormOp { num_groups, activation })
}

/// Computes the affine map of a norm under conditions, in one launch on a card: `scale = (1 + z) (1 + t) weight` and
/// `shift = (1 + z) ((1 + t) bias + t')`, f32.
///
/// `None` on other devices, where kernels for cards are not selected, and where gradients may be asked for: the caller composes it.
///
/// # Shapes
/// - `time`: t and t' side by side, `[N, 2C]` or `[1, 2C]`; `z`: `[N, C]` or `[1, C]`; weight and bias: `[C]`; results: `[N, C]`.
/// # Errors
/// If shapes do not fit, or the card fails.
pub fn conditional_affine(time: &Tensor, z: Option<&Tensor>, affine: [&Tensor; 2]) -> Result<Option<[Tensor; 2]>> {
    if !tape::is_off() {
        return Ok(None);
    }
    cuda::modulate(time, z, affine)
}

/// Group norm with an affine map and an activation, as an operation on x, scale and shift.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormOp {
    pub(crate) num_groups: usize,
    pub(crate) activation: Activation,
}

impl Operation<3> for NormOp {
    fn forward(&self, [(x, dims), (scale, _), (shift, _)]: [View<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let shape = Shape::from(dims);
        let (images, channels, height, width) = image_dims(dims)?;
        let planes = Planes::new(x, [images, channels, height, width])?;
        let folded = Moments::new(&planes, self.num_groups)?.fold(scale, shift)?;
        Ok((cpu::apply(&planes.with_affine(folded.affine(self.activation))?), shape))
    }

    fn gradients(
        &self,
        [x, scale, shift]: [&Tensor; 3],
        wanted: [bool; 3],
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (images, channels, height, width) = image_dims(x.dims())?;
        let (d_x, sums) = with_all_floats([x, dy, scale, shift], |[x, dy, scale, shift]| {
            let planes = Planes::new(x, [images, channels, height, width])?;
            let moments = Moments::new(&planes, self.num_groups)?;
            Ok(Backward::new(planes, &moments, scale, shift, self.activation)?.to_vec(dy)?)
        })?;
        let d_x = wanted[0].then(|| Tensor::from_vec(d_x, x.shape(), &Device::Cpu)).transpose()?;
        let sums = Tensor::from_vec(sums, (2, images, ()), &Device::Cpu)?;
        let [d_scale, d_shift] = affine_gradients(&sums, [scale, shift], [wanted[1], wanted[2]])?;
        Ok([d_x, d_scale, d_shift])
    }

    fn on_card(&self, inputs: [&Tensor; 3]) -> Result<Option<Tensor>> {
        cuda::group_norm(inputs, self.num_groups, self.activation)
    }

    fn gradients_on_card(
        &self,
        inputs: [&Tensor; 3],
        wanted: [bool; 3],
        dy: &Tensor,
    ) -> Result<Option<[Option<Tensor>; 3]>> {
        let norm = (self.num_groups, self.activation);
        let Some((d_x, sums)) = cuda::group_norm_gradients(inputs, norm, wanted, dy)? else { return Ok(None) };
        let [_, scale, shift] = inputs;
        let [d_scale, d_shift] = affine_gradients(&sums, [scale, shift], [wanted[1], wanted[2]])?;
        Ok(Some([d_x, d_scale, d_shift]))
    }

    fn composed(&self, [x, scale, shift]: [&Tensor; 3]) -> Result<Tensor> {
        let Composed { x_hat, scale, shift, .. } = Composed::new(&as_images(x)?, [scale, shift], self.num_groups)?;
        let u = x_hat.broadcast_mul(&scale)?.broadcast_add(&shift)?;
        let y = match self.activation {
            Activation::Identity => u,
            Activation::Silu => u.silu()?,
        };
        y.to_dtype(x.dtype())?.reshape(x.shape())
    }

    /// With `u = x_hat scale + shift` and `du` the gradient w.r.t. it, `d_shift = sum du`, `d_scale = sum du x_hat`, and
    /// `d_x = (g - mean g - x_hat mean(g x_hat)) / sqrt(variance + 1e-5)`, where `g = du scale` and the means are over groups.
    fn composed_gradients(
        &self,
        [x, of_scale, of_shift]: [&Tensor; 3],
        wanted: [bool; 3],
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (images, channels, height, width) = image_dims(x.dims())?;
        let Composed { x_hat, inv_deviation, scale, shift } =
            Composed::new(&as_images(x)?, [of_scale, of_shift], self.num_groups)?;
        let dy = as_images(dy)?.to_dtype(x_hat.dtype())?;
        let du = match self.activation {
            Activation::Identity => dy,
            Activation::Silu => {
                let u = x_hat.broadcast_mul(&scale)?.broadcast_add(&shift)?;
                let sigmoid = (u.neg()?.exp()? + 1.)?.recip()?;
                // sigmoid (1 + u (1 - sigmoid))
                let slope = (&sigmoid * ((u * sigmoid.affine(-1., 1.)?)? + 1.)?)?;
                (dy * slope)?
            }
        };
        let by_channel = |t: &Tensor| t.reshape((images, channels, height * width))?.sum(D::Minus1);
        let sums = Tensor::stack(&[by_channel(&(&du * &x_hat)?)?, by_channel(&du)?], 0)?; // [2, N, C]
        let d_x = || {
            if self.num_groups == 0 {
                return du.broadcast_mul(&scale)?.reshape(x.shape())?.to_dtype(x.dtype());
            }
            let by_group = |t: &Tensor| t.reshape((images, self.num_groups, ()));
            let (g, x_hat) = (by_group(&du.broadcast_mul(&scale)?)?, by_group(&x_hat)?);
            let along = (&g * &x_hat)?.mean_keepdim(D::Minus1)?;
            let centered = g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
            let d_x = (centered - x_hat.broadcast_mul(&along)?)?.broadcast_mul(&inv_deviation)?;
            d_x.reshape(x.shape())?.to_dtype(x.dtype())
        };
        let d_x = wanted[0].then(d_x).transpose()?;
        let [d_scale, d_shift] = affine_gradients(&sums, [of_scale, of_shift], [wanted[1], wanted[2]])?;
        Ok([d_x, d_scale, d_shift])
    }
}

/// A norm in Candle's operations, before its activation; f32, or f64 if `x` is.
struct Composed {
    /// Normalized `x`, `[N, C, H, W]`.
    x_hat: Tensor,
    /// `1 / sqrt(variance + 1e-5)`, `[N, groups, 1]`; a one without groups.
    inv_deviation: Tensor,
    /// Scale, `[N or 1, C, 1, 1]`.
    scale: Tensor,
    /// Shift, of the same shape.
    shift: Tensor,
}

impl Composed {
    fn new(x: &Tensor, affine: [&Tensor; 2], num_groups: usize) -> Result<Self> {
        let statistics = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let (images, channels, ..) = image_dims(x.dims())?;
        let (x_hat, inv_deviation) = if num_groups == 0 {
            (x.to_dtype(statistics)?, Tensor::ones((1, 1, 1), statistics, x.device())?)
        } else {
            let groups = x.to_dtype(statistics)?.reshape((images, num_groups, ()))?;
            let centered = groups.broadcast_sub(&groups.mean_keepdim(D::Minus1)?)?;
            let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
            let inv_deviation = (variance + NORM_EPS)?.sqrt()?.recip()?;
            (centered.broadcast_mul(&inv_deviation)?.reshape(x.shape())?, inv_deviation)
        };
        let by_channel = |t: &Tensor| t.to_dtype(statistics)?.reshape(((), channels, 1, 1));
        let [scale, shift] = affine;
        Ok(Self { x_hat, inv_deviation, scale: by_channel(scale)?, shift: by_channel(shift)? })
    }
}

/// Sums gradients by image and channel, `[2, N, C]`, to the shapes and number types of scale and shift.
///
/// # Errors
/// If sizes do not fit.
pub(crate) fn affine_gradients(sums: &Tensor, of: [&Tensor; 2], wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let part = |part: usize| {
        if !wanted[part] {
            return Ok(None);
        }
        let (sums, of) = (sums.get(part)?, of[part]); // [N, C]
        let sums = if sums.elem_count() == of.elem_count() { sums } else { sums.sum(0)? };
        sums.reshape(of.shape())?.to_dtype(of.dtype()).map(Some)
    };
    Ok([part(0)?, part(1)?])
}
