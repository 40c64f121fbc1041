//! Event files for `TensorBoard` with the curves of the log.
//!
//! A file is a sequence of records: length (u64), checksum of the length, data, checksum of the data, all
//! little-endian. The data are protocol buffers: `Event { double wall_time = 1; int64 step = 2; string file_version = 3;
//! Summary summary = 5; SessionLog session_log = 7; }`, `Summary { repeated Value value = 1; }`, `Value { string tag = 1;
//! float simple_value = 2; }`, `SessionLog { SessionStatus status = 1; }`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Result, at};

/// Added to a rotated checksum, so that checksums of data that hold checksums stay apart.
const MASK_DELTA: u32 = 0xa282_ead8;
const FILE_VERSION: &[u8] = b"brain.Event:2";
const NAME_PREFIX: &str = "events.out.tfevents.";
/// `SessionLog.START`: values of this step and later ones in earlier files are void.
const STATUS_START: u64 = 1;

/// Wire types of protocol buffers.
const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const BYTES: u8 = 2;
const FOUR_BYTES: u8 = 5;

/// An event file that is being written.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Creates a file in a folder for values of `first_step` and later. `TensorBoard` joins all files of a
    /// folder in order of their names; a purge mark voids what files of a killed process have of this step and later ones.
    pub(crate) fn create(folder: &Path, first_step: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        let newest = newest_file(folder);
        // Two files of one second would be joined in the order of their process numbers.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds since 1970")]
        let seconds = (wall_time() as u64).max(newest.map_or(0, |newest| newest + 1));
        let path = folder.join(format!("{NAME_PREFIX}{seconds}.{}", std::process::id()));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(at(&path))?;
        let mut events = Self { path, file };
        events.write(&[field(3, BYTES), length(FILE_VERSION), FILE_VERSION.to_vec()].concat(), 0)?;
        if newest.is_some() {
            let session_log = [field(1, VARINT), varint(STATUS_START)].concat();
            events.write(&[field(7, BYTES), length(&session_log), session_log].concat(), first_step)?;
        }
        Ok(events)
    }

    /// Writes the values of a step.
    pub(crate) fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = vec![];
        for (tag, value) in values {
            #[expect(clippy::cast_possible_truncation, reason = "the format holds f32")]
            let number = (*value as f32).to_le_bytes();
            let tag = tag.as_bytes();
            let value = [field(1, BYTES), length(tag), tag.to_vec(), field(2, FOUR_BYTES), number.to_vec()].concat();
            summary.extend([field(1, BYTES), length(&value), value].concat());
        }
        self.write(&[field(5, BYTES), length(&summary), summary].concat(), step)
    }

    fn write(&mut self, what: &[u8], step: usize) -> Result<()> {
        let time = wall_time().to_le_bytes();
        let event = [&field(1, EIGHT_BYTES), &time[..], &field(2, VARINT), &varint(step as u64), what].concat();
        let size = (event.len() as u64).to_le_bytes();
        let record = [&size[..], &checksum(&size), &event, &checksum(&event)].concat();
        self.file.write_all(&record).map_err(at(&self.path))
    }
}

/// Returns the start time of a folder's newest file, in seconds, from its name.
fn newest_file(folder: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let seconds = |name: &str| name.strip_prefix(NAME_PREFIX)?.split('.').next()?.parse().ok();
    entries.filter_map(|entry| seconds(&entry.file_name().to_string_lossy())).max()
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0., |since| since.as_secs_f64())
}

fn field(number: u8, wire_type: u8) -> Vec<u8> {
    vec![number << 3 | wire_type]
}

fn length(of: &[u8]) -> Vec<u8> {
    varint(of.len() as u64)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = vec![];
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn checksum(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(MASK_DELTA).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of all records of a file; their checksums are right.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        let (mut at, mut records) = (0, vec![]);
        while at < bytes.len() {
            let size = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            assert_eq!(bytes[at + 8..at + 12], checksum(&bytes[at..at + 8]));
            let (start, end) = (at + 12, at + 12 + usize::try_from(size).unwrap());
            assert_eq!(bytes[end..end + 4], checksum(&bytes[start..end]));
            records.push(bytes[start..end].to_vec());
            at = end + 4;
        }
        records
    }

    #[test]
    fn records_are_framed_as_the_format_says() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 1).unwrap();
        events.scalars(300, &[("loss", 0.5)]).unwrap();
        let records = records(&events.path);
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(FILE_VERSION));
        // wall_time, then step 300 = 0xac 0x02, then the summary.
        assert_eq!(records[1][9..12], [0x10, 0xac, 0x02]);
        assert!(records[1].ends_with(&[b'l', b'o', b's', b's', 0x15, 0, 0, 0, 0x3f]));
    }

    #[test]
    fn what_a_killed_process_wrote_after_its_checkpoint_is_void() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventFile::create(folder.path(), 1).unwrap();
        let mut second = EventFile::create(folder.path(), 301).unwrap();
        second.scalars(310, &[("loss", 0.5)]).unwrap();
        assert_eq!(records(&first.path).len(), 1, "nothing came before the first file");
        let records = records(&second.path);
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(FILE_VERSION), "marks are read from version 2 on, so it comes first");
        // Step 301 = 0xad 0x02, then field 7 of two bytes: field 1 is START.
        assert_eq!(records[1][9..], [0x10, 0xad, 0x02, 0x3a, 0x02, 0x08, 0x01]);
        // Files are joined in the order of their names.
        assert!(second.path > first.path);
    }

    #[test]
    fn the_checksum_is_the_masked_castagnoli_one() {
        // The check value of CRC-32C is 0xe3069283.
        assert_eq!(checksum(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(MASK_DELTA).to_le_bytes());
    }
}
