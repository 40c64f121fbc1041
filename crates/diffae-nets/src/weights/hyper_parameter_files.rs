//! Hyper-parameters in a file beside the weights, or in their header.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Name of a file that can hold nothing else.
const CERTAIN: &str = "hyper_parameters.json";
/// Name of a file that other programs write too.
const SHARED: &str = "config.json";
/// Keys of text entries of a safetensors header that may hold hyper-parameters.
const TEXT_KEYS: [&str; 4] = ["hyper_parameters", "hparams", "config", "model_conf"];
/// Length of the longest file that is read; those of the released checkpoints have 4 KiB.
const MAX_BYTES: u64 = 1 << 20;
/// Keys of hyper-parameters besides those that start with `net_`.
const KNOWN_KEYS: [&str; 14] = [
    "model_conf",
    "img_size",
    "image_size",
    "model_channels",
    "channel_mult",
    "embed_channels",
    "attention_resolutions",
    "num_heads",
    "num_res_blocks",
    "style_ch",
    "T",
    "beta_scheduler",
    "latent_beta_scheduler",
    "enc_num_res_block",
];
/// Keys of the configs of other libraries, some of whose other keys have the same names.
const FOREIGN_KEYS: [&str; 6] =
    ["_class_name", "_diffusers_version", "architectures", "model_type", "transformers_version", "format_version"];

/// Reads the hyper-parameters in the files beside `weights`: `NAME.json` for `NAME.safetensors`,
/// `hyper_parameters.json`, or a `config.json` of such. A file of one of the other two names may hold something else.
/// # Errors
/// [`Error::HyperParameterFile`] if `hyper_parameters.json` cannot be read or holds something else.
pub(super) fn beside(weights: &Path) -> Result<Option<Value>> {
    let candidates = [weights.with_extension("json"), weights.with_file_name(CERTAIN), weights.with_file_name(SHARED)];
    for path in candidates.into_iter().filter(|path| path != weights && path.is_file()) {
        let found = read(&path).and_then(|value| hyper_parameters(value).ok_or("there are none in it".to_owned()));
        match found {
            Ok(found) => {
                tracing::info!("hyper-parameters from {}", path.display());
                return Ok(Some(found));
            }
            Err(problem) if path.ends_with(CERTAIN) => return Err(Error::HyperParameterFile { path, problem }),
            Err(problem) => tracing::info!("{} is passed over as hyper-parameters: {problem}", path.display()),
        }
    }
    Ok(None)
}

/// Finds the hyper-parameters among the text entries of a header.
pub(super) fn in_metadata(text: &BTreeMap<String, String>) -> Option<Value> {
    let values = TEXT_KEYS.iter().filter_map(|key| text.get(*key));
    values.filter_map(|text| serde_json::from_str(text).ok()).find_map(hyper_parameters)
}

fn read(path: &Path) -> std::result::Result<Value, String> {
    let len = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if len > MAX_BYTES {
        return Err(format!("it has {len} bytes, far more than hyper-parameters take"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| error.to_string())
}

/// Finds the hyper-parameters in a value: itself, or under the key that checkpoints have them under.
fn hyper_parameters(value: Value) -> Option<Value> {
    let Value::Object(mut object) = value else { return None };
    if let Some(inner @ Value::Object(_)) = object.remove("hyper_parameters") {
        return Some(inner);
    }
    let is_known = |key: &String| key.starts_with("net_") || KNOWN_KEYS.contains(&key.as_str());
    let is_foreign = FOREIGN_KEYS.iter().any(|key| object.contains_key(*key));
    (!is_foreign && object.keys().any(is_known)).then_some(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hyper_parameters_are_told_from_other_configs() {
        for (value, expected) in [
            (json!({"img_size": 16}), true),
            (json!({"net_ch": 64}), true),
            (json!({"hyper_parameters": {"seed": 0}}), true),
            (json!({"_class_name": "UNet2DModel", "num_heads": 8}), false),
            (json!({"model_type": "vit", "image_size": 224}), false),
            (json!({"format_version": 1, "unet": {}}), false),
            (json!({"name": "x"}), false),
            (json!([1]), false),
        ] {
            assert_eq!(hyper_parameters(value.clone()).is_some(), expected, "{value}");
        }
    }

    #[test]
    fn a_file_named_for_hyper_parameters_must_hold_some() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("a.safetensors");
        assert_eq!(beside(&weights).unwrap(), None);
        std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"vit\"}").unwrap();
        assert_eq!(beside(&weights).unwrap(), None);
        std::fs::write(folder.path().join("a.json"), "{").unwrap();
        assert_eq!(beside(&weights).unwrap(), None);
        std::fs::write(folder.path().join("a.json"), "{\"T\": 1000}").unwrap();
        assert_eq!(beside(&weights).unwrap(), Some(json!({"T": 1000})));
        let certain = folder.path().join("hyper_parameters.json");
        let other = folder.path().join("b.safetensors");
        for broken in ["{", "{\"x\": 1}", ""] {
            std::fs::write(&certain, broken).unwrap();
            assert!(beside(&other).unwrap_err().to_string().contains("hyper_parameters.json"));
        }
        std::fs::write(&certain, vec![b' '; 2 << 20]).unwrap();
        assert!(beside(&other).unwrap_err().to_string().contains("far more"));
    }
}
