//! Pictures in tar archives.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use diffae_infer::is_picture_name;

use super::folder::{Item, Place};
use crate::error::{Result, at};

/// How names of archives end.
pub(super) const EXTENSION: &str = "tar";

/// The pictures of an archive; only its headers are read.
pub(super) fn members(archive: &Path) -> Result<Vec<Item>> {
    let file = File::open(archive).map_err(at(archive))?;
    let mut reader = tar::Archive::new(file);
    let mut items = vec![];
    for entry in reader.entries_with_seek().map_err(at(archive))? {
        let entry = entry.map_err(at(archive))?;
        let name = entry.path().map_err(at(archive))?.to_string_lossy().into_owned();
        let is_picture = is_picture_name(Path::new(&name));
        if entry.header().entry_type().is_file() && is_picture {
            let length = usize::try_from(entry.size()).unwrap_or(usize::MAX);
            items.push(Item {
                file: archive.to_owned(),
                name,
                place: Place::Part { offset: entry.raw_file_position(), length },
            });
        }
    }
    Ok(items)
}

/// The bytes of a member.
pub(super) fn read(archive: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(archive)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
