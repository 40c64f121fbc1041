//! Noise schedules and samplers of Diffusion Autoencoders: DDIM both ways, DDPM, step sequences
