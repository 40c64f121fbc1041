//! The tensors of any network.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::checkpoint::stored;
use super::safetensors::SafetensorsFile;
use super::source::{TensorMap, TensorSource};
use super::torch::{TorchDtype, TorchFile};
use crate::error::Result;

/// What a safetensors file is called.
const SAFETENSORS: &str = "safetensors";
/// Where some programs put the tensors that they save.
const NESTED: &str = "state_dict";

/// The tensors of a file, as f32: of a `.safetensors`, or of what `torch.save` wrote of a `state_dict()`, alone or
/// under the key `state_dict`. Counters (`num_batches_tracked`) and other tensors without fractions are left out.
///
/// # Errors
/// If the file cannot be read, is damaged, or a number is not finite.
pub fn read_state_dict(path: &Path) -> Result<TensorMap> {
    let mut tensors = BTreeMap::new();
    if path.extension().is_some_and(|extension| extension == SAFETENSORS) {
        let file = SafetensorsFile::open(path)?;
        for name in file.names() {
            if file.is_float(&name) {
                let tensor = file.read(&name)?.to_tensor(DType::F32, &Device::Cpu)?;
                tensors.insert(name, tensor);
            }
        }
        return Ok(TensorMap(tensors));
    }
    let file = TorchFile::open(path)?;
    let is_nested = file.root_keys().any(|key| key == NESTED);
    let listed = if is_nested { file.tensors_under(NESTED)? } else { file.root_tensors()? };
    for (name, tensor) in listed {
        let is_float = |dtype| matches!(dtype, TorchDtype::F64 | TorchDtype::F32 | TorchDtype::F16 | TorchDtype::BF16);
        if is_float(tensor.view()?.dtype) {
            let read: Tensor = stored(&file, &name, &tensor)?.to_tensor(DType::F32, &Device::Cpu)?;
            tensors.insert(name, read);
        }
    }
    Ok(TensorMap(tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_left_out() {
        let path: std::path::PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", "legacy.pth"].iter().collect();
        let TensorMap(tensors) = read_state_dict(&path).unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["half", "transposed", "weight"]);
        assert_eq!(tensors["half"].to_vec1::<f32>().unwrap(), [1.5, -2.]);
    }
}
