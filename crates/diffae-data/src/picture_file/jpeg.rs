//! Completeness check of JPEGs, since decoders fill missing parts with gray.

use super::jpeg_scan::{Component, Flaw, Frame, Scan, Tables, read_scan};

/// Markers without a segment.
const STANDALONE: [u8; 10] = [0x01, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8];

/// Describes the missing part of a JPEG; `None` if it is whole, or of a kind that the decoder itself refuses.
///
/// Every scan is read to its last block, and the file to the end of its first picture: what follows, such as the other
/// pictures of a multi-picture file, does not matter.
pub(super) fn missing(bytes: &[u8]) -> Option<String> {
    let mut walk = Walk { bytes, at: 2, frame: None, tables: Tables::default(), restart_interval: 0, num_scans: 0 };
    match walk.read_all() {
        Ok(()) | Err(Stop::OfAnotherKind) => None,
        Err(Stop::Cut) => Some(walk.cut_off()),
        Err(Stop::InScan(flaw, share)) => Some(walk.flaw(flaw, share)),
        Err(Stop::Segment) => Some("its headers make no sense".to_owned()),
        Err(Stop::Component) => Some("it lacks the data of one of its color channels".to_owned()),
    }
}

/// A reason for a walk to end before the end of the picture.
enum Stop {
    /// The file ends.
    Cut,
    /// A scan is incomplete, after a share of its blocks.
    InScan(Flaw, f64),
    /// A segment without room for its own length.
    Segment,
    /// No scan holds a component.
    Component,
    /// A kind of file that is not checked here.
    OfAnotherKind,
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    frame: Option<Frame>,
    tables: Tables,
    restart_interval: usize,
    num_scans: usize,
}

impl<'a> Walk<'a> {
    fn read_all(&mut self) -> Result<(), Stop> {
        loop {
            let marker = self.next_marker()?;
            match marker {
                0xD9 => return self.check_components(),
                marker if STANDALONE.contains(&marker) => {}
                0xC0..=0xC2 => self.frame = Some(Frame::parse(self.segment()?, marker).ok_or(Stop::OfAnotherKind)?),
                0xC3 | 0xC5..=0xCB | 0xCD..=0xCF => return Err(Stop::OfAnotherKind),
                0xC4 => {
                    let segment = self.segment()?;
                    self.tables.add(segment).ok_or(Stop::OfAnotherKind)?;
                }
                0xDD => {
                    let [high, low] = *self.segment()? else { return Err(Stop::OfAnotherKind) };
                    self.restart_interval = usize::from(u16::from_be_bytes([high, low]));
                }
                0xDA => self.scan()?,
                _ => {
                    self.segment()?;
                }
            }
        }
    }

    /// Advances past the next marker: a byte that follows 0xFF and is neither another one nor zero.
    fn next_marker(&mut self) -> Result<u8, Stop> {
        loop {
            let rest = self.bytes.get(self.at..).ok_or(Stop::Cut)?;
            let found = rest.iter().position(|&byte| byte == 0xFF).ok_or(Stop::Cut)?;
            let code = rest.get(found + 1).ok_or(Stop::Cut)?;
            match code {
                0xFF => self.at += found + 1,
                0 => self.at += found + 2,
                &marker => {
                    self.at += found + 2;
                    return Ok(marker);
                }
            }
        }
    }

    /// Advances past the segment of a marker.
    fn segment(&mut self) -> Result<&'a [u8], Stop> {
        let rest = self.bytes.get(self.at..).ok_or(Stop::Cut)?;
        let &[high, low, ..] = rest else { return Err(Stop::Cut) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 2 {
            return Err(Stop::Segment);
        }
        self.at += length;
        rest.get(2..length).ok_or(Stop::Cut)
    }

    fn scan(&mut self) -> Result<(), Stop> {
        let segment = self.segment()?;
        let frame = self.frame.as_mut().ok_or(Stop::OfAnotherKind)?;
        let scan = Scan::parse(segment, frame, self.restart_interval);
        self.num_scans += 1;
        let scan = scan.ok_or(Stop::InScan(Flaw::Invalid, 0.))?;
        let data = self.bytes.get(self.at..).unwrap_or_default();
        match read_scan(&scan, frame, &self.tables, data) {
            Ok(length) => self.at += length,
            Err((Flaw::NoTable, _)) => return Err(Stop::OfAnotherKind),
            Err((flaw, share)) => return Err(Stop::InScan(flaw, share)),
        }
        Ok(())
    }

    fn check_components(&self) -> Result<(), Stop> {
        let components = self.frame.as_ref().map_or(&[][..], |frame| &frame.components);
        if components.iter().all(Component::is_there) { Ok(()) } else { Err(Stop::Component) }
    }

    fn is_progressive(&self) -> bool {
        self.frame.as_ref().is_some_and(|frame| frame.progressive)
    }

    fn cut_off(&self) -> String {
        match self.num_scans {
            0 => "it is cut off before its picture begins".to_owned(),
            _ => "it is cut off: the end of the picture is not marked".to_owned(),
        }
    }

    fn flaw(&self, flaw: Flaw, share: f64) -> String {
        let percent = (share * 100.).floor();
        let place = match (self.is_progressive(), self.num_scans) {
            (true, scan) => format!("after {percent}% of pass {scan} of its picture data"),
            (false, _) => format!("after {percent}% of its picture"),
        };
        match flaw {
            Flaw::EndOfFile => format!("it is cut off {place}"),
            Flaw::Missing => format!("data are missing {place}"),
            Flaw::Invalid | Flaw::NoTable => format!("its data make no sense {place}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads files of Pillow 13: 40 by 30 pixels, by name.
    fn files() -> Vec<(String, Vec<u8>)> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/faults/jpeg");
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()))
            .collect();
        files.sort();
        assert!(files.len() >= 6, "{}", files.len());
        files
    }

    #[test]
    fn whole_files_lack_nothing() {
        for (name, bytes) in files() {
            assert_eq!(missing(&bytes), None, "{name}");
        }
    }

    #[test]
    fn what_follows_the_picture_does_not_matter() {
        for (name, bytes) in files() {
            for rest in [&b"trailing bytes"[..], &[0; 100], &bytes[..bytes.len() >> 1], &[0xFF, 0xD8, 0xFF]] {
                assert_eq!(missing(&[&bytes[..], rest].concat()), None, "{name}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_anywhere_lacks_something() {
        for (name, bytes) in files() {
            let end = bytes.len();
            assert_eq!(bytes[end - 2..], [0xFF, 0xD9], "{name}");
            for length in 2..end {
                assert!(missing(&bytes[..length]).is_some(), "{name} cut to {length} of {end} bytes");
            }
        }
    }

    #[test]
    fn an_end_put_after_a_cut_hides_nothing() {
        for (name, bytes) in files() {
            let start = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap() + 2;
            // A last byte may hold padding alone.
            for length in start..bytes.len() - 4 {
                let ended = [&bytes[..length], &[0xFF, 0xD9]].concat();
                assert!(missing(&ended).is_some(), "{name} cut to {length} of {} bytes and ended", bytes.len());
                let zeros = [&bytes[..length], &vec![0; bytes.len() - length][..]].concat();
                assert!(missing(&zeros).is_some(), "{name} with zeros from {length} of {} bytes on", bytes.len());
            }
        }
    }

    #[test]
    fn a_lost_restart_interval_is_noticed() {
        let (_, bytes) = files().into_iter().find(|(name, _)| name == "restarts.jpg").unwrap();
        let restarts: Vec<usize> = bytes
            .windows(2)
            .enumerate()
            .filter(|(_, pair)| pair[0] == 0xFF && (0xD0..0xD8).contains(&pair[1]))
            .map(|(at, _)| at)
            .collect();
        assert!(restarts.len() > 2, "{restarts:?}");
        let without = [&bytes[..restarts[0]], &bytes[restarts[1]..]].concat();
        assert!(missing(&without).is_some());
    }

    #[test]
    fn sentences_say_how_much_is_there() {
        let (_, bytes) = files().into_iter().find(|(name, _)| name == "baseline.jpg").unwrap();
        let sentence = missing(&bytes[..bytes.len() - (bytes.len() >> 3)]).unwrap();
        let percent: u32 = sentence.split_once("after ").unwrap().1.split_once('%').unwrap().0.parse().unwrap();
        assert!((40..100).contains(&percent), "{sentence}");
        assert_eq!(missing(&bytes[..40]).unwrap(), "it is cut off before its picture begins");
    }
}
