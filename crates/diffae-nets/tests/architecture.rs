//! The architecture of released checkpoints, from hyper-parameters and from shapes.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::path::{Path, PathBuf};

use diffae_nets::weights::{ArchitectureHints, Checkpoint, ParameterSet};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(model).join("last.ckpt")
}

/// Copies the checkpoint, and replaces the key of the hyper-parameters by another one of the same length.
fn without_hyper_parameters(model: &str, folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(golden(model)).unwrap();
    let key = b"hyper_parameters";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    let end = data_pickle_end(&bytes);
    assert!(at < end);
    bytes[at..at + key.len()].copy_from_slice(b"hidden_arguments");
    mend_checksum(&mut bytes);
    let path = folder.join(format!("{model}.ckpt"));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Returns the end of the first entry of the archive, the pickle.
fn data_pickle_end(bytes: &[u8]) -> usize {
    let number = |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
    30 + number(26, 2) + number(28, 2) + pickle_len(bytes)
}

/// Returns the size of the first entry, from the central directory.
fn pickle_len(bytes: &[u8]) -> usize {
    let at = first_directory_entry(bytes);
    bytes[at + 24..at + 28].iter().rev().fold(0, |n, &b| n << 8 | usize::from(b))
}

fn first_directory_entry(bytes: &[u8]) -> usize {
    bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap()
}

/// Corrects the checksum of the first entry.
fn mend_checksum(bytes: &mut [u8]) {
    let end = data_pickle_end(bytes);
    let checksum = crc32fast::hash(&bytes[end - pickle_len(bytes)..end]).to_le_bytes();
    let at = first_directory_entry(bytes) + 16;
    bytes[at..at + 4].copy_from_slice(&checksum);
}

#[test]
fn shapes_alone_tell_what_hyper_parameters_tell() {
    let folder = tempfile::tempdir().unwrap();
    for (model, num_heads) in [("autoenc32", 1), ("autoenc16_latent", 1), ("ddpm16", 1), ("gray16_heads2", 2)] {
        let hints = ArchitectureHints { num_heads: Some(num_heads), ..ArchitectureHints::default() };
        let told = Checkpoint::open(&golden(model), ParameterSet::Ema, &hints).unwrap().architecture;
        let path = without_hyper_parameters(model, folder.path());
        let guessed = Checkpoint::open(&path, ParameterSet::Ema, &hints).unwrap().architecture;
        assert_eq!(guessed, told, "{model}");
    }
}

#[test]
fn an_image_size_that_was_given_goes_before_the_one_that_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = without_hyper_parameters("ddpm16", folder.path());
    let hints = ArchitectureHints { image_size: Some(32), ..ArchitectureHints::default() };
    let architecture = Checkpoint::open(&path, ParameterSet::Ema, &hints).unwrap().architecture;
    assert_eq!(architecture.unet.image_size, 32.into());
    assert_eq!(architecture.unet.attention_resolutions, [16]);
}
