//! The folder of a data set: files that are written once, and a manifest when all are there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use diffae_infer::{Overwrite, write_atomically};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::Serialize;

const MANIFEST: &str = "manifest.json";

/// What a data set says of itself.
#[derive(Debug, Serialize)]
pub(crate) struct Manifest {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    pub(crate) version: String,
    pub(crate) licence: &'static str,
    /// How it was made.
    pub(crate) made: String,
    /// Height and width of the pictures.
    pub(crate) image_size: u32,
}

#[derive(Debug, Serialize)]
struct Complete<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    /// Pictures of each folder below the root.
    counts: BTreeMap<String, usize>,
    /// BLAKE3 of the listing: for each file in order, its path and the BLAKE3 of its contents.
    listing_blake3: String,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Output {
    root: PathBuf,
}

impl Output {
    pub(crate) fn new(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// Writes the files that are not there yet, on all threads, then the manifest. `contents` makes those of one.
    pub(crate) fn write(
        &self,
        names: &[String],
        manifest: &Manifest,
        contents: impl Fn(usize) -> Result<Vec<u8>> + Sync,
    ) -> Result<()> {
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} pictures, ETA {eta}");
        let bar = ProgressBar::new(names.len() as u64).with_style(style.context("the progress bar is wrong")?);
        let hashes: Vec<blake3::Hash> = names
            .par_iter()
            .enumerate()
            .map(|(idx, name)| {
                let path = self.root.join(name);
                bar.inc(1);
                if let Ok(bytes) = fs::read(&path) {
                    return Ok(blake3::hash(&bytes));
                }
                let folder = path.parent().context("a name without a folder")?;
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
                let bytes = contents(idx)?;
                write_atomically(&path, &bytes, Overwrite::Replace)?;
                Ok(blake3::hash(&bytes))
            })
            .collect::<Result<_>>()?;
        bar.finish_and_clear();
        let mut listing = blake3::Hasher::new();
        let mut counts = BTreeMap::new();
        for (name, hash) in names.iter().zip(&hashes) {
            listing.update(format!("{name} {}\n", hash.to_hex()).as_bytes());
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            *counts.entry(folder.to_owned()).or_default() += 1;
        }
        let complete = Complete { manifest, counts, listing_blake3: listing.finalize().to_hex().to_string() };
        let text = serde_json::to_string_pretty(&complete).context("cannot write JSON")? + "\n";
        write_atomically(&self.root.join(MANIFEST), text.as_bytes(), Overwrite::Replace)?;
        println!("{} pictures in {}", names.len(), self.root.display());
        Ok(())
    }
}
