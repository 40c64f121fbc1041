//! Released checkpoints, read as they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::weights::architecture::{Architecture, ArchitectureHints, Parts};
use crate::weights::pytorch_names::name_from_pytorch;
use crate::weights::shapes::architecture_from_shapes;
use crate::weights::source::{StoredTensor, TensorSource, Weights};
use crate::weights::torch::{TensorRef, TorchDtype, TorchFile};

/// Which of the two sets of parameters in a training checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterSet {
    /// `ema_model.*`: the exponential moving average, which everything but training uses.
    Ema,
    /// `model.*`: what the optimizer works on.
    Online,
}

impl ParameterSet {
    fn prefix(self) -> &'static str {
        match self {
            Self::Ema => "ema_model.",
            Self::Online => "model.",
        }
    }
}

/// Mean and standard deviation of `z_sem` over the training set, each `[D]`, f32.
#[derive(Debug, Clone)]
pub struct LatentMoments {
    /// Mean.
    pub mean: Tensor,
    /// Standard deviation, positive.
    pub std: Tensor,
}

/// A training checkpoint as the reference implementation writes it: `last.ckpt`.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it is.
    pub architecture: Architecture,
    /// Its parameters, under [our names](super::name_from_pytorch).
    pub weights: Weights,
    /// `conds_mean` and `conds_std`, which checkpoints with a latent net hold.
    pub latent_moments: Option<LatentMoments>,
}

impl Checkpoint {
    /// Opens a checkpoint and works out its architecture: from its hyper-parameters where it has some, else from the
    /// shapes of its tensors and `hints`.
    ///
    /// # Errors
    /// [`Error::Torch`] if the file is damaged or of another kind; [`Error::NotThere`] if it holds no such parameters;
    /// others if the architecture is not one of a Diffusion Autoencoder.
    pub fn open(path: &Path, set: ParameterSet, hints: &ArchitectureHints) -> Result<Self> {
        let file = Arc::new(TorchFile::open(path)?);
        let state = file.tensors_under("state_dict")?;
        let source = CheckpointSource::new(path, Arc::clone(&file), &state, set)?;
        let architecture = match file.json_under("hyper_parameters")? {
            Some(hyper_parameters) if hyper_parameters.is_object() => {
                Architecture::from_hyper_parameters(&hyper_parameters, Parts::of(&source))?
            }
            _ => {
                let x_terminal = state.get("x_T").map(TensorRef::view).transpose()?;
                architecture_from_shapes(&source, x_terminal.map(|view| view.shape.as_slice()), hints)?
            }
        };
        let latent_moments = latent_moments(&file, &state)?;
        Ok(Self { architecture, weights: Weights::new(Arc::new(source)), latent_moments })
    }
}

/// Reads `conds_mean` and `conds_std` of a `latent.pkl`.
///
/// # Errors
/// [`Error::Torch`] if the file is damaged or of another kind; [`Error::NotThere`] if it holds no such statistics.
pub fn read_latent_moments(path: &Path) -> Result<LatentMoments> {
    let file = TorchFile::open(path)?;
    let tensors = file.root_tensors()?;
    latent_moments(&file, &tensors)?
        .ok_or_else(|| Error::NotThere { path: path.to_owned(), expected: "latent statistics (conds_mean, conds_std)" })
}

/// A linear attribute classifier as the reference implementation writes it.
#[derive(Debug)]
pub struct ClassifierCheckpoint {
    /// `classifier.weight`, `[A, D]`, f32: its rows are the directions of edits.
    pub directions: Tensor,
    /// `ema_classifier.weight` (`classifier.weight` where there is none), `[A, D]`, f32: used for logits.
    pub weight: Tensor,
    /// `ema_classifier.bias` (`classifier.bias` where there is none), `[A]`, f32.
    pub bias: Tensor,
    /// The statistics that it normalizes with, where it holds them.
    pub latent_moments: Option<LatentMoments>,
}

impl ClassifierCheckpoint {
    /// Reads a classifier checkpoint.
    ///
    /// # Errors
    /// [`Error::Torch`] if the file is damaged or of another kind; [`Error::NotThere`] if it holds no classifier;
    /// [`Error::ShapeMismatch`] if weight and bias do not fit together.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TorchFile::open(path)?;
        let state = file.tensors_under("state_dict")?;
        let read = |name: &str| state.get(name).map(|tensor| read_f32(&file, name, tensor)).transpose();
        let either = |online, averaged| -> Result<_> { Ok(read(averaged)?.or(read(online)?)) };
        let (Some(directions), Some(weight), Some(bias)) = (
            read("classifier.weight")?,
            either("classifier.weight", "ema_classifier.weight")?,
            either("classifier.bias", "ema_classifier.bias")?,
        ) else {
            let expected = "attribute classifier (classifier.weight, classifier.bias)";
            return Err(Error::NotThere { path: path.to_owned(), expected });
        };
        let [attributes, _] = *directions.dims() else {
            return Err(shape_mismatch("classifier.weight", &directions, &[0, 0]));
        };
        if weight.dims() != directions.dims() {
            return Err(shape_mismatch("ema_classifier.weight", &weight, directions.dims()));
        }
        if bias.dims() != [attributes] {
            return Err(shape_mismatch("classifier.bias", &bias, &[attributes]));
        }
        Ok(Self { directions, weight, bias, latent_moments: latent_moments(&file, &state)? })
    }
}

/// One parameter set of a checkpoint.
#[derive(Debug)]
struct CheckpointSource {
    file: Arc<TorchFile>,
    tensors: BTreeMap<String, TensorRef>,
}

impl CheckpointSource {
    fn new(path: &Path, file: Arc<TorchFile>, state: &BTreeMap<String, TensorRef>, set: ParameterSet) -> Result<Self> {
        let mut tensors: BTreeMap<String, TensorRef> = BTreeMap::new();
        for (name, tensor) in state {
            let Some(released) = name.strip_prefix(set.prefix()) else { continue };
            let ours = name_from_pytorch(released);
            if let Some(copy) = tensors.insert(ours.clone(), tensor.clone())
                && file.read(&copy)? != file.read(tensor)?
            {
                return Err(Error::CopiesDiffer { first: ours, second: name.clone() });
            }
        }
        if tensors.is_empty() {
            let expected = match set {
                ParameterSet::Ema => "averaged parameters (ema_model.*)",
                ParameterSet::Online => "parameters (model.*)",
            };
            return Err(Error::NotThere { path: PathBuf::from(path), expected });
        }
        Ok(Self { file, tensors })
    }
}

impl TensorSource for CheckpointSource {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let view = self.tensors.get(name)?.view().ok()?;
        Some(&view.shape)
    }

    fn read(&self, name: &str) -> Result<StoredTensor<'_>> {
        match self.tensors.get(name) {
            Some(tensor) => stored(&self.file, name, tensor),
            None => Err(Error::TensorMissing { name: name.to_owned() }),
        }
    }
}

pub(super) fn stored<'a>(file: &'a TorchFile, name: &str, tensor: &TensorRef) -> Result<StoredTensor<'a>> {
    let tensor = file.read(tensor)?;
    let dtype = match tensor.dtype {
        TorchDtype::F64 => DType::F64,
        TorchDtype::F32 => DType::F32,
        TorchDtype::F16 => DType::F16,
        TorchDtype::BF16 => DType::BF16,
        other => return Err(Error::UnsupportedDtype { name: name.to_owned(), dtype: other.to_string() }),
    };
    Ok(StoredTensor { name: name.to_owned(), dtype, shape: tensor.shape, bytes: tensor.bytes })
}

fn read_f32(file: &TorchFile, name: &str, tensor: &TensorRef) -> Result<Tensor> {
    stored(file, name, tensor)?.to_tensor(DType::F32, &Device::Cpu)
}

/// `conds_mean` and `conds_std` (`[D]` or `[1, D]`) among `tensors`, where they are.
fn latent_moments(file: &TorchFile, tensors: &BTreeMap<String, TensorRef>) -> Result<Option<LatentMoments>> {
    let read = |name: &str| -> Result<Option<Tensor>> {
        let Some(tensor) = tensors.get(name) else { return Ok(None) };
        let flat = read_f32(file, name, tensor)?.flatten_all();
        flat.map(Some).map_err(|source| Error::Tensor { part: "reading latent statistics", source })
    };
    let (Some(mean), Some(std)) = (read("conds_mean")?, read("conds_std")?) else { return Ok(None) };
    if mean.dims() != std.dims() {
        return Err(shape_mismatch("conds_std", &std, mean.dims()));
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
