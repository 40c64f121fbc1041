//! Tensor operations of Diffusion Autoencoders whose [Candle](candle_core) CPU version is slow or wrong.
//!
//! Each function takes and returns Candle tensors, has its gradient written out, for a [`Tape`], and picks its
//! implementation by device: kernels of this crate for f32 on the CPU; on CUDA and Metal, and in other number types, the same
//! mathematics composed of Candle's operations. The crate knows neither networks nor noise schedules.
//!
//! | operation | why it is here |
//! |---|---|
//! | [`conv2d`], [`conv3d`], [`ConvWeight`] | Candle has none in three dimensions; in two, its is 4 to 12 times slower, backward more so; a layer fuses norm, activation, skip connection and residual |
//! | [`group_norm`], [`attention`], [`linear`], [`add`], [`concat_channels`] | Candle's are several passes over memory on one thread |
//! | [`upsample_nearest_2x`] | Candle's `upsample_nearest2d` loses gradients when its input has a second consumer |
//! | [`average_pool_2x`] | the adjoint of the former; Candle's runs on one thread |
//! | [`max_pool_2x`] | Candle's `max_pool2d` has a fourth of its gradient |
//! | [`dropout`] | a mask that a seed determines, so that it need not be saved |
//! | [`record`], [`Tape`] | Candle's graph keeps every activation to the end of the backward pass and sums each gradient onto zeros |
//! | [`adam_steps`] | moments, parameters and moving average in one pass |
//!
//! Kernels use the best instruction set that the machine has, unless [`force_kernel_set`] or the environment variable
//! [`KERNELS_VARIABLE`] selects another. On CUDA, [`CUDA_KERNELS_VARIABLE`] selects this crate's kernels for cards and
//! convolutions by cuDNN, which no card has run yet.
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
//! - `cuda`, `metal`, `accelerate`: compile the Candle backend of that name in. None is on by default. cuDNN is no feature: the
//!   library is opened where it is installed.

mod attention;
mod cast;
mod conv2d;
mod cpu;
mod cuda;
mod depthwise;
mod dispatch;
mod dropout;
mod gradients;
mod group_norm;
mod join;
mod kept;
mod linear;
mod max_pool;
mod operation;
mod optimizer;
mod replay;
mod resample;
mod storage;
mod tape;
mod threads;
mod work;

pub use attention::attention;
pub use cast::cast;
pub use conv2d::{ConvInput, ConvWeight, conv2d, conv3d};
pub use cuda::{cuda_device, cudnn_plans, cudnn_problem, num_cuda_devices};
pub use depthwise::depthwise_conv2d;
pub use dispatch::{
    CUDA_KERNELS_VARIABLE, KERNELS_VARIABLE, KernelSet, Winograd, check_cuda_kernels, force_cuda_kernels,
    force_kernel_set, is_exact, kernel_set, kernels_from_environment, set_exact,
};
pub use dropout::{Dropout, dropout};
pub use gradients::Gradients;
pub use group_norm::{Activation, GroupNorm, NORM_EPS, conditional_affine, group_norm};
pub use join::{add, concat_channels};
pub use kept::ActivationStorage;
pub use linear::linear;
pub use max_pool::max_pool_2x;
pub use optimizer::{
    AdamConfig, AdamStep, ParameterState, ParameterUpdate, SQUARES_BLOCK, StatePart, adam_step, adam_steps,
    block_squares, sums_of_squares,
};
pub use replay::{Computation, Replay};
pub use resample::{average_pool_2x, upsample_nearest_2x};
pub use storage::to_device;
pub use tape::{Tape, checkpoint, differentiable, no_gradients, record, record_with};
pub use threads::{run_in_pool, set_num_threads};
pub use work::num_multiply_adds;
