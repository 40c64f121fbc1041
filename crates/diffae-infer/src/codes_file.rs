//! Header of a file of codes, and files joined from others without holding their codes in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diffae_data::{Overwrite, Shard, file_names, write_atomically_with};
use diffae_nets::weights::{Concatenation, SafetensorsFile, TensorSource};

use crate::error::{Error, Result};
use crate::stochastic_code::ChainSettings;

/// Name of the tensor of semantic codes, `[N, D]`.
pub(crate) const Z_SEM: &str = "z_sem";
/// Name of the tensor of noise maps, `[N, C, H, W]`.
pub(crate) const X_TERMINAL: &str = "x_T";
/// Name of the tensor of residuals, shape of the noise maps.
pub(crate) const RESIDUAL: &str = "residual";
/// Text entry of the exact chain that residuals belong to, as JSON.
const EXACT_CHAIN: &str = "exact_chain";
/// Text entry of the chain of fixed points that made the codes, as JSON.
const FIXED_POINT_CHAIN: &str = "fixed_point_chain";
/// Text entry of the chain by which samples were decoded, as JSON.
const SAMPLED_CHAIN: &str = "sampled_chain";
/// Text entry of the names, as JSON.
const NAMES: &str = "names";
/// Text entry of the fingerprint of the model.
const FINGERPRINT: &str = "fingerprint";
/// Text entry of the command line that made the file, in which files that belong together may differ.
const COMMAND: &str = "diffae:command";
/// Text entry of the shard, `i/n`.
const SHARD: &str = "shard";
/// Text entry of the fingerprint of the listing that shards are parts of.
const LISTING: &str = "listing";
/// Maximum number of missing shards that an error names.
const MAX_NAMED: usize = 20;

/// The facts about codes that stand in the header of their file.
#[derive(Debug, Clone, PartialEq)]
pub struct CodesHeader {
    /// The chain of `x_T`; `None` of DDIM in reverse, and where it is not known.
    pub chain: Option<ChainSettings>,
    /// Names of the pictures; after reading, valid as file names and unique.
    pub names: Vec<String>,
    /// Fingerprint of the model that encoded the pictures; empty if unknown.
    pub fingerprint: String,
    /// The shard, and the fingerprint of the whole listing of pictures, if the file is a part of one.
    pub shard: Option<(Shard, String)>,
    /// Other entries, such as the settings of the inversion.
    pub text: BTreeMap<String, String>,
    /// Shapes of the tensors by name: `z_sem`, `x_T`, `residual`.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

impl CodesHeader {
    /// Reads the header of a file of codes, and none of its codes.
    ///
    /// # Errors
    /// [`Error::Codes`] if the file is damaged; [`Error::Tensors`] if its chain is not understood, or it holds no codes.
    pub fn read(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path).map_err(|source| Error::Codes { source })?;
        Self::of(&file, path)
    }

    /// Reads the header of an open file.
    pub(crate) fn of(file: &SafetensorsFile, path: &Path) -> Result<Self> {
        let problem = |problem: String| Error::Tensors { path: path.to_owned(), problem };
        let known = [Z_SEM, X_TERMINAL, RESIDUAL];
        let shape = |name: &str| Some((name.to_owned(), file.shape(name)?.to_vec()));
        let shapes: BTreeMap<String, Vec<usize>> = known.into_iter().filter_map(shape).collect();
        let rows = |name: &str| shapes.get(name)?.first().copied();
        let count = rows(Z_SEM).or(rows(X_TERMINAL));
        let count = count.ok_or_else(|| problem("it holds neither z_sem nor x_T".to_owned()))?;
        if let Some((name, got)) =
            known.into_iter().find_map(|name| Some((name, rows(name).filter(|&got| got != count)?)))
        {
            return Err(problem(format!("it holds {count} codes, but {got} rows of {name}")));
        }
        let mut text = file.text();
        let chain = chain_in(&text).map_err(problem)?;
        let names = text.get(NAMES).and_then(|json| serde_json::from_str::<Vec<String>>(json).ok());
        let names = match names {
            Some(names) if names.len() == count => names,
            _ => (0..count).map(|idx| format!("{idx:04}")).collect(),
        };
        let fingerprint = text.get(FINGERPRINT).cloned().unwrap_or_default();
        let shard = match (text.get(SHARD), text.get(LISTING)) {
            (Some(shard), Some(listing)) => {
                let shard = shard.parse().map_err(|error: diffae_data::Error| problem(error.to_string()))?;
                Some((shard, listing.clone()))
            }
            _ => None,
        };
        for key in [EXACT_CHAIN, FIXED_POINT_CHAIN, SAMPLED_CHAIN, NAMES, FINGERPRINT, SHARD, LISTING] {
            text.remove(key);
        }
        Ok(Self { chain, names: file_names(names), fingerprint, shard, text, shapes })
    }

    /// Returns the text entries of the header.
    ///
    /// # Errors
    /// [`Error::Config`] if something cannot be written as JSON.
    pub(crate) fn entries(&self) -> Result<BTreeMap<String, String>> {
        let failed = |source| Error::Config { path: PathBuf::from("codes.safetensors"), source };
        let mut text = self.text.clone();
        let chain = self.chain.map(|chain| match chain {
            ChainSettings::Exact(exact) => (EXACT_CHAIN, serde_json::to_string(&exact)),
            ChainSettings::FixedPoint(fixed) => (FIXED_POINT_CHAIN, serde_json::to_string(&fixed)),
            ChainSettings::Sampled(sampled) => (SAMPLED_CHAIN, serde_json::to_string(&sampled)),
        });
        if let Some((key, json)) = chain {
            text.insert(key.to_owned(), json.map_err(failed)?);
        }
        text.insert(NAMES.to_owned(), serde_json::to_string(&self.names).map_err(failed)?);
        text.insert(FINGERPRINT.to_owned(), self.fingerprint.clone());
        if let Some((shard, listing)) = &self.shard {
            text.insert(SHARD.to_owned(), shard.to_string());
            text.insert(LISTING.to_owned(), listing.clone());
        }
        Ok(text)
    }

    /// Writes a file of codes from files that hold its rows in this order; the codes are copied from file to file, so memory
    /// does not grow with their number. The bytes are those of [`Codes::write`](crate::Codes::write) of all codes.
    ///
    /// # Errors
    /// [`Error::Parts`] if a part cannot be read, or parts do not fit; [`Error::Mismatch`] if they hold another number of codes
    /// than there are names; [`diffae_data::Error::Exists`] or [`Error::Io`] if the file cannot be written.
    pub fn write_parts(&self, parts: &[PathBuf], path: &Path, overwrite: Overwrite) -> Result<()> {
        let concatenation = Concatenation::open(parts).map_err(|source| Error::Parts { source })?;
        for name in [Z_SEM, X_TERMINAL, RESIDUAL] {
            if let Some(&[got, ..]) = concatenation.shape(name)
                && got != self.names.len()
            {
                let (what, expected) = (format!("the number of rows of {name}"), self.names.len().to_string());
                return Err(Error::Mismatch { what, got: got.to_string(), expected });
            }
        }
        let entries = self.entries()?;
        write_atomically_with(path, overwrite, |file| {
            concatenation.write(file, path, &entries).map_err(|source| Error::Parts { source })
        })
    }

    /// Returns the header of files that are joined in their order.
    ///
    /// Shards must be all those of one listing, in any order, and are sorted; other files keep their order, and their names are
    /// made unique.
    ///
    /// # Errors
    /// [`Error::Tensors`] if files are of other models, chains or settings than the first, or if shards are twice there or of
    /// several listings; [`Error::MissingShards`].
    pub fn joined(files: Vec<(PathBuf, Self)>) -> Result<(Vec<PathBuf>, Self)> {
        let files = sorted_shards(files)?;
        let Some((first_path, first)) = files.first().cloned() else {
            let (what, got) = ("the number of files to join", "0".to_owned());
            return Err(Error::OutOfRange { what, got, expected: "one or more" });
        };
        for (path, header) in &files {
            if let Some(key) = header.difference(&first) {
                let problem = format!("its {key} differs from that of {}", first_path.display());
                return Err(Error::Tensors { path: path.clone(), problem });
            }
        }
        let names: Vec<String> = files.iter().flat_map(|(_, header)| header.names.iter().cloned()).collect();
        let header = Self { names: file_names(names), shard: None, ..first };
        Ok((files.into_iter().map(|(path, _)| path).collect(), header))
    }
}

impl CodesHeader {
    /// Returns the name of a fact in which the codes differ from others; `None` if they belong together.
    fn difference(&self, other: &Self) -> Option<&str> {
        if self.fingerprint != other.fingerprint {
            return Some("model");
        }
        if self.chain != other.chain {
            return Some("chain");
        }
        let mut all = self.text.keys().chain(other.text.keys()).map(String::as_str);
        let key = all.find(|key| *key != COMMAND && self.text.get(*key) != other.text.get(*key))?;
        Some(self.text.get_key_value(key).map_or("text", |(key, _)| key.as_str()))
    }
}

/// Sorts files that are all the shards of one listing; leaves files none of which is a shard as they are.
fn sorted_shards(files: Vec<(PathBuf, CodesHeader)>) -> Result<Vec<(PathBuf, CodesHeader)>> {
    let Some((of_first, listing)) = files.iter().find_map(|(_, header)| header.shard.clone()) else { return Ok(files) };
    let count = of_first.count();
    let mut places: BTreeMap<usize, (PathBuf, CodesHeader)> = BTreeMap::new();
    for (path, header) in files {
        let problem = |problem: String| Err(Error::Tensors { path: path.clone(), problem });
        match &header.shard {
            Some((shard, other)) if shard.count() == count && *other == listing => {
                if let Some((before, _)) = places.get(&shard.number()) {
                    return problem(format!("it is shard {shard}, and so is {}", before.display()));
                }
                places.insert(shard.number(), (path, header));
            }
            Some((shard, _)) => return problem(format!("it is shard {shard} of other pictures or another division")),
            None => return problem(format!("it is no shard, among those of {count} files")),
        }
    }
    if places.len() < count {
        let missing = (1..=count).filter(|number| !places.contains_key(number));
        let mut got: Vec<String> = missing.take(MAX_NAMED + 1).map(|number| number.to_string()).collect();
        if got.len() > MAX_NAMED {
            "..".clone_into(&mut got[MAX_NAMED]);
        }
        return Err(Error::MissingShards { got: got.join(", "), count });
    }
    Ok(places.into_values().collect())
}

/// Reads the chain of codes from the text of their file.
fn chain_in(text: &BTreeMap<String, String>) -> std::result::Result<Option<ChainSettings>, String> {
    let Some((key, json)) =
        [EXACT_CHAIN, FIXED_POINT_CHAIN, SAMPLED_CHAIN].into_iter().find_map(|key| Some((key, text.get(key)?)))
    else {
        return Ok(None);
    };
    let chain = match key {
        EXACT_CHAIN => serde_json::from_str(json).map(ChainSettings::Exact),
        FIXED_POINT_CHAIN => serde_json::from_str(json).map(ChainSettings::FixedPoint),
        _ => serde_json::from_str(json).map(ChainSettings::Sampled),
    };
    chain.map(Some).map_err(|error| format!("its {key} is not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(text: &str) -> (PathBuf, CodesHeader) {
        let header = CodesHeader {
            chain: None,
            names: vec![],
            fingerprint: String::new(),
            shard: Some((text.parse().unwrap(), "listing".to_owned())),
            text: BTreeMap::new(),
            shapes: BTreeMap::new(),
        };
        (PathBuf::from(text.replace('/', "-")), header)
    }

    #[test]
    fn shards_are_sorted_and_missing_ones_named_whatever_their_number() {
        let files = sorted_shards(["2/3", "1/3", "3/3"].map(shard).to_vec()).unwrap();
        assert_eq!(files.iter().map(|(path, _)| path.to_str().unwrap()).collect::<Vec<_>>(), ["1-3", "2-3", "3-3"]);
        let missing =
            |files: &[&str]| sorted_shards(files.iter().map(|text| shard(text)).collect()).unwrap_err().to_string();
        assert_eq!(missing(&["2/3"]), "of 3 shards 1, 3 are missing");
        // A number that a file makes up takes no memory.
        let many = missing(&["3/18446744073709551615"]);
        assert!(many.ends_with("20, 21, .. are missing"), "{many}");
    }
}
