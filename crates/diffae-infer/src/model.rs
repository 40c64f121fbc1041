//! Loaded models, ready to encode and decode.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_data::PictureFormat;
use diffae_nets::weights::{ArchitectureHints, LatentMoments, Weights};
use diffae_nets::{
    AttributeClassifier, CompactDecoder, CompactEncoder, EndpointNet, ImageShape, LatentNet, SemanticNetwork,
    SpatialAutoencoder, Unet, UnetReplays, Winograd,
};
use diffae_schedule::{Clip, NoiseSchedule, PredictionTarget};

use crate::error::{Error, Result, computing};
use crate::model_config::ModelConfig;
use crate::model_dir::ModelSource;

/// Device and precision of a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The device of the weights and of all computation.
    pub device: Device,
    /// Number type of the weights: f32, f16 or bf16.
    ///
    /// On CUDA and Metal also that of activations; on a CPU those are f32. Norm statistics and softmax are f32 everywhere.
    pub dtype: DType,
    /// Choice of parameters, and facts that a file of weights may leave open.
    pub hints: ArchitectureHints,
    /// Algorithms of the convolutions of encoder and `UNet` on a CPU.
    pub winograd: Winograd,
}

impl LoadOptions {
    /// Returns options for f32 on the CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self::on(&Device::Cpu)
    }

    /// Returns options for f32 on a device.
    #[must_use]
    pub fn on(device: &Device) -> Self {
        Self {
            device: device.clone(),
            dtype: DType::F32,
            hints: ArchitectureHints::default(),
            winograd: Winograd::Process,
        }
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    fingerprint: String,
    device: Device,
    encoder: Option<Encoder>,
    decoder: Decoder,
    /// Leads from pictures to the states of the diffusion, where these are latents.
    spatial: Option<SpatialAutoencoder>,
    endpoint: Option<EndpointNet>,
    latent: Option<Latent>,
    moments: Option<LatentMoments>,
    classifier: Option<AttributeClassifier>,
    /// Recordings of the decoder, where there may be any.
    replays: UnetReplays,
}

/// The network that computes `z_sem`.
#[derive(Debug)]
enum Encoder {
    Semantic(SemanticNetwork),
    Compact(CompactEncoder),
}

/// The network that generates pictures.
#[derive(Debug)]
pub(crate) enum Decoder {
    Diffusion { unet: Box<Unet>, schedule: NoiseSchedule, prediction: PredictionTarget },
    OneShot(CompactDecoder),
}

/// The latent net and its schedule.
#[derive(Debug)]
pub(crate) struct Latent {
    pub(crate) net: LatentNet,
    pub(crate) schedule: NoiseSchedule,
    pub(crate) prediction: PredictionTarget,
}

impl Model {
    /// Loads any model that [`ModelSource::open`] can open.
    ///
    /// # Errors
    /// As [`ModelSource::open`] and [`ModelSource::build`].
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self> {
        ModelSource::open(path, &options.hints)?.build(options)
    }

    /// Returns the config of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the fingerprint of the model; see [`ModelSource::fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the device of the model.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the noise schedule of the diffusion over pictures.
    ///
    /// # Errors
    /// [`Error::MissingPart`] in a one-shot autoencoder.
    pub fn schedule(&self) -> Result<&NoiseSchedule> {
        self.diffusion().map(|(_, schedule, _)| schedule)
    }

    /// Returns the noise predictor.
    ///
    /// # Errors
    /// [`Error::MissingPart`] in a one-shot autoencoder.
    pub fn unet(&self) -> Result<&Unet> {
        self.diffusion().map(|(unet, _, _)| unet)
    }

    pub(crate) fn diffusion(&self) -> Result<(&Unet, &NoiseSchedule, PredictionTarget)> {
        match &self.decoder {
            Decoder::Diffusion { unet, schedule, prediction } => Ok((unet, schedule, *prediction)),
            Decoder::OneShot(_) => Err(Error::MissingPart {
                part: "diffusion over pictures",
                hint: "it decodes in one shot, so there are no steps, and no noise map to invert",
            }),
        }
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Returns the shape of the model's pictures, `[C, H, W]`, or volumes, `[C, D, H, W]`.
    #[must_use]
    pub fn image_shape(&self) -> ImageShape {
        self.config.image_shape()
    }

    /// Returns the form in which the model's pictures are read.
    #[must_use]
    pub fn picture_format(&self) -> PictureFormat {
        self.config.picture_format()
    }

    /// Returns whether pictures have a semantic code; they have none in a plain DDPM.
    #[must_use]
    pub fn has_z_sem(&self) -> bool {
        self.encoder.is_some()
    }

    /// Runs the semantic encoder on `[N, C, H, W]`.
    pub(crate) fn run_encoder(&self, x_0: &Tensor) -> Result<Tensor> {
        let z_sem = match &self.encoder {
            Some(Encoder::Semantic(encoder)) => encoder.forward(x_0),
            Some(Encoder::Compact(encoder)) => encoder.forward(x_0),
            None => {
                let hint = "it is a plain DDPM, which has no z_sem";
                return Err(Error::MissingPart { part: "semantic encoder", hint });
            }
        };
        computing("encoding", z_sem)
    }

    /// Converts pictures to states of the diffusion without noise: the pictures themselves, or the latents of a spatial
    /// autoencoder.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; result: `[N, ..]` as
    ///   [`state_shape`](crate::RawModelConfig::state_shape), f32.
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shape does not fit.
    pub fn states(&self, x_0: &Tensor) -> Result<Tensor> {
        match &self.spatial {
            Some(spatial) => computing("encoding to latents", spatial.latents(x_0)),
            None => Ok(x_0.clone()),
        }
    }

    /// Converts states of the diffusion without noise, or estimates of them, to pictures; the inverse of
    /// [`states`](Self::states), up to what a spatial autoencoder loses.
    ///
    /// # Shapes
    /// - `states`: `[N, ..]` as [`state_shape`](crate::RawModelConfig::state_shape), f32; result: `[N, C, H, W]`, f32, not
    ///   clipped.
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shape does not fit.
    pub fn pictures(&self, states: &Tensor) -> Result<Tensor> {
        match &self.spatial {
            Some(spatial) => computing("decoding latents", spatial.pictures(states)),
            None => Ok(states.clone()),
        }
    }

    /// Returns how estimates of `x_0` are clamped along chains: as asked for pictures; latents have no range.
    #[must_use]
    pub fn clip_of_states(&self, asked: Clip) -> Clip {
        if self.spatial.is_some() { Clip::None } else { asked }
    }

    /// Returns the latent net.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none.
    pub fn latent_net(&self) -> Result<&LatentNet> {
        self.latent().map(|latent| &latent.net)
    }

    /// Returns the mean and standard deviation of `z_sem`, each `[1, D]` on the model's device.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if they are not known.
    pub fn latent_moments(&self) -> Result<&LatentMoments> {
        let hint = "train the latent stage of a run of your own, teach the model attributes with `diffae fit-attributes`, \
                    or import a released one with --latent latent.pkl";
        self.moments.as_ref().ok_or(Error::MissingPart { part: "latent statistics", hint })
    }

    /// Returns the attribute classifier.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none.
    pub fn classifier(&self) -> Result<&AttributeClassifier> {
        let hint = "teach it attributes with `diffae fit-attributes`, train the stage in a run of your own with `diffae \
                    train --out RUN --resume --stage classifier --labels FILE`, or import a released one with \
                    --classifier CLS.ckpt";
        self.classifier.as_ref().ok_or(Error::MissingPart { part: "attribute classifier", hint })
    }

    /// Returns the network that computes an `x_T` from `z_sem`.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none.
    pub fn endpoint_net(&self) -> Result<&EndpointNet> {
        let hint = "`diffae polish` makes a model with one";
        self.endpoint.as_ref().ok_or(Error::MissingPart { part: "endpoint network", hint })
    }

    pub(crate) fn replays(&self) -> &UnetReplays {
        &self.replays
    }

    pub(crate) fn latent(&self) -> Result<&Latent> {
        let hint = "it cannot sample new pictures, but encodes and decodes";
        self.latent.as_ref().ok_or(Error::MissingPart { part: "latent net", hint })
    }
}

impl ModelSource {
    /// Builds the networks on a device and proves that every tensor of the model is used exactly once.
    ///
    /// # Errors
    /// [`Error::Build`] if a tensor is missing or does not fit the config; [`Error::Weights`] if one is left over.
    pub fn build(&self, options: &LoadOptions) -> Result<Model> {
        let weights = self.weights.unread();
        let vb = weights.var_builder(options.dtype, &options.device);
        let building = |part| move |source| Error::Build { part, path: self.path.clone(), source };
        let config = &self.config;
        let (encoder, decoder) = match config.one_shot() {
            Some(compact) => {
                let encoder = CompactEncoder::new(compact, &vb.pp("encoder")).map_err(building("encoder"))?;
                let decoder = CompactDecoder::new(compact, &vb.pp("decoder")).map_err(building("decoder"))?;
                (Some(Encoder::Compact(encoder)), Decoder::OneShot(decoder))
            }
            None => self.build_diffusion(&vb, options.winograd)?,
        };
        let endpoint = config.endpoint().map(|endpoint| EndpointNet::new(endpoint, &vb.pp("endpoint")));
        let mut endpoint = endpoint.transpose().map_err(building("endpoint network"))?;
        if let Some(endpoint) = &mut endpoint {
            endpoint.freeze(options.winograd);
        }
        let spatial = config.spatial().map(|spatial| SpatialAutoencoder::new(spatial, &vb.pp("spatial")));
        let mut spatial = spatial.transpose().map_err(building("spatial autoencoder"))?;
        if let Some(spatial) = &mut spatial {
            spatial.freeze(options.winograd);
        }
        let latent = match config.latent() {
            Some(latent) => Some(Latent {
                net: LatentNet::new(&latent.net, &vb.pp("latent_net")).map_err(building("latent net"))?,
                schedule: latent.diffusion.noise_schedule()?,
                prediction: latent.diffusion.prediction,
            }),
            None => None,
        };
        self.check_weights(&weights)?;
        Ok(Model {
            fingerprint: self.fingerprint()?,
            encoder,
            decoder,
            spatial,
            endpoint,
            latent,
            moments: self.moments.as_ref().map(|moments| moved(moments, &options.device)).transpose()?,
            classifier: self.build_classifier(&options.device).map_err(building("classifier"))?,
            device: options.device.clone(),
            config: config.clone(),
            replays: UnetReplays::default(),
        })
    }

    fn build_diffusion(&self, vb: &VarBuilder<'_>, winograd: Winograd) -> Result<(Option<Encoder>, Decoder)> {
        let building = |part| move |source| Error::Build { part, path: self.path.clone(), source };
        let (Some(unet), Some(diffusion)) = (self.config.unet(), self.config.diffusion()) else {
            return Err(Error::NotAModel { path: self.path.clone(), problem: "its config has no unet".to_owned() });
        };
        let mut unet = Box::new(Unet::new(unet, &vb.pp("unet")).map_err(building("unet"))?);
        let encoder = self.config.encoder().map(|encoder| SemanticNetwork::new(encoder, &vb.pp("encoder")));
        let mut encoder = encoder.transpose().map_err(building("encoder"))?;
        unet.freeze(winograd);
        if let Some(encoder) = &mut encoder {
            encoder.freeze(winograd);
        }
        let (schedule, prediction) = (diffusion.noise_schedule()?, diffusion.prediction);
        Ok((encoder.map(Encoder::Semantic), Decoder::Diffusion { unet, schedule, prediction }))
    }

    /// Fails if the networks left a tensor unread or read one twice.
    fn check_weights(&self, weights: &Weights) -> Result<()> {
        for name in ModelSource::SIDE_TENSORS.iter().filter(|name| weights.source().shape(name).is_some()) {
            weights.note_use(name);
        }
        weights.check_each_used_once().map_err(|source| Error::Weights { path: self.path.clone(), source })
    }

    fn build_classifier(&self, device: &Device) -> candle_core::Result<Option<AttributeClassifier>> {
        let (Some(config), Some(tensors)) = (self.config.classifier(), &self.classifier) else { return Ok(None) };
        let named: HashMap<String, Tensor> =
            tensors.named()?.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        AttributeClassifier::new(config, &VarBuilder::from_tensors(named, DType::F32, device)).map(Some)
    }
}

/// Moves the statistics to `device`, as rows.
fn moved(moments: &LatentMoments, device: &Device) -> Result<LatentMoments> {
    let row = |tensor: &Tensor| tensor.reshape((1, ()))?.to_device(device);
    let moved = row(&moments.mean).and_then(|mean| Ok(LatentMoments { mean, std: row(&moments.std)? }));
    computing("moving latent statistics", moved)
}
