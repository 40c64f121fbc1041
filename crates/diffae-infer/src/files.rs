//! Files that appear whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// What to do where the file to be written exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Fail with [`Error::Exists`].
    Refuse,
    /// Replace it.
    Replace,
}

/// Writes `bytes` under a temporary name beside `path`, syncs, and renames.
///
/// # Errors
/// [`Error::Exists`] if the file is there and must not be replaced; [`Error::Io`] if it cannot be written, in which case
/// nothing is left behind.
pub fn write_atomically(path: &Path, bytes: &[u8], overwrite: Overwrite) -> Result<()> {
    write_together(&[(path, bytes)], overwrite)
}

/// [`write_atomically`] of files that belong together: none is renamed before all are written.
pub(crate) fn write_together(files: &[(&Path, &[u8])], overwrite: Overwrite) -> Result<()> {
    let staged = files.iter().map(|(path, bytes)| Ok((*path, stage(path, bytes, overwrite)?)));
    for (path, file) in staged.collect::<Result<Vec<_>>>()? {
        let renamed = match overwrite {
            Overwrite::Refuse => file.persist_noclobber(path),
            Overwrite::Replace => file.persist(path),
        };
        if let Err(error) = renamed {
            let exists = error.error.kind() == std::io::ErrorKind::AlreadyExists;
            let path = path.to_owned();
            return Err(if exists { Error::Exists { path } } else { Error::Io { path, source: error.error } });
        }
    }
    Ok(())
}

/// A temporary file beside `path` that holds `bytes`, on the disk.
fn stage(path: &Path, bytes: &[u8], overwrite: Overwrite) -> Result<tempfile::NamedTempFile> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    if overwrite == Overwrite::Refuse && path.exists() {
        return Err(Error::Exists { path: path.to_owned() });
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".diffae-partial-");
    set_mode(&mut builder);
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    Ok(file)
}

/// Temporary files are private by default; results have the permissions of any other file.
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
