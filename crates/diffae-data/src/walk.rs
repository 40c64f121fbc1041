//! The files below a folder, links followed: one set of rules for commands, data sets and evaluation.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Result, at};

/// Folders in which systems keep copies of pictures.
const FOLDERS_OF_SYSTEMS: [&str; 2] = ["__MACOSX", "@eaDir"];

/// The contents of a folder and of all folders below it, each list in order of the names.
///
/// Hidden files and folders, [`FOLDERS_OF_SYSTEMS`], and whatever is no file, such as a pipe that could be waited for
/// forever, are left out. A folder that is met twice, through a link or a circle of links, counts once, under its own
/// name if it is below the folder itself.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Regular files, and links to them.
    pub(crate) files: Vec<PathBuf>,
    /// Folders that were not entered because the caller takes them for one thing.
    pub(crate) whole_folders: Vec<PathBuf>,
    /// Links whose targets do not exist.
    pub(crate) dangling: Vec<PathBuf>,
    /// Links to folders, not followed yet.
    links: Vec<PathBuf>,
    /// Folders that were entered, by their real paths.
    entered: BTreeSet<PathBuf>,
}

impl Walk {
    /// Walks a folder, without entering those folders below it that `is_whole` accepts.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if a folder cannot be read.
    pub(crate) fn of(folder: &Path, is_whole: fn(&Path) -> bool) -> Result<Self> {
        let mut walk = Self::default();
        walk.enter(folder, is_whole)?;
        // Links come last, so that a folder that has a name here goes by it.
        while let Some(link) = walk.links.pop() {
            walk.enter(&link, is_whole)?;
        }
        for paths in [&mut walk.files, &mut walk.whole_folders, &mut walk.dangling] {
            paths.sort();
        }
        Ok(walk)
    }

    fn enter(&mut self, folder: &Path, is_whole: fn(&Path) -> bool) -> Result<()> {
        if !self.entered.insert(fs::canonicalize(folder).map_err(at(folder))?) {
            return Ok(());
        }
        let mut links = vec![];
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let entry = entry.map_err(at(folder))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || FOLDERS_OF_SYSTEMS.contains(&name.as_ref()) {
                continue;
            }
            let path = entry.path();
            let is_link = entry.file_type().map_err(at(folder))?.is_symlink();
            match fs::metadata(&path) {
                Ok(target) if target.is_dir() && is_whole(&path) => self.whole_folders.push(path),
                Ok(target) if target.is_dir() && is_link => links.push(path),
                Ok(target) if target.is_dir() => self.enter(&path, is_whole)?,
                Ok(target) if target.is_file() => self.files.push(path),
                Ok(_) => {}
                Err(_) if is_link => self.dangling.push(path),
                Err(source) => return Err(at(&path)(source)),
            }
        }
        // The last one is followed first.
        links.sort_by(|a, b| b.cmp(a));
        self.links.extend(links);
        Ok(())
    }
}
