//! The pictures that a path leads to: of a folder, an archive, a table or a database.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file_kind::{FileKind, Foreign, file_kind};
use crate::found::Found;
use crate::listing::Listing;
use crate::names::{is_archive_name, is_picture_name};
use crate::samples::one_a_sample;
use crate::series::{Forms, Grouped, grouped};
use crate::source::{Item, Place};
use crate::{archives, lmdb, tables};

/// The pictures of a folder: files, and those in archives, tables and databases right below it.
#[derive(Debug)]
pub(crate) struct FoundBelow {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) stored: Vec<Item>,
}

impl Found {
    /// Finds the pictures of a data set: a folder, an archive, a table or a database.
    ///
    /// # Errors
    /// As [`Pictures::find`](crate::Pictures::find).
    pub(crate) fn of_data(root: &Path, picture_key: &str) -> Result<Self> {
        if root.is_file() {
            of_file(root, picture_key)
        } else if lmdb::is_database(root) {
            lmdb::values(root).map(Self::from)
        } else {
            let mut listing = Listing::of(root)?;
            // A link that leads nowhere is a picture that cannot be read.
            listing.pictures.extend(listing.dangling.iter().filter(|path| is_picture_name(path)).cloned());
            listing.pictures.sort();
            let Forms { files, mut numbers, left_out } = Forms::of(std::mem::take(&mut listing.pictures));
            for file in &left_out {
                listing.left_out.add(file);
            }
            let Grouped { alone, volumes } = grouped(root, files);
            let item = |file: &PathBuf| {
                let place = numbers.remove(file).map_or(Place::File, Place::View);
                Item { name: relative(root, file), file: file.as_path().into(), place }
            };
            let mut found = Self::from(alone.iter().map(item).chain(volumes).collect::<Vec<_>>());
            let stored = stored(listing, picture_key, root)?;
            found.items.extend(stored.items);
            Ok(Self { left_out: stored.left_out, ..found })
        }
    }

    /// Returns the pictures, with a warning of what was left out.
    ///
    /// # Errors
    /// [`Error::OnlyUnreadPictures`] if there is nothing else.
    pub(crate) fn with_warning(self, root: &Path) -> Result<Vec<Item>> {
        if self.items.is_empty() && !self.left_out.is_empty() {
            return Err(self.left_out.no_pictures(root));
        }
        self.left_out.warn(root);
        Ok(self.items)
    }
}

/// Finds the pictures that a command reads below a folder, with warnings of what is left out.
///
/// # Errors
/// [`Error::NoPictures`] or [`Error::OnlyUnreadPictures`] if there are none; as [`Pictures::find`](crate::Pictures::find).
pub(crate) fn found_below(folder: &Path, picture_key: &str) -> Result<FoundBelow> {
    let mut listing = Listing::of(folder)?;
    let Forms { files, mut numbers, left_out } = Forms::of(std::mem::take(&mut listing.pictures));
    for file in &left_out {
        listing.left_out.add(file);
    }
    let Grouped { alone, volumes } = grouped(folder, files);
    listing.warn_of_dangling(folder);
    let Found { items, left_out } = stored(listing, picture_key, folder)?;
    let (shown, files): (Vec<PathBuf>, Vec<PathBuf>) = alone.into_iter().partition(|file| numbers.contains_key(file));
    let view = |file: PathBuf| {
        let place = Place::View(numbers.remove(&file)?);
        Some(Item { name: relative(folder, &file), file: file.into(), place })
    };
    let stored: Vec<Item> = shown.into_iter().filter_map(view).chain(volumes).chain(items).collect();
    if files.is_empty() && stored.is_empty() {
        return Err(left_out.no_pictures(folder));
    }
    left_out.warn(folder);
    Ok(FoundBelow { files, stored })
}

/// Finds the pictures in an archive, a table or a database; `None` for what is none of these.
///
/// # Errors
/// [`Error::NoPictures`] or [`Error::OnlyUnreadPictures`] if there are none; as [`Pictures::find`](crate::Pictures::find).
pub(crate) fn found_in(path: &Path, picture_key: &str) -> Result<Option<Vec<Item>>> {
    let found = if lmdb::is_database(path) {
        lmdb::values(path)?.into()
    } else {
        // A pipe can be read only once, and what cannot be read at all is the picture's error.
        let kind = if path.is_file() { file_kind(path).unwrap_or(FileKind::Unknown) } else { FileKind::Unknown };
        let is_stored =
            matches!(kind, FileKind::Tar | FileKind::Gzip | FileKind::Zstd | FileKind::Parquet | FileKind::Lmdb);
        let is_volume = kind == FileKind::Gzip && is_picture_name(path);
        if is_volume || !is_stored && !is_archive_name(path) {
            return Ok(None);
        }
        of_file(path, picture_key)?
    };
    if found.items.is_empty() {
        return Err(found.left_out.no_pictures(path));
    }
    found.with_warning(path).map(Some)
}

/// Finds the pictures of one file, by its kind.
fn of_file(file: &Path, picture_key: &str) -> Result<Found> {
    let failed = |problem| Err(Error::Data { path: file.to_owned(), problem });
    let of_archive = || {
        let Found { items, left_out } = archives::pictures(file)?;
        Ok(Found { items: one_a_sample(items, picture_key, file)?, left_out })
    };
    let of_table = || tables::pictures(file, picture_key).map(Found::from);
    match file_kind(file)? {
        FileKind::Tar | FileKind::Gzip | FileKind::Zstd => of_archive(),
        FileKind::Parquet => of_table(),
        FileKind::Lmdb => lmdb::values(file).map(Found::from),
        _ if is_archive_name(file) => of_archive(),
        _ if ends_in(file, tables::EXTENSION) => of_table(),
        FileKind::Foreign(Foreign { kind, advice }) => failed(format!("it is {kind}; {advice}")),
        FileKind::Picture => failed("it is a single picture; name its folder".to_owned()),
        FileKind::Empty => failed("the file is empty".to_owned()),
        FileKind::Unknown => {
            failed("it is neither a folder nor a .tar archive nor a .parquet file nor an LMDB".to_owned())
        }
    }
}

/// Finds the pictures in the archives, tables and databases of a listing.
fn stored(listing: Listing, picture_key: &str, root: &Path) -> Result<Found> {
    let (mut members, mut left_out) = (vec![], listing.left_out);
    for archive in &listing.archives {
        let found = archives::pictures(archive)?;
        members.extend(found.items);
        left_out.extend(found.left_out);
    }
    let mut items = one_a_sample(members, picture_key, root)?;
    for table in &listing.tables {
        items.extend(tables::pictures(table, picture_key)?);
    }
    for database in &listing.databases {
        items.extend(lmdb::values(database)?);
    }
    Ok(Found { items, left_out })
}

fn ends_in(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}
