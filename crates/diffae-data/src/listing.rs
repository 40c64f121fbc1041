//! A listing of all data below a folder: pictures, archives, tables, and what is left out, by kind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::archives::is_archive_name;
use crate::notices::{counted, warn_once};
use crate::picture_folder::{has_picture_without_ending, is_picture_name};
use crate::walk::Walk;
use crate::{lmdb, tables};

/// Endings of pictures that cannot be decoded.
const UNREADABLE_PICTURES: [&str; 37] = [
    "avif", "avifs", "heic", "heif", "hif", "jxl", "jp2", "j2k", "jpf", "jpx", "jxr", "wdp", "svg", "svgz", "psd",
    "xcf", "dng", "cr2", "cr3", "nef", "nrw", "arw", "orf", "rw2", "raf", "pef", "srw", "exr", "hdr", "dds", "ico",
    "pcx", "pbm", "pam", "dcm", "nii", "fits",
];
/// Endings of files that hold pictures in unsupported containers.
const CONTAINERS: [&str; 14] =
    ["zip", "7z", "rar", "gz", "bz2", "xz", "zst", "npy", "npz", "h5", "hdf5", "arrow", "feather", "tfrecord"];

/// Contents of a folder, in order of the names.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) pictures: Vec<PathBuf>,
    /// Archives right below the folder.
    pub(crate) archives: Vec<PathBuf>,
    pub(crate) tables: Vec<PathBuf>,
    pub(crate) databases: Vec<PathBuf>,
    left_out: LeftOut,
}

#[derive(Debug, Default)]
struct LeftOut {
    /// Number of unreadable pictures by ending.
    unreadable: BTreeMap<String, usize>,
    containers: BTreeMap<String, usize>,
    /// Archives, tables and databases further down.
    deeper: Vec<PathBuf>,
}

impl Listing {
    /// Lists a folder that was walked without its databases. A link that leads nowhere is a picture that cannot be read, if its name
    /// says so.
    pub(crate) fn of(walk: &Walk, root: &Path) -> Self {
        let mut listing = Self::default();
        for path in walk.files.iter().chain(&walk.dangling) {
            let depth = path.strip_prefix(root).unwrap_or(path).components().count();
            listing.file(path, depth);
        }
        listing.pictures.sort();
        listing.left_out.deeper.extend_from_slice(&walk.whole_folders);
        listing.left_out.deeper.sort();
        listing
    }

    /// Adds a file at a depth of folders below the root.
    fn file(&mut self, path: &Path, depth: usize) {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let file = path.to_owned();
        if is_picture_name(path) || has_picture_without_ending(path) {
            self.pictures.push(file);
        } else if is_archive_name(path) || ending == tables::EXTENSION || lmdb::is_database_name(&ending) {
            match ending.as_str() {
                _ if depth > 1 => self.left_out.deeper.push(file),
                tables::EXTENSION => self.tables.push(file),
                _ if is_archive_name(path) => self.archives.push(file),
                _ => self.databases.push(file),
            }
        } else if UNREADABLE_PICTURES.contains(&ending.as_str()) {
            *self.left_out.unreadable.entry(ending).or_default() += 1;
        } else if CONTAINERS.contains(&ending.as_str()) {
            *self.left_out.containers.entry(ending).or_default() += 1;
        }
    }

    /// Describes the files that are left out, a clause per kind.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let count = |(ending, count): (&String, &usize)| counted(*count, &format!(".{ending} file"));
        let listed = |kinds: &BTreeMap<String, usize>| kinds.iter().map(count).collect::<Vec<_>>().join(", ");
        let mut clauses = vec![];
        let LeftOut { unreadable, containers, deeper } = &self.left_out;
        if !unreadable.is_empty() {
            let first = unreadable.keys().next().map_or("heic", String::as_str);
            clauses.push(format!(
                "{} cannot be decoded; convert them first, as by: magick mogrify -format png *.{first}",
                listed(unreadable)
            ));
        }
        if !containers.is_empty() {
            clauses.push(format!("{} not read; unpack or convert them first", listed(containers)));
        }
        if let Some(first) = deeper.first() {
            let first = first.display();
            clauses.push(format!(
                "{} of pictures in subfolders not read, such as {first}; name their folder",
                counted(deeper.len(), "archive")
            ));
        }
        clauses
    }
}

/// Warns of the files that are left out below a folder, once.
pub(crate) fn warn_of_left_out(root: &Path, listing: &Listing) {
    for clause in listing.left_out() {
        warn_once(&format!("{}: left out: {clause}", root.display()));
    }
}
