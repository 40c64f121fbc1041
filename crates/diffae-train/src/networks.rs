//! The networks of the first stage: a diffusion model or a one-shot autoencoder, each with the decoder input it is trained
//! on.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use diffae_infer::ModelConfig;
use diffae_kernels::{checkpoint, differentiable, no_gradients};
use diffae_nets::{
    BatchMoments, CompactCode, CompactConfig, CompactDecoder, CompactEncoder, EndpointNet, FrozenEncoder,
    SemanticConfig, SemanticEncoder, SemanticNetwork, SpatialAutoencoder, TrainingMode, Unet,
};
use diffae_schedule::{Denoiser, NoiseSchedule, Timestep};

use crate::config::ObjectiveSettings;
use crate::distillation::Distillation;
use crate::draw::{Draw, Drawing, Draws};
use crate::error::{Error, Result};
use crate::objective::{Diffusion, Noised};
use crate::picture_cache::PictureCache;
use crate::polish::Polish;
use crate::random::{below, normal, stream};
use crate::spatial::SpatialModel;

/// Maximum number of bytes of codes of a frozen encoder that are kept: those of 100,000 pictures at least.
pub(crate) const MAX_CODE_BYTES: usize = 1 << 29;

/// Networks that the first stage trains.
pub(crate) trait ImageModel: Sync {
    /// Input of the decoder besides the code, drawn at random for each image of a batch.
    type Input: Sync;
    /// Codes of a batch.
    type Code;
    /// Result of the decoder.
    type Output;

    /// Draws the decoder input, which depends on the images' places in the sequence alone.
    fn draw(&self, x_0: &Tensor, how: Drawing) -> Result<Self::Input>;

    /// Encodes images, without gradients.
    fn encode(&self, x_0: &Tensor) -> Result<Self::Code>;

    /// Hands the code of each image to its predecessor; `None` without codes, or with a single one.
    fn shifted(code: &Self::Code) -> Result<Option<Self::Code>>;

    /// Computes the decoder's output, without gradients.
    fn decode(&self, code: &Self::Code, input: &Self::Input) -> Result<Self::Output>;

    /// Encodes and decodes as training does, and adds the statistics of batch norms to `moments`.
    fn forward_training(
        &self,
        x_0: &Tensor,
        input: &Self::Input,
        mode: TrainingMode,
        moments: &mut Vec<BatchMoments>,
    ) -> Result<Self::Output>;

    /// Computes the loss of the decoder's output without the adversarial term, a scalar.
    fn loss(
        &self,
        x_0: &Tensor,
        input: &Self::Input,
        output: &Self::Output,
        objective: &ObjectiveSettings,
    ) -> Result<Tensor>;

    /// Selects the real images and the `x_0` estimates that a discriminator compares; `None` if there are none, as in objectives
    /// without a discriminator.
    fn compared(
        &self,
        _x_0: &Tensor,
        _input: &Self::Input,
        _output: &Self::Output,
        _objective: &ObjectiveSettings,
    ) -> Result<Option<(Tensor, Tensor)>> {
        Ok(None)
    }
}

/// The networks of either kind.
#[derive(Debug)]
pub(crate) enum Networks {
    Diffusion(DiffusionModel),
    Distilled(Box<Distillation>),
    Polished(Box<Polish>),
    Spatial(Box<SpatialModel>),
    OneShot(OneShotModel),
}

/// A `UNet` that predicts noise, `x_0` or v, with or without an encoder.
#[derive(Debug)]
pub(crate) struct DiffusionModel {
    encoder: Option<SemanticNetwork>,
    /// Codes of pictures, where the encoder is frozen.
    codes: PictureCache,
    /// Makes the latents that the diffusion runs on, in place of images; it is never trained along with the rest.
    spatial: Option<Box<(SpatialAutoencoder, PictureCache)>>,
    /// Computes an `x_T` from `z_sem`, in a model that is to be polished.
    endpoint: Option<Box<EndpointNet>>,
    unet: Box<Unet>,
    diffusion: Diffusion,
    draws: Draws,
}

/// An autoencoder that decodes in one pass.
#[derive(Debug)]
pub(crate) struct OneShotModel {
    config: CompactConfig,
    encoder: CompactEncoder,
    decoder: CompactDecoder,
}

/// Noise of a one-shot decoder.
#[derive(Debug)]
pub(crate) struct Details {
    /// Level of the noise, `[N, 1]` in `[0, 1]`.
    level: Tensor,
    /// `[N, noise_channels]`
    noise: Tensor,
}

impl Networks {
    /// Builds the networks of a model.
    ///
    /// Those that are not trained are given: a pretrained encoder, the spatial autoencoder of a model on latents.
    pub(crate) fn new(
        model: &ModelConfig,
        (frozen, spatial): (Option<FrozenEncoder>, Option<(SpatialAutoencoder, PictureCache)>),
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        if let Some(config) = model.one_shot() {
            return Ok(Self::OneShot(OneShotModel {
                config: config.clone(),
                encoder: CompactEncoder::new(config, &vb.pp("encoder"))?,
                decoder: CompactDecoder::new(config, &vb.pp("decoder"))?,
            }));
        }
        let (Some(unet), Some(diffusion)) = (model.unet(), model.diffusion()) else {
            return Err(Error::Nets(diffae_nets::Error::NotOneModel));
        };
        let trained = model.encoder().and_then(SemanticConfig::trained);
        let trained = trained.map(|encoder| SemanticEncoder::new(encoder, &vb.pp("encoder"))).transpose()?;
        let trained = trained.map(|encoder| SemanticNetwork::Trained(Box::new(encoder)));
        let endpoint = model.endpoint().map(|endpoint| EndpointNet::new(endpoint, &vb.pp("endpoint")));
        Ok(Self::Diffusion(DiffusionModel {
            encoder: trained.or(frozen.map(|frozen| SemanticNetwork::Frozen(Box::new(frozen)))),
            codes: PictureCache::new(MAX_CODE_BYTES),
            spatial: spatial.map(Box::new),
            endpoint: endpoint.transpose()?.map(Box::new),
            unet: Box::new(Unet::new(unet, &vb.pp("unet"))?),
            diffusion: Diffusion { schedule: diffusion.noise_schedule()?, prediction: diffusion.prediction },
            draws: Draws::default(),
        }))
    }
}

impl DiffusionModel {
    /// Returns the networks of a model that is to be polished, with the diffusion of its decoder.
    ///
    /// # Errors
    /// [`Error::Setting`] if it has no encoder or no endpoint network.
    pub(crate) fn into_parts(self) -> Result<(SemanticEncoder, EndpointNet, Unet, Diffusion)> {
        let Self { encoder, spatial: None, endpoint: Some(endpoint), unet, diffusion, .. } = self else {
            let (got, expected) = ("a model without one", "a semantic encoder and an endpoint network, on pictures");
            return Err(Error::Setting { key: "model.kind", got: got.to_owned(), expected });
        };
        let Some(SemanticNetwork::Trained(encoder)) = encoder else {
            let (got, expected) = ("a pretrained network".to_owned(), "an encoder that was trained with the decoder");
            return Err(Error::Setting { key: "model.encoder", got, expected });
        };
        Ok((*encoder, *endpoint, *unet, diffusion))
    }

    /// Returns the noise schedule.
    pub(crate) fn schedule(&self) -> &NoiseSchedule {
        &self.diffusion.schedule
    }

    /// Returns the `UNet` as a denoiser of a chain, without gradients.
    pub(crate) fn denoiser<'a>(&'a self, z_sem: Option<&'a Tensor>) -> impl Denoiser + use<'a> {
        move |x_t: &Tensor, timesteps: &[Timestep]| {
            let numbers: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
            let predicted = self.unet.forward_training(x_t, &numbers, z_sem, TrainingMode::default())?;
            let [timestep, ..] = timesteps else { candle_core::bail!("a batch without timesteps") };
            let alpha_bar = self.diffusion.schedule.alpha_bar(*timestep).map_err(candle_core::Error::wrap)?;
            self.diffusion.prediction.eps(&predicted, x_t, alpha_bar).map_err(candle_core::Error::wrap)
        }
    }

    /// Computes the network's output at some states, as training does.
    pub(crate) fn predict_training(
        &self,
        input: &Noised,
        z_sem: Option<&Tensor>,
        mode: TrainingMode,
    ) -> Result<Tensor> {
        Ok(self.unet.forward_training(&input.x_t, &input.numbers(), z_sem, mode)?)
    }

    /// Computes the `x_0` that predictions imply.
    pub(crate) fn x_0_estimates(&self, input: &Noised, predicted: &Tensor) -> Result<Tensor> {
        self.diffusion.x_0_estimates(input, predicted)
    }

    /// Returns what the diffusion runs on: images, or their latents.
    pub(crate) fn states(&self, x_0: &Tensor) -> Result<Tensor> {
        match self.spatial.as_deref() {
            Some((net, cache)) => cache.results(x_0, |x_0| net.latents(x_0)),
            None => Ok(x_0.clone()),
        }
    }

    /// Adds given noise to states.
    pub(crate) fn noised(&self, states: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<Noised> {
        self.diffusion.noised(states, noise, timesteps)
    }
}

impl ImageModel for DiffusionModel {
    type Input = Noised;
    /// `z_sem`, `[N, D]`, where there is an encoder.
    type Code = Option<Tensor>;
    type Output = Tensor;

    fn draw(&self, x_0: &Tensor, how: Drawing) -> Result<Noised> {
        let states = self.states(x_0)?;
        let Draw { noise, timesteps } = self.draws.next(&self.diffusion.schedule, &states, how)?;
        self.noised(&states, &noise, &timesteps)
    }

    fn encode(&self, x_0: &Tensor) -> Result<Option<Tensor>> {
        match &self.encoder {
            Some(SemanticNetwork::Trained(encoder)) => Ok(Some(no_gradients(|| encoder.forward(x_0))?)),
            Some(SemanticNetwork::Frozen(encoder)) => self.codes.results(x_0, |x_0| encoder.forward(x_0)).map(Some),
            None => Ok(None),
        }
    }

    fn shifted(code: &Option<Tensor>) -> Result<Option<Option<Tensor>>> {
        Ok(code.as_ref().map(shifted).transpose()?.flatten().map(Some))
    }

    fn decode(&self, code: &Option<Tensor>, input: &Noised) -> Result<Tensor> {
        let mode = TrainingMode::default();
        Ok(no_gradients(|| self.unet.forward_training(&input.x_t, &input.numbers(), code.as_ref(), mode))?)
    }

    fn forward_training(
        &self,
        x_0: &Tensor,
        input: &Noised,
        mode: TrainingMode,
        _: &mut Vec<BatchMoments>,
    ) -> Result<Tensor> {
        // Checkpoint the whole encoder: it is last in the backward pass, when other activations are already freed.
        let z_sem = match &self.encoder {
            Some(SemanticNetwork::Trained(encoder)) if mode.checkpoint_blocks => {
                let encoder = encoder.clone();
                Some(checkpoint([x_0], move |[x_0]| encoder.forward(x_0))?)
            }
            Some(SemanticNetwork::Trained(encoder)) => Some(encoder.forward(x_0)?),
            Some(SemanticNetwork::Frozen(_)) | None => self.encode(x_0)?,
        };
        self.predict_training(input, z_sem.as_ref(), mode)
    }

    fn loss(&self, _: &Tensor, input: &Noised, output: &Tensor, objective: &ObjectiveSettings) -> Result<Tensor> {
        self.diffusion.loss(input, output, objective)
    }

    fn compared(
        &self,
        x_0: &Tensor,
        input: &Noised,
        output: &Tensor,
        objective: &ObjectiveSettings,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let is_compared = |&(_, t): &(u32, &Timestep)| t.get() < objective.adversarial_timesteps;
        let items: Vec<u32> = (0..).zip(&input.timesteps).filter(is_compared).map(|(item, _)| item).collect();
        if items.is_empty() {
            return Ok(None);
        }
        let items = Tensor::new(items, x_0.device())?;
        let estimates = self.x_0_estimates(input, output)?;
        let estimates = differentiable([&estimates], |[estimates]| estimates.index_select(&items, 0))?;
        Ok(Some((x_0.index_select(&items, 0)?, estimates)))
    }
}

impl ImageModel for OneShotModel {
    type Input = Details;
    /// `z_sem`, `[N, D]`.
    type Code = Tensor;
    type Output = Tensor;

    fn draw(&self, x_0: &Tensor, how: Drawing) -> Result<Details> {
        let (count, config) = (x_0.dim(0)?, &self.config);
        let (mut levels, mut noise) = (vec![], vec![]);
        for idx in how.first..how.first + count {
            let mut stream = stream(how.seed, how.purpose, idx as u64);
            let level = below(&mut stream, config.noise_levels) as f32;
            levels.push(level / config.noise_levels.saturating_sub(1).max(1) as f32);
            noise.extend(normal(&mut stream, config.noise_channels));
        }
        let level = Tensor::from_vec(levels, (count, 1), x_0.device())?;
        Ok(Details { level, noise: Tensor::from_vec(noise, (count, config.noise_channels), x_0.device())? })
    }

    fn encode(&self, x_0: &Tensor) -> Result<Tensor> {
        Ok(no_gradients(|| self.encoder.forward(x_0))?)
    }

    fn shifted(code: &Tensor) -> Result<Option<Tensor>> {
        shifted(code)
    }

    fn decode(&self, code: &Tensor, Details { level, noise }: &Details) -> Result<Tensor> {
        Ok(no_gradients(|| self.decoder.forward(CompactCode { z_sem: code, level, noise }))?)
    }

    fn forward_training(
        &self,
        x_0: &Tensor,
        Details { level, noise }: &Details,
        _: TrainingMode,
        moments: &mut Vec<BatchMoments>,
    ) -> Result<Tensor> {
        let z_sem = self.encoder.forward_training(x_0, moments)?;
        Ok(self.decoder.forward_training(CompactCode { z_sem: &z_sem, level, noise }, moments)?)
    }

    fn loss(&self, x_0: &Tensor, _: &Details, output: &Tensor, objective: &ObjectiveSettings) -> Result<Tensor> {
        let weight = objective.pixel_weight;
        Ok(differentiable([output], |[output]| (x_0 - output)?.abs()?.mean_all()? * weight)?)
    }

    fn compared(
        &self,
        x_0: &Tensor,
        _: &Details,
        output: &Tensor,
        _: &ObjectiveSettings,
    ) -> Result<Option<(Tensor, Tensor)>> {
        Ok(Some((x_0.clone(), output.clone())))
    }
}

/// Codes one place up, the first one last, `[N, D]`; `None` for a single one.
pub(crate) fn shifted(code: &Tensor) -> Result<Option<Tensor>> {
    let count = code.dim(0)?;
    if count < 2 {
        return Ok(None);
    }
    Ok(Some(Tensor::cat(&[code.narrow(0, 1, count - 1)?, code.narrow(0, 0, 1)?], 0)?))
}
