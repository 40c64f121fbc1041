//! Reader of released checkpoints in their original form.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::weights::architecture::{Architecture, ArchitectureHints};
use crate::weights::parameter_sets::{FoundSet, ParameterSet};
use crate::weights::pytorch_names::name_from_pytorch;
use crate::weights::source::{TensorSource, Weights};
use crate::weights::weight_file::WeightFile;
use crate::weights::wrappers::Renamed;

/// Buffers that lie among the parameters where these have no prefix: noise, and `z_sem` with its statistics.
const BUFFERS: [&str; 4] = [X_TERMINAL, "conds", MEAN, STD];
const X_TERMINAL: &str = "x_T";
const MEAN: &str = "conds_mean";
const STD: &str = "conds_std";

/// Mean and standard deviation of `z_sem` over the training set, each `[D]`, f32.
#[derive(Debug, Clone)]
pub struct LatentMoments {
    /// Mean.
    pub mean: Tensor,
    /// Standard deviation, positive.
    pub std: Tensor,
}

impl LatentMoments {
    /// Normalizes codes: `(z_sem - mean) / std`.
    ///
    /// # Shapes
    /// - `z_sem`, result: `[N, D]`, on the device of the moments.
    /// # Errors
    /// If the moments are of another width.
    pub fn normalize(&self, z_sem: &Tensor) -> candle_core::Result<Tensor> {
        z_sem.broadcast_sub(&row(&self.mean)?)?.broadcast_div(&row(&self.std)?)
    }

    /// Reverses [`normalize`](Self::normalize): `z_sem_normalized * std + mean`.
    ///
    /// # Shapes
    /// - `z_sem_normalized`, result: `[N, D]`, on the device of the moments.
    /// # Errors
    /// If the moments are of another width.
    pub fn denormalize(&self, z_sem_normalized: &Tensor) -> candle_core::Result<Tensor> {
        z_sem_normalized.broadcast_mul(&row(&self.std)?)?.broadcast_add(&row(&self.mean)?)
    }
}

fn row(moments: &Tensor) -> candle_core::Result<Tensor> {
    moments.reshape((1, ()))
}

/// A model under the tensor names of the reference implementation: `last.ckpt`, its state dict alone, or the same in
/// safetensors.
#[derive(Debug)]
pub struct Checkpoint {
    /// Networks and diffusions of the model.
    pub architecture: Architecture,
    /// Parameters of the model, under [our names](super::name_from_pytorch).
    pub weights: Weights,
    /// Mean and standard deviation of `z_sem`, `conds_mean` and `conds_std`, which checkpoints with a latent net hold.
    pub latent_moments: Option<LatentMoments>,
}

impl Checkpoint {
    /// Opens a file of weights and infers its architecture: from its hyper-parameters, or those in a file beside it,
    /// and from the shapes of its tensors and `hints` where they are silent.
    ///
    /// # Errors
    /// [`Error::Torch`] or [`Error::Safetensors`] if the file is damaged or of another kind; [`Error::NoNetwork`],
    /// [`Error::NoSuchSet`] or [`Error::TwoSets`] if it does not hold such parameters; others if the architecture is not
    /// one of a Diffusion Autoencoder.
    pub fn open(path: &Path, set: ParameterSet, hints: &ArchitectureHints) -> Result<Self> {
        let file = WeightFile::open(path)?;
        let FoundSet { state, prefix } = FoundSet::find(&file, set)?;
        let parameters = Renamed::new(Arc::clone(&state), |name| {
            let released = name.strip_prefix(&prefix)?;
            let is_buffer = released.rsplit('.').next().is_some_and(|part| BUFFERS.contains(&part));
            let is_of_another_set =
                prefix.is_empty() && ["model.", "ema_model."].iter().any(|set| released.starts_with(set));
            (!is_buffer && !is_of_another_set).then(|| name_from_pytorch(released))
        })?;
        let x_terminal = buffer(state.as_ref(), X_TERMINAL);
        let x_terminal_shape = x_terminal.as_deref().and_then(|name| state.shape(name));
        let architecture = Architecture::of(&parameters, x_terminal_shape, file.hyper_parameters.as_ref(), hints)?;
        let latent_moments = latent_moments(state.as_ref())?;
        Ok(Self { architecture, weights: Weights::new(Arc::new(parameters)), latent_moments })
    }
}

/// Reads `conds_mean` and `conds_std` of a `latent.pkl`, or of any other file of tensors.
///
/// # Errors
/// [`Error::Torch`] or [`Error::Safetensors`] if the file is damaged or of another kind; [`Error::NotThere`] if it holds
/// no such statistics.
pub fn read_latent_moments(path: &Path) -> Result<LatentMoments> {
    let state = Renamed::unwrapped(WeightFile::open(path)?.state)?;
    latent_moments(&state)?
        .ok_or_else(|| Error::NotThere { path: path.to_owned(), expected: "latent statistics (conds_mean, conds_std)" })
}

/// A linear attribute classifier of the reference implementation.
#[derive(Debug)]
pub struct ClassifierCheckpoint {
    /// Edit directions, the rows of `classifier.weight`, `[A, D]`, f32.
    pub directions: Tensor,
    /// Weights for logits, `ema_classifier.weight` (`classifier.weight` where there is none), `[A, D]`, f32.
    pub weight: Tensor,
    /// Biases for logits, `ema_classifier.bias` (`classifier.bias` where there is none), `[A]`, f32.
    pub bias: Tensor,
    /// Statistics that the classifier normalizes with, where the file holds them.
    pub latent_moments: Option<LatentMoments>,
}

impl ClassifierCheckpoint {
    /// Reads a classifier with the averaged rows where there are any.
    ///
    /// # Errors
    /// As [`ClassifierCheckpoint::open_set`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_set(path, ParameterSet::Auto)
    }

    /// Reads a classifier: `last.ckpt`, its state dict alone, or the same in safetensors.
    ///
    /// Without averaged rows, logits use the rows of the edit directions. `set` decides between the two where there
    /// are both: edit directions are always the rows that the optimizer works on, as in the reference implementation.
    ///
    /// # Errors
    /// [`Error::Torch`] or [`Error::Safetensors`] if the file is damaged or of another kind; [`Error::NotThere`] if it
    /// holds no classifier; [`Error::ShapeMismatch`] if weight and bias do not fit together.
    pub fn open_set(path: &Path, set: ParameterSet) -> Result<Self> {
        let file = WeightFile::open(path)?;
        let state: Arc<dyn TensorSource> = Arc::new(Renamed::unwrapped(file.state)?);
        let online: Arc<dyn TensorSource> = match file.online_state {
            Some(online) if set == ParameterSet::Online => Arc::new(Renamed::unwrapped(online)?),
            _ => Arc::clone(&state),
        };
        let not_there = |expected| Error::NotThere { path: path.to_owned(), expected };
        let classifier = "attribute classifier (classifier.weight, classifier.bias)";
        let rows = linear(online.as_ref(), "classifier").or_else(|| only_linear(online.as_ref()));
        let averaged = linear(state.as_ref(), "ema_classifier");
        let directions = rows.as_ref().or(averaged.as_ref()).ok_or_else(|| not_there(classifier))?;
        let logits = match set {
            ParameterSet::Auto | ParameterSet::Ema => averaged.as_ref().unwrap_or(directions),
            ParameterSet::Online => directions,
        };
        let source_of = |name: &str| if online.shape(name).is_some() { &online } else { &state };
        let read = |name: &str| read_f32(source_of(name).as_ref(), name);
        let (directions, weight, bias) = (read(&directions.weight)?, read(&logits.weight)?, read(&logits.bias)?);
        let [attributes, _] = *directions.dims() else {
            return Err(shape_mismatch("classifier.weight", &directions, &[0, 0]));
        };
        if weight.dims() != directions.dims() {
            return Err(shape_mismatch("ema_classifier.weight", &weight, directions.dims()));
        }
        if bias.dims() != [attributes] {
            return Err(shape_mismatch("classifier.bias", &bias, &[attributes]));
        }
        Ok(Self { directions, weight, bias, latent_moments: latent_moments(state.as_ref())? })
    }
}

/// Names of the two tensors of a linear layer.
struct Linear {
    weight: String,
    bias: String,
}

/// Finds the layer of this name, below the shortest prefix.
fn linear(state: &dyn TensorSource, layer: &str) -> Option<Linear> {
    let ending = format!("{layer}.weight");
    let is_it =
        |name: &str| name.strip_suffix(&ending).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    let weight = state.names().into_iter().filter(|name| is_it(name)).min_by_key(String::len)?;
    let bias = format!("{}bias", weight.strip_suffix("weight")?);
    state.shape(&bias).is_some().then_some(Linear { weight, bias })
}

/// Finds the layer of a file that holds no other parameters: `weight` and `bias` under any name.
fn only_linear(state: &dyn TensorSource) -> Option<Linear> {
    let mut names = state.names();
    names.retain(|name| name.rsplit('.').next().is_some_and(|part| !BUFFERS.contains(&part)));
    let [bias, weight] = names.as_slice() else { return None };
    let is_layer = bias.strip_suffix("bias")? == weight.strip_suffix("weight")? && state.shape(weight)?.len() == 2;
    is_layer.then(|| Linear { weight: weight.clone(), bias: bias.clone() })
}

/// Finds the name of a buffer: the shortest one that ends so.
fn buffer(state: &dyn TensorSource, ending: &str) -> Option<String> {
    let names = state.names().into_iter().filter(|name| name.rsplit('.').next() == Some(ending));
    names.min_by_key(String::len)
}

fn read_f32(state: &dyn TensorSource, name: &str) -> Result<Tensor> {
    state.read(name)?.to_tensor(DType::F32, &Device::Cpu)
}

/// Reads `conds_mean` and `conds_std` (`[D]` or `[1, D]`), where they are.
fn latent_moments(state: &dyn TensorSource) -> Result<Option<LatentMoments>> {
    let (Some(mean), Some(std)) = (buffer(state, MEAN), buffer(state, STD)) else { return Ok(None) };
    let read = |name: &str| -> Result<Tensor> {
        let flat = read_f32(state, name)?.flatten_all();
        flat.map_err(|source| Error::Tensor { part: "reading latent statistics", source })
    };
    let (mean, std) = (read(&mean)?, read(&std)?);
    if mean.dims() != std.dims() {
        return Err(shape_mismatch(STD, &std, mean.dims()));
    }
    LatentMoments::new(mean, std).map(Some)
}

impl LatentMoments {
    /// Joins mean and standard deviation.
    ///
    /// # Errors
    /// [`Error::StdNotPositive`] if a standard deviation is not a positive number; [`Error::ShapeMismatch`] if there are
    /// not as many as means.
    pub fn new(mean: Tensor, std: Tensor) -> Result<Self> {
        let failed = |source| Error::Tensor { part: "reading latent statistics", source };
        let values = std.flatten_all().and_then(|std| std.to_vec1::<f32>()).map_err(failed)?;
        if mean.dims() != std.dims() {
            return Err(shape_mismatch("the standard deviation of z_sem", &std, mean.dims()));
        }
        match values.iter().position(|&value| !(value > 0. && value.is_finite())) {
            Some(component) => Err(Error::StdNotPositive { component }),
            None => Ok(Self { mean, std }),
        }
    }
}

fn shape_mismatch(name: &str, got: &Tensor, expected: &[usize]) -> Error {
    Error::ShapeMismatch { name: name.to_owned(), got: got.dims().to_vec(), expected: expected.to_vec() }
}
