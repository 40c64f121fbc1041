//! Conversion of the plain data of a pickle to JSON.

use serde_json::{Map, Number, Value};

use super::excerpt::excerpt;
use super::pickle_value::{DictEntries, Items, Node, NodeId, ValueArena};
use super::torch_error::JsonError;

/// Maximum nesting of JSON; also what `serde_json` reads. A value that contains itself ends here.
pub(super) const MAX_JSON_DEPTH: usize = 128;
/// Maximum number of values of JSON, skipped ones and keys included: shared values are written out once per use.
const MAX_JSON_VALUES: usize = 100_000;
/// Maximum number of uses of a value of a pickle on average, so that a small file cannot become a large JSON.
const MAX_MEAN_USES: usize = 4;
/// Number of JSON values that is allowed for any pickle, however small.
const FREE_JSON_VALUES: usize = 1000;
/// Maximum number of bytes of text in JSON.
const MAX_JSON_TEXT_BYTES: usize = 4 << 20;

/// Converts the value `id` to JSON.
///
/// Sequences and sets become arrays, dicts objects; keys that are int, float or bool are written as text and others
/// skip their entry. A call with one argument becomes the argument, as for members of an `Enum` and `torch.Size`.
/// Everything else has no JSON form and becomes null: other objects, tensors, bytes, classes, integers beyond
/// 64 bits, NaN and infinity.
/// # Errors
/// [`JsonError`] for a dict with one key twice and for more than the limits.
pub(super) fn json_from_value(arena: &ValueArena, id: NodeId) -> Result<Value, JsonError> {
    let value_limit = (FREE_JSON_VALUES + MAX_MEAN_USES * arena.num_nodes()).min(MAX_JSON_VALUES);
    JsonWriter { arena, value_limit, num_values: 0, num_text_bytes: 0 }.value(id, 0)
}

struct JsonWriter<'a> {
    arena: &'a ValueArena,
    value_limit: usize,
    num_values: usize,
    num_text_bytes: usize,
}

impl<'a> JsonWriter<'a> {
    /// Converts a value that lies in `depth` others.
    fn value(&mut self, id: NodeId, depth: usize) -> Result<Value, JsonError> {
        self.count_value()?;
        if depth > MAX_JSON_DEPTH {
            return Err(JsonError::TooDeep { limit: MAX_JSON_DEPTH });
        }
        Ok(match self.arena.node(id) {
            Node::Bool(value) => Value::Bool(value),
            Node::Int(number) => Value::Number(number.into()),
            Node::Float(number) => Number::from_f64(number).map_or(Value::Null, Value::Number),
            Node::Text(_) => Value::String(self.text(id)?),
            Node::Tuple(items) | Node::List(items) | Node::Set(items) => self.array(items, depth)?,
            Node::Dict(_) | Node::Object { .. } => match self.arena.dict_entries(id) {
                Some(entries) => self.object(entries, depth)?,
                None => self.opaque(id, depth)?,
            },
            Node::None | Node::HugeInt | Node::Bytes(_) | Node::Global { .. } | Node::Persistent(_) => Value::Null,
        })
    }

    fn array(&mut self, items: Items, depth: usize) -> Result<Value, JsonError> {
        self.arena.items(items).map(|item| self.value(item, depth + 1)).collect()
    }

    fn object(&mut self, entries: DictEntries<'a>, depth: usize) -> Result<Value, JsonError> {
        let mut object = Map::new();
        for (key, value) in entries {
            self.count_value()?;
            let Some(key) = self.key(key)? else {
                continue;
            };
            let value = self.value(value, depth + 1)?;
            if object.contains_key(&key) {
                return Err(JsonError::DuplicateKey { key: excerpt(key) });
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }

    fn key(&mut self, id: NodeId) -> Result<Option<String>, JsonError> {
        Ok(match self.arena.node(id) {
            Node::Text(_) => Some(self.text(id)?),
            Node::Bool(value) => Some(value.to_string()),
            Node::Int(number) => Some(number.to_string()),
            Node::Float(number) => Some(format!("{number:?}")),
            _ => None,
        })
    }

    /// Converts an object that is no dict: a filled list or set, a call with one argument, or nothing that JSON knows.
    fn opaque(&mut self, id: NodeId, depth: usize) -> Result<Value, JsonError> {
        let Node::Object { args, items, .. } = self.arena.node(id) else {
            return Ok(Value::Null);
        };
        match items.or_else(|| self.arena.single_item(args)) {
            Some(content) => self.value(content, depth + 1),
            None => Ok(Value::Null),
        }
    }

    fn text(&mut self, id: NodeId) -> Result<String, JsonError> {
        let text = self.arena.text(id).unwrap_or_default();
        self.num_text_bytes += text.len();
        if self.num_text_bytes > MAX_JSON_TEXT_BYTES {
            return Err(JsonError::TooMuchText { limit: MAX_JSON_TEXT_BYTES });
        }
        Ok(text.to_owned())
    }

    fn count_value(&mut self) -> Result<(), JsonError> {
        self.num_values += 1;
        if self.num_values > self.value_limit {
            return Err(JsonError::TooManyValues { limit: self.value_limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::weights::torch::pickle::Pickle;

    fn json_of(input: &[u8]) -> Result<Value, JsonError> {
        let pickle = Pickle::parse(input).unwrap_or_else(|error| panic!("{}: {error}", input.escape_ascii()));
        json_from_value(&pickle.arena, pickle.root)
    }

    #[test]
    fn plain_data() {
        let input = b"}(U\x01a](NK\x01\x88\x89eU\x01b(G\x3f\xf8\0\0\0\0\0\0U\x02\xc3\xa9tU\x01c(K\x07\x91U\x01d}u.";
        let expected = json!({"a": [null, 1, true, false], "b": [1.5, "é"], "c": [7], "d": {}});
        assert_eq!(json_of(input).unwrap(), expected);
    }

    #[test]
    fn keys_that_are_no_strings_become_text_or_skip_their_entry() {
        let input = b"}(K\x07N\x88NG\x3f\xf0\0\0\0\0\0\0N)K\x01NK\x02C\x01xK\x03U\x01zNu.";
        assert_eq!(json_of(input).unwrap(), json!({"7": null, "true": null, "1.0": null, "z": null}));
    }

    #[test]
    fn what_json_does_not_know_is_null() {
        for input in [
            &b"C\x01x."[..],
            b"\x8a\x09\0\0\0\0\0\0\0\0\x01.",
            b"Fnan\n.",
            b"Finf\n.",
            b"cos\nsystem\n.",
            b"cos\nsystem\n(U\x01aU\x01btR.",
            b"ca\nB\n)R.",
            b"K\x01Q.",
            b"ca\nB\ncc\nD\n\x85R.",
        ] {
            assert_eq!(json_of(input).unwrap(), Value::Null, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn objects_that_hold_one_value_become_it() {
        for (input, expected) in [
            (&b"cchoices\nModelType\nU\x0bautoencoder\x85R."[..], json!("autoencoder")),
            (b"ctorch\nSize\n(K\x02K\x03t\x85R.", json!([2, 3])),
            (b"cbuiltins\nset\n](K\x01e\x85R.", json!([1])),
            (b"ccollections\ndefaultdict\ncbuiltins\nlist\n\x85RU\x01aK\x01s.", json!({"a": 1})),
            (b"ca\nMyList\n)\x81K\x01a.", json!([1])),
        ] {
            assert_eq!(json_of(input).unwrap(), expected, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn ordered_dicts_in_all_forms() {
        for (arguments, expected) in [
            (&b")R"[..], json!({})),
            (b")R(U\x01aK\x01u", json!({"a": 1})),
            (b"](](U\x01aK\x01eU\x01bK\x02\x86e\x85R", json!({"a": 1, "b": 2})),
            (b"](U\x01aK\x01\x86e\x85RU\x01cNs", json!({"a": 1, "c": null})),
            (b"](K\x01U\x01aU\x01bN\x87e\x85R", json!({})),
        ] {
            let input = [b"ccollections\nOrderedDict\n", arguments, b"."].concat();
            assert_eq!(json_of(&input).unwrap(), expected, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_key_that_appears_twice_is_an_error() {
        for input in [&b"}(U\x01aNU\x01aNu."[..], b"}(U\x011NK\x01Nu."] {
            assert!(matches!(json_of(input), Err(JsonError::DuplicateKey { .. })), "{}", input.escape_ascii());
        }
        assert_eq!(json_of(b"}(U\x01aNU\x01aNu."), Err(JsonError::DuplicateKey { key: "a".to_owned() }));
    }

    #[test]
    fn depth_is_limited() {
        let nested = |depth: usize| [b"N", &b"\x85".repeat(depth)[..], b"."].concat();
        assert!(json_of(&nested(MAX_JSON_DEPTH)).is_ok());
        assert_eq!(json_of(&nested(MAX_JSON_DEPTH + 1)), Err(JsonError::TooDeep { limit: MAX_JSON_DEPTH }));
    }

    #[test]
    fn shared_values_count_at_each_use() {
        let mut laughs = b"]K\x01a".to_vec();
        for level in 0..40 {
            laughs.extend([b'q', level, b'0', b']', b'(']);
            laughs.extend([b'h', level].repeat(10));
            laughs.push(b'e');
        }
        laughs.push(b'.');
        assert!(matches!(json_of(&laughs), Err(JsonError::TooManyValues { limit }) if limit <= MAX_JSON_VALUES));

        let mut text = b"X\0\0\x01\0".to_vec();
        text.extend(b"a".repeat(1 << 16));
        text.extend(b"q\0](");
        text.extend(b"h\0".repeat(1000));
        text.extend(b"e\x86.");
        assert_eq!(json_of(&text), Err(JsonError::TooMuchText { limit: MAX_JSON_TEXT_BYTES }));
    }

    #[test]
    fn skipped_entries_count_as_well() {
        let mut skipped = b"}q\0(".to_vec();
        skipped.extend(b")N".repeat(1000));
        skipped.extend(b"u](");
        skipped.extend(b"h\0".repeat(1000));
        skipped.extend(b"e\x86.");
        assert!(matches!(json_of(&skipped), Err(JsonError::TooManyValues { limit }) if limit <= MAX_JSON_VALUES));
    }
}
