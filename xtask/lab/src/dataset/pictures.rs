//! What the data sets of photographs share: options, where the originals are, in what form they are made.

mod archive;
mod job;
mod labels;
mod making;
mod originals;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use xtask_datasets::{Fingerprint, Manifest};

pub(super) use archive::Archive;
pub(super) use job::{Job, Recipe, make};
pub(super) use labels::LabelFile;
pub(super) use making::{Cut, Picture, Shape};
pub(super) use originals::Originals;

/// Options of each of them.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// The files as their owner distributes them; nothing is downloaded
    #[arg(long, value_name = "PATH")]
    pub(super) from: Option<PathBuf>,
    /// Where the data set goes
    #[arg(long, short, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Height and width; the paper uses 64, 128 and 256
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(8..=2048))]
    pub(super) size: u32,
    /// PNG files, or an LMDB in the layout of the data sets released with the paper
    #[arg(long, value_enum, default_value_t = Format::Folder)]
    pub(super) format: Format,
    /// Only the first ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: Option<u32>,
}

/// In what form pictures are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// PNG files below `images`
    Folder,
    /// JPEG of quality 100, with keys such as 256-00000
    Lmdb,
}

/// Who distributes the originals.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    /// What to download, from which page, and what to name by `--from`.
    pub(super) advice: &'static str,
}

impl Owner {
    /// Says what was found instead, and where to get what is needed.
    pub(super) fn wrong(&self, found: impl Display) -> anyhow::Error {
        anyhow!("{found}; {}", self.advice)
    }
}

/// What is said of a data set before any picture is looked at.
#[derive(Debug)]
pub(super) struct About {
    pub(super) name: &'static str,
    pub(super) source: &'static str,
    pub(super) version: String,
    pub(super) licence: &'static str,
    /// What is cut out, and how it is resized.
    pub(super) made: String,
}

impl Common {
    /// The path that the user named.
    pub(super) fn from(&self, owner: &Owner) -> Result<&Path> {
        let Some(from) = &self.from else { return Err(owner.wrong("nothing is downloaded here")) };
        if from.exists() { Ok(from) } else { Err(owner.wrong(format!("{} is not there", from.display()))) }
    }

    /// The pictures of that folder or zip.
    pub(super) fn originals(&self, owner: &Owner) -> Result<Originals> {
        Originals::open(self.from(owner)?).map_err(|error| owner.wrong(format!("{error:#}")))
    }

    /// How many pictures of these are wanted.
    pub(super) fn limited(&self, count: usize) -> usize {
        self.limit.and_then(|limit| usize::try_from(limit).ok()).map_or(count, |limit| limit.min(count))
    }

    /// The beginning of the manifest.
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
