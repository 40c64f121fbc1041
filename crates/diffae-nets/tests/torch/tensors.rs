//! Tests of tensors and plain data in checkpoints that were written by hand.

use std::borrow::Cow;

use diffae_nets::weights::torch::{JsonError, TorchDtype, TorchError, TorchFile};
use serde_json::json;

use crate::pickle_writer::{call, dict, global, int, ints, storage, tensor, text, tuple};
use crate::{checkpoint, open, whole_message};

/// Returns a checkpoint whose `state_dict` has these tensors and whose storage `0` has eight bytes.
fn with_tensors(tensors: &[(&str, Vec<u8>)]) -> TorchFile {
    open(&checkpoint(&dict(&[("state_dict", dict(tensors))]), &[("test/data/0", &[0, 1, 2, 3, 4, 5, 6, 7])])).unwrap()
}

fn read_error(value: Vec<u8>) -> TorchError {
    let file = with_tensors(&[("a.weight", value)]);
    let tensors = file.tensors_under("state_dict").unwrap();
    file.read(&tensors["a.weight"]).unwrap_err()
}

fn listing_error(value: Vec<u8>) -> TorchError {
    with_tensors(&[("a.weight", value)]).tensors_under("state_dict").unwrap_err()
}

fn bytes_storage() -> Vec<u8> {
    storage("ByteStorage", "0", 8)
}

#[test]
fn every_dtype_is_known_by_its_storage_class() {
    for (class, dtype, num_bytes, name) in [
        ("DoubleStorage", TorchDtype::F64, 8, "float64"),
        ("FloatStorage", TorchDtype::F32, 4, "float32"),
        ("HalfStorage", TorchDtype::F16, 2, "float16"),
        ("BFloat16Storage", TorchDtype::BF16, 2, "bfloat16"),
        ("LongStorage", TorchDtype::I64, 8, "int64"),
        ("IntStorage", TorchDtype::I32, 4, "int32"),
        ("ShortStorage", TorchDtype::I16, 2, "int16"),
        ("CharStorage", TorchDtype::I8, 1, "int8"),
        ("ByteStorage", TorchDtype::U8, 1, "uint8"),
        ("BoolStorage", TorchDtype::Bool, 1, "bool"),
    ] {
        let numel = 8_i64.div_euclid(num_bytes);
        let file = with_tensors(&[("a", tensor(&storage(class, "0", numel), 0, &[numel], &[1]))]);
        let read = file.read(&file.tensors_under("state_dict").unwrap()["a"]).unwrap();
        assert_eq!((read.dtype, read.bytes.len()), (dtype, 8));
        assert_eq!((dtype.num_bytes(), dtype.to_string()), (usize::try_from(num_bytes).unwrap(), name.to_owned()));
    }
}

#[test]
fn tensors_that_share_a_storage_are_views_of_it() {
    let shared = storage("ByteStorage", "0", 8);
    let file = with_tensors(&[
        ("all", tensor(&shared, 0, &[2, 4], &[4, 1])),
        ("tail", tensor(&shared, 5, &[3], &[1])),
        ("transposed", tensor(&shared, 0, &[4, 2], &[1, 4])),
        ("none", tensor(&shared, 0, &[0], &[1])),
    ]);
    let tensors = file.tensors_under("state_dict").unwrap();
    let read = |name: &str| file.read(&tensors[name]).unwrap().bytes;
    assert_eq!(*read("all"), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(*read("tail"), [5, 6, 7]);
    assert_eq!(*read("transposed"), [0, 4, 1, 5, 2, 6, 3, 7]);
    assert!(read("none").is_empty());
    assert!(matches!(
        (read("all"), read("tail"), read("transposed")),
        (Cow::Borrowed(_), Cow::Borrowed(_), Cow::Owned(_))
    ));
    let view = tensors["transposed"].view().unwrap();
    assert_eq!((view.storage_key.as_str(), view.storage_numel, view.strides.as_slice()), ("0", 8, &[1, 4][..]));
}

#[test]
fn a_small_file_cannot_fill_the_memory() {
    let names = ["a", "b", "c", "d", "e"];
    let all = |names: &[&str]| {
        let tensors: Vec<_> = names.iter().map(|&name| (name, tensor(&bytes_storage(), 0, &[8], &[1]))).collect();
        with_tensors(&tensors).tensors_under("state_dict")
    };
    assert_eq!(all(&names[..4]).unwrap().len(), 4);
    let error = all(&names).unwrap_err();
    assert!(matches!(error, TorchError::TooManyBytes { limit: 32, .. }), "{error}");
}

#[test]
fn all_forms_of_tensors_are_understood() {
    let data = tensor(&bytes_storage(), 0, &[2], &[1]);
    let hooks = || call("collections", "OrderedDict", &[]);
    let size = call("torch", "Size", &[ints(&[2])]);
    let false_ = || b"\x89".to_vec();
    let args = |more: &[Vec<u8>]| [&[bytes_storage(), int(0), ints(&[2]), ints(&[1])][..], more].concat();
    for value in [
        call("torch._utils", "_rebuild_parameter", &[data.clone(), false_(), hooks()]),
        call("torch._utils", "_rebuild_parameter_with_state", &[data.clone(), false_(), hooks(), dict(&[])]),
        call("torch._utils", "_rebuild_tensor", &args(&[])),
        call("torch._utils", "_rebuild_tensor_v2", &args(&[false_(), hooks(), dict(&[])])),
        call("torch._utils", "_rebuild_tensor_v2", &args(&[false_(), hooks(), b"N".to_vec()])),
        call("torch._utils", "_rebuild_tensor_v2", &[bytes_storage(), int(0), size, ints(&[1]), false_(), hooks()]),
    ] {
        let file = with_tensors(&[("a", value)]);
        assert_eq!(*file.read(&file.tensors_under("state_dict").unwrap()["a"]).unwrap().bytes, [0, 1]);
    }
}

#[test]
fn other_values_and_other_keys_are_skipped() {
    let data = tensor(&bytes_storage(), 0, &[2], &[1]);
    let entries =
        [text("a"), data.clone(), int(7), data.clone(), text("step"), int(3), text("b"), dict(&[("c", data)])];
    let file = open(&checkpoint(&[b"}(", &entries.concat()[..], b"u"].concat(), &[("test/data/0", &[0; 8])])).unwrap();
    assert_eq!(file.root_tensors().unwrap().keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(file.root_keys().collect::<Vec<_>>(), ["a", "b", "step"]);
    assert_eq!(file.tensors_under("b").unwrap().keys().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn missing_and_wrong_entries_are_named() {
    let file = open(&checkpoint(&dict(&[("model", dict(&[])), ("epoch", int(3))]), &[])).unwrap();
    let error = file.tensors_under("state_dict").unwrap_err();
    assert!(
        matches!(&error, TorchError::MissingKey { key, available } if key == "state_dict" && available == &["epoch", "model"])
    );
    let error = file.tensors_under("epoch").unwrap_err();
    assert!(matches!(&error, TorchError::NotDict { key, found } if key == "epoch" && found == "an int"));
}

#[test]
fn a_name_that_appears_twice_is_an_error() {
    let data = tensor(&bytes_storage(), 0, &[2], &[1]);
    let error = with_tensors(&[("a", data.clone()), ("a", data)]).tensors_under("state_dict").unwrap_err();
    assert!(matches!(&error, TorchError::DuplicateKey { within, key } if within == "state_dict" && key == "a"));
}

#[test]
fn unsupported_tensors_are_named_only_when_they_are_asked_for() {
    let hooks = call("collections", "OrderedDict", &[]);
    let negated = dict(&[("neg", b"\x88".to_vec())]);
    let args = [bytes_storage(), int(0), ints(&[2]), ints(&[1]), b"\x89".to_vec(), hooks.clone(), negated];
    let typed_id = [text("storage"), global("torch.storage", "TypedStorage"), text("0"), text("cpu"), int(8)];
    for (value, expected) in [
        (tensor(&storage("ComplexFloatStorage", "0", 1), 0, &[1], &[1]), "torch.ComplexFloatStorage"),
        (tensor(&[&tuple(&typed_id)[..], b"Q"].concat(), 0, &[1], &[1]), "torch.storage.TypedStorage"),
        (call("torch._utils", "_rebuild_sparse_tensor", &[]), "torch._utils._rebuild_sparse_tensor"),
        (call("torch._utils", "_rebuild_tensor_v3", &[]), "torch._utils._rebuild_tensor_v3"),
        (call("torch._tensor", "_rebuild_from_type_v2", &[]), "torch._tensor._rebuild_from_type_v2"),
        (call("torch._utils", "_rebuild_parameter", &[]), "torch._utils._rebuild_parameter"),
        (call("torch._utils", "_rebuild_tensor_v2", &args), "torch._utils._rebuild_tensor_v2 with metadata"),
    ] {
        let file = with_tensors(&[("odd", value), ("plain", tensor(&bytes_storage(), 0, &[2], &[1]))]);
        let tensors = file.tensors_under("state_dict").unwrap();
        assert!(file.read(&tensors["plain"]).is_ok());
        for error in [file.read(&tensors["odd"]).unwrap_err(), tensors["odd"].view().unwrap_err()] {
            let TorchError::UnsupportedTensor { tensor, class } = &error else {
                panic!("{error:?}");
            };
            assert!(tensor == "odd" && class.starts_with(expected), "{error}");
        }
    }
}

#[test]
fn untyped_storages_hold_bytes() {
    let id = [text("storage"), global("torch.storage", "UntypedStorage"), text("0"), text("cpu"), int(8)];
    let file = with_tensors(&[("a", tensor(&[&tuple(&id)[..], b"Q"].concat(), 0, &[8], &[1]))]);
    assert_eq!(file.read(&file.tensors_under("state_dict").unwrap()["a"]).unwrap().dtype, TorchDtype::U8);
}

#[test]
fn broken_descriptions_say_what_is_broken() {
    let rank_17 = [1; 17];
    let hooks = || call("collections", "OrderedDict", &[]);
    let rebuild = |args: &[Vec<u8>]| call("torch._utils", "_rebuild_tensor_v2", args);
    let good = || [bytes_storage(), int(0), ints(&[2]), ints(&[1]), b"\x89".to_vec(), hooks()];
    let with = |position: usize, value: Vec<u8>| {
        let mut args = good();
        args[position] = value;
        rebuild(&args)
    };
    let persistent = |id: &[Vec<u8>]| [&tuple(id)[..], b"Q"].concat();
    let id = || [text("storage"), global("torch", "ByteStorage"), text("0"), text("cpu"), int(8)];
    let with_id = |position: usize, value: Vec<u8>| {
        let mut id = id();
        id[position] = value;
        with(0, persistent(&id))
    };
    for (value, expected) in [
        (rebuild(&[]), "number of arguments"),
        (rebuild(&good()[..5]), "number of arguments"),
        (rebuild(&[good(), good()].concat()), "number of arguments"),
        (with(0, int(1)), "storage"),
        (with(0, [&int(1)[..], b"Q"].concat()), "storage"),
        (with(0, persistent(&id()[..4])), "storage"),
        (with(0, persistent(&[&id()[..], &[int(1)]].concat())), "storage"),
        (with_id(0, text("module")), "storage"),
        (with_id(1, text("ByteStorage")), "storage"),
        (with_id(2, int(0)), "storage"),
        (with_id(2, text(&"0".repeat(65))), "storage"),
        (with_id(4, int(-8)), "storage"),
        (with(1, int(-1)), "offset"),
        (with(1, text("0")), "offset"),
        (with(2, int(2)), "shape"),
        (with(2, ints(&[-2])), "shape"),
        (with(2, tuple(&[b"\x88".to_vec()])), "shape"),
        (with(2, ints(&rank_17)), "shape"),
        (with(3, ints(&[-1])), "strides"),
        (with(3, ints(&[])), "shape and strides differ in length"),
    ] {
        let error = listing_error(value);
        let TorchError::MalformedTensor { tensor, problem } = &error else {
            panic!("{error:?}");
        };
        assert_eq!((tensor.as_str(), *problem), ("a.weight", expected));
    }
}

#[test]
fn tensors_must_lie_in_their_storage() {
    let error = read_error(tensor(&bytes_storage(), 0, &[1 << 40], &[0]));
    assert!(matches!(&error, TorchError::LargerThanStorage { shape, .. } if shape == &[1 << 40]), "{error:?}");
    let error = read_error(tensor(&bytes_storage(), 0, &[i64::MAX, i64::MAX], &[0, 0]));
    assert!(matches!(error, TorchError::LargerThanStorage { .. }), "{error:?}");
    let error = read_error(tensor(&bytes_storage(), 7, &[2], &[1]));
    assert!(matches!(error, TorchError::OutOfStorage { offset: 7, .. }), "{error:?}");
    let error = read_error(tensor(&bytes_storage(), i64::MAX, &[2], &[i64::MAX]));
    assert!(matches!(error, TorchError::OutOfStorage { .. }), "{error:?}");
    assert!(whole_message(&error).contains("a.weight"), "{error}");
}

#[test]
fn storages_must_be_there_with_the_declared_length() {
    for key in ["1", "", "../data.pkl"] {
        let error = read_error(tensor(&storage("ByteStorage", key, 8), 0, &[1], &[1]));
        let expected = format!("test/data/{key}");
        assert!(matches!(&error, TorchError::MissingStorage { entry, .. } if *entry == expected), "{error:?}");
    }
    for (class, numel, expected_len) in
        [("ByteStorage", 9, 9), ("FloatStorage", 3, 12), ("LongStorage", i64::MAX, u64::MAX)]
    {
        let error = read_error(tensor(&storage(class, "0", numel), 0, &[1], &[1]));
        assert!(
            matches!(error, TorchError::StorageLen { got: 8, expected, .. } if expected == expected_len),
            "{error:?}"
        );
    }
}

#[test]
fn the_number_of_tensors_is_limited() {
    let mut entries = [b"}".to_vec(), tensor(&bytes_storage(), 0, &[0], &[1]), b"q\x010(".to_vec()].concat();
    for name in 0..=100_000 {
        entries.extend(text(&name.to_string()));
        entries.extend(b"h\x01");
    }
    entries.push(b'u');
    let error = open(&checkpoint(&entries, &[])).unwrap().root_tensors().unwrap_err();
    assert!(matches!(error, TorchError::TooManyTensors { limit: 100_000, .. }), "{error:?}");
}

#[test]
fn data_without_json_form_name_their_key() {
    let file = open(&checkpoint(&[&b"}("[..], &text("loop"), b"]q\0h\0au"].concat(), &[])).unwrap();
    let error = file.json_under("loop").unwrap_err();
    assert!(
        matches!(&error, TorchError::Json { key, source: JsonError::TooDeep { .. } } if key == "loop"),
        "{error:?}"
    );
}

#[test]
fn checkpoints_can_be_read_from_several_threads() {
    let file = with_tensors(&[("a", tensor(&bytes_storage(), 1, &[2], &[1]))]);
    let tensors = file.tensors_under("state_dict").unwrap();
    std::thread::scope(|scope| {
        let readers = [(); 4].map(|()| scope.spawn(|| file.read(&tensors["a"]).unwrap().bytes.into_owned()));
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() == [1, 2]));
    });
}

#[test]
fn code_in_a_checkpoint_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = text(&format!("touch {}", witness.display()));
    let file = open(&checkpoint(
        &dict(&[
            ("posix", call("posix", "system", std::slice::from_ref(&command))),
            ("os", call("os", "system", &[command])),
            ("epoch", int(3)),
        ]),
        &[],
    ))
    .unwrap();
    assert!(file.root_tensors().unwrap().is_empty());
    assert_eq!(file.json_under("epoch").unwrap(), Some(json!(3)));
    assert!(file.json_under("os").unwrap().is_some_and(|command| command.is_string()));
    assert!(!witness.exists());
}
