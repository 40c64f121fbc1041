//! Shared parts of the data sets of photographs: options, location of the originals, form of the results.

mod archive;
mod job;
mod labels;
mod making;
mod originals;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::commands::dataset::output::{Fingerprint, Manifest};

pub(super) use archive::Archive;
pub(super) use job::{Job, Recipe, make};
pub(super) use labels::LabelFile;
pub(super) use making::{Cut, Picture, Shape};
pub(super) use originals::Originals;

/// Options of all data sets of photographs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// Original files as their owner distributes them; nothing is downloaded
    #[arg(long, value_name = "PATH")]
    pub(super) from: Option<PathBuf>,
    /// Folder to write the data set into
    #[arg(long, short, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Height and width of the pictures; the paper uses 64, 128 and 256
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(8..=2048))]
    pub(super) size: u32,
    /// Form of the results: PNG files, or an LMDB in the layout of the data sets released with the paper
    #[arg(long, value_enum, default_value_t = Format::Folder)]
    pub(super) format: Format,
    /// Use the first N pictures only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: Option<u32>,
}

/// Forms that pictures are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// PNG files below `images`
    Folder,
    /// JPEG of quality 100, with keys such as 256-00000
    Lmdb,
}

/// Distributor of the originals.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    /// Advice on what to download, from which page, and what to name by `--from`.
    pub(super) advice: &'static str,
}

impl Owner {
    /// Returns an error about what was found instead, with advice on where to get what is needed.
    pub(super) fn wrong(&self, found: impl Display) -> anyhow::Error {
        anyhow!("{found}; {}", self.advice)
    }
}

/// Description of a data set, known before any picture is read.
#[derive(Debug)]
pub(super) struct About {
    pub(super) name: &'static str,
    pub(super) source: &'static str,
    pub(super) version: String,
    pub(super) licence: &'static str,
    /// Crop and resize of the pictures, in words.
    pub(super) made: String,
}

impl Common {
    /// Returns the path that the user named.
    pub(super) fn from(&self, owner: &Owner) -> Result<&Path> {
        let Some(from) = &self.from else { return Err(owner.wrong("nothing is downloaded here")) };
        if from.exists() { Ok(from) } else { Err(owner.wrong(format!("{} is not there", from.display()))) }
    }

    /// Opens the pictures of that folder or zip.
    pub(super) fn originals(&self, owner: &Owner) -> Result<Originals> {
        Originals::open(self.from(owner)?).map_err(|error| owner.wrong(format!("{error:#}")))
    }

    /// Returns the number of pictures wanted, of `count`.
    pub(super) fn limited(&self, count: usize) -> usize {
        self.limit.and_then(|limit| usize::try_from(limit).ok()).map_or(count, |limit| limit.min(count))
    }

    /// Returns the manifest without counts.
    pub(super) fn manifest(&self, about: About, originals: Fingerprint) -> Manifest {
        let form = match self.format {
            Format::Folder => "PNG files",
            Format::Lmdb => "LMDB of JPEG, quality 100",
        };
        let limit = self.limit.map_or_else(String::new, |limit| format!(", the first {limit}"));
        Manifest {
            name: about.name,
            source: about.source,
            version: about.version,
            licence: about.licence,
            made: format!("{}; {} pixels, {form}{limit}", about.made, self.size),
            image_size: self.size,
            originals: Some(originals),
        }
    }
}

#[cfg(test)]
pub(super) mod made_up;
