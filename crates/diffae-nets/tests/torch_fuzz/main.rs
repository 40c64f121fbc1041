//! Damaged and hostile checkpoints: reading any bytes ends soon, in little memory and without a panic.
//!
//! This is a test binary of its own because it measures memory with a global allocator. The tests take turns, so that
//! each measures only itself.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

#[path = "../support/stored_zip.rs"]
mod stored_zip;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diffae_nets::weights::torch::TorchFile;
use peak_alloc::PeakAlloc;

use crate::stored_zip::{ZipForm, stored_zip};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Lock of the test that is running.
static TURN: Mutex<()> = Mutex::new(());

/// Maximum memory for reading a mutated file, per byte and beside a constant. Files of PyTorch take up to 6.
const MAX_MEMORY_PER_BYTE: usize = 8;
/// Additional memory that small files may take.
const MEMORY_FOR_ANY_FILE: usize = 64 << 10;
/// Maximum memory for the pickle which takes most per byte: one that is all empty lists. Two of its bytes need a
/// node of 16, and a stack slot of 4 and a memo entry of 9 in collections that double when they are full.
const MAX_MEMORY_PER_HOSTILE_BYTE: usize = 32;
/// Time limit of a case: far more than any takes, so that a busy machine does not fail the test, and far less than
/// endless.
const MAX_CASE_TIME: Duration = Duration::from_secs(5);

const CLASSIFIER: &[u8] = include_bytes!("../data/classifier.ckpt");
const LATENT: &[u8] = include_bytes!("../data/latent.pkl");
const LEGACY: &[u8] = include_bytes!("../data/legacy.pth");
/// Files of the legacy format in protocol 0, whose operands are text, and in protocol 4, which has frames.
const OTHER_PROTOCOLS: [&[u8]; 2] = [
    include_bytes!("../../../../tests/fixtures/faults/checkpoints/latent_legacy_p0.pkl"),
    include_bytes!("../../../../tests/fixtures/faults/checkpoints/latent_legacy_p4.pkl"),
];
/// A folder of `torch.distributed.checkpoint`.
const PIECES: [(&str, &[u8]); 2] = [
    (".metadata", include_bytes!("../../../../tests/fixtures/faults/checkpoints/dcp/.metadata")),
    ("__0_0.distcp", include_bytes!("../../../../tests/fixtures/faults/checkpoints/dcp/__0_0.distcp")),
];
/// The pickle of the `last.ckpt` that the other two belong to; its storages would be 3 MB.
const LAST_PICKLE: &[u8] = include_bytes!("../data/last_data.pkl");

/// Steele, Lea and Flood's `SplitMix64` generator: the same numbers everywhere.
struct RandomNumbers(u64);

impl RandomNumbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Returns a copy with one to three random changes.
fn mutated(original: &[u8], random: &mut RandomNumbers) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=random.below(3) {
        mutate(&mut bytes, random);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, random: &mut RandomNumbers) {
    const OPCODES: &[u8] = b"(.012ghjpqrNIJKMLFGSTUVXBC)]}tlaedsucRbioPQ\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96";
    let at = random.below(bytes.len());
    let end = bytes.len().min(at + 1 + random.below(40));
    match random.below(14) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.byte(),
        2 | 3 if !bytes.is_empty() => bytes[at] = OPCODES[random.below(OPCODES.len())],
        4 => bytes.insert(at, OPCODES[random.below(OPCODES.len())]),
        5 => bytes[at..end].fill([0, 0xff, 0x7f, 0x80][random.below(4)]),
        6 => drop(bytes.drain(at..end)),
        7 => {
            let copied = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copied);
        }
        8 => {
            let copied = bytes[at..end].to_vec();
            let to = random.below(bytes.len() - copied.len() + 1);
            bytes[to..to + copied.len()].copy_from_slice(&copied);
        }
        9 if random.below(4) == 0 => bytes.truncate(at),
        10.. => {
            // An operand of BININT1 or BINGET, which are sizes, offsets and shared values.
            let operands: Vec<usize> = (1..bytes.len()).filter(|&at| matches!(bytes[at - 1], b'K' | b'h')).collect();
            if let Some(&at) = operands.get(random.below(operands.len())) {
                bytes[at] = [random.byte(), bytes[at].wrapping_add(1), 0, 0xff][random.below(4)];
            }
        }
        _ => {}
    }
}

/// Counts of how far the cases got.
#[derive(Default, Debug)]
#[expect(clippy::struct_field_names, reason = "counts are named so in all of the project")]
struct Tally {
    num_opened: usize,
    num_rejected: usize,
    num_tensors_read: usize,
    num_tensors_rejected: usize,
    num_json: usize,
}

/// Opens a file and reads all there is.
fn read_everything(path: &Path, tally: &mut Tally) {
    let file = match TorchFile::open(path) {
        Ok(file) => file,
        Err(error) => {
            tally.num_rejected += 1;
            assert!(error.to_string().len() < 1000, "{error}");
            return;
        }
    };
    tally.num_opened += 1;
    let keys: Vec<&str> = file.root_keys().collect();
    let listings = keys.iter().map(|key| file.tensors_under(key)).chain([file.root_tensors()]);
    for tensors in listings.filter_map(Result::ok) {
        for tensor in tensors.values() {
            match file.read(tensor) {
                Ok(read) => {
                    tally.num_tensors_read += 1;
                    assert_eq!(read.bytes.len(), read.shape.iter().product::<usize>() * read.dtype.num_bytes());
                }
                Err(error) => {
                    tally.num_tensors_rejected += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
    tally.num_json += keys.iter().filter(|key| file.json_under(key).is_ok()).count();
}

/// Waits for the other tests; must come first in each.
fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads each of the files, and checks time and memory of each. The case is part of the message of every failure.
fn check_all(max_memory_per_byte: usize, files: impl Iterator<Item = Vec<u8>>) -> Tally {
    let folder = tempfile::tempdir().unwrap();
    let mut tally = Tally::default();
    for (case_idx, file) in files.enumerate() {
        // A file that is new is written faster than one that is replaced.
        let path = folder.path().join(format!("{case_idx}.ckpt"));
        std::fs::write(&path, &file).unwrap();
        ALLOCATOR.reset_peak_usage();
        let memory_before = ALLOCATOR.current_usage();
        let start = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read_everything(&path, &mut tally)));
        let elapsed = start.elapsed();
        std::fs::remove_file(&path).unwrap();
        let memory = ALLOCATOR.peak_usage().saturating_sub(memory_before);
        let max_memory = MEMORY_FOR_ANY_FILE + max_memory_per_byte * file.len();
        assert!(result.is_ok(), "case {case_idx} panics");
        assert!(elapsed < MAX_CASE_TIME, "case {case_idx} takes {elapsed:?}");
        assert!(memory <= max_memory, "case {case_idx} of {} bytes takes {memory} bytes of memory", file.len());
    }
    tally
}

fn cases<'a>(num_cases: u64, make: impl Fn(&mut RandomNumbers) -> Vec<u8> + 'a) -> impl Iterator<Item = Vec<u8>> + 'a {
    (0..num_cases).map(move |seed| make(&mut RandomNumbers(seed)))
}

/// Returns the entries of a small checkpoint, in order: name and data.
fn entries(file: &[u8]) -> Vec<(String, Vec<u8>)> {
    let local_magic = b"PK\x03\x04";
    let directory_magic = b"PK\x01\x02";
    let field =
        |at: usize, len: usize| file[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
    let headers = (0..file.len() - 4).filter(|&at| file[at..].starts_with(directory_magic));
    headers
        .map(|at| {
            let (len, header_start) = (field(at + 24, 4), field(at + 42, 4));
            assert!(file[header_start..].starts_with(local_magic));
            let name_len = field(header_start + 26, 2);
            let data_start = header_start + 30 + name_len + field(header_start + 28, 2);
            let name = std::str::from_utf8(&file[header_start + 30..header_start + 30 + name_len]).unwrap();
            (name.to_owned(), file[data_start..data_start + len].to_vec())
        })
        .collect()
}

/// Returns a valid archive with the entries of `file`, but a mutated pickle.
fn with_mutated_pickle(file: &[u8], random: &mut RandomNumbers) -> Vec<u8> {
    let mut entries = entries(file);
    for (name, data) in &mut entries {
        if name.ends_with("/data.pkl") {
            *data = mutated(data, random);
        }
    }
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    stored_zip(ZipForm::Classic, &entries)
}

#[test]
fn mutated_files() {
    let _turn = take_turn();
    let tally = check_all(MAX_MEMORY_PER_BYTE, cases(2_000, |random| mutated(CLASSIFIER, random)));
    assert!(tally.num_opened > 500 && tally.num_rejected > 500, "{tally:?}");
    assert!(tally.num_tensors_read > 1000 && tally.num_tensors_rejected > 100, "{tally:?}");
    let tally = check_all(MAX_MEMORY_PER_BYTE, cases(1_000, |random| mutated(LEGACY, random)));
    assert!(tally.num_opened > 0 && tally.num_rejected > 0, "{tally:?}");

    let tally = check_all(MAX_MEMORY_PER_BYTE, cases(1_000, |random| mutated(LATENT, random)));
    assert!(tally.num_opened > 200 && tally.num_rejected > 200, "{tally:?}");
}

#[test]
fn mutated_archives_with_64_bit_sizes() {
    let _turn = take_turn();
    let entries = entries(LATENT);
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    let zip = stored_zip(ZipForm::Zip64, &entries);
    let directory_start = zip.len() - 1500;
    let files = cases(1_000, |random| [&zip[..directory_start], &mutated(&zip[directory_start..], random)].concat());
    let tally = check_all(MAX_MEMORY_PER_BYTE, files);
    assert!(tally.num_rejected > 500, "{tally:?}");
}

#[test]
fn mutated_pickles_in_valid_archives() {
    let _turn = take_turn();
    for file in [CLASSIFIER, LATENT] {
        let tally = check_all(MAX_MEMORY_PER_BYTE, cases(3_000, |random| with_mutated_pickle(file, random)));
        assert!(tally.num_opened > 300 && tally.num_rejected > 300, "{tally:?}");
        assert!(tally.num_tensors_read > 500 && tally.num_tensors_rejected > 300, "{tally:?}");
    }
}

#[test]
fn mutated_pickles_of_a_whole_model() {
    let _turn = take_turn();
    let storages: Vec<(String, Vec<u8>)> = (0..40).map(|key| (format!("last/data/{key}"), vec![7; 128])).collect();
    let files = cases(500, |random| {
        let pickle = mutated(LAST_PICKLE, random);
        let mut entries = vec![("last/data.pkl", pickle.as_slice())];
        entries.extend(storages.iter().map(|(name, data)| (name.as_str(), data.as_slice())));
        stored_zip(ZipForm::Classic, &entries)
    });
    let tally = check_all(MAX_MEMORY_PER_BYTE, files);
    assert!(tally.num_opened > 100 && tally.num_rejected > 100, "{tally:?}");
    assert!(tally.num_tensors_read > 500 && tally.num_json > 500, "{tally:?}");
}

#[test]
fn pickles_that_take_most_memory_per_byte() {
    let _turn = take_turn();
    let patterns: &[&[u8]] = &[
        b"]",
        b"N",
        b"(",
        b"2",
        b")",
        b"]\x94",
        b"]0",
        b"K\x00",
        b"N\x94",
        b"K\x00\x94",
        b"N\x85",
        b"Q\x94",
        b")R",
        b"NNa",
        b"U\x00",
        b"U\x01\xff",
        b"ca\nb\n",
        b"(NNNNNNNNNNNNNNNt",
        b"}NNs",
        b"\x8f\x94",
        b"]NNa",
        b"V\xe9\n",
        b"I1\n",
        b"]Na",
    ];
    let files = patterns.iter().flat_map(|pattern| {
        let body = pattern.repeat((1_usize << 18).div_euclid(pattern.len()));
        [&b"N"[..], b"](", b"}(NN"].map(|start| {
            let end: &[u8] = match start {
                b"](" => b"e.",
                b"}(NN" => b"u.",
                _ => b"0.",
            };
            let pickle = [start, &body, end].concat();
            stored_zip(ZipForm::Classic, &[("x/data.pkl", &pickle)])
        })
    });
    check_all(MAX_MEMORY_PER_HOSTILE_BYTE, files);
}

#[test]
fn directories_that_take_most_memory_per_byte() {
    let _turn = take_turn();
    let names: Vec<String> = (0..60_000).map(|entry_idx| format!("{entry_idx:x}")).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    check_all(MAX_MEMORY_PER_BYTE, std::iter::once(stored_zip(ZipForm::Classic, &entries)));
}

#[test]
fn mutated_files_of_other_protocols() {
    let _turn = take_turn();
    for file in OTHER_PROTOCOLS {
        let tally = check_all(MAX_MEMORY_PER_BYTE, cases(1_000, |random| mutated(file, random)));
        assert!(tally.num_opened > 50 && tally.num_rejected > 200, "{tally:?}");
    }
}

/// Checks time and memory of reading a folder or file of weights to the end, whatever it contains.
fn check_weights(path: &Path, len: usize) -> bool {
    ALLOCATOR.reset_peak_usage();
    let (before, start) = (ALLOCATOR.current_usage(), Instant::now());
    let read = diffae_nets::weights::read_state_dict(path);
    if let Err(error) = &read {
        assert!(error.to_string().len() < 1000, "{error}");
    }
    let is_read = read.is_ok();
    drop(read);
    let memory = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(start.elapsed() < MAX_CASE_TIME, "{} takes {:?}", path.display(), start.elapsed());
    assert!(memory <= MEMORY_FOR_ANY_FILE + 2 * MAX_MEMORY_PER_BYTE * len, "{} takes {memory} bytes", path.display());
    is_read
}

#[test]
fn mutated_checkpoints_in_pieces() {
    let _turn = take_turn();
    let folder = tempfile::tempdir().unwrap();
    let len = PIECES.iter().map(|(_, file)| file.len()).sum();
    let mut num_read = 0;
    for seed in 0..1_500 {
        let mut random = RandomNumbers(seed);
        let mutated_idx = random.below(2);
        for (idx, (name, file)) in PIECES.iter().enumerate() {
            let content = if idx == mutated_idx { mutated(file, &mut random) } else { file.to_vec() };
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        num_read += usize::from(check_weights(folder.path(), len));
    }
    assert!((50..1_450).contains(&num_read), "{num_read}");
}

#[test]
fn mutated_indices_and_safetensors() {
    let _turn = take_turn();
    let folder = tempfile::tempdir().unwrap();
    let header =
        br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"hyper_parameters":"{\"T\": 1}"}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    std::fs::write(folder.path().join("a.safetensors"), &file).unwrap();
    let index = br#"{"metadata": {"total_size": 8}, "weight_map": {"a": "a.safetensors"}}"#;
    let mut num_read = 0;
    for seed in 0..1_500 {
        let mut random = RandomNumbers(seed);
        let content = mutated(if seed % 2 == 0 { &file } else { index }, &mut random);
        let path = folder.path().join("mutated");
        std::fs::write(&path, &content).unwrap();
        num_read += usize::from(check_weights(&path, content.len() + file.len()));
    }
    assert!((50..1_450).contains(&num_read), "{num_read}");
}
