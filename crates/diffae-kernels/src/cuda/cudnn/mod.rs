//! Convolutions by cuDNN, through its backend interface.
//!
//! The library is opened where the program runs, when a card is asked for its first convolution; it is no part of the build. Numbers
//! of attributes are those of the headers of cuDNN 9, which keep their values within a major version.
//!
//! Tests run the same calls against a stand-in in C++, which computes on the CPU, and, where the real library is at hand, make its
//! plans for a card that need not be there (`cargo xtask cudnn-plans`).

#[cfg(feature = "cuda")]
mod cards;
mod descriptor;
mod graph;
mod library;
mod plan;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(super) use cards::{convolve, made, open};
