//! Image quality measures for Diffusion Autoencoders
