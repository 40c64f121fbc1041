//! Removal of the names that wrappers add to those of parameters.
//!
//! Training puts a network into others: `torch.compile` names the network inside `_orig_mod`, `DataParallel`,
//! `DistributedDataParallel`, `DeepSpeed` and `AveragedModel` name it `module`, and so on. These names may stand at any
//! place of a parameter's name, several of them too; no network of a Diffusion Autoencoder has a layer of such a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::source::{StoredTensor, TensorSource};
use crate::error::{Error, Result};

/// Names that wrappers give to the network inside.
/// # Source
/// PyTorch's `torch/_dynamo/eval_frame.py`, `torch/nn/parallel/`, `torch/optim/swa_utils.py`,
/// `torch/distributed/fsdp/` and `torch/distributed/algorithms/_checkpoint/`; Lightning's `fabric/wrappers.py`.
const WRAPPERS: [&str; 7] = [
    "_orig_mod",
    "module",
    "_forward_module",
    "_original_module",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
];
/// Name of the counter that `AveragedModel` has beside the parameters.
const COUNTER: &str = "n_averaged";

/// Removes the names of wrappers; `None` for what only a wrapper has.
fn unwrapped(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    (!parts.is_empty() && parts.last() != Some(&COUNTER)).then(|| parts.join("."))
}

/// Tensors under new names.
#[derive(Debug)]
pub(super) struct Renamed {
    source: Arc<dyn TensorSource>,
    /// Stored name of each tensor.
    stored: BTreeMap<String, String>,
}

impl Renamed {
    /// Renames tensors; those without a new name are left out.
    /// # Errors
    /// [`Error::CopiesDiffer`] if two tensors get one name but differ.
    pub(super) fn new(source: Arc<dyn TensorSource>, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut stored: BTreeMap<String, String> = BTreeMap::new();
        for name in source.names() {
            let Some(renamed) = rename(&name) else { continue };
            if let Some(first) = stored.get(&renamed) {
                if !are_equal(source.as_ref(), first, &name)? {
                    return Err(Error::CopiesDiffer { first: first.clone(), second: name });
                }
            } else {
                stored.insert(renamed, name);
            }
        }
        Ok(Self { source, stored })
    }

    /// Renames tensors to their names without those of wrappers.
    /// # Errors
    /// [`Error::CopiesDiffer`], like [`Renamed::new`].
    pub(super) fn unwrapped(source: Arc<dyn TensorSource>) -> Result<Self> {
        Self::new(source, unwrapped)
    }
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<String> {
        self.stored.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.source.shape(self.stored.get(name)?)
    }

    fn read(&self, name: &str) -> Result<StoredTensor<'_>> {
        match self.stored.get(name) {
            Some(stored) => Ok(StoredTensor { name: name.to_owned(), ..self.source.read(stored)? }),
            None => Err(Error::TensorMissing { name: name.to_owned() }),
        }
    }
}

/// Returns whether two tensors have the same type, shape and numbers.
fn are_equal(source: &dyn TensorSource, first: &str, second: &str) -> Result<bool> {
    let (first, second) = (source.read(first)?, source.read(second)?);
    Ok(first.dtype == second.dtype && first.shape == second.shape && first.bytes == second.bytes)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::weights::source::TensorMap;

    #[test]
    fn wrappers_are_no_part_of_a_name() {
        for (name, expected) in [
            ("ema_model._orig_mod.encoder.out.3.bias", Some("ema_model.encoder.out.3.bias")),
            ("module.model.module._orig_mod.out.2.weight", Some("model.out.2.weight")),
            (
                "model.latent_net.layers.0._checkpoint_wrapped_module.linear.weight",
                Some("model.latent_net.layers.0.linear.weight"),
            ),
            ("_forward_module._fsdp_wrapped_module.classifier.weight", Some("classifier.weight")),
            ("model.submodule.weight", Some("model.submodule.weight")),
            ("ema_model.n_averaged", None),
            ("n_averaged", None),
            ("module", None),
        ] {
            assert_eq!(unwrapped(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn two_names_that_become_one_must_be_copies() {
        let tensor = |value: f32| Tensor::new(value, &Device::Cpu).unwrap();
        let source = |second: f32| {
            let named = [("model.x", tensor(1.)), ("model._orig_mod.x", tensor(second))];
            Arc::new(TensorMap(named.map(|(name, tensor)| (name.to_owned(), tensor)).into()))
        };
        assert_eq!(Renamed::unwrapped(source(1.)).unwrap().names(), ["model.x"]);
        let error = Renamed::unwrapped(source(2.)).unwrap_err().to_string();
        assert!(error.contains("model.x") && error.contains("model._orig_mod.x"), "{error}");
    }
}
