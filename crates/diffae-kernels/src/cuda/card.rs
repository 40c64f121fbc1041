//! A card that carries out plans.

use candle_core::cuda::gemm_reduced_precision_f32;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use super::convolution::Convolution;
use super::cudnn;
use super::plan::{Argument, Launch, Module};
use crate::dispatch::{CudaKernels, cuda_kernels};

/// PTX of the files of kernels.
#[expect(unreachable_pub, reason = "the compiler of kernels writes it so")]
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

impl Module {
    /// Returns the name under which the module is loaded, and its PTX.
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Attention => ("diffae_attention", ptx::ATTENTION),
            Self::Elementwise => ("diffae_elementwise", ptx::ELEMENTWISE),
            Self::GroupNorm => ("diffae_group_norm", ptx::GROUP_NORM),
            Self::Optimizer => ("diffae_optimizer", ptx::OPTIMIZER),
            Self::Resample => ("diffae_resample", ptx::RESAMPLE),
        }
    }
}

/// A card, with the one stream on which all of its work is in order.
#[derive(Debug, Clone)]
pub(super) struct Card {
    device: Device,
    cuda: CudaDevice,
}

impl Card {
    /// Returns the card that holds a tensor; `None` if it is none, or these kernels are not asked for.
    pub(super) fn of(tensor: &Tensor) -> Option<Self> {
        let device = tensor.device();
        match device {
            Device::Cuda(cuda) if cuda_kernels() != CudaKernels::Candle => {
                Some(Self { device: device.clone(), cuda: cuda.clone() })
            }
            _ => None,
        }
    }

    /// Returns the card that holds a tensor; `None` if it is none, cuDNN is not asked for, or does not work there.
    pub(super) fn with_cudnn(tensor: &Tensor) -> Option<Self> {
        let card = Self::of(tensor).filter(|_| cuda_kernels() >= CudaKernels::Cudnn)?;
        cudnn::open(&card.cuda.cuda_stream()).is_ok().then_some(card)
    }

    /// Returns whether products of f32 may be rounded to TF32.
    #[expect(clippy::unused_self, reason = "the switch is one for all cards today")]
    pub(super) fn allows_tf32(&self) -> bool {
        gemm_reduced_precision_f32()
    }

    /// Starts cuDNN's plan of a convolution, which is made when it is first asked for; returns whether it has one.
    ///
    /// # Errors
    /// If cuDNN or the card fails.
    #[expect(unsafe_code, reason = "the start of a plan")]
    pub(super) fn convolve(&self, of: &Convolution, tensors: [&Tensor; 3]) -> Result<bool> {
        let mut addresses = [0; 3];
        for (address, tensor) in addresses.iter_mut().zip(tensors) {
            *address = self.pointer(tensor)?;
        }
        // SAFETY: the caller has made the tensors of these sizes; memory that is dropped after this is freed in the order of the
        // stream.
        unsafe { cudnn::convolve(&self.cuda.cuda_stream(), of, addresses) }
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Makes a tensor of undefined values, all of which the next launch writes.
    #[expect(unsafe_code, reason = "memory of a card that a kernel fills")]
    pub(super) fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        // SAFETY: nothing reads it before a kernel has written each element; any bits are a number.
        unsafe { Tensor::empty(shape, dtype, &self.device) }
    }

    /// Returns the address of the first element of a contiguous tensor, as a number of a table. It is valid for as long as the
    /// tensor lives.
    pub(super) fn address(&self, tensor: &Tensor) -> Result<i64> {
        Ok(self.pointer(tensor)?.cast_signed())
    }

    fn pointer(&self, tensor: &Tensor) -> Result<u64> {
        if !tensor.device().same_device(&self.device) {
            bail!("expected a tensor on {:?}, got one on {:?}", self.device.location(), tensor.device().location())
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got strides {:?}", layout.stride())
        };
        let Storage::Cuda(storage) = &*storage else { bail!("expected a tensor on a card") };
        let base = match tensor.dtype() {
            DType::F32 => self.base::<f32>(storage)?,
            DType::F16 => self.base::<f16>(storage)?,
            DType::BF16 => self.base::<bf16>(storage)?,
            DType::U32 => self.base::<u32>(storage)?,
            DType::I64 => self.base::<i64>(storage)?,
            other => bail!("no kernel reads {other:?}"),
        };
        Ok(base + (start * tensor.dtype().size_in_bytes()) as u64)
    }

    fn base<T: CudaDType>(&self, storage: &CudaStorage) -> Result<u64> {
        let stream = self.cuda.cuda_stream();
        // Work on other streams need not be waited for: there are none.
        let (pointer, _guard) = storage.as_cuda_slice::<T>()?.device_ptr(&stream);
        Ok(pointer)
    }

    /// Starts the launches of a plan, in order. `buffers` are those that the plan numbers.
    ///
    /// # Errors
    /// If a kernel cannot be loaded or started.
    pub(super) fn run(&self, launches: &[Launch], buffers: &[&Tensor]) -> Result<()> {
        let pointers = buffers.iter().map(|buffer| self.pointer(buffer)).collect::<Result<Vec<_>>>()?;
        launches.iter().try_for_each(|launch| self.launch(launch, &pointers))
    }

    #[expect(unsafe_code, reason = "the start of a kernel")]
    fn launch(&self, launch: &Launch, pointers: &[u64]) -> Result<()> {
        let Launch { module, kernel, grid, threads, arguments } = launch;
        let (name, ptx) = module.source();
        let function = self.cuda.get_or_load_custom_func(kernel, name, ptx)?;
        let mut builder = function.builder();
        let null = 0u64;
        for argument in arguments {
            match argument {
                Argument::Buffer(number) => match pointers.get(*number) {
                    Some(pointer) => builder.arg(pointer),
                    None => bail!("{kernel} takes more than {} buffers", pointers.len()),
                },
                Argument::Null => builder.arg(&null),
                Argument::Int(value) => builder.arg(value),
                Argument::Long(value) => builder.arg(value),
                Argument::Unsigned(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
            };
        }
        let [x, y] = *grid;
        let config = LaunchConfig { grid_dim: (x, y, 1), block_dim: (*threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the plans of this module give each kernel its arguments, in buffers of the sizes it works on; tests run the same
        // plans on the CPU, where the ends of all buffers are guarded and types of arguments are checked. Memory that is dropped
        // after this is freed in the order of the stream.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// Returns how many kinds of convolutions, by size and number type, cuDNN has computed on a card, and those that it was asked for
/// and has not, with the reason of each.
#[must_use]
pub fn cudnn_plans(device: &Device) -> (usize, Vec<String>) {
    match device {
        Device::Cuda(cuda) => cudnn::made(&cuda.cuda_stream()),
        _ => (0, vec![]),
    }
}

/// Returns why convolutions on a card are Candle's although cuDNN's are asked for; `None` if they are cuDNN's, or not asked for.
#[must_use]
pub fn cudnn_problem(device: &Device) -> Option<String> {
    match device {
        Device::Cuda(cuda) if cuda_kernels() >= CudaKernels::Cudnn => {
            cudnn::open(&cuda.cuda_stream()).err().map(|error| error.to_string())
        }
        _ => None,
    }
}
