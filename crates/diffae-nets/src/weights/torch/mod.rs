//! A restricted reader of `PyTorch` checkpoints: nothing in them is ever executed.

mod chunked_vec;
mod excerpt;
mod file_kind;
mod legacy;
mod mapped_file;
mod pickle;
mod pickle_error;
mod pickle_json;
mod pickle_number;
mod pickle_opcode;
mod pickle_reader;
mod pickle_stack;
mod pickle_string;
mod pickle_value;
mod sharded_checkpoint;
mod strided_view;
mod torch_dtype;
mod torch_error;
mod torch_file;
mod torch_tensor;
mod zip_directory;
mod zip_kind;

pub(super) use excerpt::excerpt;
pub use file_kind::FileKind;
pub(super) use file_kind::is_safetensors;
pub(super) use mapped_file::FilePart;
pub use mapped_file::MappedFile;
pub use pickle_error::PickleError;
pub(super) use sharded_checkpoint::ShardedCheckpoint;
pub use strided_view::StridedView;
pub use torch_dtype::TorchDtype;
pub use torch_error::{ArchiveError, JsonError, LegacyError, ShardedError, TorchError};
pub use torch_file::{TensorBytes, TorchFile};
pub use torch_tensor::TensorRef;
pub use zip_kind::ZipKind;
