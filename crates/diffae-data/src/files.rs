//! Atomic writes: files appear whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

/// Policy for an existing target file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Fails with [`Error::Exists`].
    Refuse,
    /// Replaces the file.
    Replace,
}

/// Name prefix of files that are not complete yet.
pub const PARTIAL_PREFIX: &str = ".diffae-partial-";

/// Minimum age of a stale file without a lock. A younger one may be in use: a lock comes a moment after its file.
const MIN_AGE: Duration = Duration::from_secs(10);

/// Returns whether a file was left half-written by a run that is dead.
#[must_use]
pub fn is_stale_file(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
    let is_old = metadata.is_file() && age.is_some_and(|age| age >= MIN_AGE);
    is_old && fs::File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// Returns whether two files have the same owner.
#[cfg(unix)]
#[must_use]
pub fn same_owner(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.uid()).ok();
    owner(a).is_some() && owner(a) == owner(b)
}

#[cfg(not(unix))]
#[must_use]
pub fn same_owner(_: &Path, _: &Path) -> bool {
    true
}

/// Fails if a file cannot be written to `path`, so that this is known before any computation. Leaves nothing there.
///
/// # Errors
/// [`Error::Io`]; [`Error::Exists`] if a folder is there.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::Exists { path: path.to_owned() });
    }
    let is_folder = |folder: &&Path| folder.as_os_str().is_empty() || folder.is_dir();
    let above = path.ancestors().skip(1).find(is_folder).filter(|folder| !folder.as_os_str().is_empty());
    let tried = tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(above.unwrap_or(Path::new(".")));
    tried.map(|_| ()).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Writes `bytes` under a temporary name beside `path`, syncs, and renames.
///
/// # Errors
/// [`Error::Exists`] if the file is there and must not be replaced; [`Error::Io`] if it cannot be written, in which case
/// nothing is left behind.
pub fn write_atomically(path: &Path, bytes: &[u8], overwrite: Overwrite) -> Result<()> {
    write_together(&[(path, bytes)], overwrite)
}

/// Writes a file as [`write_atomically`] does, by a function: large contents need not be in memory.
///
/// # Errors
/// [`Error::Exists`] if it is there and must not be replaced; [`Error::Io`] if it cannot be written; as `write`.
pub fn write_atomically_with<E: From<Error>>(
    path: &Path,
    overwrite: Overwrite,
    write: impl FnOnce(&mut fs::File) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut file = begin(path, overwrite)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all().map_err(|source| Error::Io { path: path.to_owned(), source })?;
    Ok(persist(path, file, overwrite)?)
}

/// Writes files that belong together as [`write_atomically`] does: none is renamed before all are written.
///
/// # Errors
/// [`Error::Exists`] if one is there and must not be replaced; [`Error::Io`] if one cannot be written.
pub fn write_together(files: &[(&Path, &[u8])], overwrite: Overwrite) -> Result<()> {
    let staged = files.iter().map(|(path, bytes)| Ok((*path, stage(path, bytes, overwrite)?)));
    for (path, file) in staged.collect::<Result<Vec<_>>>()? {
        persist(path, file, overwrite)?;
    }
    Ok(())
}

/// Renames a file that is complete.
fn persist(path: &Path, file: tempfile::NamedTempFile, overwrite: Overwrite) -> Result<()> {
    let renamed = match overwrite {
        Overwrite::Refuse => file.persist_noclobber(path),
        Overwrite::Replace => file.persist(path),
    };
    renamed.map(|_| ()).map_err(|error| {
        let exists = error.error.kind() == std::io::ErrorKind::AlreadyExists;
        let path = path.to_owned();
        if exists { Error::Exists { path } } else { Error::Io { path, source: error.error } }
    })
}

/// Writes `bytes` to a temporary file beside `path`, and syncs it to the disk.
fn stage(path: &Path, bytes: &[u8], overwrite: Overwrite) -> Result<tempfile::NamedTempFile> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let mut file = begin(path, overwrite)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    Ok(file)
}

/// Opens a temporary file beside `path`.
fn begin(path: &Path, overwrite: Overwrite) -> Result<tempfile::NamedTempFile> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    if overwrite == Overwrite::Refuse && path.exists() {
        return Err(Error::Exists { path: path.to_owned() });
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(PARTIAL_PREFIX);
    set_mode(&mut builder);
    let file = builder.tempfile_in(folder).map_err(failed)?;
    // Tells other runs that somebody writes it. Where nothing can be locked, its age does.
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// Sets the permissions of any new file: temporary files are private by default.
#[cfg(unix)]
fn set_mode(builder: &mut tempfile::Builder<'_, '_>) {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(fs::Permissions::from_mode(0o666));
}

#[cfg(not(unix))]
fn set_mode(_: &mut tempfile::Builder<'_, '_>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_kept_unless_it_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomically(&path, b"one", Overwrite::Refuse).unwrap();
        assert!(matches!(write_atomically(&path, b"two", Overwrite::Refuse), Err(Error::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomically(&path, b"two", Overwrite::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(&folder.path().join("no/a"), b"", Overwrite::Refuse).unwrap_err();
        assert!(error.to_string().contains("no/a"), "{error}");
    }
}
