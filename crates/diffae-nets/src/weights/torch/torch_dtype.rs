//! Number types of tensors in a PyTorch checkpoint.

use std::fmt;

/// Number type of a tensor; numbers are little-endian in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TorchDtype {
    /// `torch.float64`
    F64,
    /// `torch.float32`
    F32,
    /// `torch.float16`
    F16,
    /// `torch.bfloat16`
    BF16,
    /// `torch.int64`
    I64,
    /// `torch.int32`
    I32,
    /// `torch.int16`
    I16,
    /// `torch.int8`
    I8,
    /// `torch.uint8`
    U8,
    /// `torch.bool`, one byte of 0 or 1.
    Bool,
}

impl TorchDtype {
    /// Returns the number of bytes per number.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Returns the name in PyTorch, without `torch.`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        }
    }

    /// Returns the type of the numbers in a storage of a class; `None` for a class that is not supported.
    /// # Source
    /// PyTorch's `torch/storage.py`, `_dtype_to_storage_type_map`; an `UntypedStorage` counts as bytes, as in
    /// `torch/serialization.py`, `persistent_load`.
    pub(super) fn from_storage_class(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("torch.storage", "UntypedStorage") => Self::U8,
            ("torch" | "torch.cuda", name) => match name {
                "DoubleStorage" => Self::F64,
                "FloatStorage" => Self::F32,
                "HalfStorage" => Self::F16,
                "BFloat16Storage" => Self::BF16,
                "LongStorage" => Self::I64,
                "IntStorage" => Self::I32,
                "ShortStorage" => Self::I16,
                "CharStorage" => Self::I8,
                "ByteStorage" => Self::U8,
                "BoolStorage" => Self::Bool,
                _ => return None,
            },
            _ => return None,
        })
    }
}

impl fmt::Display for TorchDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
