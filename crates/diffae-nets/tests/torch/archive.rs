//! Tests of files that are no checkpoint or a damaged one.

use diffae_nets::weights::torch::{ArchiveError, FileKind, PickleError, TorchError, TorchFile, ZipKind};

use crate::pickle_writer::{dict, int, pickle, storage, tensor};
use crate::stored_zip::{ZipForm, stored_zip};
use crate::{checkpoint, error_of, open, whole_message};

const CLASSIFIER: &[u8] = include_bytes!("../data/classifier.ckpt");

/// Returns the archive error in an error on opening.
fn archive_error_of(content: &[u8]) -> ArchiveError {
    match error_of(content) {
        TorchError::Archive { source, .. } => source,
        error => panic!("{error:?}"),
    }
}

/// Returns the place of the `n`th occurrence of `pattern`.
fn find(content: &[u8], pattern: &[u8], n: usize) -> usize {
    content.windows(pattern.len()).enumerate().filter(|(_, window)| *window == pattern).nth(n).unwrap().0
}

/// Returns the content with other bytes at a place.
fn patched(content: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

fn one_tensor(form: ZipForm) -> Vec<u8> {
    let pickle = pickle(&dict(&[("a", tensor(&storage("ShortStorage", "0", 2), 0, &[2], &[1]))]));
    let entries = [("x/data.pkl", &pickle[..]), ("x/byteorder", b"little"), ("x/data/0", &[1, 2, 3, 4])];
    stored_zip(form, &entries)
}

#[test]
fn both_forms_of_archives_are_read() {
    for form in [ZipForm::Classic, ZipForm::Zip64] {
        let file = open(&one_tensor(form)).unwrap();
        let tensors = file.root_tensors().unwrap();
        assert_eq!(*file.read(&tensors["a"]).unwrap().bytes, [1, 2, 3, 4]);
    }
}

#[test]
fn a_comment_behind_the_archive_is_skipped() {
    let mut zip = one_tensor(ZipForm::Classic);
    let comment = b"PK\x05\x06 is how the record starts that this comment follows";
    let at = zip.len() - 2;
    zip[at..].copy_from_slice(&u16::try_from(comment.len()).unwrap().to_le_bytes());
    zip.extend(comment);
    assert!(open(&zip).is_ok());
}

#[test]
fn debug_output_is_short() {
    let file = open(CLASSIFIER).unwrap();
    assert!(format!("{file:?}").len() < 300);
}

#[test]
fn a_missing_file_names_its_path() {
    let error = TorchFile::open("/no/such/last.ckpt".as_ref()).unwrap_err();
    assert!(matches!(error, TorchError::Open { .. }));
    assert!(whole_message(&error).contains("/no/such/last.ckpt"));
}

#[test]
fn other_kinds_of_files_are_named() {
    for (content, expected, hint) in [
        (&b""[..], FileKind::Empty, "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", FileKind::GitLfsPointer, "git lfs pull"),
        (b"<!DOCTYPE html>", FileKind::HtmlPage, "a web page"),
    ] {
        let error = error_of(content);
        assert!(matches!(&error, TorchError::NotTorch { kind, .. } if *kind == expected), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("test.ckpt") && message.contains(hint), "{message}");
    }
}

#[test]
fn broken_files_before_pytorch_1_6_say_where() {
    let whole = include_bytes!("../data/legacy.pth");
    assert!(open(whole).is_ok());
    for (len, hint) in
        [(14, "magic number"), (40, "facts of the machine"), (300, "saved object"), (750, "within storage")]
    {
        let error = error_of(&whole[..len]);
        let message = whole_message(&error);
        assert!(message.contains("before PyTorch 1.6") && message.contains(hint), "{len}: {message}");
    }
    // The version is the number behind the magic one.
    let mut other_version = whole.to_vec();
    other_version[18] = 0;
    assert!(whole_message(&error_of(&other_version)).contains("version is not 1001"));
}

#[test]
fn a_file_that_is_cut_short_has_no_directory() {
    for len in [4, 100, CLASSIFIER.len() >> 1, CLASSIFIER.len() - 1] {
        let error = error_of(&CLASSIFIER[..len]);
        assert!(whole_message(&error).contains("not written or downloaded to the end"), "{error:?}");
        assert_eq!(archive_error_of(&CLASSIFIER[..len]), ArchiveError::NoDirectoryEnd { file_len: len });
    }
    let padded = [CLASSIFIER, &[0; 100]].concat();
    assert_eq!(archive_error_of(&padded), ArchiveError::NoDirectoryEnd { file_len: padded.len() });
}

#[test]
fn a_directory_that_does_not_fit_is_rejected() {
    let zip = one_tensor(ZipForm::Classic);
    let end = zip.len() - 22;
    for (at, bytes) in [(4, &[1][..]), (6, &[1]), (8, &[1]), (12, &[0xff; 4]), (16, &[0xff; 4]), (15, &[1])] {
        let broken = patched(&zip, end + at, bytes);
        assert_eq!(archive_error_of(&broken), ArchiveError::BadDirectoryEnd { file_len: zip.len() }, "{at}");
    }
    let zip = one_tensor(ZipForm::Zip64);
    let (record, locator) = (zip.len() - 22 - 20 - 56, zip.len() - 22 - 20);
    for (at, bytes) in [
        (record, &b"X"[..]),
        (record + 16, &[1]),
        (record + 24, &[9]),
        (record + 40, &[0xff; 8]),
        (record + 48, &[0xff; 8]),
        (locator + 8, &[0xff; 8]),
        (locator + 8, &[0; 8]),
    ] {
        let broken = patched(&zip, at, bytes);
        assert_eq!(archive_error_of(&broken), ArchiveError::BadDirectoryEnd { file_len: zip.len() }, "{at}");
    }
    // A directory that ends before its last entry, or starts elsewhere.
    let zip = one_tensor(ZipForm::Classic);
    for (at, byte, entry_idx) in [(12, zip[end + 12] - 1, 2), (10, 4, 3), (16, zip[end + 16] - 1, 0)] {
        let mut broken = patched(&zip, end + at, &[byte]);
        broken[end + 8] = broken[end + 10];
        let num_entries = broken[end + 8].into();
        assert_eq!(archive_error_of(&broken), ArchiveError::BadDirectoryEntry { entry_idx, num_entries });
    }
}

#[test]
fn a_zip64_field_that_is_missing_or_short_breaks_its_entry() {
    let zip = one_tensor(ZipForm::Zip64);
    let extra = find(&zip, b"PK\x01\x02", 0) + 46 + "x/data.pkl".len();
    for (at, bytes) in [(5, [2, 0]), (7, [16, 0]), (2, [0xff, 0])] {
        let broken = patched(&zip, extra + at, &bytes);
        assert_eq!(archive_error_of(&broken), ArchiveError::BadDirectoryEntry { entry_idx: 0, num_entries: 3 });
    }
}

#[test]
fn entries_must_be_stored_and_unique() {
    let zip = one_tensor(ZipForm::Classic);
    let entry = find(&zip, b"PK\x01\x02", 1);
    let name = || "x/byteorder".to_owned();
    let error = archive_error_of(&patched(&zip, entry + 10, &[8]));
    assert_eq!(error, ArchiveError::Compressed { entry: name(), method: 8 });
    assert!(error.to_string().contains("PyTorch never compresses"), "{error}");
    assert_eq!(archive_error_of(&patched(&zip, entry + 8, &[1])), ArchiveError::Encrypted { entry: name() });
    let expected = ArchiveError::TwoSizes { entry: name(), len: 6, stored_len: 5 };
    assert_eq!(archive_error_of(&patched(&zip, entry + 20, &[5])), expected);

    let twice = stored_zip(ZipForm::Classic, &[("x/data.pkl", b"N."), ("x/data.pkl", b"}.")]);
    assert_eq!(archive_error_of(&twice), ArchiveError::DuplicateEntry { entry: "x/data.pkl".to_owned() });
}

#[test]
fn entries_that_are_not_where_the_directory_says_are_damage() {
    let zip = one_tensor(ZipForm::Classic);
    let expected = ArchiveError::Misplaced { entry: "x/data.pkl".to_owned() };
    let entry = find(&zip, b"PK\x01\x02", 0);
    for broken in [
        patched(&zip, 0, b"PK\x05\x06"),
        patched(&zip, 26, &[9]),
        patched(&zip, 30, b"y"),
        patched(&zip, 28, &[0xff; 2]),
        patched(&zip, entry + 42, &[1]),
        patched(&zip, entry + 42, &[0xff, 0xff, 0xff, 0]),
        // A length that reaches into the directory.
        patched(&zip, entry + 20, &[0xff, 1, 0, 0, 0xff, 1, 0, 0]),
    ] {
        assert_eq!(archive_error_of(&broken), expected);
    }
}

#[test]
fn damage_is_found_by_checksum_and_names_the_entry() {
    let at = find(CLASSIFIER, b"global_step", 0);
    let error = error_of(&patched(CLASSIFIER, at, b"G"));
    let message = whole_message(&error);
    assert!(message.contains("the file is damaged") && message.contains("classifier/data.pkl"), "{message}");

    let zip = one_tensor(ZipForm::Classic);
    let at = find(&zip, &[1, 2, 3, 4], 0);
    let file = open(&patched(&zip, at, &[0])).unwrap();
    let tensors = file.root_tensors().unwrap();
    for _ in 0..2 {
        let error = file.read(&tensors["a"]).unwrap_err();
        let message = whole_message(&error);
        assert!(message.contains("the file is damaged") && message.contains("x/data/0"), "{message}");
        let TorchError::Storage { source: ArchiveError::Damaged { got, expected, .. }, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!((got, expected), (crc32fast::hash(&[0, 2, 3, 4]), crc32fast::hash(&[1, 2, 3, 4])));
    }
}

#[test]
fn without_any_checksum_none_is_compared() {
    let zip = without_checksums(one_tensor(ZipForm::Classic), &[0, 1, 2]);
    let file = open(&zip).unwrap();
    assert_eq!(*file.read(&file.root_tensors().unwrap()["a"]).unwrap().bytes, [1, 2, 3, 4]);
    // Checksums that are left count, and zero is one of them.
    let zip = without_checksums(one_tensor(ZipForm::Classic), &[2]);
    let file = open(&zip).unwrap();
    let error = file.read(&file.root_tensors().unwrap()["a"]).unwrap_err();
    assert!(
        matches!(error, TorchError::Storage { source: ArchiveError::Damaged { expected: 0, .. }, .. }),
        "{error:?}"
    );
}

/// Returns an archive with zero as the checksum of some entries.
fn without_checksums(mut zip: Vec<u8>, entries: &[usize]) -> Vec<u8> {
    for &entry in entries {
        let at = find(&zip, b"PK\x01\x02", entry) + 16;
        zip[at..at + 4].fill(0);
    }
    zip
}

#[test]
fn archives_of_something_else_are_told_apart() {
    let other = |num_entries, first_entry: &str| ZipKind::Other { num_entries, first_entry: first_entry.to_owned() };
    for (entries, expected) in [
        // An archive without entries is only its last record.
        (&[][..], other(0, "")),
        (&["a/b/data.pkl", "x"], other(2, "a/b/data.pkl")),
        (&["last.ckpt", "README.md"], ZipKind::Packed { entry: "last.ckpt".to_owned() }),
        (&["x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"], ZipKind::TorchScript),
        (&["archive_format", "models/model.json"], ZipKind::ExportedProgram),
        (&["serialized_exported_program.json", "serialized_state_dict.pt"], ZipKind::ExportedProgram),
        (&["x/.data/extern_modules", "x/model/model.pkl"], ZipKind::TorchPackage),
        (&["conv/weight.npy", "b.npy"], ZipKind::Npz),
        (&["config.json", "model.weights.h5"], ZipKind::Keras),
    ] {
        let entries: Vec<(&str, &[u8])> = entries.iter().map(|name| (*name, &b"}."[..])).collect();
        let error = error_of(&stored_zip(ZipForm::Classic, &entries));
        assert!(matches!(&error, TorchError::OtherArchive { kind, .. } if *kind == expected), "{error:?}");
        assert!(error.to_string().contains("test.ckpt"), "{error}");
    }
    let error = error_of(&stored_zip(ZipForm::Classic, &[("b/data.pkl", b"}."), ("a/data.pkl", b"}.")]));
    assert!(matches!(&error, TorchError::SeveralPickles { first, second, .. } if first == "a" && second == "b"));
}

#[test]
fn the_byte_order_must_be_little() {
    let zip = stored_zip(ZipForm::Classic, &[("a/data.pkl", b"}."), ("a/byteorder", b"big")]);
    let error = error_of(&zip);
    assert!(matches!(&error, TorchError::ByteOrder { found, .. } if found == "big"), "{error:?}");
}

#[test]
fn a_broken_pickle_is_named() {
    let error = error_of(&stored_zip(ZipForm::Classic, &[("a/data.pkl", b"}")]));
    let TorchError::Pickle { entry, source, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((entry.as_str(), source), ("a/data.pkl", &PickleError::MissingStop { len: 1 }));
    assert!(whole_message(&error).contains("no STOP"));
}

#[test]
fn the_root_must_be_a_dict_with_unique_keys() {
    let error = error_of(&checkpoint(b"]", &[]));
    assert!(matches!(&error, TorchError::RootNotDict { found, .. } if found == "a list"), "{error:?}");
    let error = error_of(&checkpoint(b"cmodel\nLitModel\n)\x81}b", &[]));
    assert!(
        matches!(&error, TorchError::RootNotDict { found, .. } if found == "an object of model.LitModel"),
        "{error:?}"
    );
    let error = error_of(&checkpoint(&dict(&[("epoch", int(1)), ("epoch", int(2))]), &[]));
    assert!(matches!(&error, TorchError::DuplicateKey { key, .. } if key == "epoch"), "{error:?}");
}
