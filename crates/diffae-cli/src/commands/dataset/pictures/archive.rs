//! A zip archive that any number of threads may read.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use zip::ZipArchive;

/// Largest member that is read into memory, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// A zip archive whose directory is read once.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    zip: ZipArchive<Source>,
    /// Path and number of each file in it, in order of the paths.
    members: Vec<(String, usize)>,
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = || format!("{} is no zip archive, or damaged", path.display());
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let length = file.metadata().with_context(failed)?.len();
        let source = Source { path: path.into(), file: Some(BufReader::new(file)), position: 0, length };
        let archive = ZipArchive::new(source).with_context(failed)?;
        let mut members = vec![];
        for idx in 0..archive.len() {
            let name = archive.name_for_index(idx).transpose().with_context(failed)?.unwrap_or_default();
            let is_hidden = name.split('/').any(|part| part.starts_with('.') || part == "__MACOSX");
            if !name.ends_with('/') && !is_hidden {
                members.push((name.into_owned(), idx));
            }
        }
        members.sort();
        Ok(Self { path: path.to_owned(), zip: archive, members })
    }

    /// Returns the path in the archive and the index of each file.
    pub(crate) fn members(&self) -> &[(String, usize)] {
        &self.members
    }

    /// Returns the file of that name, in whatever folder of the archive.
    pub(crate) fn named(&self, file_name: &str) -> Option<(&str, usize)> {
        let found = self.members.iter().find(|(name, _)| name.rsplit('/').next() == Some(file_name));
        found.map(|(name, idx)| (name.as_str(), *idx))
    }

    /// Returns the length of a member, unpacked.
    pub(crate) fn length(&self, idx: usize) -> Result<u64> {
        let mut archive = self.zip.clone();
        let member = archive.by_index(idx).with_context(|| self.damaged(idx))?;
        Ok(member.size())
    }

    /// Reads the contents of a member.
    pub(crate) fn read(&self, idx: usize) -> Result<Vec<u8>> {
        let mut archive = self.zip.clone();
        let member = archive.by_index(idx).with_context(|| self.damaged(idx))?;
        ensure!(member.size() <= MAX_BYTES, "{}: it has {} bytes", self.damaged(idx), member.size());
        let mut bytes = vec![];
        member.take(MAX_BYTES).read_to_end(&mut bytes).with_context(|| self.damaged(idx))?;
        Ok(bytes)
    }

    /// Copies a member into a file.
    pub(crate) fn unpack(&self, idx: usize, into: &mut impl io::Write) -> Result<()> {
        let mut archive = self.zip.clone();
        let mut member = archive.by_index(idx).with_context(|| self.damaged(idx))?;
        io::copy(&mut member, into).with_context(|| self.damaged(idx))?;
        Ok(())
    }

    fn damaged(&self, idx: usize) -> String {
        let name = self.zip.name_for_index(idx).and_then(std::result::Result::ok).unwrap_or_default();
        format!("cannot unpack {name} of {}", self.path.display())
    }
}

/// A file whose clones open it again when they are read.
#[derive(Debug)]
struct Source {
    path: Arc<Path>,
    file: Option<BufReader<File>>,
    position: u64,
    length: u64,
}

impl Clone for Source {
    fn clone(&self) -> Self {
        Self { path: Arc::clone(&self.path), file: None, position: self.position, length: self.length }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file = if let Some(file) = &mut self.file {
            file
        } else {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.position))?;
            self.file.insert(BufReader::new(file))
        };
        let count = file.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Source {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(position))?;
        }
        self.position = position;
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn threads_read_at_once_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let contents = |idx: u8| vec![idx; 70_000 + usize::from(idx)];
        let files: Vec<_> = (0..40).map(|idx| (format!("d/{idx:02}.txt"), contents(idx))).collect();
        let hidden = [("__MACOSX/d/00.txt".to_owned(), vec![]), ("d/.x".to_owned(), vec![])];
        made_up::zip(&path, &[files.clone(), hidden.to_vec()].concat());
        let archive = Archive::open(&path).unwrap();
        assert_eq!(archive.members().len(), 40);
        let read: Vec<_> =
            archive.members().par_iter().map(|(name, idx)| (name.clone(), archive.read(*idx).unwrap())).collect();
        assert!(read == files);
        let (name, idx) = archive.named("07.txt").unwrap();
        assert_eq!((name, archive.length(idx).unwrap()), ("d/07.txt", 70_007));

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[60] ^= 0xFF;
        std::fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", Archive::open(&path).unwrap().read(0).unwrap_err());
        assert!(error.contains("d/00.txt of") && error.contains("a.zip"), "{error}");
        std::fs::write(&path, "no zip").unwrap();
        assert!(Archive::open(&path).unwrap_err().to_string().contains("no zip archive"));
    }
}
