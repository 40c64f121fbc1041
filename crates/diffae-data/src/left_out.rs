//! Files that a search leaves out although they may hold pictures, counted by kind: for folders and archives alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::file_kind::{Foreign, foreign_by_ending, holds_files};
use crate::names::is_archive_name;
use crate::notices::{counted, verb, warn_once};
use crate::picture_file::unread_format;

/// Maximum number of files that a message names.
const MAX_NAMED: usize = 3;

/// Files that are left out. Those in an archive are below its path.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    /// Pictures of formats that are not read, by format.
    formats: BTreeMap<&'static str, Vec<PathBuf>>,
    /// Files of kinds that are not read but may hold pictures, by ending.
    containers: BTreeMap<String, Vec<PathBuf>>,
    /// Archives, tables and databases in subfolders, where they are not searched for.
    deeper: Vec<PathBuf>,
    /// Archives, tables and databases where only picture files are searched for.
    stored: Vec<PathBuf>,
}

impl LeftOut {
    /// Counts a file that is not read, if its name says that it may hold pictures.
    pub(crate) fn add(&mut self, path: &Path) {
        let ending = ending(path);
        if let Some(format) = unread_format(path) {
            self.formats.entry(format).or_default().push(path.to_owned());
        } else if foreign_by_ending(&ending).is_some() {
            self.containers.entry(ending).or_default().push(path.to_owned());
        }
    }

    /// Counts a member of an archive that is not read, if its name says that it holds pictures. Arrays and packed single
    /// files are not counted: data sets have such members beside the pictures.
    pub(crate) fn add_member(&mut self, path: &Path) {
        let ending = ending(path);
        if is_archive_name(path) {
            self.containers.entry(ending).or_default().push(path.to_owned());
        } else if unread_format(path).is_some() || holds_files(&ending) {
            self.add(path);
        }
    }

    /// Counts archives, tables or databases in subfolders.
    pub(crate) fn add_deeper(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        self.deeper.extend(paths);
        self.deeper.sort();
    }

    /// Counts archives, tables or databases where only picture files are searched for.
    pub(crate) fn add_stored(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        self.stored.extend(paths);
        self.stored.sort();
    }

    /// Adds the counts of another search.
    pub(crate) fn extend(&mut self, other: Self) {
        for (format, files) in other.formats {
            self.formats.entry(format).or_default().extend(files);
        }
        for (ending, files) in other.containers {
            self.containers.entry(ending).or_default().extend(files);
        }
        self.add_deeper(other.deeper);
        self.add_stored(other.stored);
    }

    /// Warns of the files below `root`, once.
    pub(crate) fn warn(&self, root: &Path) {
        for clause in self.clauses(root) {
            warn_once(&format!("{}: not read and left out: {clause}", root.display()));
        }
    }

    /// Returns the error of a folder or archive without any picture: [`Error::OnlyUnreadPictures`], or
    /// [`Error::NoPictures`] if nothing was left out either.
    pub(crate) fn no_pictures(&self, root: &Path) -> Error {
        let (path, clauses) = (root.to_owned(), self.clauses(root));
        if clauses.is_empty() {
            return Error::NoPictures { path };
        }
        Error::OnlyUnreadPictures { path, found: clauses.join("; and ") }
    }

    /// Returns whether nothing was left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.formats.is_empty() && self.containers.is_empty() && self.deeper.is_empty() && self.stored.is_empty()
    }

    /// Describes the files, with a remedy for each kind.
    fn clauses(&self, root: &Path) -> Vec<String> {
        let mut clauses = vec![];
        let named = |files: &[&PathBuf]| some_names(files, root);
        if let Some(first) = self.formats.values().flatten().next() {
            let of_format =
                |(format, files): (&&str, &Vec<PathBuf>)| counted(files.len(), &format!("{format} picture"));
            let formats: Vec<String> = self.formats.iter().map(of_format).collect();
            let files: Vec<&PathBuf> = self.formats.values().flatten().collect();
            clauses.push(format!(
                "{} ({}); convert {} to PNG or JPEG first, as by: magick mogrify -format png *.{}",
                listed(&formats),
                named(&files),
                verb(files.len(), "it", "them"),
                first.extension().unwrap_or_default().display()
            ));
        }
        for (ending, files) in &self.containers {
            let count = counted(files.len(), &format!(".{ending} file"));
            let advice = foreign_by_ending(ending).map_or(Foreign::PACKED, |foreign| *foreign).advice_for(files.len());
            clauses.push(format!("{count} ({}); {advice}", named(&files.iter().collect::<Vec<_>>())));
        }
        if !self.deeper.is_empty() {
            let (count, names) =
                (counted(self.deeper.len(), "archive"), named(&self.deeper.iter().collect::<Vec<_>>()));
            clauses.push(format!("{count} of pictures in subfolders ({names}); name their folder"));
        }
        if !self.stored.is_empty() {
            let (count, names) =
                (counted(self.stored.len(), "archive"), named(&self.stored.iter().collect::<Vec<_>>()));
            let them = verb(self.stored.len(), "it", "them");
            clauses.push(format!(
                "{count} of pictures ({names}), where picture files are searched for; unpack {them} first"
            ));
        }
        clauses
    }
}

/// Joins parts of a sentence: `a, b and c`.
fn listed(parts: &[String]) -> String {
    match parts {
        [rest @ .., last] if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => parts.concat(),
    }
}

fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Lists the first names below `root`, and the number of others.
pub(crate) fn some_names(paths: &[&PathBuf], root: &Path) -> String {
    let name = |path: &&PathBuf| path.strip_prefix(root).unwrap_or(path).display().to_string();
    let names: Vec<String> = paths.iter().take(MAX_NAMED).map(name).collect();
    let more = paths.len().saturating_sub(MAX_NAMED);
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clauses(names: &[&str]) -> Vec<String> {
        let mut left_out = LeftOut::default();
        for name in names {
            left_out.add(&Path::new("data").join(name));
        }
        left_out.clauses(Path::new("data"))
    }

    #[test]
    fn each_kind_has_its_remedy() {
        let found = clauses(&["b/1.HEIC", "a.heic", "c.avif", "notes.txt", "z.zip", "0.npy", "1.npy"]);
        assert_eq!(
            found,
            [
                "1 AVIF picture and 2 HEIC pictures (c.avif, b/1.HEIC, a.heic); convert them to PNG or JPEG first, as by: \
                 magick mogrify -format png *.avif",
                "2 .npy files (0.npy, 1.npy); name the folder of such arrays, each a picture",
                "1 .zip file (z.zip); unpack it first: unzip FILE -d FOLDER",
            ]
        );
        assert!(clauses(&["a.txt", "b.png"]).is_empty());
        let three = clauses(&["a.avif", "b.jp2", "c.heic"]);
        assert!(three[0].starts_with("1 AVIF picture, 1 HEIC picture and 1 JPEG 2000 picture"), "{three:?}");
        let many = clauses(&["0.cr2", "1.cr2", "2.cr2", "3.cr2", "4.nef"]);
        assert!(many[0].starts_with("5 camera raw pictures (0.cr2, 1.cr2, 2.cr2 and 2 more)"), "{many:?}");
    }

    #[test]
    fn of_members_only_pictures_and_archives_count() {
        let mut left_out = LeftOut::default();
        for name in ["a.heic", "a.npy", "a.json", "a.txt.gz", "b.zip", "c.tar"] {
            left_out.add_member(&Path::new("0.tar").join(name));
        }
        let clauses = left_out.clauses(Path::new("0.tar"));
        assert_eq!(clauses.len(), 3, "{clauses:?}");
        assert!(clauses[1].starts_with("1 .tar file (c.tar); unpack it first"), "{clauses:?}");
    }
}
