//! Tensor operations for Diffusion Autoencoders whose Candle CPU version is slow or wrong
