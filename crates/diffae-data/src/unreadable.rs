//! Unreadable pictures: each is logged once with its reason, and all are counted over the stages of a run.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Overwrite, write_atomically};

use crate::error::{Error, Result, at};
use crate::notices::{counted, verb};

/// Column names of the list.
const HEADER: [&str; 2] = ["picture", "reason"];

/// Pictures that were left out, by path, with the reasons.
#[derive(Debug)]
pub struct Unreadable {
    reasons: Mutex<BTreeMap<PathBuf, String>>,
    /// Number of pictures in the data, of both splits.
    num_pictures: usize,
    /// Maximum share of unreadable pictures.
    limit: f64,
    /// File of the list, so that a resumed run knows the pictures.
    file: Option<PathBuf>,
}

impl Unreadable {
    /// Name of the list in a run folder.
    pub(crate) const FILE: &'static str = "unreadable.csv";

    /// Creates an empty list for data of `num_pictures` pictures.
    pub(crate) fn new(num_pictures: usize, limit: f64) -> Self {
        Self { reasons: Mutex::default(), num_pictures, limit, file: None }
    }

    /// Continues the list in a run folder, for the pictures that are still there.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub(crate) fn of_run<P: Iterator<Item = PathBuf>>(self, run: &Path, paths: impl Fn() -> P) -> Result<Self> {
        let file = run.join(Self::FILE);
        if file.exists() {
            let text = std::fs::read(&file).map_err(at(&file))?;
            let rows = csv::Reader::from_reader(text.as_slice()).into_deserialize::<(PathBuf, String)>();
            let mut noted: BTreeMap<PathBuf, String> = rows.flatten().collect();
            self.reasons().extend(paths().filter_map(|path| noted.remove_entry(&path)));
        }
        Ok(Self { file: Some(file), ..self })
    }

    /// Returns the number of unreadable pictures.
    pub fn len(&self) -> usize {
        self.reasons().len()
    }

    /// Returns whether all pictures could be read so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the reason for the first picture.
    pub(crate) fn first(&self) -> Option<String> {
        self.reasons().values().next().cloned()
    }

    /// Warns of a picture that is not known yet.
    ///
    /// # Errors
    /// [`Error::TooManyBroken`] if there are more than the limit; [`Error::Io`] if it cannot be added to the list.
    pub(crate) fn add(&self, picture: PathBuf, error: &Error) -> Result<()> {
        let mut reasons = self.reasons();
        let reason = reason(error);
        if let Entry::Vacant(entry) = reasons.entry(picture) {
            tracing::warn!("left out: {reason}");
            self.append(entry.key(), &reason)?;
            entry.insert(reason.clone());
        }
        let (broken, limit) = (reasons.len(), self.limit);
        if broken as f64 > (limit * self.num_pictures as f64).max(1.) {
            let listed = self.file.as_ref().map(|file| format!("; {} lists them", file.display())).unwrap_or_default();
            return Err(Error::TooManyBroken { broken, seen: self.num_pictures, limit, last: reason + &listed });
        }
        Ok(())
    }

    /// Takes a picture off the list that can be read after all.
    ///
    /// # Errors
    /// If the list cannot be written.
    pub(crate) fn remove(&self, picture: impl FnOnce() -> PathBuf) -> Result<()> {
        let mut reasons = self.reasons();
        if !reasons.is_empty() && reasons.remove(&picture()).is_some() { self.rewrite(&reasons) } else { Ok(()) }
    }

    /// Logs the number of unreadable pictures, if there are any.
    pub fn say(&self) {
        let (broken, of) = (self.len(), self.num_pictures);
        if broken > 0 {
            let listed = self.file.as_ref().map(|file| format!(": {} lists them", file.display())).unwrap_or_default();
            let were = verb(broken, "was", "were");
            tracing::warn!("{broken} of {} could not be read and {were} left out{listed}", counted(of, "picture"));
        }
    }

    fn reasons(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, picture: &Path, reason: &str) -> Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(at(path))?;
        let is_new = file.metadata().map_err(at(path))?.len() == 0;
        let header = is_new.then(|| HEADER.map(str::to_owned));
        file.write_all(&lines(header.into_iter().chain([line(picture, reason)]))).map_err(at(path))
    }

    fn rewrite(&self, reasons: &BTreeMap<PathBuf, String>) -> Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let rows = reasons.iter().map(|(picture, reason)| line(picture, reason));
        let rows = [HEADER.map(str::to_owned)].into_iter().chain(rows);
        write_atomically(path, &lines(rows), Overwrite::Replace)
    }
}

fn line(picture: &Path, reason: &str) -> [String; 2] {
    [picture.to_string_lossy().into_owned(), reason.to_owned()]
}

/// Formats lines of CSV.
fn lines(rows: impl Iterator<Item = [String; 2]>) -> Vec<u8> {
    let mut csv = csv::Writer::from_writer(vec![]);
    // Writing to memory cannot fail.
    let _ = rows.map(|row| csv.write_record(row)).count();
    csv.into_inner().unwrap_or_default()
}

/// Formats an error and its causes in one line; a cause that its effect quotes already is left out.
fn reason(error: &Error) -> String {
    let mut sentence = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let text = error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
        if sentence.is_empty() {
            sentence = text;
        } else if !sentence.contains(&text) {
            sentence = format!("{sentence}: {text}");
        }
        cause = error.source();
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(name: &str) -> Error {
        Error::Io { path: name.into(), source: std::io::Error::other("a reason") }
    }

    #[test]
    fn a_resumed_run_knows_what_it_has_met() {
        let run = tempfile::tempdir().unwrap();
        let there = || ["a, b.png", "mended.png", "c", "d", "e"].into_iter().map(PathBuf::from);
        let open = || Unreadable::new(30, 0.1).of_run(run.path(), there).unwrap();
        let first = open();
        for name in ["a, b.png", "a, b.png", "gone.png", "mended.png"] {
            first.add(name.into(), &broken(name)).unwrap();
        }
        assert_eq!(first.len(), 3);
        let second = open();
        assert_eq!(second.len(), 2);
        second.remove(|| "mended.png".into()).unwrap();
        assert_eq!(open().len(), 1);
        let text = std::fs::read_to_string(run.path().join(Unreadable::FILE)).unwrap();
        assert!(text.contains("\"a, b.png\"") && text.contains("a reason"), "{text}");
        let error = ["c", "d", "e"].into_iter().find_map(|name| second.add(name.into(), &broken(name)).err()).unwrap();
        assert!(matches!(&error, Error::TooManyBroken { broken: 4, seen: 30, .. }), "{error}");
        assert!(error.to_string().contains("cannot access e: a reason"), "{error}");
    }

    #[test]
    fn one_may_always_be_broken() {
        let few = Unreadable::new(3, 0.01);
        few.add("a".into(), &broken("a")).unwrap();
        assert!(few.add("b".into(), &broken("b")).is_err());
    }
}
