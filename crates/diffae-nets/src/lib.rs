//! Networks of Diffusion Autoencoders on Candle, and readers for released PyTorch checkpoints
