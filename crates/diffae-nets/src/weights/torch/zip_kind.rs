//! Kinds of zip archives that are not checkpoints.

use std::borrow::Cow;
use std::fmt;

use super::excerpt::excerpt;
use super::file_kind::{OTHER_NETWORKS, sentence};

/// Endings of files of weights that somebody may have packed.
const WEIGHT_ENDINGS: [&str; 6] = [".ckpt", ".pt", ".pth", ".pkl", ".bin", ".safetensors"];

/// A kind of zip archive that is not what `torch.save` writes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZipKind {
    /// A program of `torch.jit.save`.
    TorchScript,
    /// A program of `torch.export.save`.
    ExportedProgram,
    /// A `torch.package`.
    TorchPackage,
    /// Arrays of `numpy.savez`.
    Npz,
    /// A model of Keras 3.
    Keras,
    /// An archive that a file of weights was packed into.
    Packed {
        /// Name of the file in the archive.
        entry: String,
    },
    /// Any other archive.
    Other {
        /// Number of entries.
        num_entries: usize,
        /// Name of the first one; empty if there is none.
        first_entry: String,
    },
}

impl ZipKind {
    /// Returns the kind of program that holds its tensors as a checkpoint does, and code beside them; `None` if there
    /// is no code.
    pub(super) fn of_program(names: &[&[u8]]) -> Option<Self> {
        let has = |ending: &str| names.iter().any(|name| is_entry(name, ending));
        let has_folder =
            |folder: &[u8]| names.iter().any(|name| name.split(|&byte| byte == b'/').nth(1) == Some(folder));
        if has("constants.pkl") && has_folder(b"code") {
            Some(Self::TorchScript)
        } else if has("archive_format") || has("serialized_exported_program.json") {
            Some(Self::ExportedProgram)
        } else if has(".data/extern_modules") {
            Some(Self::TorchPackage)
        } else {
            None
        }
    }

    /// Returns the kind of an archive without a checkpoint.
    pub(super) fn of(names: &[&[u8]]) -> Self {
        if let Some(program) = Self::of_program(names) {
            return program;
        }
        let is_weights = |name: &&[u8]| {
            !name.ends_with(b"/data.pkl") && WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending.as_bytes()))
        };
        let num_entries = names.iter().len();
        if num_entries > 0 && names.iter().all(|name| name.ends_with(b".npy")) {
            Self::Npz
        } else if names.iter().any(|name| name == b"model.weights.h5") {
            Self::Keras
        } else if let Some(entry) = names.iter().copied().find(is_weights) {
            Self::Packed { entry: excerpt(entry) }
        } else {
            Self::Other { num_entries, first_entry: excerpt(names.first().copied().unwrap_or_default()) }
        }
    }
}

/// Returns whether an entry is this file, alone or in the folder that an archive of PyTorch has around everything.
fn is_entry(name: &[u8], file: &str) -> bool {
    match name.strip_suffix(file.as_bytes()) {
        Some([folder @ .., b'/']) => !folder.contains(&b'/'),
        Some(rest) => rest.is_empty(),
        None => false,
    }
}

impl ZipKind {
    /// Returns the kind with its article.
    pub(super) fn noun(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::TorchScript => "a TorchScript program (torch.jit.save)",
            Self::ExportedProgram => "an exported program (torch.export.save)",
            Self::TorchPackage => "a torch.package",
            Self::Npz => "a file of NumPy arrays (.npz)",
            Self::Keras => "a Keras model",
            Self::Packed { entry } => return format!("a zip archive with {entry:?} in it").into(),
            Self::Other { .. } => "a zip archive of something else",
        })
    }

    /// Returns the way to the weights, or the reason why there is none.
    pub(super) fn remedy(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::TorchScript => {
                "save its tensors with `torch.save(torch.jit.load(FILE).state_dict(), \"weights.pt\")`"
            }
            Self::ExportedProgram => {
                "save its tensors with `torch.save(torch.export.load(FILE).state_dict, \"weights.pt\")`"
            }
            Self::TorchPackage => {
                "load the network in Python and save its tensors with \
                 `torch.save(network.state_dict(), \"weights.pt\")`"
            }
            Self::Npz => {
                "save them with `safetensors.numpy.save_file(dict(numpy.load(FILE)), \"weights.safetensors\")`"
            }
            Self::Keras => OTHER_NETWORKS,
            Self::Packed { .. } => "unpack it first",
            Self::Other { num_entries: 0, .. } => "it has no entries",
            Self::Other { num_entries: 1, first_entry } => {
                return format!("its only entry is {first_entry:?}, not `<name>/data.pkl`").into();
            }
            Self::Other { num_entries, first_entry } => {
                return format!("none of its {num_entries} entries is `<name>/data.pkl`, the first is {first_entry:?}")
                    .into();
            }
        })
    }
}

impl fmt::Display for ZipKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(&self.noun(), "", Some(&self.remedy())))
    }
}
