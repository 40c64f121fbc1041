//! Pictures and labels, and how they get into batches.

mod folder;
mod labels;
mod loader;

pub use folder::{Pictures, Split};
pub use labels::Labels;
pub(crate) use loader::{Batch, Loader};
