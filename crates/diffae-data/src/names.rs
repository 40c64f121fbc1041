//! Pictures and archives by the endings of their names, and files without an ending by their first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::picture_file::begins_like_a_picture;

/// Endings of files that a search takes for pictures.
const PICTURE_ENDINGS: [&str; 20] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "dib", "gif", "tif", "tiff", "tga", "qoi",
    "ppm", "pgm", "pbm", "pnm", "pam",
];
/// File name endings of archives.
const ARCHIVE_ENDINGS: [&str; 12] = [
    ".tar",
    ".tgz",
    ".tar.gz",
    ".taz",
    ".tar.zst",
    ".tar.zstd",
    ".tzst",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
    ".tar.lz4",
];
/// Number of bytes to inspect of a file without an ending.
const BEGINNING_BYTES: u64 = 16;

/// Returns whether a file is taken for a picture by the ending of its name.
#[must_use]
pub fn is_picture_name(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| PICTURE_ENDINGS.contains(&ending.as_str()))
}

/// Returns whether a file is taken for a picture by its first bytes, as files without an ending are.
pub(crate) fn has_picture_without_ending(path: &Path) -> bool {
    path.extension().is_none() && file_begins_like_a_picture(path)
}

fn file_begins_like_a_picture(path: &Path) -> bool {
    let mut beginning = vec![];
    let read = File::open(path).and_then(|file| file.take(BEGINNING_BYTES).read_to_end(&mut beginning));
    read.is_ok() && begins_like_a_picture(&beginning)
}

/// Returns whether the ending of a file's name is that of an archive.
pub(crate) fn is_archive_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    ARCHIVE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}
