//! Calls of networks, and what each of them costs: for estimates of time.

use crate::model::Model;

/// A kind of network call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkCall {
    /// The semantic encoder.
    Encoder,
    /// A step of the `UNet`, in either direction; of a one-shot autoencoder its decoder.
    Decoder,
    /// A step of the latent net.
    LatentNet,
}

impl NetworkCall {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Encoder, Self::Decoder, Self::LatentNet];
}

impl Model {
    /// Multiply-adds of a call for one picture, as plain sums of products; 0 where the model has no such network, 1 where they
    /// are not known.
    #[must_use]
    pub fn multiply_adds(&self, call: NetworkCall) -> u64 {
        let config = self.config();
        let known = match call {
            NetworkCall::Encoder => config.encoder.as_ref().map(|encoder| encoder.num_multiply_adds()),
            NetworkCall::Decoder => config.unet.as_ref().map(|unet| unet.num_multiply_adds()),
            NetworkCall::LatentNet => config.latent.as_ref().map(|latent| latent.net.num_multiply_adds()),
        };
        let is_one_shot = config.compact.is_some() && call != NetworkCall::LatentNet;
        known.unwrap_or(u64::from(is_one_shot))
    }
}
