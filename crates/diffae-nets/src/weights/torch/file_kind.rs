//! What a file is that is no checkpoint.

use std::fmt;

use super::excerpt::excerpt;

/// Where the magic of a tar archive stands.
const TAR_MAGIC_AT: usize = 257;
/// How much of a file is looked at to tell text from data.
const TEXT_PROBE_BYTES: usize = 512;
/// How much of an unknown file is shown.
const SHOWN_BYTES: usize = 8;

/// The kind of a file that is not in PyTorch's zip format.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// No bytes at all.
    Empty,
    /// A pickle that holds no tensors, or holds them inside.
    PlainPickle,
    /// A tar archive.
    Tar,
    /// A gzip file.
    Gzip,
    /// A safetensors file.
    Safetensors,
    /// A web page.
    HtmlPage,
    /// The stand-in for a file in Git LFS.
    GitLfsPointer,
    /// Some other text.
    Text {
        /// Its first line.
        first_line: String,
    },
    /// Nothing that is known.
    Unknown {
        /// Its first bytes.
        first_bytes: Vec<u8>,
    },
}

impl FileKind {
    /// Tells from its content what kind a file is that does not start like a zip archive.
    pub(super) fn of(file: &[u8]) -> Self {
        let tar_magic = file.get(TAR_MAGIC_AT..).unwrap_or_default();
        match file {
            [] => Self::Empty,
            [0x80, 2..=5, ..] => Self::PlainPickle,
            [0x1f, 0x8b, ..] => Self::Gzip,
            _ if tar_magic.starts_with(b"ustar") => Self::Tar,
            _ if is_safetensors(file) => Self::Safetensors,
            _ => Self::of_text(file)
                .unwrap_or_else(|| Self::Unknown { first_bytes: file.iter().take(SHOWN_BYTES).copied().collect() }),
        }
    }

    fn of_text(file: &[u8]) -> Option<Self> {
        let start = file.get(..TEXT_PROBE_BYTES).unwrap_or(file);
        if start.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) {
            return None;
        }
        let text = String::from_utf8_lossy(start);
        let text = text.trim_start_matches('\u{feff}').trim_start();
        let lowercase = text.to_ascii_lowercase();
        if text.starts_with("version https://git-lfs.github.com/") {
            Some(Self::GitLfsPointer)
        } else if ["<!doctype html", "<html", "<head", "<?xml"].iter().any(|tag| lowercase.starts_with(tag)) {
            Some(Self::HtmlPage)
        } else if is_utf8_start(start) {
            Some(Self::Text { first_line: excerpt(text.lines().next().unwrap_or_default()) })
        } else {
            None
        }
    }
}

/// Whether bytes are UTF-8, save that they may end within a character.
fn is_utf8_start(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).err().is_none_or(|error| error.error_len().is_none())
}

/// Whether a file starts with the length of a header that fits into it, and with the header's brace.
fn is_safetensors(file: &[u8]) -> bool {
    let Some((header_len, rest)) = file.split_first_chunk() else {
        return false;
    };
    u64::from_le_bytes(*header_len) <= rest.len() as u64 && rest.starts_with(b"{")
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an empty file"),
            Self::PlainPickle => f.write_str("a Python pickle that torch.save did not write"),
            Self::Tar => f.write_str("a tar archive; unpack it first"),
            Self::Gzip => f.write_str("a gzip file; unpack it first"),
            Self::Safetensors => f.write_str("a safetensors file"),
            Self::HtmlPage => f.write_str("a web page; the download led to a page instead of the file"),
            Self::GitLfsPointer => f.write_str("a Git LFS pointer; fetch the file itself with `git lfs pull`"),
            Self::Text { first_line } => {
                write!(f, "a text that starts with {first_line:?}; the download may have failed")
            }
            Self::Unknown { first_bytes } => write!(f, "a file of unknown kind that starts with {first_bytes:02x?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_told_from_its_content() {
        let mut tar = vec![0; 1024];
        tar[TAR_MAGIC_AT..][..5].copy_from_slice(b"ustar");
        let mut safetensors = 16_u64.to_le_bytes().to_vec();
        safetensors.extend(b"{\"t\":null}      ");
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        let mut split_character = vec![b'a'; TEXT_PROBE_BYTES - 1];
        split_character.extend("é".bytes());
        for (file, expected) in [
            (&b""[..], FileKind::Empty),
            (b"\x80\x04N.", FileKind::PlainPickle),
            (&tar, FileKind::Tar),
            (b"\x1f\x8b\x08\0", FileKind::Gzip),
            (&safetensors, FileKind::Safetensors),
            (b"\xef\xbb\xbf\n <!DOCTYPE HTML><html>", FileKind::HtmlPage),
            (b"<html lang=en>", FileKind::HtmlPage),
            (lfs, FileKind::GitLfsPointer),
            (b"Not Found\nmore", FileKind::Text { first_line: "Not Found".into() }),
            (&split_character, FileKind::Text { first_line: format!("{}...", "a".repeat(120)) }),
            (b"\x89HDF\r\n\x1a\nrest", FileKind::Unknown { first_bytes: b"\x89HDF\r\n\x1a\n".to_vec() }),
            (b"<HTML><title>caf\xe9</title>", FileKind::HtmlPage),
            (b"caf\xe9 au lait", FileKind::Unknown { first_bytes: b"caf\xe9 au ".to_vec() }),
            (b"\xff", FileKind::Unknown { first_bytes: vec![0xff] }),
        ] {
            assert_eq!(FileKind::of(file), expected);
            assert!(!expected.to_string().is_empty());
        }
    }
}
