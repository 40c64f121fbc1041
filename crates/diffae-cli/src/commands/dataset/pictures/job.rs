//! Creation of one data set: pictures, the files beside them, the manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use diffae_data::Lmdb;
use rayon::prelude::*;

use super::making::{self, Cut, Making, Picture};
use super::{About, Common, Format, LabelFile, Originals};
use crate::commands::dataset::output::Made;
use crate::commands::dataset::output::{Fingerprint, Listing, Manifest, Output, Survey};

const LICENCE: &str = "LICENCE.txt";
/// File that names the original of each picture.
const SOURCES: &str = "sources.csv";
/// Files beside the pictures, in the order of the listing.
const BESIDE: [&str; 4] = [LICENCE, LabelFile::CELEBA, LabelFile::CSV, SOURCES];

/// A data set that is not finished yet.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    common: &'a Common,
    manifest: Manifest,
    output: Output,
}

/// Ingredients of a data set: originals, pictures, labels and terms.
#[derive(Debug)]
pub(crate) struct Recipe<'a> {
    pub(crate) originals: &'a Originals,
    pub(crate) pictures: Vec<Picture>,
    pub(crate) cut: Cut,
    /// Digits of the index in the keys of a database.
    pub(crate) key_digits: usize,
    pub(crate) labels: Option<LabelFile>,
    /// Owner and terms of the originals.
    pub(crate) licence: String,
}

/// Creates a data set whose originals are all known by their names.
pub(crate) fn make(common: &Common, about: About, recipe: Recipe<'_>) -> Result<Made> {
    ensure!(!recipe.pictures.is_empty(), "no pictures are left to be made");
    if let Some(labels) = &recipe.labels {
        labels.check(recipe.originals)?;
    }
    match Job::begin(common, about, making::fingerprint(&recipe.pictures))? {
        Some(job) => job.make(recipe),
        None => Ok(Made::whole(&common.out)),
    }
}

impl<'a> Job<'a> {
    /// Starts or resumes a data set; `None` if it is complete.
    pub(crate) fn begin(common: &'a Common, about: About, originals: Fingerprint) -> Result<Option<Self>> {
        let manifest = common.manifest(about, originals);
        let output = Output::new(&common.out, &manifest)?;
        if let Some(promised) = output.promised() {
            let found = survey(&common.out, common.format)?;
            let is_whole = found.is_some_and(|found| found.listing_blake3 == promised);
            if is_whole && (common.format == Format::Folder || sealed(&common.out)?.is_some()) {
                return Ok(None);
            }
        }
        Ok(Some(Self { common, manifest, output }))
    }

    /// Creates the missing pictures and files.
    pub(crate) fn make(mut self, mut recipe: Recipe<'_>) -> Result<Made> {
        recipe.pictures.truncate(self.common.limited(recipe.pictures.len()));
        let making = Making {
            out: &self.common.out,
            size: self.common.size,
            originals: recipe.originals,
            pictures: &recipe.pictures,
            cut: recipe.cut,
            key_digits: recipe.key_digits,
        };
        let names = making.run(self.common.format)?;
        let made: BTreeMap<usize, &str> = recipe
            .pictures
            .iter()
            .zip(&names)
            .filter_map(|(picture, name)| Some((picture.original, name.as_deref()?)))
            .collect();
        self.output.file(LICENCE, recipe.licence.as_bytes())?;
        if let Some(labels) = &recipe.labels {
            let below = format!("{}/", making::PICTURES);
            let below_images = made.iter().map(|(idx, name)| (*idx, name.strip_prefix(&below).unwrap_or(name)));
            let text = labels.renamed(recipe.originals, &below_images.collect())?;
            self.output.file(labels.file_name(), text.as_bytes())?;
        }
        let (mut rows, mut broken) = (vec![], vec![]);
        for (picture, name) in recipe.pictures.iter().zip(&names) {
            let original = recipe.originals.name(picture.original);
            match name {
                Some(name) => rows.push([name.as_str(), original]),
                None => broken.push(original.to_owned()),
            }
        }
        self.output.file(SOURCES, &sources(&rows)?)?;
        let out = &self.common.out;
        let survey = survey(out, self.common.format)?
            .with_context(|| format!("files in {} vanished while it was made", out.display()))?;
        self.output.complete(&self.manifest, survey, &broken)?;
        if self.common.format == Format::Lmdb {
            making.seal(rows.len())?;
        }
        Ok(Made { out: out.clone(), num_pictures: Some(rows.len()), num_left_out: broken.len() })
    }
}

fn sources(rows: &[[&str; 2]]) -> Result<Vec<u8>> {
    let mut csv = csv::Writer::from_writer(vec![]);
    csv.write_record(["file", "original"])?;
    for row in rows {
        csv.write_record(row)?;
    }
    csv.into_inner().context("cannot write CSV")
}

/// Surveys all files of the data set; `None` if one is missing.
fn survey(out: &Path, format: Format) -> Result<Option<Survey>> {
    let mut survey = Survey { counts: BTreeMap::new(), bytes: 0, listing_blake3: String::new() };
    let mut listing = Listing::default();
    let mut names: Vec<String> = vec![];
    for name in BESIDE {
        let Ok(bytes) = fs::read(out.join(name)) else { continue };
        listing.add(name, blake3::hash(&bytes));
        survey.bytes += bytes.len() as u64;
        if name == SOURCES {
            let rows = csv::Reader::from_reader(bytes.as_slice()).into_records();
            names = rows.map(|row| Ok(row?.get(0).unwrap_or_default().to_owned())).collect::<Result<_>>()?;
        }
    }
    let database = match format {
        Format::Folder => None,
        Format::Lmdb if Lmdb::is_database(out) => Some(Lmdb::open(out)?),
        Format::Lmdb => return Ok(None),
    };
    let read = |name: &String| -> Result<Option<(u64, blake3::Hash)>> {
        let bytes = match &database {
            Some(database) => database.get(name)?,
            None => fs::read(out.join(name)).ok(),
        };
        Ok(bytes.map(|bytes| (bytes.len() as u64, blake3::hash(&bytes))))
    };
    let found: Option<Vec<_>> = names.par_iter().map(read).collect::<Result<_>>()?;
    let Some(found) = found.filter(|found| !found.is_empty()) else { return Ok(None) };
    for (name, (bytes, hash)) in names.iter().zip(found) {
        listing.add(name, hash);
        survey.bytes += bytes;
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        *survey.counts.entry(folder.to_owned()).or_default() += 1;
    }
    survey.listing_blake3 = listing.blake3();
    Ok(Some(survey))
}

fn sealed(out: &Path) -> Result<Option<usize>> {
    making::length(&*Lmdb::open(out)?)
}

#[cfg(test)]
mod tests;
