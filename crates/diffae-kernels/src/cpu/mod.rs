//! CPU kernels: all code of this crate that touches raw memory. Nothing here depends on Candle.
//!
//! Types that hold slices check their lengths against the shapes of the operation when they are made ([`length`]); raw
//! pointers exist only inside a task ([`simd::Task`]) and between it and the function that starts it, which hands out
//! disjoint parts of a checked slice ([`parallel::Shared`]).
//!
//! A convolution is three steps, whatever the algorithm: planes become rows of channels ([`planes`]), rows are
//! multiplied with packed weights ([`product`]), and the products become planes again. Winograd's algorithm
//! ([`winograd`]) puts a small linear transform before and after.

#![expect(unsafe_code, reason = "raw memory and instruction sets are what this module is for")]
#![expect(
    clippy::needless_range_loop,
    clippy::inline_always,
    clippy::integer_division,
    reason = "kernels are written over indices, inlined into the function of their instruction set, and cut sizes in whole pieces"
)]

pub(crate) mod algorithm;
pub(crate) mod convolve;
pub(crate) mod depthwise;
pub(crate) mod elementwise;
pub(crate) mod group_norm;
pub(crate) mod length;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod optimizer;
pub(crate) mod pack;
pub(crate) mod parallel;
pub(crate) mod planes;
pub(crate) mod product;
pub(crate) mod scratch;
pub(crate) mod simd;
pub(crate) mod softmax;
pub(crate) mod tiles;
pub(crate) mod weight_gradient;
pub(crate) mod winograd;
