//! Hyper-parameters in a file beside the weights, or in their header.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::sharded::INDEX_ENDING;
use crate::counted::counted;
use crate::error::{Error, Result};

/// Name of a file that can hold nothing else.
const CERTAIN: &str = "hyper_parameters.json";
/// Names of files that other programs write too.
const SHARED: [&str; 2] = ["hparams.json", "config.json"];
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

/// Reads the hyper-parameters in the files beside `weights`: `NAME.json` for `NAME.safetensors` and for the index
/// `NAME.safetensors.index.json`, `hyper_parameters.json`, or a `hparams.json` or `config.json` of such. Files of other
/// names than the second may hold something else.
/// # Errors
/// [`Error::HyperParameterFile`] if `hyper_parameters.json` cannot be read or holds something else.
pub(super) fn beside(weights: &Path) -> Result<Option<Value>> {
    let name = weights.file_name().unwrap_or_default().to_string_lossy();
    let of_name = match name.strip_suffix(INDEX_ENDING) {
        Some(model) => weights.with_file_name(format!("{model}.json")),
        None => weights.with_extension("json"),
    };
    let fixed = [CERTAIN].into_iter().chain(SHARED).map(|name| weights.with_file_name(name));
    let candidates = std::iter::once(of_name).chain(fixed);
    for path in candidates.filter(|path| path != weights && path.is_file()) {
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

/// Finds the hyper-parameters among the text entries of a header: as JSON in one of them, or an entry each.
pub(super) fn in_metadata(text: &BTreeMap<String, String>) -> Option<Value> {
    let values = TEXT_KEYS.iter().filter_map(|key| text.get(*key));
    let together = values.filter_map(|text| serde_json::from_str(text).ok()).find_map(hyper_parameters);
    let each = || text.iter().map(|(key, value)| (key.clone(), value_of(value))).collect();
    together.or_else(|| hyper_parameters(Value::Object(each())))
}

/// Reads a value as JSON or as Python prints it; other text is a string.
fn value_of(text: &str) -> Value {
    let tuple = || {
        let items = text.strip_prefix('(')?.strip_suffix(')')?;
        serde_json::from_str(&format!("[{}]", items.trim_end().trim_end_matches(','))).ok()
    };
    match text {
        "None" => Value::Null,
        "True" => Value::Bool(true),
        "False" => Value::Bool(false),
        _ => serde_json::from_str(text).ok().or_else(tuple).unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

fn read(path: &Path) -> std::result::Result<Value, String> {
    let len = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if len > MAX_BYTES {
        return Err(format!("it has {}, far more than hyper-parameters take", counted(len, "byte")));
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
    fn every_name_is_taken_beside_an_index_and_beside_a_file() {
        for weights in ["model.safetensors", "model.safetensors.index.json"] {
            for name in ["model.json", "hparams.json", "config.json", "hyper_parameters.json"] {
                let folder = tempfile::tempdir().unwrap();
                std::fs::write(folder.path().join(name), "{\"img_size\": 16}").unwrap();
                assert_eq!(beside(&folder.path().join(weights)).unwrap(), Some(json!({"img_size": 16})), "{name}");
            }
        }
    }

    #[test]
    fn text_entries_may_be_hyper_parameters_themselves() {
        let found = |entries: &[(&str, &str)]| {
            let text = entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            in_metadata(&text)
        };
        assert_eq!(found(&[("img_size", "16")]), Some(json!({"img_size": 16})));
        let python = [("T", "1000"), ("net_ch_mult", "(1, 2)"), ("num_heads", "None"), ("beta_scheduler", "linear")];
        let expected = json!({"T": 1000, "net_ch_mult": [1, 2], "num_heads": null, "beta_scheduler": "linear"});
        assert_eq!(found(&python), Some(expected));
        assert_eq!(found(&[("config", "{\"img_size\": 16}"), ("T", "1")]), Some(json!({"img_size": 16})));
        assert_eq!(found(&[("format", "pt")]), None);
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
