//! A category of LSUN (Yu et al. 2015, arXiv:1506.03365) from its LMDB, whose values are WebP.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use diffae_data::Lmdb;
use diffae_data::ResizeFilter;

use super::pictures::{About, Archive, Common, Cut, Job, Originals, Owner, Picture, Recipe, Shape};
use crate::commands::dataset::output::Fingerprint;
use crate::commands::dataset::output::Made;

const OWNER: Owner = Owner {
    advice: "download the zip of a category, such as horse.zip or bedroom_train_lmdb.zip, from \
             https://www.yf.io/p/lsun and name it, or the folder with data.mdb that it holds, by --from",
};
const LICENCE: &str = "none stated by the owner; for research";
const LICENCE_PAGE: &str = "LSUN, Yu, Seff, Zhang, Song, Funkhouser and Xiao 2015, https://www.yf.io/p/lsun\n\
    The owner states no licence; the photographs belong to those who took them. Use them for research.\n\
    These pictures are cropped and resized.\n";
const DATA_FILE: &str = "data.mdb";
/// Folder that a zip is unpacked to while the data set is created.
const UNPACKED: &str = "unpacked";
/// Endings of the owner's names.
const ENDINGS: [&str; 2] = ["_train_lmdb", "_val_lmdb"];
/// Number of pictures per folder.
const PER_FOLDER: usize = 1000;

/// Arguments of `diffae dataset lsun`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Subject of the pictures, for the manifest [default: from the name of the folder or zip]
    #[arg(long, value_name = "NAME")]
    category: Option<String>,
}

/// Writes `images/NNNN/NNNNNNN.png`, or an LMDB, in order of the keys.
pub(super) fn run(args: &Args) -> Result<Made> {
    let common = &args.common;
    let from = common.from(&OWNER)?;
    let category = args.category.clone().unwrap_or_else(|| category(from));
    let about = About {
        name: "lsun",
        source: "LSUN, https://www.yf.io/p/lsun",
        version: category.clone(),
        licence: LICENCE,
        made: format!("category {category}; Lanczos, center crop"),
    };
    if from.is_dir() {
        if !Lmdb::is_database(from) {
            return Err(OWNER.wrong(format!("{} holds no {DATA_FILE}", from.display())));
        }
        let path = from.join(DATA_FILE);
        let length = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
        let Some(job) = Job::begin(common, about, fingerprint(length))? else {
            return Ok(Made::whole(&common.out));
        };
        return make(job, &Originals::database(from)?);
    }
    let archive = Archive::open(from).map_err(|error| OWNER.wrong(format!("{error:#}")))?;
    let Some((_, idx)) = archive.named(DATA_FILE) else {
        return Err(OWNER.wrong(format!("{} holds no {DATA_FILE}", from.display())));
    };
    let length = archive.length(idx)?;
    let folder = common.out.join(UNPACKED);
    let made = if let Some(job) = Job::begin(common, about, fingerprint(length))? {
        unpack(&archive, idx, length, &folder)?;
        make(job, &Originals::database(&folder)?)?
    } else {
        Made::whole(&common.out)
    };
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(made)
}

/// Returns a fingerprint from the length of the file, which tells categories apart and is known without unpacking.
fn fingerprint(length: u64) -> Fingerprint {
    let hash = blake3::hash(format!("{DATA_FILE} {length}\n").as_bytes());
    Fingerprint { count: 1, listing_blake3: hash.to_hex().to_string() }
}

/// Returns the category, such as `horse` of `horse_train_lmdb.zip`.
fn category(from: &Path) -> String {
    let name = if from.is_dir() { from.file_name() } else { from.file_stem() };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    let cut = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending).map(str::to_owned));
    cut.unwrap_or(name)
}

/// Unpacks the database, unless an earlier run has done it.
fn unpack(archive: &Archive, idx: usize, length: u64, folder: &Path) -> Result<()> {
    let path = folder.join(DATA_FILE);
    if fs::metadata(&path).is_ok_and(|found| found.len() == length) {
        return Ok(());
    }
    tracing::warn!("unpacking {length} bytes to {}, which is removed when all is made", folder.display());
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let partial: PathBuf = path.with_extension("partial");
    let failed = || format!("cannot write {}", partial.display());
    let mut file = fs::File::create(&partial).with_context(failed)?;
    archive.unpack(idx, &mut file)?;
    file.flush().with_context(failed)?;
    fs::rename(&partial, &path).with_context(failed)
}

fn make(job: Job<'_>, originals: &Originals) -> Result<Made> {
    let name = |idx: usize| format!("{:04}/{idx:07}", idx.div_euclid(PER_FOLDER));
    job.make(Recipe {
        pictures: (0..originals.names().len()).map(|idx| Picture { original: idx, name: name(idx) }).collect(),
        originals,
        cut: Cut { shape: Shape::Any, part: None, filter: ResizeFilter::Lanczos },
        key_digits: 7,
        labels: None,
        licence: LICENCE_PAGE.to_owned(),
    })
}

#[cfg(test)]
mod tests;
