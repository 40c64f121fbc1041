//! Kinds of files that are not checkpoints.

use std::borrow::Cow;
use std::fmt;

use super::excerpt::excerpt;

/// Offset of the magic of a tar archive.
const TAR_MAGIC_AT: usize = 257;
/// Names of the first entry of a tar archive that `torch.save` wrote before PyTorch 0.2.
const OLD_TORCH_ENTRIES: [&[u8]; 4] = [b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0"];
/// Number of bytes that are examined to distinguish text from data.
const TEXT_PROBE_BYTES: usize = 512;
/// Number of bytes of an unknown file that are shown.
const SHOWN_BYTES: usize = 8;
/// Length of the longest header of a safetensors file.
const MAX_SAFETENSORS_HEADER: u64 = 100_000_000;

/// Remedy for models of other frameworks.
pub(super) const OTHER_NETWORKS: &str = "its networks are not those of a Diffusion Autoencoder in PyTorch";

/// First bytes of files of known kinds.
const STARTS: [(&[u8], FileKind); 15] = [
    (b"PK\x03\x04", FileKind::Zip),
    (b"PK\x05\x06", FileKind::Zip),
    (b"\x1f\x8b", FileKind::Compressed { program: "gzip" }),
    (b"BZh", FileKind::Compressed { program: "bzip2" }),
    (b"\xfd7zXZ\0", FileKind::Compressed { program: "xz" }),
    (b"\x28\xb5\x2f\xfd", FileKind::Compressed { program: "zstd" }),
    (b"7z\xbc\xaf\x27\x1c", FileKind::Compressed { program: "7-Zip" }),
    (b"Rar!", FileKind::Compressed { program: "RAR" }),
    (b"\x89HDF\r\n\x1a\n", FileKind::Hdf5),
    (b"\x93NUMPY", FileKind::Npy),
    (b"GGUF", FileKind::Gguf),
    (b"\x89PNG", FileKind::Picture),
    (b"\xff\xd8\xff", FileKind::Picture),
    (b"GIF8", FileKind::Picture),
    (b"PAR1", FileKind::Parquet),
];

/// The kind of a file that is not in PyTorch's zip format.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// An empty file.
    Empty,
    /// A pickle that holds no tensors, or holds them inside.
    PlainPickle,
    /// A zip archive, as `torch.save` writes.
    Zip,
    /// A tar archive.
    Tar,
    /// A tar archive of `torch.save` before PyTorch 0.2.
    OldTorchTar,
    /// A compressed file, or an archive of compressed files.
    Compressed {
        /// Name of the program that unpacks it.
        program: &'static str,
    },
    /// A safetensors file.
    Safetensors,
    /// An HDF5 file, as older versions of Keras write.
    Hdf5,
    /// An array of `numpy.save`.
    Npy,
    /// A model in ONNX.
    Onnx,
    /// A model of llama.cpp and its kin.
    Gguf,
    /// A picture.
    Picture,
    /// A Parquet table.
    Parquet,
    /// A web page.
    HtmlPage,
    /// The stand-in for a file in Git LFS.
    GitLfsPointer,
    /// Some other text.
    Text {
        /// First line of the text.
        first_line: String,
    },
    /// A file of an unknown kind.
    Unknown {
        /// First bytes of the file.
        first_bytes: Vec<u8>,
    },
}

impl FileKind {
    /// Determines from its content the kind of a file that is not a checkpoint.
    pub(in crate::weights) fn of(file: &[u8]) -> Self {
        let tar_magic = file.get(TAR_MAGIC_AT..).unwrap_or_default();
        if let Some((_, kind)) = STARTS.iter().find(|(start, _)| file.starts_with(start)) {
            return kind.clone();
        }
        match file {
            [] => Self::Empty,
            [0x80, 2..=5, ..] => Self::PlainPickle,
            _ if OLD_TORCH_ENTRIES.iter().any(|entry| file.starts_with(entry)) => Self::OldTorchTar,
            _ if tar_magic.starts_with(b"ustar") => Self::Tar,
            _ if is_safetensors(file) => Self::Safetensors,
            _ if is_onnx(file) => Self::Onnx,
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

/// Returns whether bytes are UTF-8, save that they may end within a character.
fn is_utf8_start(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).err().is_none_or(|error| error.error_len().is_none())
}

/// Returns whether a file starts with a length that a header may have, and with the header's brace; it may be cut off
/// behind.
pub(in crate::weights) fn is_safetensors(file: &[u8]) -> bool {
    let Some((header_len, rest)) = file.split_first_chunk() else {
        return false;
    };
    u64::from_le_bytes(*header_len) <= MAX_SAFETENSORS_HEADER && rest.starts_with(b"{")
}

/// Returns whether a file starts as a protocol buffer of ONNX does: with its version, and then the name of the program
/// that wrote it, the operators that it uses, or the network.
/// # Source
/// ONNX's `onnx/onnx.proto`, `ModelProto`.
fn is_onnx(file: &[u8]) -> bool {
    match file {
        [0x08, 1..=30, 0x12, len, rest @ ..] => {
            rest.get(..usize::from(*len)).is_some_and(|name| name.iter().all(u8::is_ascii_graphic))
        }
        [0x08, 1..=30, 0x3a | 0x42, ..] => true,
        _ => false,
    }
}

impl FileKind {
    /// Returns the kind with its article.
    pub(super) fn noun(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Empty => "an empty file",
            Self::PlainPickle => "a Python pickle that torch.save did not write",
            Self::Zip => "a zip archive, as torch.save writes",
            Self::Tar => "a tar archive",
            Self::OldTorchTar => "a tar archive of torch.save before PyTorch 0.2",
            Self::Compressed { program } => return format!("a file packed with {program}").into(),
            Self::Safetensors => "a safetensors file",
            Self::Hdf5 => "an HDF5 file, as Keras writes",
            Self::Npy => "a NumPy array",
            Self::Onnx => "an ONNX model",
            Self::Gguf => "a GGUF file",
            Self::Picture => "a picture",
            Self::Parquet => "a Parquet table",
            Self::HtmlPage => "a web page",
            Self::GitLfsPointer => "a Git LFS pointer",
            Self::Text { first_line } => return format!("a text that starts with {first_line:?}").into(),
            Self::Unknown { first_bytes } => {
                return format!("a file of unknown kind that starts with {first_bytes:02x?}").into();
            }
        })
    }

    /// Returns the way to the weights, or the reason why there is none.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Empty => "download or copy it again",
            Self::PlainPickle => "load it in Python and save its tensors with `torch.save(state_dict, \"weights.pt\")`",
            Self::Tar | Self::Compressed { .. } => "unpack it first",
            Self::OldTorchTar => "load it with PyTorch below 2 and save it again with torch.save",
            Self::Hdf5 | Self::Gguf => OTHER_NETWORKS,
            Self::Npy => {
                "save all arrays of a network by name with \
                 `safetensors.numpy.save_file(arrays, \"weights.safetensors\")`"
            }
            Self::Onnx => "its tensors have lost their names; take the checkpoint that it was exported from",
            Self::Parquet => "it holds data to train on",
            Self::HtmlPage => "the download led to a page instead of the file",
            Self::GitLfsPointer => "fetch the file itself with `git lfs pull`",
            Self::Text { .. } => "the download may have failed",
            Self::Zip | Self::Safetensors | Self::Picture | Self::Unknown { .. } => return None,
        })
    }
}

/// Joins the kind of a file, the clause that it is not what was expected, and the remedy.
pub(super) fn sentence(noun: &str, instead_of: &str, remedy: Option<&str>) -> String {
    let remedy = remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("{noun}{instead_of}{remedy}")
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(&self.noun(), "", self.remedy()))
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
            (b"\x1f\x8b\x08\0", FileKind::Compressed { program: "gzip" }),
            (b"PK\x03\x04", FileKind::Zip),
            (b"sys_info\0\0", FileKind::OldTorchTar),
            (b"\x93NUMPY\x01\0", FileKind::Npy),
            (b"\x08\x0a\x12\x07pytorch\x1a\x062.15.0", FileKind::Onnx),
            (b"\x08\x08B\x04", FileKind::Onnx),
            (&safetensors, FileKind::Safetensors),
            (b"\xef\xbb\xbf\n <!DOCTYPE HTML><html>", FileKind::HtmlPage),
            (b"<html lang=en>", FileKind::HtmlPage),
            (lfs, FileKind::GitLfsPointer),
            (b"Not Found\nmore", FileKind::Text { first_line: "Not Found".into() }),
            (&split_character, FileKind::Text { first_line: format!("{}...", "a".repeat(120)) }),
            (b"\x89HDF\r\n\x1a\nrest", FileKind::Hdf5),
            (b"\x7fELF", FileKind::Unknown { first_bytes: b"\x7fELF".to_vec() }),
            (b"<HTML><title>caf\xe9</title>", FileKind::HtmlPage),
            (b"caf\xe9 au lait", FileKind::Unknown { first_bytes: b"caf\xe9 au ".to_vec() }),
            (b"\xff", FileKind::Unknown { first_bytes: vec![0xff] }),
        ] {
            assert_eq!(FileKind::of(file), expected);
            assert!(!expected.to_string().is_empty());
        }
    }
}
