//! Tests of every opcode, every error, and hostile pickles.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::weights::torch::pickle_json::{MAX_JSON_DEPTH, json_from_value};
use crate::weights::torch::torch_error::JsonError;

/// Formats the value of a pickle as Python's `repr` would, with calls spelled out, down to some depth.
fn repr(pickle: &Pickle, id: NodeId, depth: usize) -> String {
    if depth > 6 {
        return "..".to_owned();
    }
    let arena = &pickle.arena;
    let list = |items: Items| arena.items(items).map(|id| repr(pickle, id, depth + 1)).collect::<Vec<_>>();
    match arena.node(id) {
        Node::None => "None".to_owned(),
        Node::Bool(value) => if value { "True" } else { "False" }.to_owned(),
        Node::Int(number) => number.to_string(),
        Node::HugeInt => "huge".to_owned(),
        Node::Float(number) => format!("{number:?}"),
        Node::Text(_) => format!("'{}'", arena.text(id).unwrap()),
        Node::Bytes(len) => format!("bytes({len})"),
        Node::Tuple(items) => format!("({})", list(items).join(", ")),
        Node::List(items) => format!("[{}]", list(items).join(", ")),
        Node::Set(items) => format!("{{{}}}", list(items).join(", ")),
        Node::Dict(items) => {
            let mut text = "{".to_owned();
            for entry in list(items).chunks(2) {
                write!(text, "{}: {}, ", entry[0], entry[1]).unwrap();
            }
            format!("{}}}", text.trim_end_matches(", "))
        }
        Node::Global { .. } => arena.global(id).map(|(module, name)| format!("{module}.{name}")).unwrap(),
        Node::Object { callable, args, items } => {
            let filled = items.map(|items| format!(" += {}", repr(pickle, items, depth + 1))).unwrap_or_default();
            format!("{}{}{filled}", repr(pickle, callable, depth + 1), repr(pickle, args, depth + 1))
        }
        Node::Persistent(id) => format!("storage({})", repr(pickle, id, depth + 1)),
    }
}

fn repr_of(input: &[u8]) -> String {
    let pickle = Pickle::parse(input).unwrap_or_else(|error| panic!("{}: {error}", input.escape_ascii()));
    repr(&pickle, pickle.root, 0)
}

fn error_of(input: &[u8]) -> PickleError {
    match Pickle::parse(input) {
        Ok(pickle) => panic!("{} gives {}", input.escape_ascii(), repr(&pickle, pickle.root, 0)),
        Err(error) => error,
    }
}

#[test]
fn constants_and_numbers() {
    for (input, expected) in [
        (&b"N."[..], "None"),
        (b"\x88.", "True"),
        (b"\x89.", "False"),
        (b"I01\n.", "True"),
        (b"I00\n.", "False"),
        (b"I-12\n.", "-12"),
        (b"K\xff.", "255"),
        (b"M\x01\x02.", "513"),
        (b"J\xff\xff\xff\xff.", "-1"),
        (b"L123L\n.", "123"),
        (b"\x8a\x00.", "0"),
        (b"\x8a\x02\x00\x80.", "-32768"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01.", "huge"),
        (b"\x8b\x01\0\0\0\x05.", "5"),
        (b"I99999999999999999999\n.", "huge"),
        (b"F1e-3\n.", "0.001"),
        (b"G\x3f\xf8\0\0\0\0\0\0.", "1.5"),
    ] {
        assert_eq!(repr_of(input), expected);
    }
}

#[test]
fn strings_and_bytes() {
    for (input, expected) in [
        (&b"S'it\\'s'\n."[..], "'it's'"),
        (b"S'\\xff'\n.", "bytes(1)"),
        (b"T\x02\0\0\0hi.", "'hi'"),
        (b"U\x02hi.", "'hi'"),
        (b"U\x02\xff\xfe.", "bytes(2)"),
        (b"V\\u00e9\n.", "'é'"),
        (b"X\x02\0\0\0\xc3\xa9.", "'é'"),
        (b"X\x03\0\0\0\xed\xa0\x80.", "bytes(3)"),
        (b"\x8c\x02hi.", "'hi'"),
        (b"\x8d\x02\0\0\0\0\0\0\0hi.", "'hi'"),
        (b"B\x02\0\0\0hi.", "bytes(2)"),
        (b"C\x02hi.", "bytes(2)"),
        (b"\x8e\x02\0\0\0\0\0\0\0hi.", "bytes(2)"),
        (b"\x96\x02\0\0\0\0\0\0\0hi.", "bytes(2)"),
    ] {
        assert_eq!(repr_of(input), expected);
    }
}

#[test]
fn containers() {
    for (input, expected) in [
        (&b")."[..], "()"),
        (b"(t.", "()"),
        (b"(K\x01K\x02t.", "(1, 2)"),
        (b"K\x01\x85.", "(1)"),
        (b"K\x01K\x02\x86.", "(1, 2)"),
        (b"K\x01K\x02K\x03\x87.", "(1, 2, 3)"),
        (b"].", "[]"),
        (b"(K\x01K\x02l.", "[1, 2]"),
        (b"]K\x01aK\x02a.", "[1, 2]"),
        (b"](K\x01K\x02e(K\x03e(e.", "[1, 2, 3]"),
        (b"}.", "{}"),
        (b"(K\x01K\x02d.", "{1: 2}"),
        (b"}K\x01K\x02s.", "{1: 2}"),
        (b"}(K\x01K\x02K\x03K\x04u(K\x05Nu.", "{1: 2, 3: 4, 5: None}"),
        (b"\x8f(K\x01K\x02\x90.", "{1, 2}"),
        (b"(K\x01K\x01\x91.", "{1, 1}"),
    ] {
        assert_eq!(repr_of(input), expected);
    }
}

#[test]
fn stack_memo_and_framing() {
    for (input, expected) in [
        (&b"\x80\x05\x95\x02\0\0\0\0\0\0\0N."[..], "None"),
        (b"K\x01K\x020.", "1"),
        (b"K\x01(0.", "1"),
        (b"K\x01(K\x02K\x031.", "1"),
        (b"K\x012\x86.", "(1, 1)"),
        (b"K\x01q\x05N\x86h\x05\x86.", "((1, None), 1)"),
        (b"K\x01r\xff\xff\xff\xff0j\xff\xff\xff\xff.", "1"),
        (b"K\x01p4294967295\n0g4294967295\n.", "1"),
        (b"]\x94K\x07\x940h\x01ah\x00\x86.", "([7], [7])"),
        (b"K\x01q\x00K\x02q\x00\x86h\x00\x86.", "((1, 2), 2)"),
    ] {
        assert_eq!(repr_of(input), expected);
    }
}

#[test]
fn classes_and_calls_stay_inert() {
    for (input, expected) in [
        (&b"cos\nsystem\n."[..], "os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"cos\nsystem\n(X\x04\0\0\0truetR.", "os.system('true')"),
        (b"(X\x04\0\0\0trueios\nsystem\n.", "os.system('true')"),
        (b"(cos\nsystem\nX\x04\0\0\0trueo.", "os.system('true')"),
        (b"ca\nB\n)\x81.", "a.B()"),
        (b"ca\nB\n)}\x92.", "a.B()"),
        (b"ca\nB\n)R}X\x01\0\0\0xNsb.", "a.B()"),
        (b"ca\nB\n)RK\x01a(K\x02K\x03e.", "a.B() += [1, 2, 3]"),
        (b"ca\nB\n)RK\x01Ns(NNu.", "a.B() += {1: None, None: None}"),
        (b"ca\nB\n)R(K\x01\x90.", "a.B() += {1}"),
        (b"ca\nB\n)R)R.", "a.B()()"),
        (b"Pkey\n.", "storage('key')"),
        (b"K\x01Q.", "storage(1)"),
    ] {
        assert_eq!(repr_of(input), expected);
    }
}

#[test]
fn truncated_operands_name_what_is_missing() {
    let huge = b"\xff\xff\xff\xff\xff\xff\xff\x7f";
    for (input, needed, left) in [
        (&b"NK"[..], 1, 0),
        (b"NM\x01", 2, 1),
        (b"NJ\x01\x02\x03", 4, 3),
        (b"NG\0", 8, 1),
        (b"N\x80", 1, 0),
        (b"Nj\0", 4, 1),
        (b"NX\xff\xff\xff\xffabc", 0xffff_ffff, 3),
        (b"NT\xff\xff\xff\x7fabc", 0x7fff_ffff, 3),
        (b"NB\xff\xff\xff\xff", 0xffff_ffff, 0),
        (b"NU\x04abc", 4, 3),
        (b"NC\x04abc", 4, 3),
        (b"N\x8c\x04abc", 4, 3),
        (b"N\x8a\x04abc", 4, 3),
        (b"N\x8b\xff\xff\xff\x7fabc", 0x7fff_ffff, 3),
    ] {
        assert_eq!(error_of(input), PickleError::Truncated { at: 1, needed, left });
    }
    for opcode in [op::BINUNICODE8, op::BINBYTES8, op::BYTEARRAY8, op::FRAME] {
        let input = [b"N", &[opcode][..], huge, b"abc"].concat();
        assert_eq!(error_of(&input), PickleError::Truncated { at: 1, needed: i64::MAX as u64, left: 3 });
        let input = [b"N", &[opcode][..], &[0xff; 8], b"abc"].concat();
        assert_eq!(error_of(&input), PickleError::Truncated { at: 1, needed: u64::MAX, left: 3 });
    }
}

fn check_errors(cases: &[(&[u8], PickleError)]) {
    for (input, expected) in cases {
        assert_eq!(error_of(input), *expected, "{}", input.escape_ascii());
        assert!(!expected.to_string().is_empty());
    }
}

#[test]
fn errors_of_single_opcodes() {
    let text = |text: &str| text.to_owned();
    check_errors(&[
        (&b""[..], PickleError::MissingStop { len: 0 }),
        (b"N", PickleError::MissingStop { len: 1 }),
        (b"N.N", PickleError::TrailingData { at: 1, extra: 1 }),
        (b"NN.", PickleError::LeftOnStack { left: 2 }),
        (b"(N.", PickleError::LeftOnStack { left: 2 }),
        (b"N\xff", PickleError::UnknownOpcode { at: 1, opcode: 0xff }),
        (b"\x82\x01", PickleError::ExternalOpcode { at: 0, opcode: "EXT1" }),
        (b"\x83\x01", PickleError::ExternalOpcode { at: 0, opcode: "EXT2" }),
        (b"\x84\x01", PickleError::ExternalOpcode { at: 0, opcode: "EXT4" }),
        (b"\x97", PickleError::ExternalOpcode { at: 0, opcode: "NEXT_BUFFER" }),
        (b"\x98", PickleError::ExternalOpcode { at: 0, opcode: "READONLY_BUFFER" }),
        (b"\x80\x06N.", PickleError::UnknownProtocol { protocol: 6 }),
        (b"I1x\n", PickleError::BadNumber { at: 0, text: text("1x") }),
        (b"L\n", PickleError::BadNumber { at: 0, text: text("") }),
        (b"Fone\n", PickleError::BadNumber { at: 0, text: text("one") }),
        (b"Np4294967296\n", PickleError::BadNumber { at: 1, text: text("4294967296") }),
        (b"g-1\n", PickleError::BadNumber { at: 0, text: text("-1") }),
        (b"Shi\n", PickleError::BadString { at: 0, text: text("hi") }),
        (b"V\\ud800\n", PickleError::BadString { at: 0, text: text("\\ud800") }),
        (b"c\nname\n", PickleError::BadGlobal { at: 0, text: text(".name") }),
        (b"cos\n\xff\n", PickleError::BadGlobal { at: 0, text: text("os.\u{fffd}") }),
        (b"(ios\n\n", PickleError::BadGlobal { at: 1, text: text("os.") }),
        (b"T\xff\xff\xff\xff", PickleError::NegativeLength { at: 0, len: -1 }),
        (b"\x8b\0\0\0\x80", PickleError::NegativeLength { at: 0, len: i32::MIN }),
        (b"I12", PickleError::UnterminatedLine { at: 0 }),
        (b"cos\nsystem", PickleError::UnterminatedLine { at: 0 }),
    ]);
}

#[test]
fn errors_of_stack_and_memo() {
    check_errors(&[
        (&b"."[..], PickleError::StackUnderflow { at: 0 }),
        (b"(.", PickleError::StackUnderflow { at: 1 }),
        (b"0", PickleError::StackUnderflow { at: 0 }),
        (b"2", PickleError::StackUnderflow { at: 0 }),
        (b"N(2", PickleError::StackUnderflow { at: 2 }),
        (b"N\x86", PickleError::StackUnderflow { at: 1 }),
        (b"N(N\x86", PickleError::StackUnderflow { at: 3 }),
        (b"](a", PickleError::StackUnderflow { at: 2 }),
        (b"(Ne", PickleError::StackUnderflow { at: 2 }),
        (b"NR", PickleError::UnexpectedValue { at: 1, expected: "a tuple", got: "None" }),
        (b")R", PickleError::StackUnderflow { at: 1 }),
        (b"Nb", PickleError::StackUnderflow { at: 1 }),
        (b"Q", PickleError::StackUnderflow { at: 0 }),
        (b"q\0", PickleError::StackUnderflow { at: 0 }),
        (b"\x94", PickleError::StackUnderflow { at: 0 }),
        (b"(o", PickleError::StackUnderflow { at: 1 }),
        (b"NNt", PickleError::MissingMark { at: 2 }),
        (b"1", PickleError::MissingMark { at: 0 }),
        (b"Ne", PickleError::MissingMark { at: 1 }),
        (b"h\x01", PickleError::MissingMemo { at: 0, index: 1 }),
        (b"j\xff\xff\xff\xff", PickleError::MissingMemo { at: 0, index: u32::MAX }),
        (b"Nq\x01g2\n", PickleError::MissingMemo { at: 3, index: 2 }),
        (b"Na", PickleError::StackUnderflow { at: 1 }),
        (b")Na", PickleError::UnexpectedValue { at: 2, expected: "a list", got: "a tuple" }),
        (b"](NNu", PickleError::UnexpectedValue { at: 4, expected: "a dict", got: "a list" }),
        (b"}(N\x90", PickleError::UnexpectedValue { at: 3, expected: "a set", got: "a dict" }),
        (b"ca\nb\n)RNa(NNu", PickleError::UnexpectedValue { at: 12, expected: "a dict", got: "a list" }),
        (b"U\x01aK\x01\x93", PickleError::UnexpectedValue { at: 5, expected: "a str", got: "an int" }),
        (b"K\x01U\x01a\x93", PickleError::UnexpectedValue { at: 5, expected: "a str", got: "an int" }),
        (b"N]\x81", PickleError::UnexpectedValue { at: 2, expected: "a tuple", got: "a list" }),
        (b"}(Nu", PickleError::OddDictItems { at: 3, num_items: 1 }),
        (b"(NNNd", PickleError::OddDictItems { at: 4, num_items: 3 }),
    ]);
}

#[test]
fn limits_of_length_and_values() {
    let len = MAX_PICKLE_BYTES + 1;
    assert_eq!(error_of(&vec![b'N'; len]), PickleError::TooLarge { len, limit: MAX_PICKLE_BYTES });
    let empty_lists = vec![b']'; 10_000];
    let limit = NUM_SPARE_VALUES + 5_000;
    assert!(matches!(error_of(&empty_lists), PickleError::TooManyValues { limit: got, .. } if got == limit));
    let memo = [&b"N"[..], &vec![op::MEMOIZE; 9_999]].concat();
    assert!(matches!(error_of(&memo), PickleError::TooManyValues { limit: got, .. } if got == limit));
}

#[test]
fn a_list_of_small_integers_is_within_the_limit_of_values() {
    let mut input = b"\x80\x04]\x94(".to_vec();
    input.extend([b'K', 1].repeat(100_000));
    input.extend(b"e.");
    assert_eq!(repr_of(&input).len(), 3 * 100_000);
}

#[test]
fn a_value_that_contains_itself_is_kept_but_is_no_json() {
    for input in [
        &b"]q\0h\0a."[..],
        b"}q\0K\x01h\0s.",
        b"]q\0h\0\x85a.",
        b"ca\nB\n)Rq\0h\0a.",
        b"ca\nB\n]q\0\x85q\x01R0h\0h\x01a.",
        b"]q\0K\x01h\0\x86a0ccollections\nOrderedDict\nh\0\x85R.",
    ] {
        let pickle = Pickle::parse(input).unwrap();
        assert!(!format!("{pickle:?}").is_empty());
        let json = json_from_value(&pickle.arena, pickle.root);
        assert_eq!(json, Err(JsonError::TooDeep { limit: MAX_JSON_DEPTH }), "{}", input.escape_ascii());
    }
}

#[test]
fn nesting_of_any_depth_is_read_printed_and_dropped() {
    let depth = 200_000;
    for (start, wrapping, end) in [
        (&b"]"[..], &b"\x85\x94"[..], &b""[..]),
        (b"N", b"N\x86", b""),
        (b"N", b"Q\x94", b""),
        (b"N", b")R", b""),
        (b"", b"(N", b"t"),
        (b"", b"](", b"e"),
        (b"", b"}K\x01", b"s"),
    ] {
        let core = if end.is_empty() { &b""[..] } else { b"N" };
        let input = [start, &wrapping.repeat(depth), core, &end.repeat(depth), b"."].concat();
        let pickle = Pickle::parse(&input).unwrap();
        assert!(format!("{pickle:?}").len() > depth);
        let json = json_from_value(&pickle.arena, pickle.root);
        let is_opaque = wrapping == b"Q\x94" || wrapping == b")R";
        assert!(if is_opaque {
            json == Ok(serde_json::Value::Null)
        } else {
            matches!(json, Err(JsonError::TooDeep { .. }))
        });
    }
}

#[test]
fn values_take_little_memory() {
    assert_eq!(size_of::<Node>(), 16);
    assert_eq!(size_of::<Option<NodeId>>(), 4);
    assert_eq!(size_of::<Items>(), 8);
}

/// Generates opcodes with operands that make sense, so that random programs get far.
fn any_operation() -> impl Strategy<Value = Vec<u8>> {
    let operand_free =
        prop::sample::select(b"NQR()]}(tldaesu012b.o\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94".to_vec());
    prop_oneof![
        8 => operand_free.prop_map(|opcode| vec![opcode]),
        2 => (prop::sample::select(b"KqhhUC\x8c\x8a\x80".to_vec()), 0_u8..4).prop_map(|(opcode, operand)| vec![opcode, operand]),
        1 => Just(b"ccollections\nOrderedDict\n".to_vec()),
        1 => Just(b"U\x01a".to_vec()),
        1 => (prop::sample::select(b"jrXTBJ\x8b".to_vec()), any::<[u8; 4]>()).prop_map(|(opcode, operand)| [&[opcode], &operand[..]].concat()),
        1 => (prop::sample::select(b"\x8d\x8e\x95\x96G".to_vec()), any::<[u8; 8]>()).prop_map(|(opcode, operand)| [&[opcode], &operand[..]].concat()),
        1 => prop::collection::vec(any::<u8>(), 1..8),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn random_programs_end_in_a_value_or_an_error(operations in prop::collection::vec(any_operation(), 0..100)) {
        let mut input = operations.concat();
        input.push(b'.');
        for input in [&input[..], &[b"(", &input[..input.len() - 1], b"t."].concat()] {
            if let Ok(pickle) = Pickle::parse(input) {
                let _json = json_from_value(&pickle.arena, pickle.root);
            }
        }
    }
}
