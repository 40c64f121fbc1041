//! Pictures and labels, and how they get into batches.

mod archives;
mod folder;
mod labels;
mod lmdb;
mod loader;
mod tables;

pub(crate) use folder::is_validation;
pub use folder::{CELEBA_BOX, Pictures, Split};
pub use labels::Labels;
pub use lmdb::{Lmdb, LmdbWriter};
pub(crate) use loader::{Batch, Loader};
