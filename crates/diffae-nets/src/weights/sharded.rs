//! Tensors in several safetensors files that an index names: `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::safetensors::SafetensorsFile;
use super::source::{StoredTensor, TensorSource};
use super::torch::excerpt;
use crate::error::{Error, Result};

/// Length of the longest index that is read: some hundred bytes per tensor.
const MAX_INDEX_BYTES: usize = 16 << 20;
/// Maximum number of files in an index.
const MAX_FILES: usize = 1024;

/// Map from tensors to files.
#[derive(Debug, Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Ending of an index behind the name of the model: `model` of `model.safetensors.index.json`.
pub(super) const INDEX_ENDING: &str = ".safetensors.index.json";

/// Fails if the name of a safetensors file is that of one of several: `model-00001-of-00002.safetensors`.
/// # Errors
/// [`Error::LoneShard`], with the index if it lies beside the file.
pub(super) fn refuse_lone_shard(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(ShardName { model, number, count }) = ShardName::of(&name).filter(|shard| shard.count > 1) else {
        return Ok(());
    };
    let index = format!("{model}{INDEX_ENDING}");
    let remedy = if path.with_file_name(&index).is_file() {
        format!("name the index of all, {index}, or the folder")
    } else {
        format!("put all shards and their index, {index}, into one folder and name that")
    };
    Err(Error::LoneShard { path: path.to_owned(), number, count, remedy })
}

/// Parts of the name of one of several files.
struct ShardName<'a> {
    model: &'a str,
    number: usize,
    count: usize,
}

impl<'a> ShardName<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (model, number) = rest.rsplit_once('-')?;
        Some(Self { model, number: number.parse().ok()?, count: count.parse().ok()? })
    }
}

/// Tensors of all files of an index.
#[derive(Debug)]
pub(super) struct ShardedSafetensors {
    files: Vec<SafetensorsFile>,
    /// Index of the file of each tensor.
    places: BTreeMap<String, usize>,
}

impl ShardedSafetensors {
    /// Opens the files that an index names; `None` if the content of the file at `path` is no index.
    /// # Errors
    /// [`Error::Shards`] if a file or a tensor that the index names is not there; [`Error::Safetensors`] if a file is damaged.
    pub(super) fn open(path: &Path, content: &[u8]) -> Result<Option<Self>> {
        let Some(index) = read_index(content) else { return Ok(None) };
        let broken = |problem: String| Error::Shards { path: path.to_owned(), problem };
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut files, mut numbers, mut places) = (vec![], BTreeMap::new(), BTreeMap::new());
        for (tensor, name) in index.weight_map {
            if !numbers.contains_key(&name) {
                if !is_file_name(&name) {
                    return Err(broken(format!("it names {:?}, which is no file of its folder", excerpt(&name))));
                }
                if files.len() == MAX_FILES {
                    return Err(broken(format!("it names more than {MAX_FILES} files")));
                }
                let file = folder.join(&name);
                if !file.is_file() {
                    return Err(broken(format!("it names {name:?}, which does not lie beside it; copy that file too")));
                }
                numbers.insert(name.clone(), files.len());
                files.push(SafetensorsFile::open(&file)?);
            }
            let number = numbers.get(&name).copied().unwrap_or_default();
            let file: Option<&SafetensorsFile> = files.get(number);
            if file.and_then(|file| file.shape(&tensor)).is_none() {
                let tensor = excerpt(&tensor);
                return Err(broken(format!(
                    "it has {tensor:?} in {name:?}, where it is not: the files do not belong together"
                )));
            }
            places.insert(tensor, number);
        }
        Ok(Some(Self { files, places }))
    }

    /// Returns the text entries of all headers.
    pub(super) fn text(&self) -> BTreeMap<String, String> {
        self.files.iter().flat_map(SafetensorsFile::text).collect()
    }

    fn file_of(&self, name: &str) -> Option<&SafetensorsFile> {
        self.files.get(*self.places.get(name)?)
    }
}

/// Parses a text as an index; `None` if it is something else.
fn read_index(content: &[u8]) -> Option<Index> {
    let starts_as_object = content.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if !starts_as_object || content.len() > MAX_INDEX_BYTES {
        return None;
    }
    serde_json::from_slice(content).ok()
}

/// Returns whether a name is that of a file in the same folder.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains(['/', '\\'])
}

impl TensorSource for ShardedSafetensors {
    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file_of(name)?.shape(name)
    }

    fn read(&self, name: &str) -> Result<StoredTensor<'_>> {
        match self.file_of(name) {
            Some(file) => file.read(name),
            None => Err(Error::TensorMissing { name: name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::weights::safetensors::safetensors_bytes;

    fn index(entries: &[(&str, &str)]) -> String {
        let map: BTreeMap<&str, &str> = entries.iter().copied().collect();
        serde_json::json!({"metadata": {"total_size": 8}, "weight_map": map}).to_string()
    }

    #[test]
    fn tensors_are_found_in_their_files() {
        let folder = tempfile::tempdir().unwrap();
        for (file, name, value) in [("a.safetensors", "x", 1_f32), ("b.safetensors", "y", 2.)] {
            let tensor = Tensor::new(&[value], &Device::Cpu).unwrap();
            let bytes = safetensors_bytes(&[(name.to_owned(), tensor)].into(), &BTreeMap::new()).unwrap();
            std::fs::write(folder.path().join(file), bytes).unwrap();
        }
        let path = folder.path().join("model.safetensors.index.json");
        let open = |entries: &[(&str, &str)]| ShardedSafetensors::open(&path, index(entries).as_bytes());
        let both = open(&[("x", "a.safetensors"), ("y", "b.safetensors")]).unwrap().unwrap();
        assert_eq!(both.names(), ["x", "y"]);
        assert_eq!(*both.read("y").unwrap().bytes, 2_f32.to_le_bytes());
        assert!(both.read("z").is_err());
        for (entries, expected) in [
            (&[("x", "b.safetensors")], "do not belong together"),
            (&[("x", "c.safetensors")], "does not lie beside it"),
            (&[("x", "../a.safetensors")], "no file of its folder"),
            (&[("x", "/etc/passwd")], "no file of its folder"),
            (&[("x", "..")], "no file of its folder"),
        ] {
            let error = open(entries).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("index.json"), "{error}");
        }
    }

    #[test]
    fn one_of_several_files_leads_to_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str| refuse_lone_shard(&folder.path().join(name)).map_err(|error| error.to_string());
        let shard = "model-00001-of-00002.safetensors";
        let error = refused(shard).unwrap_err();
        assert!(error.contains("is shard 1 of 2 of a model; put all shards and their index"), "{error}");
        std::fs::write(folder.path().join("model.safetensors.index.json"), "").unwrap();
        let error = refused(shard).unwrap_err();
        assert!(error.contains("name the index of all, model.safetensors.index.json, or the folder"), "{error}");
        for name in ["model-00001-of-00001.safetensors", "model.safetensors", "two-of-2.safetensors"] {
            assert_eq!(refused(name), Ok(()));
        }
    }

    #[test]
    fn other_text_is_no_index() {
        for text in ["", "{", "{}", "[1]", "{\"weight_map\": 1}", "weights"] {
            assert!(ShardedSafetensors::open(Path::new("x"), text.as_bytes()).unwrap().is_none(), "{text}");
        }
    }
}
