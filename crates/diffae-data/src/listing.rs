//! A listing of all data below a folder: pictures, archives, tables, and what is left out, by kind.

use std::path::{Path, PathBuf};

use crate::left_out::{LeftOut, some_names};
use crate::names::{has_picture_without_ending, is_archive_name, is_picture_name};
use crate::notices::{counted, verb, warn_once};
use crate::walk::Walk;
use crate::{lmdb, tables};

/// Contents of a folder, in order of the names.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) pictures: Vec<PathBuf>,
    /// Links whose targets do not exist.
    pub(crate) dangling: Vec<PathBuf>,
    /// Archives right below the folder.
    pub(crate) archives: Vec<PathBuf>,
    pub(crate) tables: Vec<PathBuf>,
    pub(crate) databases: Vec<PathBuf>,
    pub(crate) left_out: LeftOut,
}

impl Listing {
    /// Lists a folder, without entering the databases in it.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if a folder cannot be read.
    pub(crate) fn of(root: &Path) -> crate::Result<Self> {
        let walk = Walk::of(root, lmdb::is_database)?;
        let mut listing = Self::default();
        for path in walk.files {
            if is_picture_name(&path) || has_picture_without_ending(&path) {
                listing.pictures.push(path);
            } else if !listing.add_stored(&path, root) {
                listing.left_out.add(&path);
            }
        }
        for path in walk.dangling {
            if is_picture_name(&path) || !listing.add_stored(&path, root) {
                listing.dangling.push(path);
            }
        }
        listing.left_out.add_deeper(walk.whole_folders);
        Ok(listing)
    }

    /// Adds an archive, a table or a database; returns false for what is none of these.
    fn add_stored(&mut self, path: &Path, root: &Path) -> bool {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let of_kind = match ending.as_str() {
            tables::EXTENSION => &mut self.tables,
            _ if is_archive_name(path) => &mut self.archives,
            ending if lmdb::is_database_name(ending) => &mut self.databases,
            _ => return false,
        };
        if path.strip_prefix(root).unwrap_or(path).components().count() > 1 {
            self.left_out.add_deeper([path.to_owned()]);
        } else {
            of_kind.push(path.to_owned());
        }
        true
    }

    /// Counts archives, tables and databases among the files that are left out, and returns the pictures, with warnings.
    pub(crate) fn into_files(mut self, root: &Path) -> Vec<PathBuf> {
        let stored = [&mut self.archives, &mut self.tables, &mut self.databases].map(std::mem::take);
        self.left_out.add_stored(stored.into_iter().flatten());
        self.left_out.warn(root);
        self.warn_of_dangling(root);
        self.pictures
    }

    /// Warns of links that lead nowhere, once.
    pub(crate) fn warn_of_dangling(&self, root: &Path) {
        if !self.dangling.is_empty() {
            let dangling: Vec<&PathBuf> = self.dangling.iter().collect();
            let (count, leads) = (counted(dangling.len(), "link"), verb(dangling.len(), "leads", "lead"));
            warn_once(&format!("{}: {count} {leads} nowhere ({})", root.display(), some_names(&dangling, root)));
        }
    }
}
