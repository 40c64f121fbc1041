//! Pictures, arrays and archives by the endings of their names, and files without an ending by their first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::picture_file::begins_like_a_picture;

/// Endings of files that a search takes for pictures.
const PICTURE_ENDINGS: [&str; 25] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "dib", "gif", "tif", "tiff", "tga", "qoi",
    "ppm", "pgm", "pbm", "pnm", "pam", "npy", "npz", "nii", "dcm", "dicom",
];
/// Ending of packed volumes.
const PACKED_VOLUME: &str = ".nii.gz";
/// Endings of files that hold numbers, rather than pictures for the eye.
const ARRAY_ENDINGS: [&str; 6] = [".npy", ".npz", ".nii", ".nii.gz", ".dcm", ".dicom"];
/// Endings of the names of DICOM files.
const DICOM_ENDINGS: [&str; 2] = ["dcm", "dicom"];
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
const BEGINNING_BYTES: u64 = 132;

/// Returns whether a file is taken for a picture by the ending of its name.
#[must_use]
pub fn is_picture_name(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    let is_packed =
        || path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase().ends_with(PACKED_VOLUME);
    ending.is_some_and(|ending| PICTURE_ENDINGS.contains(&ending.as_str())) || is_packed()
}

/// Returns whether a file is taken for an array or a scan by the ending of its name.
pub(crate) fn is_array_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    ARRAY_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Returns whether a file that was taken for a picture is a DICOM file, by its name or, without an ending, by its content.
pub(crate) fn may_be_dicom(path: &Path) -> bool {
    match path.extension() {
        Some(ending) => DICOM_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)),
        None => beginning_of(path).is_some_and(|bytes| is_dicom(&bytes)),
    }
}

fn is_dicom(beginning: &[u8]) -> bool {
    beginning.get(128..132) == Some(b"DICM")
}

/// Returns whether a file is taken for a picture by its first bytes, as files without an ending are.
pub(crate) fn has_picture_without_ending(path: &Path) -> bool {
    path.extension().is_none() && file_begins_like_a_picture(path)
}

fn file_begins_like_a_picture(path: &Path) -> bool {
    beginning_of(path).is_some_and(|bytes| begins_like_a_picture(&bytes) || is_dicom(&bytes))
}

fn beginning_of(path: &Path) -> Option<Vec<u8>> {
    let mut beginning = vec![];
    File::open(path).and_then(|file| file.take(BEGINNING_BYTES).read_to_end(&mut beginning)).ok()?;
    Some(beginning)
}

/// Returns whether the ending of a file's name is that of an archive.
pub(crate) fn is_archive_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    ARCHIVE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}
