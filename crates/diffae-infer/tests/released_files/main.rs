//! One model in every form that a file of weights may have: each is read, and is the same to the last bit.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by a panic; clippy knows only functions marked as tests"
)]

mod flags;
mod forms;
mod sets;

#[path = "../../../diffae-nets/tests/support/pickle_writer.rs"]
mod pickle_writer;
#[path = "../../../diffae-nets/tests/support/stored_zip.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod stored_zip;
#[path = "../../../diffae-nets/tests/support/torch_writer.rs"]
mod torch_writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffae_infer::{LoadOptions, ModelSource, Result};
use diffae_nets::weights::torch::{TorchDtype, TorchFile};
use diffae_nets::weights::{ArchitectureHints, safetensors_bytes};
use serde_json::Value;

use crate::torch_writer::Named;

/// A golden model with a latent net.
const MODEL: &str = "autoenc16_latent";

fn golden(model: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(model).join(file)
}

/// Reads the state dict of a golden file.
fn state_dict(model: &str, file: &str) -> Named {
    let file = TorchFile::open(&golden(model, file)).unwrap();
    let tensors = match file.tensors_under("state_dict") {
        Ok(tensors) => tensors,
        Err(_) => file.root_tensors().unwrap(),
    };
    let read = |tensor| {
        let read = file.read(tensor).unwrap();
        assert_eq!(read.dtype, TorchDtype::F32);
        Tensor::from_raw_buffer(&read.bytes, DType::F32, &read.shape, &Device::Cpu).unwrap()
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), read(tensor))).collect()
}

fn hyper_parameters(model: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(model, "hyper_parameters.json")).unwrap()).unwrap()
}

/// Renames tensors; those without a new name are left out.
fn renamed(named: &Named, rename: impl Fn(&str) -> Option<String>) -> Named {
    named.iter().filter_map(|(name, tensor)| Some((rename(name)?, tensor.clone()))).collect()
}

/// Returns the tensors whose names begin with a prefix, without that prefix.
fn below(named: &Named, prefix: &str) -> Named {
    renamed(named, |name| name.strip_prefix(prefix).map(str::to_owned))
}

fn safetensors(named: &Named) -> Vec<u8> {
    safetensors_bytes(named, &BTreeMap::new()).unwrap()
}

/// A folder that is removed with the test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Returns the config of a model and its fingerprints, which cover every number.
fn identity(source: &ModelSource) -> (String, String, Option<String>) {
    source.build(&LoadOptions::cpu()).unwrap();
    let config = serde_json::to_string(source.config()).unwrap().replace("\"dropout\":0.1", "\"dropout\":0.0");
    (config, source.fingerprint().unwrap(), source.latent_fingerprint().unwrap())
}

fn open(path: &Path) -> Result<ModelSource> {
    ModelSource::open(path, &ArchitectureHints::default())
}

/// Checks that a file is the golden model.
#[track_caller]
fn is_golden(path: &Path, hints: &ArchitectureHints) {
    let source = ModelSource::open(path, hints).unwrap_or_else(|error| panic!("{}", whole(&error)));
    assert_eq!(identity(&source), identity(&open(&golden(MODEL, "last.ckpt")).unwrap()), "{}", path.display());
}

/// Returns the message of an error and of its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Returns the message of the error from opening a file.
#[track_caller]
fn refused(path: &Path, hints: &ArchitectureHints) -> String {
    match ModelSource::open(path, hints) {
        Ok(_) => panic!("{} is read", path.display()),
        Err(error) => whole(&error),
    }
}
