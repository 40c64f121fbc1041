//! Numbers in the encodings of pickles.

use std::num::IntErrorKind;

/// A Python integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Integer {
    /// An integer of 64 bits.
    Small(i64),
    /// An integer beyond 64 bits, such as the state of a random generator; its value is not kept.
    Huge,
}

impl Integer {
    /// Reads a little-endian two's complement number of any length; no bytes are zero.
    pub(super) fn from_le_bytes(bytes: &[u8]) -> Self {
        let is_negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let sign_fill = if is_negative { 0xff } else { 0 };
        let mut low = [sign_fill; 8];
        for (to, from) in low.iter_mut().zip(bytes) {
            *to = *from;
        }
        let low = i64::from_le_bytes(low);
        let high_is_sign = bytes.iter().skip(8).all(|&byte| byte == sign_fill);
        if high_is_sign && (low < 0) == is_negative { Self::Small(low) } else { Self::Huge }
    }

    /// Reads decimal digits with an optional sign, and an optional `L` of Python 2.
    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?;
        let digits = text.strip_suffix('L').unwrap_or(text);
        match digits.parse() {
            Ok(number) => Some(Self::Small(number)),
            Err(error) => match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow if is_decimal(digits) => Some(Self::Huge),
                _ => None,
            },
        }
    }
}

/// Returns whether all of `digits` is a number: `parse` reports an overflow before it has seen the whole text.
fn is_decimal(digits: &str) -> bool {
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    unsigned.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads a float as Python's `repr` writes it.
pub(super) fn float_from_text(text: &[u8]) -> Option<f64> {
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_integers_of_all_lengths() {
        for (bytes, expected) in [
            (&[][..], Integer::Small(0)),
            (&[0x7f], Integer::Small(127)),
            (&[0xff], Integer::Small(-1)),
            (&[0, 0x80], Integer::Small(-32768)),
            (&[0xff, 0xff, 0], Integer::Small(65535)),
            (&i64::MIN.to_le_bytes(), Integer::Small(i64::MIN)),
            (&i64::MAX.to_le_bytes(), Integer::Small(i64::MAX)),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], Integer::Small(1)),
            (&[0xff; 12], Integer::Small(-1)),
            (&[0, 0, 0, 0, 0, 0, 0, 0x80, 0], Integer::Huge),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 1], Integer::Huge),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0xff], Integer::Huge),
        ] {
            assert_eq!(Integer::from_le_bytes(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn integers_in_text_form() {
        for (text, expected) in [
            ("0", Some(Integer::Small(0))),
            ("-12", Some(Integer::Small(-12))),
            ("+7L", Some(Integer::Small(7))),
            ("9223372036854775807", Some(Integer::Small(i64::MAX))),
            ("9223372036854775808L", Some(Integer::Huge)),
            ("-99999999999999999999999", Some(Integer::Huge)),
            ("99999999999999999999999x", None),
            ("", None),
            ("-", None),
            ("0x10", None),
            (" 1", None),
        ] {
            assert_eq!(Integer::from_text(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(Integer::from_text(b"\xff"), None);
    }

    #[test]
    fn floats_in_text_form() {
        assert_eq!(float_from_text(b"-1.5e-3"), Some(-0.0015));
        assert_eq!(float_from_text(b"inf"), Some(f64::INFINITY));
        assert!(float_from_text(b"nan").is_some_and(f64::is_nan));
        assert_eq!(float_from_text(b"1.0\0"), None);
        assert_eq!(float_from_text(b""), None);
    }
}
