//! Tensor operations of Diffusion Autoencoders whose [Candle](candle_core) CPU version is wrong or slow.
//!
//! Each function takes and returns Candle tensors, is differentiable, and picks its implementation by
//! device: a kernel of this crate on the CPU, Candle's own operations on CUDA and Metal. The crate knows
//! neither networks nor noise schedules.
//!
//! | operation | why it is here |
//! |---|---|
//! | [`upsample_nearest_2x`] | Candle's `upsample_nearest2d` loses gradients when its input has a second consumer |
//! | [`average_pool_2x`] | the adjoint of the former; Candle's runs on one thread |
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use diffae_kernels::{average_pool_2x, upsample_nearest_2x};
//!
//! let x = Tensor::arange(0f32, 4., &Device::Cpu)?.reshape((1, 1, 2, 2))?;
//! let up = upsample_nearest_2x(&x)?; // [1, 1, 4, 4]
//! assert_eq!(up.dims(), [1, 1, 4, 4]);
//! assert_eq!(average_pool_2x(&up)?.flatten_all()?.to_vec1::<f32>()?, [0., 1., 2., 3.]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # Features
//! - `cuda`, `cudnn`, `metal`, `accelerate`: compile the Candle backend of that name in. None is on by default.

mod attention;
mod conv2d;
mod cpu;
mod dispatch;
mod group_norm;
mod join;
mod linear;
mod optimizer;
mod resample;
mod storage;
mod threads;

pub use attention::attention;
pub use conv2d::{ConvInput, ConvWeight, conv2d};
pub use dispatch::{
    KERNELS_VARIABLE, KernelSet, force_kernel_set, is_exact, kernel_set, kernels_from_environment, set_exact,
};
pub use group_norm::{Activation, GroupNorm, NORM_EPS, group_norm};
pub use join::{add, concat_channels};
pub use linear::linear;
pub use optimizer::{AdamConfig, ParameterState, adam_step, sum_of_squares};
pub use resample::{average_pool_2x, upsample_nearest_2x};
pub use threads::set_num_threads;
