//! The weights of a convolution layer, and all that can be computed together with it.

use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{Device, Result, Tensor, bail};

use super::{Algorithm, Sizes, conv2d, convolve, fused, weight_dims};
use crate::cpu::group_norm;
use crate::cpu::pack::{Direction, Packed};
use crate::cpu::planes::Planes;
use crate::dispatch::{KernelSet, kernel_set};
use crate::group_norm::{GroupNorm, folded_affine, group_norm};
use crate::storage::{runs_here, with_all_floats, with_floats};
use crate::tape::{self, in_graph};
use crate::{add, concat_channels};

/// Weight and bias of a convolution.
///
/// As made, it computes with gradients. After [`freeze`](Self::freeze) it packs its weights at the first use, keeps them
/// packed, and lets go of the originals.
#[derive(Debug, Clone)]
pub struct ConvWeight {
    weight: Weight,
    bias: Tensor,
    dims: (usize, usize, usize),
}

#[derive(Debug, Clone)]
enum Weight {
    Trainable(Tensor),
    /// Clones share it.
    Frozen(Arc<Frozen>),
}

/// Weights that are packed at the first use.
#[derive(Debug)]
struct Frozen {
    /// Until they are packed.
    original: Mutex<Option<Tensor>>,
    packed: OnceLock<Packed>,
}

impl Frozen {
    fn original(&self) -> std::sync::MutexGuard<'_, Option<Tensor>> {
        // Nothing in it can be half done.
        self.original.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The packed weights; packs them, and lets go of the originals, at the first call.
    fn packed(&self, sizes: &Sizes) -> Result<&Packed> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        // Not under the lock: while it waits for others to pack, this thread may take up work that comes here again.
        let original = self.original().clone();
        let Some(original) = original else {
            // Another thread was faster.
            return match self.packed.get() {
                Some(packed) => Ok(packed),
                None => bail!("the weights of this layer are lost"),
            };
        };
        let made = with_floats(&original, |values| {
            Ok(Packed::lasting(sizes.algorithm()?, Direction::Forward, values, (sizes.outputs, sizes.inputs)))
        })?;
        let packed = self.packed.get_or_init(|| made);
        self.original().take();
        Ok(packed)
    }
}

/// What a convolution is applied to: `conv(act(norm([x, lateral]))) + residual`.
#[derive(Debug, Clone, Copy)]
pub struct ConvInput<'a> {
    /// `[N, C_x, H, W]`.
    pub x: &'a Tensor,
    /// `[N, C - C_x, H, W]`: channels that follow those of x.
    pub lateral: Option<&'a Tensor>,
    /// What happens to them before the convolution.
    pub norm: Option<&'a GroupNorm<'a>>,
    /// `[N, O, H, W]`: is added to the result.
    pub residual: Option<&'a Tensor>,
}

impl<'a> ConvInput<'a> {
    /// A tensor as it is.
    #[must_use]
    pub fn plain(x: &'a Tensor) -> Self {
        Self { x, lateral: None, norm: None, residual: None }
    }

    /// All tensors of it.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &'a Tensor> {
        let norm_tensors = self.norm.into_iter().flat_map(|norm| [norm.scale, norm.shift]);
        [self.x].into_iter().chain(self.lateral).chain(norm_tensors).chain(self.residual)
    }

    /// The sizes, if everything fits a weight from `inputs` to `outputs` channels.
    pub(super) fn check(&self, (outputs, inputs, kernel): (usize, usize, usize)) -> Result<Sizes> {
        let ConvInput { x, lateral, norm, residual } = *self;
        let (images, x_channels, height, width) = x.dims4()?;
        let lateral_channels = lateral.map_or(Ok(0), |lateral| lateral.dim(1))?;
        let lateral_fits = lateral.is_none_or(|lateral| lateral.dims() == [images, lateral_channels, height, width]);
        let residual_fits = residual.is_none_or(|residual| residual.dims() == [images, outputs, height, width]);
        if x_channels + lateral_channels != inputs || !lateral_fits || !residual_fits {
            let (lateral, residual) = (lateral.map(Tensor::dims), residual.map(Tensor::dims));
            bail!(
                "an input of shape {:?}, lateral {lateral:?} and residual {residual:?} do not fit a convolution from \
                 {inputs} to {outputs} channels",
                x.dims()
            )
        }
        norm.map(|norm| norm.check(images, inputs)).transpose()?;
        Ok(Sizes { images, inputs, outputs, height, width, kernel })
    }
}

impl ConvWeight {
    /// Holds `weight` `[O, C, K, K]`, K odd, or `[O, C, 1]`, and `bias` `[O]`.
    ///
    /// # Errors
    /// If the shapes do not fit each other.
    pub fn new(weight: Tensor, bias: Tensor) -> Result<Self> {
        let dims = weight_dims(weight.dims())?;
        if bias.dims() != [dims.0] {
            bail!("weight {:?} and bias {:?} are not those of a convolution", weight.dims(), bias.dims())
        }
        Ok(Self { weight: Weight::Trainable(weight), bias, dims })
    }

    /// Promises that no gradients will be asked for.
    ///
    /// Where this crate's kernels run on the weights, they are packed at the first use and the originals dropped; later
    /// uses on pictures of another size are right, but may not be the fastest. Clones that were made before are not
    /// frozen, those that are made later share the packed weights.
    pub fn freeze(&mut self) {
        let Weight::Trainable(weight) = &self.weight else { return };
        if runs_here([weight]) && Algorithm::for_kernel(self.dims.2).is_some() {
            let original = Mutex::new(Some(weight.clone()));
            self.weight = Weight::Frozen(Arc::new(Frozen { original, packed: OnceLock::new() }));
        }
    }

    /// Bytes of the weights as they are held now, bias not counted.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let bytes_of = |weight: &Tensor| weight.elem_count() * weight.dtype().size_in_bytes();
        match &self.weight {
            Weight::Trainable(weight) => bytes_of(weight),
            Weight::Frozen(frozen) => match frozen.packed.get() {
                Some(packed) => packed.data.num_bytes(),
                None => frozen.original().as_ref().map_or(0, bytes_of),
            },
        }
    }

    /// Convolves.
    ///
    /// # Shapes
    /// - result: `[N, O, H, W]`, dtype of x.
    /// # Errors
    /// If shapes do not fit, or gradients are asked of frozen weights.
    pub fn apply(&self, input: &ConvInput<'_>) -> Result<Tensor> {
        let weight = match &self.weight {
            Weight::Trainable(weight) => weight.clone(),
            Weight::Frozen(frozen) => {
                let original = if kernel_set() == KernelSet::Candle { frozen.original().clone() } else { None };
                match original {
                    Some(original) => original,
                    None => return self.apply_packed(frozen, input),
                }
            }
        };
        let has_kernel = Algorithm::for_kernel(self.dims.2).is_some();
        if !in_graph() && has_kernel && runs_here(input.tensors().chain([&weight, &self.bias])) {
            return fused::apply(input, [&weight, &self.bias]);
        }
        let mut x = match input.lateral {
            Some(lateral) => concat_channels(input.x, lateral)?,
            None => input.x.clone(),
        };
        if let Some(norm) = input.norm {
            x = group_norm(&x, norm)?;
        }
        let y = conv2d(&x, &weight.to_dtype(x.dtype())?, &self.bias.to_dtype(x.dtype())?)?;
        match input.residual {
            Some(residual) => add(&y, residual),
            None => Ok(y),
        }
    }

    fn apply_packed(&self, frozen: &Frozen, input: &ConvInput<'_>) -> Result<Tensor> {
        if input.tensors().any(|tensor| tensor.track_op() || tape::is_tracked(tensor)) {
            bail!("gradients were asked of a layer whose weights are frozen")
        }
        if !input.tensors().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32) {
            bail!("a frozen layer works on f32 tensors on the CPU")
        }
        let sizes = input.check(self.dims)?;
        let packed = frozen.packed(&sizes)?;
        let y = with_planes(input, &sizes, |planes, _| {
            with_floats(&self.bias, |bias| {
                with_optional(input.residual, |residual| {
                    Ok(convolve(sizes.images, planes, packed, Some(bias), residual))
                })
            })
        })?;
        Tensor::from_vec(y, sizes.output_shape(), &Device::Cpu)
    }
}

/// Hands the planes that are convolved to `f`, with the moments of their norm, if there is one.
pub(super) fn with_planes<R>(
    input: &ConvInput<'_>,
    sizes: &Sizes,
    f: impl FnOnce(Planes, Option<group_norm::Moments>) -> Result<R>,
) -> Result<R> {
    let ConvInput { x, lateral, norm, .. } = *input;
    with_floats(x, |x_values| {
        with_optional(lateral, |lateral_values| {
            let mut planes = sizes.joined_planes(x_values, lateral_values);
            let Some(norm) = norm else { return f(planes, None) };
            with_all_floats([norm.scale, norm.shift], |[scale, shift]| {
                let moments = group_norm::moments_of(sizes.images, &planes, norm.num_groups);
                let folded = group_norm::fold_affine(&moments, (scale, shift), sizes.images, sizes.inputs);
                planes.affine = Some(folded_affine(&folded, norm.activation));
                f(planes, Some(moments))
            })
        })
    })
}

/// [`with_floats`] of a tensor that may be absent.
pub(super) fn with_optional<R>(tensor: Option<&Tensor>, f: impl FnOnce(Option<&[f32]>) -> Result<R>) -> Result<R> {
    match tensor {
        Some(tensor) => with_floats(tensor, |values| f(Some(values))),
        None => f(None),
    }
}
