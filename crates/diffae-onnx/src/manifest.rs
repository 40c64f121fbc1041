//! The `manifest.json` beside the graphs: everything that a program needs to drive them.

use std::collections::BTreeMap;

use diffae_data::Window;
use diffae_infer::{
    DiffusionConfig, Inversion, Model, ModelKind, PictureDomain, PipelineSettings, rounded_full_strength,
};
use diffae_nets::ZLevels;
use diffae_schedule::{Clip, ExactChain, ExactCoefficients, NoiseSchedule, Sampler, Spacing, StepChain};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::graph::{BATCH, OPSET, Precision};

/// Version of the form of the manifest.
pub const FORMAT_VERSION: u32 = 1;

/// The contents of `manifest.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Manifest {
    /// Version of this form, [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the program that wrote it.
    pub diffae: String,
    /// Fingerprint of the model, as codes of it carry.
    pub fingerprint: String,
    /// Kind of the model.
    pub kind: ModelKind,
    /// Number type of weights and arithmetic.
    pub precision: Precision,
    /// Version of the operators.
    pub opset: u32,
    /// Shape of pictures, `[C, H, W]`; values are in `[-1, 1]`.
    pub image_shape: Vec<usize>,
    /// Shape of the `x_T` of one picture.
    pub x_terminal_shape: Vec<usize>,
    /// Values that become -1 and 1, of pictures that are read so; absent where those of 8 or 16 bits are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Width of `z_sem`, D; absent in a plain DDPM.
    pub z_channels: Option<usize>,
    /// Widths of the parts of a hierarchical `z_sem`, from the finest resolution to the coarsest; absent if it is one code.
    #[serde(skip_serializing_if = "ZLevels::is_empty")]
    pub z_levels: ZLevels,
    /// The graphs by their part: `encoder`, `decoder_step` or `decoder`, `to_latents` and `from_latents`, `endpoint`, `latent`,
    /// `directions`. Where there are `to_latents` and `from_latents`, the states of the diffusion over pictures are latents, from
    /// `x_T` to the end of the chain.
    pub graphs: BTreeMap<&'static str, GraphFile>,
    /// The diffusion over pictures; absent in a one-shot autoencoder.
    pub diffusion: Option<Diffusion>,
    /// The diffusion over normalized codes, if there is one.
    pub latent: Option<Diffusion>,
    /// Mean and standard deviation of `z_sem`, where they are known: `z = (z_sem - mean) / std`.
    pub normalization: Option<Normalization>,
    /// Attributes in the order of the strengths of `directions`.
    pub attributes: Vec<Attribute>,
    /// The pictures that the model is for, if they are of one kind only.
    pub domain: Option<PictureDomain>,
}

/// A file that holds a graph.
#[derive(Debug, Clone, Serialize)]
pub struct GraphFile {
    /// Name of the file, beside the manifest.
    pub file: String,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: usize,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
}

/// An input or an output of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Number type, always `float32`.
    pub r#type: &'static str,
    /// Length of each axis; the first is `"N"`, the number of pictures.
    pub shape: Vec<Axis>,
}

/// Length of an axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Axis {
    /// Any length, with a name.
    Any(&'static str),
    /// A fixed length.
    Fixed(usize),
}

impl Port {
    pub(crate) fn new(name: &str, dims: &[usize]) -> Self {
        let shape = std::iter::once(Axis::Any(BATCH)).chain(dims.iter().copied().map(Axis::Fixed)).collect();
        Self { name: name.to_owned(), r#type: "float32", shape }
    }

    /// Iterates over the lengths behind the axis of pictures.
    pub(crate) fn dims(&self) -> impl Iterator<Item = usize> + '_ {
        self.shape.iter().filter_map(|axis| match axis {
            Axis::Any(_) => None,
            Axis::Fixed(length) => Some(*length),
        })
    }
}

/// A noise schedule, what its network predicts, and the default chain.
#[derive(Debug, Clone, Serialize)]
pub struct Diffusion {
    /// Prediction target of the network: `eps`, `v` or `x_0`.
    pub prediction: String,
    /// Name of the noise schedule.
    pub beta_schedule: String,
    /// Number of training timesteps, T.
    pub num_train_timesteps: usize,
    /// `alpha_bar` of timesteps 0 to T - 1.
    pub alpha_bars: Vec<f64>,
    /// The chain that the program takes where nothing else is asked for.
    pub chain: Chain,
}

/// A chain of steps.
#[derive(Debug, Clone, Serialize)]
pub struct Chain {
    /// Sampler from random noise, by its name.
    pub sampler: String,
    /// Spacing of the timesteps, by its name.
    pub spacing: String,
    /// True if the estimate of `x_0` is clamped to `[-1, 1]` at each step of the sampler.
    pub clip: bool,
    /// Timesteps, the least noisy first; a chain towards the data visits them in reverse.
    pub timesteps: Vec<usize>,
    /// `alpha_bar` of these timesteps.
    pub alpha_bars: Vec<f64>,
    /// The exact chain over the same timesteps, by which pictures are inverted and codes of pictures decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<Exact>,
}

/// Coefficients of an exact chain.
#[derive(Debug, Clone, Serialize)]
pub struct Exact {
    /// Choice of its factors, by name.
    pub weights: String,
    /// Updates about nodes 1 to N - 1: `x_{i+1} = before x_{i-1} + here x_i + eps eps(x_i)`.
    pub updates: Vec<Update>,
}

/// Coefficients of one update.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Update {
    /// Weight of the state before.
    pub before: f64,
    /// Weight of the state at the node.
    pub here: f64,
    /// Weight of the noise predicted there.
    pub eps: f64,
}

/// Statistics of `z_sem`.
#[derive(Debug, Clone, Serialize)]
pub struct Normalization {
    /// Mean, `[D]`.
    pub mean: Vec<f32>,
    /// Standard deviation, `[D]`.
    pub std: Vec<f32>,
}

/// An attribute that can be edited.
#[derive(Debug, Clone, Serialize)]
pub struct Attribute {
    /// Name.
    pub name: String,
    /// Strength of a full edit, to two digits as the program gives it; absent where the direction is a classifier's, along
    /// which about 0.3 is typical.
    pub full_strength: Option<f64>,
}

impl Manifest {
    /// Describes a model and its graphs.
    pub(crate) fn new(
        model: &Model,
        precision: Precision,
        (graphs, attributes): (BTreeMap<&'static str, GraphFile>, &[usize]),
    ) -> Result<Self> {
        let config = model.config();
        let settings = PipelineSettings::of_model(config);
        let latent = config.latent().map(|latent| latent_diffusion(&latent.diffusion, &settings));
        Ok(Self {
            format_version: FORMAT_VERSION,
            diffae: env!("CARGO_PKG_VERSION").to_owned(),
            fingerprint: model.fingerprint().to_owned(),
            kind: config.kind(),
            precision,
            opset: OPSET,
            image_shape: config.image_shape().dims(),
            x_terminal_shape: model.x_terminal_shape(),
            window: config.picture_format().window,
            z_channels: config.z_channels(),
            z_levels: config.z_levels().clone(),
            graphs,
            diffusion: config
                .diffusion()
                .map(|diffusion| picture_diffusion(model, diffusion, &settings))
                .transpose()?,
            latent: latent.transpose()?,
            normalization: normalization(model)?,
            attributes: attributes.iter().map(|&idx| attribute(model, idx)).collect::<Result<_>>()?,
            domain: config.domain().cloned(),
        })
    }
}

/// Describes the diffusion over pictures with the default chain of the model.
fn picture_diffusion(model: &Model, config: &DiffusionConfig, settings: &PipelineSettings) -> Result<Diffusion> {
    let steps = model.step_chain(settings.spacing, settings.num_steps)?;
    let exact = match settings.inversion {
        Inversion::Exact(weights) => {
            let chain = ExactChain::new(steps.clone(), weights);
            let update = |node| {
                let ExactCoefficients { before, here, eps } = chain.coefficients(node)?;
                Ok(Update { before, here, eps })
            };
            let updates = (1..steps.len()).map(update).collect::<Result<_>>()?;
            Some(Exact { weights: weights.to_string(), updates })
        }
        _ => None,
    };
    let clip = model.clip_of_states(settings.clip);
    let chain = Chain { exact, ..chain_of(&steps, (settings.sampler, settings.spacing), clip)? };
    Ok(diffusion(config, model.schedule()?, chain))
}

/// Describes the diffusion over codes with the default chain.
fn latent_diffusion(config: &DiffusionConfig, settings: &PipelineSettings) -> Result<Diffusion> {
    let (schedule, options) = (config.noise_schedule()?, settings.latent_options());
    let steps = StepChain::spaced(&schedule, options.spacing, options.num_steps)?;
    let chain = chain_of(&steps, (options.sampler, options.spacing), options.clip)?;
    Ok(diffusion(config, &schedule, chain))
}

fn diffusion(config: &DiffusionConfig, schedule: &NoiseSchedule, chain: Chain) -> Diffusion {
    Diffusion {
        prediction: config.prediction.to_string(),
        beta_schedule: config.beta_schedule.to_string(),
        num_train_timesteps: config.num_train_timesteps,
        alpha_bars: schedule.alpha_bars().to_vec(),
        chain,
    }
}

fn chain_of(steps: &StepChain, (sampler, spacing): (Sampler, Spacing), clip: Clip) -> Result<Chain> {
    Ok(Chain {
        sampler: sampler.to_string(),
        spacing: spacing.to_string(),
        clip: clip == Clip::UnitRange,
        timesteps: steps.timesteps().iter().map(|timestep| timestep.get()).collect(),
        alpha_bars: steps.indices().map(|idx| Ok(steps.alpha_bar(idx)?)).collect::<Result<_>>()?,
        exact: None,
    })
}

fn normalization(model: &Model) -> Result<Option<Normalization>> {
    let Ok(moments) = model.latent_moments() else { return Ok(None) };
    let values = |tensor: &candle_core::Tensor| {
        let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1());
        values.map_err(|source| Error::Tensor { part: "exporting latent statistics", source })
    };
    Ok(Some(Normalization { mean: values(&moments.mean)?, std: values(&moments.std)? }))
}

fn attribute(model: &Model, idx: usize) -> Result<Attribute> {
    let classifier = model.classifier()?;
    let full_strength = rounded_full_strength(classifier, idx)?;
    Ok(Attribute { name: classifier.config().attributes[idx].clone(), full_strength })
}
