//! Checkpoints with a damaged or hostile pickle: each yields a model or an error, quickly, and in little memory.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::ops::Range;
use std::path::Path;

use diffae_infer::{LoadOptions, ModelSource};
use diffae_nets::weights::ArchitectureHints;
use peak_alloc::PeakAlloc;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const NUM_CASES: usize = 400;

/// A checkpoint as bytes, with the position of its pickle.
struct Archive {
    bytes: Vec<u8>,
    pickle: Range<usize>,
    checksum_at: usize,
}

impl Archive {
    fn golden(model: &str) -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(model).join("last.ckpt");
        let bytes = std::fs::read(path).unwrap();
        let number =
            |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0, |n, &b| (n << 8) | usize::from(b));
        // The pickle is the first entry; its size and checksum stand in the first record of the directory.
        let record = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        let start = 30 + number(26, 2) + number(28, 2);
        Self { pickle: start..start + number(record + 24, 4), checksum_at: record + 16, bytes }
    }

    /// Returns a copy with a few bytes of the pickle changed, half of the time among the hyper-parameters at its end.
    fn damaged(&self, random: &mut impl Rng) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let start = if random.random_bool(0.5) { self.pickle.end - 6000 } else { self.pickle.start };
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(start..self.pickle.end);
            bytes[at] = match random.random_range(0..3) {
                0 => bytes[at] ^ (1 << random.random_range(0..8)),
                1 => random.random(),
                _ => *b"KMJ\x80.(]})R".get(random.random_range(0..10)).unwrap(),
            };
        }
        let checksum = crc32fast::hash(&bytes[self.pickle.clone()]).to_le_bytes();
        bytes[self.checksum_at..self.checksum_at + 4].copy_from_slice(&checksum);
        bytes
    }
}

#[test]
fn a_damaged_pickle_is_a_model_or_an_error() {
    let archive = Archive::golden("autoenc16_latent");
    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let (mut num_models, mut num_errors) = (0, 0);
    for case in 0..NUM_CASES {
        let path = folder.path().join(format!("{case}.ckpt"));
        std::fs::write(&path, archive.damaged(&mut random)).unwrap();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let model = ModelSource::open(&path, &ArchitectureHints::default())
            .and_then(|source| source.build(&LoadOptions::cpu()));
        let used = MEMORY.peak_usage() - before;
        assert!(used < 6 * archive.bytes.len(), "case {case} used {used} bytes");
        match model {
            Ok(_) => num_models += 1,
            Err(_) => num_errors += 1,
        }
        std::fs::remove_file(&path).unwrap();
    }
    assert!(num_models > 0 && num_errors > 0, "{num_models} models, {num_errors} errors");
}
