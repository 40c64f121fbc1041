//! Polishing: decoder and endpoint network are trained through the whole chain, so that `z_sem` alone gives pictures that
//! look like the originals.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use diffae_infer::{ModelConfig, ModelSource};
use diffae_kernels::{checkpoint, differentiable, no_gradients};
use diffae_nets::features::LpipsNetwork;
use diffae_nets::{BatchMoments, EndpointNet, SemanticEncoder, TrainingMode, Unet};
use diffae_schedule::{Clip, DdimSampler, PredictionTarget, Spacing, StepChain, StepIdx};

use crate::config::{Kind, ObjectiveSettings, RunSettings, StageSettings, TrainConfig, require};
use crate::draw::Drawing;
use crate::error::{Error, Result};
use crate::networks::{DiffusionModel, ImageModel, shifted};
use crate::objective::Diffusion;
use crate::perceptual::color;
use crate::polish_settings::PolishSettings;

/// Clamping of `x_0` estimates along the chain, as in decoding.
const CLIP: Clip = Clip::UnitRange;

/// A decoder under polishing: `x = chain(endpoint(z_sem), z_sem)` with `z_sem` of a frozen encoder, and the loss
/// `LPIPS(x, x_0) + w |x - x_0|^2`, whose gradient goes through all steps of the chain.
///
/// Of each step the backward pass keeps the state that it begins with; the rest is recomputed.
/// # Source
/// The endpoint is that of Kim et al. 2024 (arXiv:2405.17111); gradients through a checkpointed chain as in Clark et al. 2023
/// (arXiv:2309.17400), `DRaFT`, with LPIPS in place of a reward.
#[derive(Debug)]
pub(crate) struct Polish {
    encoder: SemanticEncoder,
    endpoint: EndpointNet,
    steps: Arc<Steps>,
    perceptual: LpipsNetwork,
    pixel_weight: f64,
}

/// The steps of DDIM along the chain.
#[derive(Debug)]
struct Steps {
    unet: Unet,
    sampler: DdimSampler,
    prediction: PredictionTarget,
}

/// Activations of the wanted pictures, layer by layer.
pub(crate) struct Wanted(Vec<Tensor>);

impl Polish {
    /// Puts the chain of `settings` between the endpoint network and the pictures of a model.
    pub(crate) fn new(model: DiffusionModel, settings: &PolishSettings, perceptual: LpipsNetwork) -> Result<Self> {
        let (encoder, endpoint, unet, Diffusion { schedule, prediction }) = model.into_parts()?;
        let chain = StepChain::spaced(&schedule, settings.chain.spacing, settings.chain.steps)?;
        let steps = Arc::new(Steps { unet, sampler: DdimSampler::new(chain, CLIP), prediction });
        Ok(Self { encoder, endpoint, steps, perceptual, pixel_weight: settings.pixel_weight })
    }

    /// Decodes codes, `[N, D]`, from their endpoints.
    fn decoded(&self, z_sem: &Tensor, mode: TrainingMode) -> Result<Tensor> {
        let mut x = self.endpoint.forward(z_sem)?;
        for idx in self.steps.sampler.chain().indices().rev() {
            let steps = Arc::clone(&self.steps);
            x = checkpoint([&x, z_sem], move |[x, z_sem]| steps.step(idx, x, z_sem, mode))?;
        }
        Ok(x)
    }
}

impl Steps {
    /// Moves a state one step towards the data.
    fn step(&self, idx: StepIdx, x_t: &Tensor, z_sem: &Tensor, mode: TrainingMode) -> candle_core::Result<Tensor> {
        let wrap = candle_core::Error::wrap;
        let chain = self.sampler.chain();
        let (timestep, alpha_bar) = (chain.timestep(idx).map_err(wrap)?, chain.alpha_bar(idx).map_err(wrap)?);
        let predicted = self.unet.forward_training(x_t, &[timestep.get() as f32], Some(z_sem), mode)?;
        differentiable([x_t, &predicted], |[x_t, predicted]| {
            let eps = self.prediction.eps(predicted, x_t, alpha_bar).map_err(wrap)?;
            Ok(self.sampler.denoise_step(idx, x_t, &eps, None).map_err(wrap)?.x_prev)
        })
    }
}

impl ImageModel for Polish {
    type Input = Wanted;
    /// `z_sem`, `[N, D]`.
    type Code = Tensor;
    type Output = Tensor;

    fn draw(&self, x_0: &Tensor, _: Drawing) -> Result<Wanted> {
        Ok(Wanted(no_gradients(|| self.perceptual.activations(&color(x_0)?))?))
    }

    fn encode(&self, x_0: &Tensor) -> Result<Tensor> {
        Ok(no_gradients(|| self.encoder.forward(x_0))?)
    }

    fn shifted(code: &Tensor) -> Result<Option<Tensor>> {
        shifted(code)
    }

    fn decode(&self, code: &Tensor, _: &Wanted) -> Result<Tensor> {
        no_gradients(|| self.decoded(code, TrainingMode::default()))
    }

    fn forward_training(
        &self,
        x_0: &Tensor,
        _: &Wanted,
        mode: TrainingMode,
        _: &mut Vec<BatchMoments>,
    ) -> Result<Tensor> {
        self.decoded(&self.encode(x_0)?, mode)
    }

    fn loss(&self, x_0: &Tensor, Wanted(wanted): &Wanted, x: &Tensor, _: &ObjectiveSettings) -> Result<Tensor> {
        let distance = self.perceptual.distance_from(wanted, &color(x)?)?;
        let weight = self.pixel_weight;
        Ok(differentiable([&distance, x], |[distance, x]| {
            distance.mean_all()? + ((x - x_0)?.sqr()?.mean_all()? * weight)?
        })?)
    }
}

/// Returns a model with polished networks and the rest of what it had: latent net, classifier and statistics.
pub(crate) fn polished(
    model: &ModelSource,
    networks: impl IntoIterator<Item = (String, Tensor)>,
    config: &ModelConfig,
) -> Result<ModelSource> {
    let mut tensors = model.networks(DType::F32)?;
    // An endpoint network of other sizes may have other names.
    tensors.retain(|name, _| !name.starts_with("endpoint."));
    tensors.extend(networks);
    let mut source = model.with_networks(model.config().with_endpoint(config.endpoint().cloned())?, tensors);
    source.set_chains(config.chains().cloned().unwrap_or_default())?;
    Ok(source)
}

impl TrainConfig {
    /// Returns the config of a run that polishes the decoder of `model`, with changed settings (`key=value`).
    ///
    /// # Errors
    /// [`Error::OtherNetworks`] if the model's architecture is none that can be trained; as [`TrainConfig::from_toml_with`].
    pub fn of_polished(model: &ModelSource, polish: PolishSettings, assignments: &[String]) -> Result<Self> {
        let base = Self::of_networks(model.config(), "the model")?;
        let config = Self {
            autoencoder: StageSettings {
                images: 20_000,
                batch_size: 8,
                lr: 3e-4,
                weight_decay: 0.,
                warmup_images: 400,
                ema_decay: 0.99,
                ema_warmup: true,
                ..base.autoencoder
            },
            // A run is short, and may end by its validations.
            run: RunSettings { preview_every_images: 1000, ..base.run },
            polish: Some(polish),
            ..base
        };
        let config = config.with(assignments)?;
        config.check_architecture(model.config())?;
        Ok(config)
    }

    /// Checks that there is a decoder to polish, along a chain that it has, and no objective of another kind.
    pub(crate) fn check_polish(&self) -> Result<()> {
        let Some(settings) = &self.polish else { return Ok(()) };
        let PolishSettings { chain, pixel_weight, patience, .. } = *settings;
        let is_validated = patience == 0 || self.run.preview_every_images > 0;
        require(is_validated, "polish.patience", patience, "0 where run.preview_every_images is 0")?;
        require(self.distillation.is_none(), "polish", "beside [distillation]", "one of the two")?;
        let kind = "autoencoder, whose decoder takes steps from z_sem";
        require(self.model.kind == Kind::Autoencoder, "model.kind", format!("{:?}", self.model.kind), kind)?;
        let weight = self.objective.adversarial_weight;
        require(weight <= 0., "objective.adversarial_weight", weight, "0 while a decoder is polished")?;
        let is_weight = pixel_weight >= 0. && pixel_weight.is_finite();
        require(is_weight, "polish.pixel_weight", pixel_weight, "a weight of at least 0")?;
        let least = LpipsNetwork::MIN_SIDE;
        let size = self.model.image_size;
        let fits = size.square().is_some_and(|size| size >= least);
        require(fits, "model.image_size", size, "pictures of at least 32 pixels, for LPIPS")?;
        let channels = self.model.image_channels;
        require(matches!(channels, 1 | 3), "model.image_channels", channels, "1 or 3, for LPIPS")?;
        let spacing = chain.spacing;
        let fits = spacing != Spacing::Tuned;
        require(fits, "polish.chain.spacing", spacing, "a spacing that follows from the schedule")?;
        let schedule = self.diffusion.noise_schedule()?;
        StepChain::spaced(&schedule, spacing, chain.steps)
            .map_err(|source| Error::Chain { key: "polish.chain", source })?;
        settings.endpoint(&self.model).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use candle_core::{Device, Var};
    use diffae_infer::{Codes, DistilledChain, LoadOptions, Pipeline, PipelineSettings, XTerminalSource, no_observer};
    use diffae_kernels::{Gradients, record};
    use diffae_nets::features::LpipsBackbone;
    use diffae_nets::weights::TensorMap;

    use super::*;
    use crate::{Trainer, presets};

    const SIDE: usize = 32;

    fn settings() -> PolishSettings {
        let chain = DistilledChain { steps: 3, spacing: Spacing::LogSnr };
        PolishSettings { chain, endpoint_channels: 16, pixel_weight: 3., patience: 0 }
    }

    /// A model that predicts v, of random parameters, and the config of its polishing.
    fn model(assignments: &[&str]) -> (ModelSource, TrainConfig) {
        let small = [
            format!("model.image_size={SIDE}"),
            "model.attention_resolutions=[16]".to_owned(),
            "diffusion.prediction=v".to_owned(),
        ];
        let config = presets::config("smoke", &small).unwrap();
        let networks = Trainer::new(&config, HashMap::new()).unwrap().averages().unwrap();
        let source = ModelSource::from_networks(config.model_config().unwrap(), networks);
        let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
        let config = TrainConfig::of_polished(&source, settings(), &assignments).unwrap();
        (source, config)
    }

    /// VGG-16 of weights by a formula.
    fn perceptual() -> LpipsNetwork {
        let stages = [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)];
        let (mut tensors, mut idx, mut inputs) = (BTreeMap::new(), 0, 3);
        for (stage, (count, outputs)) in stages.into_iter().enumerate() {
            idx += usize::from(stage > 0);
            for _ in 0..count {
                let scale = (6. / (9 * inputs) as f32).sqrt();
                let values = |len: usize, scale: f32| (0..len).map(|i| scale * (i as f32 * 1.37).sin()).collect();
                let tensor = |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
                let weight = tensor(values(outputs * inputs * 9, scale), &[outputs, inputs, 3, 3]);
                tensors.insert(format!("features.{idx}.weight"), weight);
                tensors.insert(format!("features.{idx}.bias"), tensor(values(outputs, 0.05), &[outputs]));
                (idx, inputs) = (idx + 2, outputs);
            }
        }
        LpipsNetwork::new(LpipsBackbone::Vgg, &TensorMap(tensors), &Device::Cpu).unwrap()
    }

    fn pictures(count: usize) -> Tensor {
        let values: Vec<f32> = (0..count * 3 * SIDE * SIDE).map(|idx| (idx as f32 * 0.037).sin()).collect();
        Tensor::from_vec(values, (count, 3, SIDE, SIDE), &Device::Cpu).unwrap()
    }

    fn trainer(source: &ModelSource, config: &TrainConfig) -> Trainer {
        let given = source.networks(DType::F32).unwrap().into_iter().collect();
        let mut trainer = Trainer::new(config, given).unwrap();
        trainer.freeze("encoder").unwrap();
        trainer.polish(perceptual(), &settings()).unwrap()
    }

    #[test]
    fn the_decoder_learns_and_the_model_decodes_as_it_was_trained() {
        let batch = ["autoencoder.batch_size=2", "autoencoder.lr=1e-3", "autoencoder.warmup_images=0"];
        let (source, config) = model(&[&batch[..], &["autoencoder.ema_decay=0"]].concat());
        let mut trainer = trainer(&source, &config);
        let x_0 = pictures(2);
        let before = trainer.validate(&x_0).unwrap().0;
        for _ in 0..6 {
            trainer.step(&x_0).unwrap();
        }
        let (after, usage) = trainer.validate(&x_0).unwrap();
        assert!(after < 0.95 * before && usage.is_some(), "{after} after {before}");
        let polished = polished(&source, trainer.averages().unwrap(), &config.model_config().unwrap()).unwrap();
        let pipeline = Pipeline::new(polished.build(&LoadOptions::cpu()).unwrap());
        let usual = PipelineSettings::of_model(pipeline.model().config());
        assert_eq!((usual.num_steps, usual.spacing, usual.x_terminal), (3, Spacing::LogSnr, XTerminalSource::Endpoint));
        // The encoder is that of the model.
        let z_sem = pipeline.model().encode_semantic(&x_0).unwrap();
        let of_source = source.build(&LoadOptions::cpu()).unwrap().encode_semantic(&x_0).unwrap();
        assert_eq!(z_sem.to_vec2::<f32>().unwrap(), of_source.to_vec2::<f32>().unwrap());
        let names = vec!["a".to_owned(), "b".to_owned()];
        let codes = Codes { z_sem: Some(z_sem), x_terminal: None, chain: None, names, fingerprint: String::new() };
        let x = pipeline.decode_tensor(&codes, &usual, &mut no_observer).unwrap();
        // The loss of these pictures is that which the trainer sees.
        let scalar = |tensor: Tensor| f64::from(tensor.mean_all().unwrap().to_scalar::<f32>().unwrap());
        let squares = scalar((&x - &x_0).unwrap().sqr().unwrap());
        let loss = scalar(no_gradients(|| perceptual().distance(&x, &x_0)).unwrap()) + 3. * squares;
        assert!((loss / after - 1.).abs() < 1e-3, "{loss}, expected {after}");
    }

    #[test]
    fn gradients_go_through_all_steps() {
        let (source, config) = model(&[]);
        let given: HashMap<String, Tensor> = source.networks(DType::F32).unwrap().into_iter().collect();
        let vb = candle_nn::VarBuilder::from_tensors(given, DType::F32, &Device::Cpu);
        let unet = Unet::new(source.config().unet().unwrap(), &vb.pp("unet")).unwrap();
        let schedule = config.diffusion.noise_schedule().unwrap();
        let chain = StepChain::spaced(&schedule, Spacing::LogSnr, 3).unwrap();
        let sampler = DdimSampler::new(chain, Clip::None);
        let steps = Steps { unet, sampler, prediction: config.diffusion.prediction };
        let z_sem = Tensor::zeros((1, 32), DType::F32, &Device::Cpu).unwrap();
        let weights = pictures(1);
        let value = |x: &Tensor| -> candle_core::Result<Tensor> {
            let mut x = x.clone();
            for idx in steps.sampler.chain().indices().rev() {
                x = steps.step(idx, &x, &z_sem, TrainingMode::default())?;
            }
            differentiable([&x], |[x]| (x * &weights)?.sum_all())
        };
        let x = Var::from_tensor(&(pictures(1) * 0.7).unwrap()).unwrap();
        let (loss, tape) = record(|| value(&x)).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        let gradient = gradients.get(&x).unwrap();
        let scalar = |tensor: Tensor| f64::from(tensor.sum_all().unwrap().to_scalar::<f32>().unwrap());
        let slope = scalar(gradient.sqr().unwrap()).sqrt();
        let moved = |step: f64| (x.as_tensor() + (gradient * (step / slope)).unwrap()).unwrap();
        let at = |step: f64| scalar(no_gradients(|| value(&moved(step))).unwrap());
        let difference = (at(0.5) - at(-0.5)) / 1.;
        assert!(slope > 0. && (difference / slope - 1.).abs() < 0.02, "{difference} {slope}");
    }

    #[test]
    fn what_cannot_be_polished_is_refused() {
        let (source, _) = model(&[]);
        let refused = |settings: PolishSettings, assignments: &[&str]| {
            let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
            let error = TrainConfig::of_polished(&source, settings, &assignments).unwrap_err();
            diffae_infer::one_sentence(&error)
        };
        assert!(refused(PolishSettings { pixel_weight: -1., ..settings() }, &[]).contains("pixel_weight"));
        let patient = || PolishSettings { patience: 2, ..settings() };
        assert!(refused(patient(), &["run.preview_every_images=0"]).contains("polish.patience"));
        // By default there are validations to be patient with.
        let RunSettings { preview_every_images: every, .. } =
            TrainConfig::of_polished(&source, patient(), &[]).unwrap().run;
        assert!((1..=2000).contains(&every), "{every}");
        assert!(refused(PolishSettings { endpoint_channels: 9, ..settings() }, &[]).contains("groups"));
        let along = |steps, spacing| PolishSettings { chain: DistilledChain { steps, spacing }, ..settings() };
        assert!(refused(along(3, Spacing::Tuned), &[]).contains("polish.chain.spacing"));
        assert!(refused(along(5000, Spacing::LogSnr), &[]).contains("polish.chain"));
        assert!(refused(settings(), &["objective.adversarial_weight=0.1"]).contains("adversarial_weight"));
        let small = presets::config("smoke", &[]).unwrap();
        let small = ModelSource::from_networks(small.model_config().unwrap(), BTreeMap::new());
        let error = TrainConfig::of_polished(&small, settings(), &[]).unwrap_err().to_string();
        assert!(error.contains("at least 32 pixels"), "{error}");
        let ddpm = presets::config("smoke", &["model.kind=ddpm".to_owned()]).unwrap();
        let ddpm = ModelSource::from_networks(ddpm.model_config().unwrap(), BTreeMap::new());
        let error = TrainConfig::of_polished(&ddpm, settings(), &[]).unwrap_err().to_string();
        assert!(error.contains("model.kind"), "{error}");
    }
}
