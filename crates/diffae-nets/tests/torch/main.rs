//! Reading PyTorch checkpoints, whole and broken, through the public interface.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic; clippy knows only functions marked as tests"
)]

mod archive;
mod golden;
mod tensors;

#[path = "../support/pickle_writer.rs"]
mod pickle_writer;
#[path = "../support/stored_zip.rs"]
mod stored_zip;

use diffae_nets::weights::torch::{TorchError, TorchFile};

use crate::stored_zip::{ZipForm, stored_zip};

/// Writes a file and opens it as a checkpoint; the file is gone, but its map is not.
fn open(content: &[u8]) -> Result<TorchFile, TorchError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.ckpt");
    std::fs::write(&path, content).unwrap();
    TorchFile::open(&path)
}

fn error_of(content: &[u8]) -> TorchError {
    open(content).expect_err("the file is broken")
}

/// Returns a checkpoint with this pickled dict and these entries.
fn checkpoint(dict: &[u8], entries: &[(&str, &[u8])]) -> Vec<u8> {
    let pickle = pickle_writer::pickle(dict);
    stored_zip(ZipForm::Classic, &[&[("test/data.pkl", &pickle[..])][..], entries].concat())
}

/// Returns the message of an error and of its causes.
fn whole_message(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
