//! Output folders of data sets, for `cargo xtask dataset` and the renderer of cartoon faces.

#![expect(clippy::print_stdout, reason = "programs for the command line write data sets")]

mod output;

pub use output::{Fingerprint, Listing, MANIFEST, Manifest, Output, Survey};
