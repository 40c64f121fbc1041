//! Group normalization with an affine map for each image and channel, and SiLU, in one operation.

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::cpu::group_norm::{self as cpu, Backward};
use crate::cpu::planes::{self, Affine, Planes};
use crate::storage::{floats, runs_here, with_floats};

/// Added to the variance.
pub const NORM_EPS: f64 = 1e-5;

/// What follows the affine map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `u * sigmoid(u)`.
    Silu,
}

impl From<Activation> for planes::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Identity => Self::Identity,
            Activation::Silu => Self::Silu,
        }
    }
}

/// A group norm and what follows it.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Number of groups; divides C.
    pub num_groups: usize,
    /// `[N, C]`, or `[1, C]` for all images.
    pub scale: &'a Tensor,
    /// As `scale`.
    pub shift: &'a Tensor,
    /// What follows.
    pub activation: Activation,
}

impl GroupNorm<'_> {
    /// Fails if it does not fit `channels` channels of `images` images.
    pub(crate) fn check(&self, images: usize, channels: usize) -> Result<()> {
        if self.num_groups == 0 || channels % self.num_groups != 0 {
            bail!("{channels} channels cannot be cut into {} groups", self.num_groups)
        }
        for tensor in [self.scale, self.shift] {
            let (rows, width) = tensor.dims2()?;
            if width != channels || (rows != 1 && rows != images) {
                bail!("scale or shift of shape [{rows}, {width}] for {images} images of {channels} channels")
            }
        }
        Ok(())
    }
}

/// `activation(x_hat * scale + shift)`, `x_hat = (x - mean) / sqrt(variance + 1e-5)` over each group of channels.
///
/// The variance is the biased one; statistics are in f32 at least. Nothing but x is kept for the backward pass.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; result: the same, dtype of `x`.
/// # Errors
/// If shapes do not fit.
/// # Source
/// Wu and He 2018 (arXiv:1803.08494).
pub fn group_norm(x: &Tensor, norm: &GroupNorm<'_>) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    norm.check(images, channels)?;
    let GroupNorm { num_groups, scale, shift, activation } = *norm;
    if runs_here([x, scale, shift]) {
        // Both with as many rows, so that their gradients are of one shape.
        let rows = scale.dim(0)?.max(shift.dim(0)?);
        let (scale, shift) = (scale.broadcast_as((rows, channels))?, shift.broadcast_as((rows, channels))?);
        let op = Op { num_groups, activation };
        return x.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, op);
    }
    let statistics = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let groups = x.to_dtype(statistics)?.reshape((images, num_groups, ()))?;
    let centered = groups.broadcast_sub(&groups.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    let x_hat = centered.broadcast_div(&(variance + NORM_EPS)?.sqrt()?)?.reshape((images, channels, height, width))?;
    let by_channel = |t: &Tensor| t.to_dtype(statistics)?.reshape(((), channels, 1, 1));
    let u = x_hat.broadcast_mul(&by_channel(scale)?)?.broadcast_add(&by_channel(shift)?)?;
    let y = match activation {
        Activation::Identity => u,
        Activation::Silu => u.silu()?,
    };
    y.to_dtype(x.dtype())
}

#[derive(Debug, Clone, Copy)]
struct Op {
    num_groups: usize,
    activation: Activation,
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (images, channels, height, width) = x_layout.shape().dims4()?;
        let (x, scale, shift) = (floats(x, x_layout)?, floats(scale, scale_layout)?, floats(shift, shift_layout)?);
        let mut planes = Planes::plain(x.as_ptr(), channels, height, width);
        let moments = cpu::moments_of(images, &planes, self.num_groups);
        let folded = cpu::fold_affine(&moments, (scale, shift), images, channels);
        planes.affine =
            Some(Affine { scale: folded[0].as_ptr(), shift: folded[1].as_ptr(), activation: self.activation.into() });
        Ok((CpuStorage::F32(cpu::apply_to_vec(images, &planes)), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (images, channels, height, width) = x.dims4()?;
        let rows = scale.dim(0)?;
        let (d_x, sums) = with_floats(x, |x_values| {
            with_floats(grad, |dy| {
                with_floats(scale, |scale| {
                    with_floats(shift, |shift| {
                        let planes = Planes::plain(x_values.as_ptr(), channels, height, width);
                        let moments = cpu::moments_of(images, &planes, self.num_groups);
                        let backward = Backward {
                            images,
                            channels,
                            area: height * width,
                            moments: &moments,
                            scale,
                            shift,
                            activation: self.activation.into(),
                        };
                        Ok(backward.to_vec(x_values, dy))
                    })
                })
            })
        })?;
        let sums = Tensor::from_vec(sums, (2, images, channels), &Device::Cpu)?;
        let by_row = |part: usize| {
            let sums = sums.get(part)?; // [N, C]
            if rows == images { Ok(sums) } else { sums.sum_keepdim(0) }
        };
        Ok((Some(Tensor::from_vec(d_x, x.shape(), &Device::Cpu)?), Some(by_row(0)?), Some(by_row(1)?)))
    }
}
