//! Network calls: their cost, and the observer that is notified of them.

use std::ops::ControlFlow;

use diffae_schedule::Step;

use crate::model::Model;

/// A kind of network call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkCall {
    /// The semantic encoder.
    Encoder,
    /// A step of the `UNet`, in either direction; in a one-shot autoencoder, its decoder.
    Decoder,
    /// A step of the latent net.
    LatentNet,
}

impl NetworkCall {
    /// All kinds of network calls.
    pub const ALL: [Self; 3] = [Self::Encoder, Self::Decoder, Self::LatentNet];
}

/// A network call that has just ended.
#[derive(Debug, Clone, Copy)]
pub struct CallEvent<'a> {
    /// The network that was called.
    pub call: NetworkCall,
    /// The number of pictures, or of codes, in the batch.
    pub num_pictures: usize,
    /// The step of the chain, with the new state and the estimate of the result, for previews; `None` outside of
    /// chains. [`Model::pictures`] makes a picture of the estimate where the diffusion runs on latents.
    pub step: Option<&'a Step<'a>>,
}

/// A callback for every network call: for progress, previews, and cancelling. `Break` ends the work with
/// [`Error::Cancelled`](crate::Error::Cancelled).
pub type Observer<'a> = dyn FnMut(&CallEvent<'_>) -> ControlFlow<()> + 'a;

/// The empty observer, which never cancels.
pub const fn no_observer(_event: &CallEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Converts an observer to a callback for the steps of a chain.
pub(crate) fn on_step<'a>(
    call: NetworkCall,
    num_pictures: usize,
    observer: &'a mut Observer<'_>,
) -> impl FnMut(&Step<'_>) -> ControlFlow<()> + 'a {
    move |step| observer(&CallEvent { call, num_pictures, step: Some(step) })
}

impl Model {
    /// Returns the multiply-adds of a call for one picture, as plain sums of products; 0 where the model has no such
    /// network, 1 where they are not known.
    #[must_use]
    pub fn multiply_adds(&self, call: NetworkCall) -> u64 {
        let config = self.config();
        let known = match call {
            NetworkCall::Encoder => config.encoder().map(diffae_nets::SemanticConfig::num_multiply_adds),
            NetworkCall::Decoder => config.unet().map(|unet| unet.num_multiply_adds()),
            NetworkCall::LatentNet => config.latent().map(|latent| latent.net.num_multiply_adds()),
        };
        let is_one_shot = config.one_shot().is_some() && call != NetworkCall::LatentNet;
        known.unwrap_or(u64::from(is_one_shot))
    }
}
