//! Data sets of any folder or zip of pictures.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use diffae_data::ResizeFilter;

use super::pictures::{About, Common, Cut, Format, LabelFile, Originals, Owner, Picture, Recipe, Shape, make};
use crate::commands::dataset::output::Made;

const OWNER: Owner = Owner { advice: "name a folder or a zip of pictures by --from" };
const LICENCE: &str = "that of the originals";
const LICENCE_PAGE: &str =
    "Pictures under the terms of their originals, which are not known here; cropped and resized.\n";
/// Number of pictures up to which keys of an LMDB have five digits; beyond, they have seven.
const MAX_WITH_FIVE_DIGITS: usize = 100_000;

/// Arguments of `diffae dataset folder`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Labels of the originals, as CelebA's attribute file or as CSV with the file names first
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
}

/// Writes `images/` with the folders of the originals, or an LMDB, and the labels with the new names.
pub(super) fn run(args: &Args) -> Result<Made> {
    let common = &args.common;
    let from = common.from(&OWNER)?;
    let originals = common.originals(&OWNER)?;
    if originals.names().is_empty() {
        return Err(OWNER.wrong(format!("{} holds no pictures", from.display())));
    }
    let names = names(&originals)?;
    let labels = match &args.labels {
        Some(path) => Some(given(path)?),
        None if common.format == Format::Lmdb => classes(&originals, &names)?,
        None => None,
    };
    let about = About {
        name: "folder",
        source: "the user's own pictures",
        version: "1".to_owned(),
        licence: LICENCE,
        made: labels.as_ref().map_or_else(String::new, |labels| format!("labels {}; ", labels.blake3()))
            + "Lanczos, center crop",
    };
    let pictures = names.into_iter().enumerate().map(|(original, name)| Picture { original, name });
    let recipe = Recipe {
        pictures: pictures.collect(),
        originals: &originals,
        cut: Cut { shape: Shape::Any, part: None, filter: ResizeFilter::Lanczos },
        key_digits: if originals.names().len() > MAX_WITH_FIVE_DIGITS { 7 } else { 5 },
        labels,
        licence: LICENCE_PAGE.to_owned(),
    };
    make(common, about, recipe)
}

fn given(path: &Path) -> Result<LabelFile> {
    LabelFile::new(path, fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
}

/// Returns the path of each original without its extension, which stays where two would be the same; without the
/// folders of a zip that hold all of it.
fn names(originals: &Originals) -> Result<Vec<String>> {
    let mut names: Vec<&str> = originals.names().iter().map(String::as_str).collect();
    while originals.is_zip()
        && let Some((top, _)) = names.first().and_then(|first| first.split_once('/'))
        && let Some(below) = names.iter().map(|name| name.strip_prefix(top)?.strip_prefix('/')).collect()
    {
        names = below;
    }
    let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        *counts.entry(stem(name)).or_default() += 1;
    }
    let is_alone = |name: &str| counts.get(&stem(name)) == Some(&1);
    let names: Vec<String> =
        names.into_iter().map(|name| if is_alone(name) { stem(name) } else { name.to_owned() }).collect();
    let distinct: BTreeSet<&String> = names.iter().collect();
    ensure!(distinct.len() == names.len(), "two pictures differ in nothing but the endings of their names");
    Ok(names)
}

/// Returns the folder of each picture as labels, if there are two or more folders: a database has none.
fn classes(originals: &Originals, names: &[String]) -> Result<Option<LabelFile>> {
    let class = |name: &str| name.split_once('/').map(|(class, _)| class.to_owned());
    let classes: BTreeSet<String> = names.iter().filter_map(|name| class(name)).collect();
    if classes.len() < 2 {
        return Ok(None);
    }
    let mut csv = csv::Writer::from_writer(vec![]);
    csv.write_record(["file"].into_iter().chain(classes.iter().map(String::as_str)))?;
    for (original, name) in originals.names().iter().zip(names) {
        let own = class(name);
        let values = classes.iter().map(|class| if own.as_ref() == Some(class) { "1" } else { "0" });
        csv.write_record([original.as_str()].into_iter().chain(values))?;
    }
    let text = String::from_utf8(csv.into_inner().context("cannot write CSV")?).context("cannot write CSV")?;
    Ok(Some(LabelFile::new(Path::new("the folders"), text)?))
}

#[cfg(test)]
mod tests;
