//! Weight and bias of a convolution layer, and the forward pass of the whole layer.

use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{Device, Result, Tensor, bail};

use super::fused;
use super::input::{ConvInput, with_optional, with_planes};
use super::sizes::{Sizes, WeightSizes};
use crate::cast::cast;
use crate::cpu::algorithm::Algorithm;
use crate::cpu::pack::Packed;
use crate::dispatch::{KernelSet, Winograd, kernel_set};
use crate::storage::{runs_here, with_floats};
use crate::tape;

/// Weight and bias of a convolution.
///
/// It is trainable until [`freeze`](Self::freeze), after which it packs its weights on first use, keeps them packed, and
/// drops the originals.
#[derive(Debug, Clone)]
pub struct ConvWeight {
    weight: Weight,
    bias: Tensor,
    sizes: WeightSizes,
}

/// Weight of a layer.
#[derive(Debug, Clone)]
enum Weight {
    /// A tensor that may have gradients.
    Trainable(Tensor),
    /// Packed weights, shared by clones of the layer.
    Frozen(Arc<Frozen>),
}

/// Weights that are packed on first use.
#[derive(Debug)]
struct Frozen {
    /// Original weights, until they are packed.
    original: Mutex<Option<Tensor>>,
    packed: OnceLock<Packed>,
    winograd: Winograd,
}

impl Frozen {
    fn original(&self) -> std::sync::MutexGuard<'_, Option<Tensor>> {
        // Nothing in it can be half done.
        self.original.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns the packed weights; the first call packs them and drops the originals.
    fn packed(&self, sizes: &Sizes) -> Result<&Packed> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        // Not under the lock: while it waits for others to pack, this thread may take up work that comes here again.
        let original = self.original().clone();
        let Some(original) = original else {
            // Another thread has packed them meanwhile.
            return match self.packed.get() {
                Some(packed) => Ok(packed),
                None => bail!("the weights of this layer were dropped before they were packed"),
            };
        };
        let made = with_floats(&original, |values| sizes.pack_lasting(values, self.winograd))?;
        let packed = self.packed.get_or_init(|| made);
        self.original().take();
        Ok(packed)
    }
}

impl ConvWeight {
    /// Makes a trainable layer of `weight`, `[O, C, K, K]` or `[O, C, K, K, K]`, K odd, or `[O, C, 1]`, and `bias`, `[O]`.
    ///
    /// # Errors
    /// If the shapes do not fit each other.
    pub fn new(weight: Tensor, bias: Tensor) -> Result<Self> {
        let sizes = WeightSizes::of_dims(weight.dims())?;
        if bias.dims() != [sizes.outputs] {
            bail!("weight {:?} and bias {:?} are not those of a convolution", weight.dims(), bias.dims())
        }
        Ok(Self { weight: Weight::Trainable(weight), bias, sizes })
    }

    /// Freezes the layer for inference: weights are packed on first use and gradients are refused.
    ///
    /// Only where this crate's kernels run on the weights are they packed, and the originals dropped. The packing suits
    /// the image size of the first use; on other sizes it is right, but may not be the fastest. Clones that were made
    /// before are not frozen, those that are made later share the packed weights. `winograd` chooses among the algorithms.
    pub fn freeze(&mut self, winograd: Winograd) {
        let Weight::Trainable(weight) = &self.weight else { return };
        if runs_here([weight]) && Algorithm::supports(self.sizes.kernel) {
            let original = Mutex::new(Some(weight.clone()));
            self.weight = Weight::Frozen(Arc::new(Frozen { original, packed: OnceLock::new(), winograd }));
        }
    }

    /// Returns the memory that the weights take now, in bytes, without the bias.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let bytes_of = |weight: &Tensor| weight.elem_count() * weight.dtype().size_in_bytes();
        match &self.weight {
            Weight::Trainable(weight) => bytes_of(weight),
            Weight::Frozen(frozen) => match frozen.packed.get() {
                Some(packed) => packed.num_bytes(),
                None => frozen.original().as_ref().map_or(0, bytes_of),
            },
        }
    }

    /// Computes `conv(act(norm([x, skip]))) + residual`.
    ///
    /// # Shapes
    /// - result: `[N, O, H, W]` or `[N, O, D, H, W]`, dtype of x.
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
        let dtype = input.x.dtype();
        fused::apply(input, [&cast(&weight, dtype)?, &cast(&self.bias, dtype)?])
    }

    fn apply_packed(&self, frozen: &Frozen, input: &ConvInput<'_>) -> Result<Tensor> {
        if input.tensors().any(|tensor| tensor.track_op() || tape::is_tracked(tensor)) {
            bail!("gradients were asked of a layer whose weights are frozen")
        }
        if !input.tensors().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32) {
            bail!("a frozen layer works on f32 tensors on the CPU")
        }
        let sizes = input.check(self.sizes)?;
        let packed = frozen.packed(&sizes)?;
        let y = with_planes(input, &sizes, |planes, _| {
            with_floats(&self.bias, |bias| {
                with_optional(input.residual, |residual| sizes.convolve(planes, packed, Some(bias), residual))
            })
        })?;
        Tensor::from_vec(y, sizes.output_shape(), &Device::Cpu)
    }
}
