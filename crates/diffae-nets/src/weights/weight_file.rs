//! Files of named tensors in any format, which the content determines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;
use serde_json::Value;

use super::hyper_parameter_files::{beside, in_metadata};
use super::safetensors::SafetensorsFile;
use super::sharded::{ShardedSafetensors, refuse_lone_shard};
use super::source::{StoredTensor, TensorSource};
use super::torch::{FilePart, MappedFile, ShardedCheckpoint, TensorRef, TorchDtype, TorchFile, is_safetensors};
use super::wrappers::Renamed;
use crate::error::{Error, Result};

/// Key of the tensors of a checkpoint.
const STATE_DICT: &str = "state_dict";
/// Keys of the tensors in files without a `state_dict`.
const OTHER_STATE_DICTS: [&str; 6] = ["model", "model_state_dict", "module", "net", "network", "params"];
/// Keys of averages beside the tensors.
const AVERAGES: [&str; 6] = ["ema", "ema_model", "ema_state_dict", "model_ema", "state_dict_ema", "params_ema"];
/// Key of the online parameters in files of Lightning's `WeightAveraging`, whose average is the `state_dict`.
/// # Source
/// Lightning's `pytorch/callbacks/weight_averaging.py`, `on_save_checkpoint`.
const CURRENT_STATE: &str = "current_model_state";
/// Key of the hyper-parameters.
const HYPER_PARAMETERS: &str = "hyper_parameters";

/// Name of the file that marks a folder of `torch.distributed.checkpoint`.
const SHARDED_METADATA: &str = ".metadata";
/// Name of the file in which Lightning puts the rest of a sharded checkpoint.
const LIGHTNING_REST: &str = "meta.pt";

/// Returns whether a path is a folder that `torch.distributed.checkpoint` wrote.
#[must_use]
pub fn is_sharded_checkpoint(path: &Path) -> bool {
    path.join(SHARDED_METADATA).is_file()
}

/// The tensors of a file and the hyper-parameters that belong to them.
#[derive(Debug)]
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    /// Tensors of the state dict, under their names in it.
    pub(super) state: Arc<dyn TensorSource>,
    /// Online parameters, where `state` is known to be their average.
    pub(super) online_state: Option<Arc<dyn TensorSource>>,
    /// Hyper-parameters as a JSON object, of the file itself or of one beside it.
    pub(super) hyper_parameters: Option<Value>,
}

impl WeightFile {
    /// Opens a file that `torch.save` wrote, a safetensors file, the index of several of these, or a folder of
    /// `torch.distributed.checkpoint`.
    /// # Errors
    /// [`Error::Torch`] or [`Error::Safetensors`] if it is damaged or something else; [`Error::LoneShard`] if it is one of
    /// several files.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if is_sharded_checkpoint(path) {
            return Self::of_pieces(path);
        }
        let bytes = MappedFile::open(path)?;
        if is_safetensors(&bytes) {
            refuse_lone_shard(path)?;
            let file = SafetensorsFile::from_map(path, bytes)?;
            let hyper_parameters = beside(path)?.or_else(|| in_metadata(&file.text()));
            return Ok(Self::of_one_state(path, Arc::new(file), hyper_parameters));
        }
        if let Some(file) = ShardedSafetensors::open(path, &bytes)? {
            let hyper_parameters = beside(path)?.or_else(|| in_metadata(&file.text()));
            return Ok(Self::of_one_state(path, Arc::new(file), hyper_parameters));
        }
        Self::of_torch(path, TorchFile::from_part(path, FilePart::whole(bytes))?)
    }

    fn of_one_state(path: &Path, state: Arc<dyn TensorSource>, hyper_parameters: Option<Value>) -> Self {
        Self { path: path.to_owned(), state, online_state: None, hyper_parameters }
    }

    /// Opens a sharded checkpoint; Lightning puts the rest of it into a file beside these.
    fn of_pieces(path: &Path) -> Result<Self> {
        let checkpoint = Arc::new(ShardedCheckpoint::open(path)?);
        let beside_pieces = path.join(LIGHTNING_REST);
        let mut hyper_parameters = checkpoint.hyper_parameters()?;
        if hyper_parameters.is_none() && beside_pieces.is_file() {
            hyper_parameters = TorchFile::open(&beside_pieces)?.json_under(HYPER_PARAMETERS)?.filter(Value::is_object);
        }
        if hyper_parameters.is_none() {
            hyper_parameters = beside(&path.join(SHARDED_METADATA))?;
        }
        let is_online = |name: &str| name.strip_prefix(CURRENT_STATE).is_some_and(|rest| rest.starts_with('.'));
        let has_online = checkpoint.names().any(is_online);
        let of = |part: Arc<ShardedCheckpoint>| -> Arc<dyn TensorSource> { Arc::new(Pieces(part)) };
        let state = Renamed::new(of(Arc::clone(&checkpoint)), |name| (!is_online(name)).then(|| name.to_owned()))?;
        let online_state = has_online.then(|| -> Result<Arc<dyn TensorSource>> {
            let start = format!("{CURRENT_STATE}.");
            let online = Renamed::new(of(checkpoint), |name| name.strip_prefix(&start).map(str::to_owned))?;
            Ok(Arc::new(online))
        });
        let online_state = online_state.transpose()?;
        Ok(Self { path: path.to_owned(), state: Arc::new(state), online_state, hyper_parameters })
    }

    fn of_torch(path: &Path, file: TorchFile) -> Result<Self> {
        let own = file.json_under(HYPER_PARAMETERS)?.filter(Value::is_object);
        let hyper_parameters = match own {
            Some(own) => Some(own),
            None => beside(path)?,
        };
        let file = Arc::new(file);
        let state = Arc::new(TorchState { file: Arc::clone(&file), tensors: state_dict(&file)? });
        let mut online_state: Option<Arc<dyn TensorSource>> = None;
        if file.has_dict(CURRENT_STATE) {
            let tensors = file.tensors_under(CURRENT_STATE)?;
            online_state = Some(Arc::new(TorchState { file, tensors }));
        }
        Ok(Self { path: path.to_owned(), state, online_state, hyper_parameters })
    }
}

/// Collects all tensors that may be parameters: of the `state_dict`, of the dicts that stand for one, of averages, and
/// of the root. Those of a dict that is not the `state_dict` have its key before their names.
fn state_dict(file: &TorchFile) -> Result<BTreeMap<String, TensorRef>> {
    let mut tensors = BTreeMap::new();
    if file.has_dict(STATE_DICT) {
        tensors = file.tensors_under(STATE_DICT)?;
    } else {
        tensors.append(&mut file.root_tensors()?);
        for key in OTHER_STATE_DICTS.into_iter().filter(|key| file.has_dict(key)) {
            tensors.extend(below(file, key)?);
        }
    }
    for key in AVERAGES.into_iter().filter(|key| file.has_dict(key)) {
        tensors.extend(below(file, key)?);
    }
    Ok(tensors)
}

fn below(file: &TorchFile, key: &str) -> Result<impl Iterator<Item = (String, TensorRef)>> {
    let tensors = file.tensors_under(key)?;
    Ok(tensors.into_iter().map(move |(name, tensor)| (format!("{key}.{name}"), tensor)))
}

/// Tensors of a file that `torch.save` wrote.
#[derive(Debug)]
struct TorchState {
    file: Arc<TorchFile>,
    tensors: BTreeMap<String, TensorRef>,
}

impl TensorSource for TorchState {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let view = self.tensors.get(name)?.view().ok()?;
        Some(&view.shape)
    }

    fn read(&self, name: &str) -> Result<StoredTensor<'_>> {
        let Some(tensor) = self.tensors.get(name) else { return Err(Error::TensorMissing { name: name.to_owned() }) };
        let tensor = self.file.read(tensor)?;
        let dtype = dtype_of(name, tensor.dtype)?;
        Ok(StoredTensor { name: name.to_owned(), dtype, shape: tensor.shape, bytes: tensor.bytes })
    }
}

/// Tensors of a sharded checkpoint.
#[derive(Debug)]
struct Pieces(Arc<ShardedCheckpoint>);

impl TensorSource for Pieces {
    fn names(&self) -> Vec<String> {
        self.0.names().map(str::to_owned).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.shape(name)
    }

    fn read(&self, name: &str) -> Result<StoredTensor<'_>> {
        match (self.0.read(name)?, self.0.shape(name)) {
            (Some(tensor), Some(shape)) => {
                let (name, dtype) = (name.to_owned(), dtype_of(name, tensor.dtype)?);
                Ok(StoredTensor { name, dtype, shape: shape.to_vec(), bytes: tensor.bytes.into() })
            }
            _ => Err(Error::TensorMissing { name: name.to_owned() }),
        }
    }
}

fn dtype_of(name: &str, dtype: TorchDtype) -> Result<DType> {
    Ok(match dtype {
        TorchDtype::F64 => DType::F64,
        TorchDtype::F32 => DType::F32,
        TorchDtype::F16 => DType::F16,
        TorchDtype::BF16 => DType::BF16,
        TorchDtype::I64 => DType::I64,
        TorchDtype::U8 => DType::U8,
        other => return Err(Error::UnsupportedDtype { name: name.to_owned(), dtype: other.to_string() }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::parameter_sets::{FoundSet, ParameterSet};

    fn fault(name: &str) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "..", "..", "tests", "fixtures", "faults", "checkpoints", name].iter().collect()
    }

    /// Returns the bytes of the first convolution.
    fn stem(file: &WeightFile, set: ParameterSet) -> Vec<u8> {
        let found = FoundSet::find(file, set).unwrap();
        assert_eq!(found.prefix, "model.");
        found.state.read("model.input_blocks.0.0.weight").unwrap().bytes.into_owned()
    }

    #[test]
    fn what_lightning_averages_is_told_from_its_average() {
        for name in ["lightning_average.ckpt", "lightning_average_compiled.ckpt"] {
            let path = fault(name);
            let file = WeightFile::open(&path).unwrap();
            let torch = TorchFile::open(&path).unwrap();
            let stored = |key: &str| {
                let tensors = torch.tensors_under(key).unwrap();
                let (_, tensor) = tensors.iter().find(|(name, _)| name.ends_with("0.0.weight")).unwrap();
                torch.read(tensor).unwrap().bytes.into_owned()
            };
            let (average, current) = (stored("state_dict"), stored("current_model_state"));
            assert_ne!(average, current);
            assert_eq!(stem(&file, ParameterSet::Auto), average, "{name}");
            assert_eq!(stem(&file, ParameterSet::Ema), average, "{name}");
            assert_eq!(stem(&file, ParameterSet::Online), current, "{name}");
        }
    }

    #[test]
    fn averaged_and_plain_state_dicts_have_the_same_names() {
        let names = |name: &str| Renamed::unwrapped(WeightFile::open(&fault(name)).unwrap().state).unwrap().names();
        assert_eq!(names("averaged.pt"), ["0.bias", "0.weight"]);
        assert_eq!(names("averaged.pt"), names("bare.pt"));
    }

    #[test]
    fn checkpoints_in_pieces_are_read() {
        let file = WeightFile::open(&fault("dcp")).unwrap();
        assert_eq!(file.state.names(), ["model.a", "model.b"]);
        let a = file.state.read("model.a").unwrap();
        let expected: Vec<u8> = (0..6).flat_map(|number| (number as f32).to_le_bytes()).collect();
        assert_eq!((a.dtype, a.shape.as_slice(), &*a.bytes), (DType::F32, &[2, 3][..], &expected[..]));
        assert_eq!(file.state.read("model.b").unwrap().dtype, DType::F16);
        assert_eq!(file.hyper_parameters, Some(serde_json::json!({"img_size": 16})));
        assert!(file.online_state.is_none());
    }
}
