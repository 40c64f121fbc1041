//! Folders of partial results: locked while a run works, kept where an interrupted run can resume, and removed when no
//! longer needed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use diffae_data::{Overwrite, PARTIAL_PREFIX, is_stale_file, same_owner};

const LOCK_FILE: &str = "lock";
const JOURNAL_FILE: &str = "kept.jsonl";
const RESULTS_FOLDER: &str = "results";
/// Minimum age of a folder without a lock that is removed.
const MIN_AGE_WITHOUT_LOCK: Duration = Duration::from_mins(10);

/// Settings that determine the values of results, by name.
pub type Settings = BTreeMap<String, Value>;

/// Policy for resuming from the results of an interrupted run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Resumes; different settings are an error.
    Demanded,
    /// Resumes if the settings are the same; else discards the partial results.
    IfSame,
    /// Discards the partial results.
    Never,
}

/// First line of the journal.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    settings: Settings,
}

/// A further line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    /// Number of complete items, from the first.
    done: usize,
    /// Data that the run stores with these items.
    note: Value,
}

/// The contents of a journal that was read back.
#[derive(Debug, Default)]
struct Journal {
    header: Option<Header>,
    kept: Vec<Kept>,
    /// Length of the complete lines, in bytes.
    len: u64,
}

/// A folder beside or inside the target of results, which this process alone writes. Dropped before it is complete, it
/// stays if a run can resume from its contents, and is removed otherwise.
#[derive(Debug)]
pub struct PartialFolder {
    target: PathBuf,
    path: PathBuf,
    journal: Journal,
    /// Lock that is held for as long as the process lives; the system releases it when the process is killed.
    _lock: File,
}

impl PartialFolder {
    /// Opens the folder of results that go to `target`, a file or a folder: inside of the folder if it exists, else in
    /// the nearest existing folder above. Folders of other purposes do not disturb each other. Leftovers of dead runs
    /// that no run could resume from are removed.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process writes there for the same purpose; [`Error::Io`] if the folder cannot be made.
    pub fn open(target: &Path, purpose: &str) -> Result<Self> {
        let places = places(target, purpose)?;
        let nearest = places.first().cloned().unwrap_or_default();
        // Folders may have been made above since a run was interrupted.
        let path = places.into_iter().find(|path| path.is_dir()).unwrap_or(nearest);
        let lock = loop {
            if let Some(lock) = locked(&path, target)? {
                break lock;
            }
        };
        remove_stale(&path);
        let journal = Journal::read(&path.join(JOURNAL_FILE));
        let results = path.join(RESULTS_FOLDER);
        fs::create_dir_all(&results).map_err(|source| Error::Io { path: results, source })?;
        Ok(Self { target: target.to_owned(), path, journal, _lock: lock })
    }

    /// Returns the number of complete items.
    #[must_use]
    pub fn num_kept(&self) -> usize {
        self.journal.kept.last().map_or(0, |kept| kept.done)
    }

    /// Iterates over the notes of complete items, in order.
    pub fn notes(&self) -> impl Iterator<Item = &Value> {
        self.journal.kept.iter().map(|kept| &kept.note)
    }

    /// Begins or resumes, and returns the number of items that are complete already.
    ///
    /// # Errors
    /// [`Error::OtherSettings`] if it must go on, but settings differ; [`Error::Io`].
    pub fn begin(&mut self, settings: &Settings, resume: Resume) -> Result<usize> {
        let journal_path = self.path.join(JOURNAL_FILE);
        let failed = |source| Error::Io { path: journal_path.clone(), source };
        if let Some(Header { settings: before }) = self.journal.header.as_ref().filter(|_| self.num_kept() > 0) {
            if before == settings && resume != Resume::Never {
                // A line that was cut off is no part of it.
                let file = OpenOptions::new().write(true).open(&journal_path).map_err(failed)?;
                file.set_len(self.journal.len).map_err(failed)?;
                return Ok(self.num_kept());
            }
            if resume == Resume::Demanded {
                let differences = differences(before, settings);
                return Err(Error::OtherSettings { path: self.target.clone(), differences });
            }
            let (kept, target) = (self.num_kept(), self.target.display());
            tracing::warn!("{kept} results that an interrupted run into {target} had kept are given up");
        }
        self.journal = Journal::default();
        let results = self.path.join(RESULTS_FOLDER);
        let emptied = fs::remove_dir_all(&results).and_then(|()| fs::create_dir(&results));
        emptied.map_err(|source| Error::Io { path: results, source })?;
        let header = Header { settings: settings.clone() };
        append(&journal_path, &header, OpenOptions::new().write(true).create(true).truncate(true))?;
        self.journal.header = Some(header);
        Ok(0)
    }

    /// Records that the first `done` items are complete: all their files are written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep(&mut self, done: usize, note: Value) -> Result<()> {
        let kept = Kept { done, note };
        append(&self.path.join(JOURNAL_FILE), &kept, OpenOptions::new().append(true))?;
        self.journal.kept.push(kept);
        Ok(())
    }

    /// Returns the path of a result.
    #[must_use]
    pub fn result(&self, name: &str) -> PathBuf {
        self.path.join(RESULTS_FOLDER).join(name)
    }

    /// Writes a result, on the disk when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.result(name);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(|source| Error::Io { path: self.target.join(name), source })
    }

    /// Moves all results into the target folder, and removes this one. A new folder appears whole.
    ///
    /// # Errors
    /// [`diffae_data::Error::Exists`] if a file is there and must not be replaced; [`Error::Io`].
    pub fn commit(self, overwrite: Overwrite) -> Result<()> {
        let target = self.target.clone();
        let failed = |source| Error::Io { path: target.clone(), source };
        let results = self.path.join(RESULTS_FOLDER);
        if target.exists() {
            for entry in fs::read_dir(&results).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = target.join(entry.file_name());
                if overwrite == Overwrite::Refuse && path.exists() {
                    return Err(diffae_data::Error::Exists { path }.into());
                }
                fs::rename(entry.path(), &path).map_err(|source| Error::Io { path, source })?;
            }
        } else {
            make_parents(&target)?;
            fs::rename(&results, &target).map_err(failed)?;
        }
        self.discard();
        Ok(())
    }

    /// Removes the folder with all partial results.
    pub fn discard(mut self) {
        self.journal = Journal::default();
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        if self.num_kept() == 0 {
            // What cannot be removed is left to the next run.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Journal {
    /// Reads the complete lines of a journal; none of a file that is missing or something else.
    fn read(path: &Path) -> Self {
        let mut journal = Self::default();
        let text = fs::read(path).unwrap_or_default();
        for line in text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            if journal.header.is_none() {
                let Ok(header) = serde_json::from_slice(line) else { return Self::default() };
                journal.header = Some(header);
            } else {
                let Ok(kept) = serde_json::from_slice(line) else { break };
                journal.kept.push(kept);
            }
            journal.len += line.len() as u64;
        }
        journal
    }
}

/// Adds a line to the journal.
fn append(path: &Path, line: &impl Serialize, options: &OpenOptions) -> Result<()> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let mut text = serde_json::to_vec(line).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_data()).map_err(failed)
}

/// Creates the folders above a path.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn make_parents(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Describes the settings that differ.
fn differences(before: &Settings, now: &Settings) -> String {
    let show = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "none".to_owned(),
    };
    let names: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let differing = names.into_iter().filter(|name| before.get(*name) != now.get(*name));
    let each = differing.map(|name| format!("{name} was {}, is {}", show(before.get(name)), show(now.get(name))));
    each.collect::<Vec<_>>().join(", ")
}

/// Lists the possible places of the folder, the nearest to the target first.
fn places(target: &Path, purpose: &str) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Io { path: target.to_owned(), source };
    let absolute = std::path::absolute(target).map_err(failed)?;
    let there = absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let rest = absolute.strip_prefix(there).unwrap_or(Path::new("")).to_owned();
    let whole = there.canonicalize().map_err(failed)?.join(rest);
    let folders = whole.ancestors().filter(|folder| folder.is_dir());
    let place = |folder: &Path| {
        let from_here = whole.strip_prefix(folder).unwrap_or(&whole);
        let hash = blake3::hash(format!("{purpose}\n{}", from_here.display()).as_bytes()).to_hex();
        folder.join(format!("{PARTIAL_PREFIX}{}", &hash[..16]))
    };
    Ok(folders.map(place).collect())
}

/// Creates the folder if need be, and locks it. `None` if it was removed meanwhile.
fn locked(path: &Path, target: &Path) -> Result<Option<File>> {
    let failed = |source| Error::Io { path: target.to_owned(), source };
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let lock_path = path.join(LOCK_FILE);
    let lock = match OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: target.to_owned() }),
        Err(TryLockError::Error(error)) => tracing::debug!("{} cannot be locked: {error}", lock_path.display()),
    }
    Ok(is_same_file(&lock, &lock_path).then_some(lock))
}

/// Returns whether the file still exists under its name.
#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(identity).ok() == fs::metadata(path).map(identity).ok()
}

#[cfg(not(unix))]
fn is_same_file(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Removes leftovers of dead runs beside `own`: folders without results to resume from, and half-written files. Files
/// that are another user's, in use, or not of this program are left alone.
fn remove_stale(own: &Path) {
    let Some(folder) = own.parent() else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_partial = entry.file_name().to_string_lossy().starts_with(PARTIAL_PREFIX);
        if !is_partial || path == own || !same_owner(&path, own) {
            continue;
        }
        if is_stale_file(&path) {
            let _ = fs::remove_file(&path);
        } else if path.is_dir() {
            remove_stale_folder(&path);
        }
    }
}

fn remove_stale_folder(path: &Path) {
    let lock = match OpenOptions::new().write(true).open(path.join(LOCK_FILE)) {
        Ok(lock) => lock,
        // A run that is alive locks its folder a moment after it made it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_old(path) => {
            let _ = fs::remove_dir_all(path);
            return;
        }
        Err(_) => return,
    };
    if lock.try_lock().is_ok() && Journal::read(&path.join(JOURNAL_FILE)).kept.is_empty() {
        let _ = fs::remove_dir_all(path);
    }
}

/// Returns whether a folder was last changed long ago.
fn is_old(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age >= MIN_AGE_WITHOUT_LOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seed: u64) -> Settings {
        Settings::from([("seed".to_owned(), seed.into()), ("model".to_owned(), "m".into())])
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Leaves a folder as a killed process does: with its lock released.
    #[expect(clippy::used_underscore_binding, reason = "outside of tests it is only held")]
    fn killed(partial: PartialFolder) {
        let copy = partial._lock.try_clone().unwrap();
        std::mem::forget(partial);
        copy.unlock().unwrap();
    }

    #[test]
    fn nothing_is_left_where_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/b");
        let mut partial = PartialFolder::open(&target, "sample").unwrap();
        assert_eq!(partial.begin(&settings(1), Resume::IfSame).unwrap(), 0);
        partial.write("x", b"1").unwrap();
        drop(partial);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_run_goes_on_with_the_same_settings_alone() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let mut partial = PartialFolder::open(&target, "sample").unwrap();
        partial.begin(&settings(1), Resume::IfSame).unwrap();
        partial.write("x", b"1").unwrap();
        partial.keep(3, "first".into()).unwrap();
        killed(partial);
        let path = folder.path().join(&names(folder.path())[0]);
        let mut journal = OpenOptions::new().append(true).open(path.join(JOURNAL_FILE)).unwrap();
        journal.write_all(b"{\"done\":7,\"no").unwrap();
        // The target is made meanwhile: the folder above is found all the same.
        fs::create_dir(&target).unwrap();

        let mut other = PartialFolder::open(&target, "sample").unwrap();
        let error = other.begin(&settings(2), Resume::Demanded).unwrap_err().to_string();
        assert!(error.contains("seed was 1, is 2") && !error.contains("model"), "{error}");
        drop(other);
        let mut partial = PartialFolder::open(&target, "sample").unwrap();
        assert_eq!(partial.begin(&settings(1), Resume::Demanded).unwrap(), 3);
        assert_eq!(partial.notes().collect::<Vec<_>>(), [&Value::from("first")]);
        partial.write("y", b"2").unwrap();
        partial.keep(5, Value::Null).unwrap();
        drop(partial);
        let partial = PartialFolder::open(&target, "sample").unwrap();
        assert_eq!(partial.num_kept(), 5);
        partial.commit(Overwrite::Refuse).unwrap();
        assert_eq!(
            (names(&target), names(folder.path())),
            (vec!["x".to_owned(), "y".to_owned()], vec!["out".to_owned()])
        );
    }

    #[test]
    fn other_settings_begin_anew() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        for (seed, resume) in [(1, Resume::IfSame), (2, Resume::IfSame), (2, Resume::Never)] {
            let mut partial = PartialFolder::open(&target, "sample").unwrap();
            assert_eq!(partial.begin(&settings(seed), resume).unwrap(), 0);
            assert!(!partial.result("x").exists());
            partial.write("x", b"1").unwrap();
            partial.keep(1, Value::Null).unwrap();
        }
    }

    #[test]
    fn two_runs_cannot_write_the_same_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let first = PartialFolder::open(&target, "sample").unwrap();
        assert!(matches!(PartialFolder::open(&target, "sample"), Err(Error::Locked { .. })));
        drop(PartialFolder::open(&target, "edit").unwrap());
        drop(first);
        drop(PartialFolder::open(&target, "sample").unwrap());
    }

    #[test]
    fn leftovers_of_dead_runs_are_removed_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        killed(PartialFolder::open(&target, "dead").unwrap());
        let mut kept = PartialFolder::open(&target, "kept").unwrap();
        kept.begin(&settings(1), Resume::IfSame).unwrap();
        kept.keep(1, Value::Null).unwrap();
        killed(kept);
        let alive = PartialFolder::open(&target, "alive").unwrap();
        fs::create_dir(folder.path().join(".diffae-partial-unknown")).unwrap();
        fs::write(folder.path().join("mine"), "").unwrap();
        assert_eq!(names(folder.path()).len(), 4, "the dead one was removed by the one after");
        drop(PartialFolder::open(&target, "next").unwrap());
        assert_eq!(names(folder.path()).len(), 4);
        drop(alive);
        assert_eq!(names(folder.path()).len(), 3);
        // What has no lock may have been made a moment ago, but not an hour ago.
        let unknown = folder.path().join(".diffae-partial-unknown");
        let an_hour_ago = std::time::SystemTime::now() - Duration::from_hours(1);
        File::open(&unknown).unwrap().set_modified(an_hour_ago).unwrap();
        drop(PartialFolder::open(&target, "next").unwrap());
        assert_eq!(names(folder.path()).len(), 2);
    }
}
