//! A file as a slice of bytes, without a copy.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::TorchError;

/// A file mapped into memory, read only; it derefs to its bytes.
///
/// Pages are loaded as they are touched, so opening a file of many gigabytes costs nothing. The file must not be
/// changed while it is open: a file that shrinks makes reading its lost pages fatal (`SIGBUS`), and bytes that
/// change do so in the slice as well.
pub struct MappedFile {
    /// Map of the file; `None` for an empty file, which cannot be mapped on every system.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`.
    /// # Errors
    /// [`TorchError::Open`] if it cannot be opened or mapped, or if it is a directory.
    pub fn open(path: &Path) -> Result<Self, TorchError> {
        Self::map(path).map_err(|source| TorchError::Open { path: path.to_path_buf(), source })
    }

    fn map(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        #[expect(unsafe_code, reason = "memory mapping is how large checkpoints are read without a copy")]
        // SAFETY: the map is read only and private to this value, and every access goes through `&[u8]`. What no
        // process can rule out is that another one changes the file meanwhile; the type's documentation forbids it.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }
}

/// A part of a mapped file, which keeps the map alive.
#[derive(Debug, Clone)]
pub(in crate::weights) struct FilePart {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl FilePart {
    /// Returns all of a file.
    pub(in crate::weights) fn whole(file: MappedFile) -> Self {
        Self { range: 0..file.len(), file: Arc::new(file) }
    }

    /// Returns a part of a file; `None` if it reaches beyond the end.
    pub(super) fn of(file: &Arc<MappedFile>, range: Range<usize>) -> Option<Self> {
        file.get(range.clone())?;
        Some(Self { file: Arc::clone(file), range })
    }
}

impl Deref for FilePart {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.file.get(self.range.clone()).unwrap_or_default()
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedFile").field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derefs_to_the_bytes_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"some bytes").unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(&*file, b"some bytes");
        assert_eq!(format!("{file:?}"), "MappedFile { len: 10 }");
    }

    #[test]
    fn an_empty_file_is_an_empty_slice() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(MappedFile::open(file.path()).unwrap().is_empty());
    }

    #[test]
    fn errors_name_the_path() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_path_buf(), folder.path().join("missing.ckpt")] {
            let error = MappedFile::open(&path).unwrap_err();
            assert!(matches!(&error, TorchError::Open { path: got, .. } if *got == path), "{error:?}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
    }
}
