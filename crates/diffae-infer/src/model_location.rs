//! Resolves the path of a model to its files.

use std::fs;
use std::path::{Path, PathBuf};

use diffae_nets::weights::{SafetensorsFile, TensorSource, is_sharded_checkpoint};
use serde_json::Value;

use crate::error::{Error, Result};

/// Name of the config inside a model directory.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the weights inside a model directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// File name ending of the index of several safetensors files.
const INDEX_ENDING: &str = ".safetensors.index.json";
/// File name endings of files that `torch.save` writes.
const TORCH_ENDINGS: [&str; 5] = [".ckpt", ".pt", ".pth", ".pkl", ".bin"];
/// The config of a training run, which writes its model into the same folder.
const RUN_FILE: &str = "train.toml";
/// The files that make up a model, for messages.
const EXPECTED: &str =
    "expected a folder with config.json and model.safetensors, or a file of weights: .ckpt, .pt, .safetensors";
/// Maximum size of a config; a longer one belongs to something else.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The files of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// A model directory, with its config.
    Directory {
        /// The folder that holds the config.
        folder: PathBuf,
        /// The file of weights.
        weights: PathBuf,
    },
    /// A file of weights under released names.
    Released(PathBuf),
}

impl Location {
    /// Finds the files of a model at a path.
    ///
    /// # Errors
    /// [`Error::Io`] if there is nothing, [`Error::NotAModel`] if it is a folder of something else,
    /// [`Error::UntrainedRun`] if it is a run that has made no model yet.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        if metadata.is_dir() { Self::of_folder(path) } else { Self::of_file(path) }
    }

    fn of_file(path: &Path) -> Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let config = Config::in_folder(folder);
        if path.file_name().is_some_and(|name| name == CONFIG_FILE) && matches!(config, Config::Ours | Config::Broken) {
            return Err(not_a_model(path, "it is the config of a model directory; name its folder"));
        }
        let is_ours = || {
            let names = SafetensorsFile::open(path).map(|file| file.names()).unwrap_or_default();
            names.iter().any(|name| name.starts_with("unet.") || name.starts_with("decoder."))
        };
        match config {
            // Of a damaged config, the error says what is wrong with it.
            Config::Ours | Config::Broken if is_ours() => {
                Ok(Self::Directory { folder: folder.to_owned(), weights: path.to_owned() })
            }
            _ => Ok(Self::Released(path.to_owned())),
        }
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let (config, weights) = (Config::in_folder(folder), folder.join(WEIGHTS_FILE));
        if matches!(config, Config::Ours | Config::Broken) && weights.is_file() {
            return Ok(Self::Directory { folder: folder.to_owned(), weights });
        }
        if folder.join(RUN_FILE).is_file() {
            return Err(Error::UntrainedRun { path: folder.to_owned() });
        }
        if is_sharded_checkpoint(folder) {
            return Ok(Self::Released(folder.to_owned()));
        }
        let names = file_names(folder)?;
        let ending_in = |ending: &str| -> Vec<&String> { names.iter().filter(|name| name.ends_with(ending)).collect() };
        let (indices, safetensors) = (ending_in(INDEX_ENDING), ending_in(".safetensors"));
        match (indices.as_slice(), safetensors.as_slice()) {
            ([index], _) => Ok(Self::Released(folder.join(index))),
            ([], _) if weights.is_file() => Ok(Self::Released(weights)),
            ([], [only]) => Ok(Self::Released(folder.join(only))),
            _ => Err(not_a_model(folder, &describe(folder, &config, &names))),
        }
    }
}

/// The `config.json` of a folder.
#[derive(Debug, PartialEq, Eq)]
enum Config {
    Missing,
    /// A file without a JSON object.
    Broken,
    /// The config of a model directory.
    Ours,
    /// The config of a model of another library, by the name of the library.
    Foreign(String),
    /// A config of unknown origin.
    Unknown,
}

impl Config {
    fn in_folder(folder: &Path) -> Self {
        let path = folder.join(CONFIG_FILE);
        let Ok(metadata) = fs::metadata(&path) else { return Self::Missing };
        if metadata.len() > MAX_CONFIG_BYTES {
            return Self::Unknown;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let Ok(Value::Object(config)) = serde_json::from_str(&text) else { return Self::Broken };
        let text_under = |key: &str| config.get(key).and_then(Value::as_str);
        if config.contains_key("format_version") {
            Self::Ours
        } else if let Some(class) = text_under("_class_name") {
            Self::Foreign(format!("a {class} of diffusers"))
        } else if let Some(kind) = text_under("model_type") {
            Self::Foreign(format!("a model of transformers ({kind})"))
        } else if let Some(class) = config.get("architectures").and_then(|classes| classes.get(0)?.as_str()) {
            Self::Foreign(format!("a model of transformers ({class})"))
        } else {
            Self::Unknown
        }
    }
}

/// Returns the name of the library that the `config.json` beside a file belongs to.
pub(crate) fn foreign_config_beside(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    match Config::in_folder(folder) {
        Config::Foreign(what) => Some(format!("its config.json is that of {what}")),
        _ => None,
    }
}

/// Describes a folder without a model, with advice.
fn describe(folder: &Path, config: &Config, names: &[String]) -> String {
    let has = |name: &str| names.iter().any(|own| own == name);
    let listed = |endings: &[&str]| -> Vec<&str> {
        let matching = names.iter().filter(|name| endings.iter().any(|ending| name.ends_with(ending)));
        matching.map(String::as_str).take(4).collect()
    };
    let (torch, safetensors) = (listed(&TORCH_ENDINGS), listed(&[".safetensors"]));
    if let Config::Foreign(what) = config {
        return format!("its config.json is that of {what}; {EXPECTED}");
    }
    if has("model_index.json") {
        return format!("it is a pipeline of diffusers; {EXPECTED}");
    }
    if has("data.pkl") {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).display();
        return format!(
            "it is an unpacked PyTorch file; pack it again without compression: `zip -0 -r {name}.ckpt {name}`"
        );
    }
    if !safetensors.is_empty() {
        let remedy = if safetensors.iter().any(|name| name.contains("-of-")) {
            "add the index of these shards, model.safetensors.index.json"
        } else {
            "name the file with the weights"
        };
        return format!("it holds {} without an index; {remedy}", safetensors.join(", "));
    }
    if !torch.is_empty() {
        return format!("it holds {}; name the file with the weights", torch.join(", "));
    }
    EXPECTED.to_owned()
}

fn not_a_model(path: &Path, problem: &str) -> Error {
    Error::NotAModel { path: path.to_owned(), problem: problem.to_owned() }
}

/// Lists the names of the entries of a folder, sorted.
fn file_names(folder: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::Io { path: folder.to_owned(), source };
    let mut names = vec![];
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.into_string());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    #[test]
    fn folders_lead_to_their_weights() {
        for (files, expected) in [
            (&[("model.safetensors", "")][..], "model.safetensors"),
            (&[("config.json", "{\"model_type\": \"vit\"}"), ("model.safetensors", "")], "model.safetensors"),
            (&[("a.safetensors", ""), ("hyper_parameters.json", "{}")], "a.safetensors"),
            (
                &[("m-1.safetensors", ""), ("m-2.safetensors", ""), ("m.safetensors.index.json", "")],
                "m.safetensors.index.json",
            ),
        ] {
            let folder = folder_of(files);
            let expected = Location::Released(folder.path().join(expected));
            assert_eq!(Location::of(folder.path()).unwrap(), expected);
        }
        let folder = folder_of(&[("config.json", "{\"format_version\": 1}"), ("model.safetensors", "")]);
        assert!(matches!(Location::of(folder.path()).unwrap(), Location::Directory { .. }));
    }

    #[test]
    fn other_folders_are_named() {
        for (files, expected) in [
            (&[][..], "expected a folder with config.json"),
            (&[("config.json", "{\"_class_name\": \"UNet2DModel\"}")], "UNet2DModel of diffusers"),
            (&[("config.json", "{\"architectures\": [\"ViTModel\"]}")], "transformers (ViTModel)"),
            (&[("model_index.json", "{}")], "pipeline of diffusers"),
            (&[("data.pkl", ""), ("version", "")], "zip -0 -r"),
            (&[("a.safetensors", ""), ("b.safetensors", "")], "a.safetensors, b.safetensors without an index"),
            (&[("last.ckpt", "")], "it holds last.ckpt; name"),
        ] {
            let folder = folder_of(files);
            let error = Location::of(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("is not a model"), "{error}");
        }
        let folder = folder_of(&[("train.toml", ""), ("run.json", "")]);
        assert!(matches!(Location::of(folder.path()), Err(Error::UntrainedRun { .. })));
        let folder = folder_of(&[("config.json", "{\"format_version\": 1}")]);
        let error = Location::of(&folder.path().join("config.json")).unwrap_err().to_string();
        assert!(error.contains("name its folder"), "{error}");
    }
}
