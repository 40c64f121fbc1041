//! Kernels of this crate for NVIDIA GPUs (group norm with its activation and its conditions, softmax, resampling, the surroundings of
//! a convolution, dropout, Adam), and convolutions by cuDNN.
//!
//! The kernels are the `.cu` files of `kernels/`, compiled to PTX when the crate is built with the feature `cuda`. Each operation is
//! a *plan*: its launches as data, which depend on sizes alone. A [`Card`] carries plans out. So does an emulation of a card on the
//! CPU, in the tests, with the same source and the same plans: it holds every kernel against the kernels of the CPU.
//!
//! They are used where [`cuda_kernels`](crate::dispatch::cuda_kernels) says so; otherwise, and in number types that they do not
//! know, each function here returns `None`, and the operation is composed of Candle's.

mod attention;
mod convolution;
#[cfg(any(test, feature = "cuda"))]
mod cudnn;
mod elementwise;
#[cfg(test)]
mod emulation;
mod group_norm;
#[cfg(feature = "cuda")]
mod open;
mod optimizer;
mod plan;
#[cfg(feature = "cuda")]
mod recording;
mod resample;
#[cfg(feature = "cuda")]
mod upload;

#[cfg(feature = "cuda")]
mod card;
#[cfg(not(feature = "cuda"))]
#[path = "no_card.rs"]
mod card;

pub(crate) use attention::{modulate, softmax, softmax_gradient};
pub(crate) use convolution::{Direction, convolution};
pub(crate) use elementwise::{DropoutMask, add_bias, dropout, sum_channels};
pub(crate) use group_norm::{group_norm, group_norm_gradients};
pub(crate) use optimizer::{AdamBuffers, adam_steps, block_squares};
pub(crate) use resample::{Resample, resample};

#[cfg(not(feature = "cuda"))]
pub(crate) use card::{Recording, upload};
#[cfg(not(feature = "cuda"))]
pub use card::{cuda_device, num_cuda_devices};
pub use card::{cudnn_plans, cudnn_problem};
#[cfg(feature = "cuda")]
pub use open::{cuda_device, num_cuda_devices};
#[cfg(feature = "cuda")]
pub(crate) use recording::Recording;
#[cfg(feature = "cuda")]
pub(crate) use upload::upload;

use candle_core::Tensor;

use self::card::Card;
use self::plan::Element;

/// Returns whether the functions of this module compute on a tensor, for those who would do work before they ask them.
pub(crate) fn has_kernels(tensor: &Tensor) -> bool {
    Card::of(tensor).is_some() && Element::of([tensor]).is_some()
}
