//! Writes tensors and plain data as `torch.save` does, to test readers of them. Needs `pickle_writer` and `stored_zip`
//! beside it.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde_json::Value;

use crate::pickle_writer::{dict, int, pickle, storage, tensor, text};
use crate::stored_zip::{ZipForm, stored_zip};

/// Tensors by name.
pub(crate) type Named = BTreeMap<String, Tensor>;

/// A value of the dict that is saved.
pub(crate) enum Entry<'a> {
    /// A dict of tensors.
    Tensors(&'a Named),
    /// Plain data.
    Plain(&'a Value),
}

/// Returns a file whose root has these entries.
pub(crate) fn torch_file(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    let mut storages = vec![];
    let pickled: Vec<(&str, Vec<u8>)> = entries
        .iter()
        .map(|(key, entry)| {
            let value = match entry {
                Entry::Tensors(named) => tensors(named, &mut storages),
                Entry::Plain(value) => plain(value),
            };
            (*key, value)
        })
        .collect();
    archive(&dict(&pickled), &storages)
}

/// Returns a file whose root is the dict of tensors itself.
pub(crate) fn torch_state_dict(named: &Named) -> Vec<u8> {
    let mut storages = vec![];
    let root = tensors(named, &mut storages);
    archive(&root, &storages)
}

fn archive(root: &[u8], storages: &[Vec<u8>]) -> Vec<u8> {
    let pickle = pickle(root);
    let names: Vec<String> = (0..storages.len()).map(|key| format!("saved/data/{key}")).collect();
    let mut entries = vec![("saved/data.pkl", pickle.as_slice()), ("saved/byteorder", b"little")];
    entries.extend(names.iter().zip(storages).map(|(name, data)| (name.as_str(), data.as_slice())));
    stored_zip(ZipForm::Classic, &entries)
}

fn tensors(named: &Named, storages: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let mut pickled = vec![];
    for (name, value) in named {
        let flat = value.flatten_all().unwrap();
        let (class, bytes): (&str, Vec<u8>) = match value.dtype() {
            DType::F16 => {
                ("HalfStorage", flat.to_vec1::<half::f16>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            _ => ("FloatStorage", flat.to_vec1::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        let signed = |sizes: &[usize]| sizes.iter().map(|&size| i64::try_from(size).unwrap()).collect::<Vec<i64>>();
        let strides = value.stride().to_vec();
        assert!(value.is_contiguous(), "{name}");
        let storage = storage(class, &storages.len().to_string(), i64::try_from(value.elem_count()).unwrap());
        pickled.push((name.as_str(), tensor(&storage, 0, &signed(value.dims()), &signed(&strides))));
        storages.push(bytes);
    }
    dict(&pickled)
}

fn plain(value: &Value) -> Vec<u8> {
    match value {
        Value::Null => b"N".to_vec(),
        Value::Bool(true) => b"\x88".to_vec(),
        Value::Bool(false) => b"\x89".to_vec(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => int(number),
            None => [b"G", &number.as_f64().unwrap().to_be_bytes()[..]].concat(),
        },
        Value::String(string) => text(string),
        Value::Array(items) => [b"](", &items.iter().flat_map(plain).collect::<Vec<u8>>()[..], b"e"].concat(),
        Value::Object(object) => {
            let entries: Vec<(&str, Vec<u8>)> =
                object.iter().map(|(key, value)| (key.as_str(), plain(value))).collect();
            dict(&entries)
        }
    }
}
