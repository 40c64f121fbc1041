//! Central directory of a zip archive whose entries are stored uncompressed.
//!
//! PyTorch aligns and never compresses its entries, so that they can be used where they lie. Only the central
//! directory says where that is: the entries' own headers leave sizes and checksums to a descriptor behind the data.
//! This reader accepts what PyTorch writes, with ZIP64 fields for large files, and nothing that two readers could
//! take in two ways: names are unique, and no data stands before the archive or behind it.
//!
//! # Source
//! PKWARE's APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (its end)
//! and 4.5.3 (ZIP64 extra field).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use super::excerpt::excerpt;
use super::torch_error::ArchiveError;

const LOCAL_HEADER_MAGIC: u32 = 0x0403_4b50;
const DIRECTORY_ENTRY_MAGIC: u32 = 0x0201_4b50;
const DIRECTORY_END_MAGIC: u32 = 0x0605_4b50;
const ZIP64_DIRECTORY_END_MAGIC: u32 = 0x0606_4b50;
const ZIP64_LOCATOR_MAGIC: u32 = 0x0706_4b50;

const LOCAL_HEADER_LEN: usize = 30;
const DIRECTORY_ENTRY_LEN: usize = 46;
const DIRECTORY_END_LEN: usize = 22;
const ZIP64_DIRECTORY_END_LEN: usize = 56;
const ZIP64_LOCATOR_LEN: usize = 20;

const ZIP64_EXTRA_ID: u16 = 1;
const ENCRYPTED_FLAG: u16 = 1;
/// Marker in a field of 32 bits whose value is in the ZIP64 extra field.
const IN_ZIP64_EXTRA: u64 = u32::MAX as u64;

/// Places of the entries of an archive.
#[derive(Debug)]
pub(super) struct ZipDirectory {
    entries: BTreeMap<Vec<u8>, ZipEntry>,
    /// Start of the central directory and end of the data.
    directory_start: usize,
    /// True if the archive was written without checksums.
    lacks_checksums: bool,
}

#[derive(Debug)]
struct ZipEntry {
    header_start: u64,
    len: u64,
    stored_len: u64,
    crc32: u32,
    method: u16,
    flags: u16,
    /// Set once the data were found to match `crc32`.
    is_intact: OnceLock<()>,
}

impl ZipDirectory {
    /// Returns whether a file starts as a zip archive does.
    pub(super) fn is_zip(file: &[u8]) -> bool {
        matches!(read_u32(file, 0), Some(LOCAL_HEADER_MAGIC | DIRECTORY_END_MAGIC))
    }

    /// Reads the central directory of an archive.
    /// # Errors
    /// [`ArchiveError`] if there is none, or if it does not fit to the file.
    pub(super) fn read(file: &[u8]) -> Result<Self, ArchiveError> {
        let end = DirectoryEnd::read(file)?;
        let mut rest = file.get(end.directory.clone()).unwrap_or_default();
        let mut entries = BTreeMap::new();
        for entry_idx in 0..end.num_entries {
            let read = ZipEntry::read(rest);
            let (name, entry, len) =
                read.ok_or(ArchiveError::BadDirectoryEntry { entry_idx, num_entries: end.num_entries })?;
            if entries.insert(name.to_vec(), entry).is_some() {
                return Err(ArchiveError::DuplicateEntry { entry: excerpt(name) });
            }
            rest = rest.get(len..).unwrap_or_default();
        }
        let lacks_checksums = entries.values().all(|entry: &ZipEntry| entry.crc32 == 0);
        Ok(Self { entries, directory_start: end.directory.start, lacks_checksums })
    }

    /// Returns whether no entry has a checksum: all are zero, as after `torch.serialization.set_crc32_options(False)`.
    /// Data that have one are compared with it.
    pub(super) fn lacks_checksums(&self) -> bool {
        self.lacks_checksums
    }

    /// Returns the names of all entries, in order.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.entries.keys().map(Vec::as_slice)
    }

    /// Checks that all entries are stored uncompressed.
    /// # Errors
    /// [`ArchiveError`] for the first one that is compressed or encrypted, or has two sizes.
    pub(super) fn check_stored(&self) -> Result<(), ArchiveError> {
        for (name, &ZipEntry { len, stored_len, method, flags, .. }) in &self.entries {
            if method != 0 {
                return Err(ArchiveError::Compressed { entry: excerpt(name), method });
            }
            if flags & ENCRYPTED_FLAG != 0 {
                return Err(ArchiveError::Encrypted { entry: excerpt(name) });
            }
            if len != stored_len {
                return Err(ArchiveError::TwoSizes { entry: excerpt(name), len, stored_len });
            }
        }
        Ok(())
    }

    /// Returns the data of an entry, which were compared with its checksum if the archive has any; `None` if there is
    /// no such entry.
    /// # Errors
    /// [`ArchiveError`] if the entry does not lie where the directory says, or is damaged.
    pub(super) fn data<'a>(&self, file: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>, ArchiveError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let file = file.get(..self.directory_start).unwrap_or(file);
        let data = entry.locate(file, name).ok_or_else(|| ArchiveError::Misplaced { entry: excerpt(name) })?;
        if !self.lacks_checksums && entry.is_intact.get().is_none() {
            let got = crc32fast::hash(data);
            if got != entry.crc32 {
                return Err(ArchiveError::Damaged { entry: excerpt(name), got, expected: entry.crc32 });
            }
            entry.is_intact.get_or_init(|| ());
        }
        Ok(Some(data))
    }
}

impl ZipEntry {
    /// Reads the directory's entry at the start of `directory`; returns its name and its length there. `None` if it
    /// is cut off or none.
    fn read(directory: &[u8]) -> Option<(&[u8], Self, usize)> {
        if read_u32(directory, 0)? != DIRECTORY_ENTRY_MAGIC {
            return None;
        }
        let [name_len, extra_len, comment_len] = [28, 30, 32].map(|at| read_u16(directory, at).map(usize::from));
        let extra_start = DIRECTORY_ENTRY_LEN + name_len?;
        let comment_start = extra_start + extra_len?;
        let end = comment_start + comment_len?;
        let name = directory.get(DIRECTORY_ENTRY_LEN..extra_start)?;
        let extra = directory.get(extra_start..comment_start)?;
        directory.get(comment_start..end)?;

        // In the order of the ZIP64 extra field: full size, stored size, place.
        let mut fields = [24, 20, 42].map(|at| read_u32(directory, at).map_or(0, u64::from));
        widen(&mut fields, extra)?;
        let [len, stored_len, header_start] = fields;

        let (flags, method) = (read_u16(directory, 8)?, read_u16(directory, 10)?);
        let crc32 = read_u32(directory, 16)?;
        Some((name, Self { header_start, len, stored_len, crc32, method, flags, is_intact: OnceLock::new() }, end))
    }

    /// Returns the data of the entry within the part of a file that holds data.
    fn locate<'a>(&self, file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        let header = file.get(usize::try_from(self.header_start).ok()?..)?;
        if read_u32(header, 0)? != LOCAL_HEADER_MAGIC {
            return None;
        }
        let name_end = LOCAL_HEADER_LEN + usize::from(read_u16(header, 26)?);
        let data_start = name_end + usize::from(read_u16(header, 28)?);
        if header.get(LOCAL_HEADER_LEN..name_end)? != name {
            return None;
        }
        header.get(data_start..)?.get(..usize::try_from(self.len).ok()?)
    }
}

/// Replaces the fields that are marked as such by the values of the ZIP64 extra field; `None` if it lacks one.
fn widen(fields: &mut [u64; 3], mut extra: &[u8]) -> Option<()> {
    if !fields.contains(&IN_ZIP64_EXTRA) {
        return Some(());
    }
    while read_u16(extra, 0)? != ZIP64_EXTRA_ID {
        extra = extra.get(4 + usize::from(read_u16(extra, 2)?)..)?;
    }
    let mut values = extra.get(4..4 + usize::from(read_u16(extra, 2)?))?;
    for field in fields.iter_mut().filter(|field| **field == IN_ZIP64_EXTRA) {
        *field = read_u64(values, 0)?;
        values = values.get(8..)?;
    }
    Some(())
}

/// Range and number of entries of the central directory, by the records behind it.
struct DirectoryEnd {
    directory: Range<usize>,
    num_entries: u64,
}

impl DirectoryEnd {
    fn read(file: &[u8]) -> Result<Self, ArchiveError> {
        let record_start = find_directory_end(file).ok_or(ArchiveError::NoDirectoryEnd { file_len: file.len() })?;
        let record = file.get(record_start..).unwrap_or_default();
        let locator_start = record_start.checked_sub(ZIP64_LOCATOR_LEN);
        let has_locator = locator_start.is_some_and(|at| read_u32(file, at) == Some(ZIP64_LOCATOR_MAGIC));
        let (fields, end) = match locator_start {
            Some(at) if has_locator => {
                let end = zip64_record_start(file, at);
                (end.and_then(|start| zip64_fields(file.get(start..at)?)), end)
            }
            _ => (classic_fields(record), Some(record_start)),
        };
        let directory = fields.and_then(|[_, len, start]| range(start, len)).filter(|range| Some(range.end) <= end);
        match (fields, directory) {
            (Some([num_entries, ..]), Some(directory)) => Ok(Self { directory, num_entries }),
            _ => Err(ArchiveError::BadDirectoryEnd { file_len: file.len() }),
        }
    }
}

/// Finds the start of the last record of the archive: the one whose comment ends with the file.
fn find_directory_end(file: &[u8]) -> Option<usize> {
    let last = file.len().checked_sub(DIRECTORY_END_LEN)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    (first..=last).rev().find(|&start| {
        read_u32(file, start) == Some(DIRECTORY_END_MAGIC)
            && read_u16(file, start + 20).is_some_and(|len| start + DIRECTORY_END_LEN + usize::from(len) == file.len())
    })
}

/// Reads number of entries, length and start of the directory. `None` for an archive of several files.
fn classic_fields(record: &[u8]) -> Option<[u64; 3]> {
    if [4, 6].iter().any(|&at| read_u16(record, at) != Some(0)) || read_u16(record, 8) != read_u16(record, 10) {
        return None;
    }
    Some([read_u16(record, 10)?.into(), read_u32(record, 12)?.into(), read_u32(record, 16)?.into()])
}

/// Reads the fields of [`classic_fields`] from the record for large archives.
fn zip64_fields(record: &[u8]) -> Option<[u64; 3]> {
    let is_record = read_u32(record, 0) == Some(ZIP64_DIRECTORY_END_MAGIC) && record.len() >= ZIP64_DIRECTORY_END_LEN;
    let is_one_file = [16, 20].iter().all(|&at| read_u32(record, at) == Some(0));
    if !is_record || !is_one_file || read_u64(record, 24) != read_u64(record, 32) {
        return None;
    }
    Some([read_u64(record, 32)?, read_u64(record, 40)?, read_u64(record, 48)?])
}

/// Reads the start of the record for large archives from the locator.
fn zip64_record_start(file: &[u8], locator_start: usize) -> Option<usize> {
    usize::try_from(read_u64(file, locator_start + 8)?).ok()
}

fn range(start: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}
