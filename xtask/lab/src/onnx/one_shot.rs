//! A compact one-shot autoencoder with random weights, since no fixture is one. `crates/diffae-onnx/tests/other_runtime.rs`
//! makes its own: the tests of a library and a program share no code that is not in a library.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use diffae_data::{Overwrite, write_atomically};
use diffae_infer::{CONFIG_FILE, FORMAT_VERSION, ModelSource, NoisePurpose, NoiseSource, WEIGHTS_FILE};
use diffae_nets::weights::{ArchitectureHints, safetensors_bytes};
use diffae_nets::{CompactConfig, CompactDecoder, CompactEncoder, RawCompactConfig};
use serde_json::json;

/// Writes the model into a folder, and opens it.
pub(super) fn source(folder: &Path) -> Result<ModelSource> {
    let raw = RawCompactConfig {
        image_size: 16,
        image_channels: 3,
        model_channels: 8,
        z_channels: 24,
        noise_channels: 6,
        noise_levels: 4,
    };
    std::fs::create_dir_all(folder)?;
    let config = json!({ "format_version": FORMAT_VERSION, "compact": raw }).to_string();
    write_atomically(&folder.join(CONFIG_FILE), config.as_bytes(), Overwrite::Replace)?;
    let bytes = safetensors_bytes(&weights(&CompactConfig::new(raw)?)?, &BTreeMap::new())?;
    write_atomically(&folder.join(WEIGHTS_FILE), &bytes, Overwrite::Replace)?;
    Ok(ModelSource::open(folder, &ArchitectureHints::default())?)
}

/// Draws the weights; statistics of norms are positive, as variances are.
fn weights(config: &CompactConfig) -> Result<BTreeMap<String, Tensor>> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    CompactEncoder::new(config, &vb.pp("encoder"))?;
    CompactDecoder::new(config, &vb.pp("decoder"))?;
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let names: BTreeMap<&String, _> = vars.iter().collect();
    let mut weights = BTreeMap::new();
    for (idx, (name, var)) in (0..).zip(names) {
        let drawn = NoiseSource::new(7).standard_normal(NoisePurpose::Step, idx, var.dims(), &Device::Cpu)?;
        let values = if name.ends_with("running_var") { (drawn.abs()? + 0.5)? } else { (drawn * 0.2)? };
        weights.insert(name.clone(), values);
    }
    Ok(weights)
}
