//! Original files of a user: a folder, a zip, or an LMDB.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use diffae_data::Lmdb;
use diffae_data::picture_files;
use image::ImageFormat;

use super::{Archive, Owner};

/// Named pictures, in order of the names.
#[derive(Debug)]
pub(crate) struct Originals {
    root: PathBuf,
    /// Paths below the folder or in the archive, with `/` between the parts; keys of a database.
    names: Vec<String>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder,
    /// A zip archive, with the index of each picture in it.
    Zip(Archive, Vec<usize>),
    Database(Arc<Lmdb>),
}

impl Originals {
    /// Opens the pictures of a folder, searched to the bottom, or of a zip.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        if root.is_dir() {
            let relative = |path: PathBuf| {
                let below = path.strip_prefix(root).unwrap_or(&path);
                below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
            };
            let names = picture_files(root)?.into_iter().map(relative).collect();
            return Ok(Self { root: root.to_owned(), names, place: Place::Folder });
        }
        let archive = Archive::open(root)?;
        let pictures = archive.members().iter().filter(|(name, _)| ImageFormat::from_path(name).is_ok());
        let (names, entries) = pictures.cloned().unzip();
        Ok(Self { root: root.to_owned(), names, place: Place::Zip(archive, entries) })
    }

    /// Opens the values of a database.
    pub(crate) fn database(root: &Path) -> Result<Self> {
        let database = Lmdb::open(root)?;
        Ok(Self { root: root.to_owned(), names: database.keys()?, place: Place::Database(database) })
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn name(&self, idx: usize) -> &str {
        self.names.get(idx).map_or("", String::as_str)
    }

    pub(crate) fn is_zip(&self) -> bool {
        matches!(self.place, Place::Zip(..))
    }

    /// Reads a picture as it is stored.
    pub(crate) fn read(&self, idx: usize) -> Result<Vec<u8>> {
        let name = self.name(idx);
        match &self.place {
            Place::Folder => {
                let path = self.root.join(name);
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
            }
            Place::Zip(archive, entries) => archive.read(*entries.get(idx).context("there is no such picture")?),
            Place::Database(database) => Ok(database.read(name)?),
        }
    }

    /// Reads a text file that lies with the pictures: in the archive, in the folder or the two above, or in `folders`
    /// there.
    pub(crate) fn text(&self, file_name: &str, folders: &[&str]) -> Result<Option<(PathBuf, String)>> {
        if let Place::Zip(archive, _) = &self.place
            && let Some((name, idx)) = archive.named(file_name)
        {
            let path = self.root.join(name);
            let text = String::from_utf8(archive.read(idx)?);
            return Ok(Some((path.clone(), text.with_context(|| format!("{} is no text", path.display()))?)));
        }
        let root = std::path::absolute(&self.root).context("the working directory is gone")?;
        let above = root.ancestors().take(3);
        let places = above.flat_map(|base| [""].iter().chain(folders).map(|folder| base.join(folder).join(file_name)));
        let Some(path) = places.into_iter().find(|path| path.is_file()) else { return Ok(None) };
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some((path, text)))
    }

    /// Returns the pictures in a folder of that name whose names are numbers, in order of the numbers. The folder may
    /// be the path that was named, or be in the archive.
    pub(crate) fn numbered(&self, folder: &str) -> Result<Vec<(u32, usize)>> {
        let root = if self.root.is_dir() { self.root.file_name() } else { self.root.file_stem() };
        let is_root = root.is_some_and(|root| root == folder);
        let mut found: BTreeMap<u32, usize> = BTreeMap::new();
        for (idx, name) in self.names.iter().enumerate() {
            let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
            let is_below = is_root || folders.split('/').any(|part| part == folder);
            let stem = file.split_once('.').map_or(file, |(stem, _)| stem);
            if let Some(number) = stem.parse().ok().filter(|_| is_below)
                && let Some(other) = found.insert(number, idx)
            {
                bail!("{} holds picture {number} twice: {} and {name}", self.root.display(), self.name(other));
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Returns the pictures of [`Originals::numbered`], of which there must be some; warns if there are fewer than the
    /// owner has.
    pub(crate) fn all_numbered(&self, folder: &str, whole: usize, owner: &Owner) -> Result<Vec<(u32, usize)>> {
        let found = self.numbered(folder)?;
        if found.is_empty() {
            let root = self.root.display();
            return Err(owner.wrong(format!("{root} holds no pictures with numbers for names in a folder {folder}")));
        }
        if found.len() < whole {
            tracing::warn!("{} pictures in {}, the whole data set has {whole}", found.len(), self.root.display());
        }
        Ok(found)
    }
}
