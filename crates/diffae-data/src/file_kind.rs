//! Detection of the kind of a file by its first bytes, whatever its name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Result, at};

/// Number of bytes to inspect: the first block of a tar archive.
const HEAD_BYTES: u64 = 512;
/// Length of the longest magic bytes.
const MAX_MAGIC: usize = 32;

/// Kinds of files that may hold pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// An empty file.
    Empty,
    /// A tar archive.
    Tar,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by Zstandard.
    Zstd,
    /// A Parquet table.
    Parquet,
    /// An LMDB database file.
    Lmdb,
    /// One encoded picture.
    Picture,
    /// A recognized file of an unsupported kind.
    Foreign(Foreign),
    /// A file of any other kind.
    Unknown,
}

/// A file of an unsupported kind: the kind with an article, and a remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) kind: &'static str,
    pub(crate) advice: &'static str,
}

const fn foreign(kind: &'static str, advice: &'static str) -> Foreign {
    Foreign { kind, advice }
}

impl Foreign {
    const BZIP2: Self = foreign("a bzip2 file", "unpack it first: bunzip2 --keep FILE");
    const XZ: Self = foreign("an xz file", "unpack it first: xz --decompress --keep FILE");
    const LZ4: Self = foreign("an lz4 file", "unpack it first: lz4 -d FILE");
    const ZIP: Self = foreign("a zip file", "unpack it first: unzip FILE -d FOLDER");
    const SEVEN_ZIP: Self = foreign("a 7z file", "unpack it first: 7z x FILE");
    const RAR: Self = foreign("a RAR file", "unpack it first: unrar x FILE");
    const HDF5: Self = foreign("an HDF5 file", "write its pictures as files first");
    const ARROW: Self = foreign("an Arrow file", "save it as Parquet first");
    const NUMPY: Self = foreign("an array of NumPy", "name the folder of such arrays, each a picture");
    /// Any other packed file.
    pub(crate) const PACKED: Self = foreign("a packed file", "unpack it first");

    /// Returns the remedy for several files.
    pub(crate) fn advice_for(self, count: usize) -> String {
        match count {
            1 => self.advice.to_owned(),
            _ => self.advice.replacen(" it ", " them ", 1).replacen(" its ", " their ", 1),
        }
    }
}

/// Magic bytes at the beginning of files of unsupported kinds.
const FOREIGN: [(&[u8], Foreign); 12] = [
    (b"BZh", Foreign::BZIP2),
    (b"\xfd7zXZ\0", Foreign::XZ),
    (b"\x04\x22\x4d\x18", Foreign::LZ4),
    (b"PK\x03\x04", Foreign::ZIP),
    (b"7z\xbc\xaf\x27\x1c", Foreign::SEVEN_ZIP),
    (b"Rar!", Foreign::RAR),
    (b"\x89HDF", Foreign::HDF5),
    (b"ARROW1", Foreign::ARROW),
    (b"\x93NUMPY", Foreign::NUMPY),
    (b"version https://git-lfs", foreign("a Git LFS pointer instead of the file", "get the file: git lfs pull")),
    (b"<!doctype html", foreign("a web page instead of the file", "download it again")),
    (b"<html", foreign("a web page instead of the file", "download it again")),
];

/// Endings of packed files of unsupported kinds.
const PACKED_ENDINGS: [(&str, Foreign); 8] = [
    ("zip", Foreign::ZIP),
    ("7z", Foreign::SEVEN_ZIP),
    ("rar", Foreign::RAR),
    ("gz", Foreign::PACKED),
    ("bz2", Foreign::BZIP2),
    ("xz", Foreign::XZ),
    ("zst", Foreign::PACKED),
    ("lz4", Foreign::LZ4),
];

/// Endings of arrays and tables of unsupported kinds.
const ARRAY_ENDINGS: [(&str, Foreign); 7] = [
    ("npy", Foreign::NUMPY),
    ("npz", Foreign::NUMPY),
    ("h5", Foreign::HDF5),
    ("hdf5", Foreign::HDF5),
    ("arrow", Foreign::ARROW),
    ("feather", Foreign::ARROW),
    ("tfrecord", foreign("a TFRecord file", "write its pictures as files first")),
];

/// Returns the kind of a file that is not read but may hold pictures, by its ending in lower case.
pub(crate) fn foreign_by_ending(ending: &str) -> Option<&'static Foreign> {
    let known = PACKED_ENDINGS.iter().chain(&ARRAY_ENDINGS);
    known.into_iter().find(|(known, _)| *known == ending).map(|(_, foreign)| foreign)
}

/// Returns whether a file of this ending, in lower case, is an archive of files of an unsupported kind.
pub(crate) fn holds_files(ending: &str) -> bool {
    matches!(ending, "zip" | "7z" | "rar")
}

/// Returns the kind of a file that is no picture and is not read, by its beginning.
pub(crate) fn foreign_by_content(head: &[u8]) -> Option<&'static Foreign> {
    let text = head.trim_ascii_start().get(..MAX_MAGIC).unwrap_or(head.trim_ascii_start()).to_ascii_lowercase();
    let is_it = |(magic, _): &&(&[u8], Foreign)| head.starts_with(magic) || text.starts_with(magic);
    FOREIGN.iter().find(is_it).map(|(_, foreign)| foreign)
}

/// Magic bytes of encoded pictures, each with its offset.
const PICTURES: [(usize, &[u8]); 10] = [
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"\xff\xd8\xff"),
    (0, b"GIF8"),
    (0, b"BM"),
    (0, b"II*\0"),
    (0, b"MM\0*"),
    (8, b"WEBP"),
    (0, b"qoif"),
    (4, b"ftypavif"),
    (4, b"ftyphei"),
];

/// Offset of the magic number in a meta page of an LMDB, on 64-bit machines.
pub(crate) const LMDB_MAGIC_AT: usize = 16;
const LMDB_MAGIC: [u8; 4] = [0xde, 0xc0, 0xef, 0xbe];

/// Detects the kind of a file by its beginning.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn file_kind(path: &Path) -> Result<FileKind> {
    let mut head = vec![];
    let file = File::open(path).map_err(at(path))?;
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(at(path))?;
    Ok(kind_of(&head))
}

fn kind_of(head: &[u8]) -> FileKind {
    match head {
        [] => FileKind::Empty,
        [0x1f, 0x8b, ..] => FileKind::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => FileKind::Zstd,
        [b'P', b'A', b'R', b'1', ..] => FileKind::Parquet,
        _ if is_meta_page(head) => FileKind::Lmdb,
        _ if is_tar_header(head) => FileKind::Tar,
        _ if is_picture(head) => FileKind::Picture,
        _ => foreign_by_content(head).map_or(FileKind::Unknown, |foreign| FileKind::Foreign(*foreign)),
    }
}

/// Returns whether a file begins as an LMDB does: with a meta page.
pub(crate) fn is_meta_page(head: &[u8]) -> bool {
    head.get(LMDB_MAGIC_AT..LMDB_MAGIC_AT + 4) == Some(&LMDB_MAGIC)
}

/// Returns whether a block is the header of a tar member: its checksum, signed or unsigned, fits.
pub(crate) fn is_tar_header(block: &[u8]) -> bool {
    let Some(block) = block.get(..512) else { return false };
    let Ok(noted) = tar::Header::from_byte_slice(block).cksum() else { return false };
    let blanked = |idx: usize, byte: u8| if (148..156).contains(&idx) { b' ' } else { byte };
    let unsigned: u32 = block.iter().enumerate().map(|(idx, &byte)| u32::from(blanked(idx, byte))).sum();
    let signed: i32 = block.iter().enumerate().map(|(idx, &byte)| i32::from(blanked(idx, byte).cast_signed())).sum();
    block.iter().any(|&byte| byte != 0) && (noted == unsigned || i64::from(noted) == i64::from(signed))
}

/// Returns whether bytes begin like an encoded picture, of a supported format or not.
pub(crate) fn is_picture(bytes: &[u8]) -> bool {
    let is_portable = matches!(bytes, [b'P', b'1'..=b'7', b'\n' | b'\r' | b' ', ..]);
    is_portable || PICTURES.iter().any(|(at, magic)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_say_more_than_names() {
        let kind = |head: &[u8]| kind_of(head);
        assert_eq!(kind(b""), FileKind::Empty);
        assert_eq!(kind(b"\x1f\x8b\x08"), FileKind::Gzip);
        assert_eq!(kind(b"\x28\xb5\x2f\xfd"), FileKind::Zstd);
        assert_eq!(kind(b"PAR1"), FileKind::Parquet);
        assert_eq!(kind(b"\x89PNG\r\n\x1a\n"), FileKind::Picture);
        assert_eq!(kind(b"file,Red\n"), FileKind::Unknown);
        let named = |head: &[u8]| match kind_of(head) {
            FileKind::Foreign(foreign) => foreign.kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(named(b"BZh91AY"), "a bzip2 file");
        assert_eq!(named(b"PK\x03\x04"), "a zip file");
        assert!(named(b"\n <!DOCTYPE HTML>").contains("web page"));
        assert!(named(b"version https://git-lfs.github.com/spec/v1\n").contains("LFS"));
    }

    #[test]
    fn sounds_are_no_pictures() {
        assert!(is_picture(b"RIFF\x10\0\0\0WEBPVP8 ") && !is_picture(b"RIFF\x10\0\0\0WAVEfmt "));
        assert!(is_picture(b"P6\n2 2") && !is_picture(b"Picture") && !is_picture(b""));
    }
}
