//! Encode, decode, edit, interpolate and sample pictures with a trained Diffusion Autoencoder
