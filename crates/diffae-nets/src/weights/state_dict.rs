//! Reader of the tensors of any network.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};

use super::source::{TensorMap, TensorSource};
use super::weight_file::WeightFile;
use super::wrappers::Renamed;
use crate::error::{Error, Result};

/// Reads the tensors of a file as f32: of a safetensors file, or of a `state_dict()` that `torch.save` wrote, alone or
/// under the key `state_dict`. The names of wrappers (`module`, `_orig_mod`) are left out of theirs, and so are
/// counters (`num_batches_tracked`) and other tensors without fractions.
///
/// # Errors
/// If the file cannot be read, is damaged, or a number is not finite.
pub fn read_state_dict(path: &Path) -> Result<TensorMap> {
    let state = Renamed::unwrapped(WeightFile::open(path)?.state)?;
    let mut tensors = BTreeMap::new();
    for name in state.names() {
        let stored = match state.read(&name) {
            Ok(stored) if stored.dtype.is_float() => stored,
            Ok(_) | Err(Error::UnsupportedDtype { .. }) => continue,
            Err(error) => return Err(error),
        };
        tensors.insert(name, stored.to_tensor(DType::F32, &Device::Cpu)?);
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
