//! Pictures and labels, and how they get into batches.

mod archives;
mod file_kind;
mod folder;
mod label_table;
mod labels;
mod listing;
mod lmdb;
mod loader;
mod samples;
mod tables;
mod tar_members;
mod unreadable;
mod warnings;

pub(crate) use folder::is_validation;
pub use folder::{CELEBA_BOX, Pictures, Split};
pub use label_table::{LabelForm, LabelRow, LabelTable};
pub use labels::{Labels, Strangers};
pub use lmdb::{Lmdb, LmdbWriter};
pub(crate) use loader::{Batch, Loader};
