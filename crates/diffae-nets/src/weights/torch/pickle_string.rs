//! Strings of the text protocol, and their escape sequences.

/// Reads the bytes of a quoted string of Python 2 (`'it\'s'`).
///
/// `None` without matching quotes, or for an escape sequence that its `repr` does not write.
pub(super) fn unquote(quoted: &[u8]) -> Option<Vec<u8>> {
    let ([quote @ (b'\'' | b'"')], rest) = quoted.split_at_checked(1)? else {
        return None;
    };
    let mut rest = rest.strip_suffix(&[*quote])?;
    let mut unquoted = Vec::new();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            unquoted.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        unquoted.push(match escape {
            b'\\' | b'\'' | b'"' => escape,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                u8::try_from(from_hex(digits)?).ok()?
            }
            _ => return None,
        });
    }
    Some(unquoted)
}

/// Reads a string in Python's `raw-unicode-escape`: Latin-1 with `\uXXXX` and `\UXXXXXXXX`.
///
/// `None` for digits that are no character, such as half a surrogate pair.
pub(super) fn unescape_unicode(escaped: &[u8]) -> Option<String> {
    let mut unescaped = String::new();
    let mut rest = escaped;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            unescaped.push(char::from(byte));
            continue;
        }
        let Some((&kind, after)) = rest.split_first() else {
            unescaped.push('\\');
            break;
        };
        rest = after;
        let num_digits = match kind {
            b'u' => 4,
            b'U' => 8,
            _ => {
                unescaped.extend(['\\', char::from(kind)]);
                continue;
            }
        };
        let (digits, after) = rest.split_at_checked(num_digits)?;
        rest = after;
        unescaped.push(char::from_u32(from_hex(digits)?)?);
    }
    Some(unescaped)
}

/// Reads up to eight hexadecimal digits.
fn from_hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number: u32, &digit| Some(number << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_strings() {
        assert_eq!(unquote(b"'plain'").unwrap(), b"plain");
        assert_eq!(unquote(b"\"it's\"").unwrap(), b"it's");
        assert_eq!(unquote(br"'a\\b\'\x00\xfF\n\r\t'").unwrap(), b"a\\b'\x00\xff\n\r\t");
        for bad in [&b""[..], b"'", b"plain", b"'a\"", br"'\'", br"'\x0'", br"'\xg0'", br"'\q'"] {
            assert_eq!(unquote(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn escaped_unicode() {
        assert_eq!(unescape_unicode(br"caf\u00e9 \U0001f600").unwrap(), "café \u{1f600}");
        assert_eq!(unescape_unicode(b"caf\xe9").unwrap(), "café");
        assert_eq!(unescape_unicode(br"\\u0041 \n \").unwrap(), r"\\u0041 \n \");
        for bad in [&br"\u00e"[..], br"\ud800", br"\U00110000", br"\uzzzz"] {
            assert_eq!(unescape_unicode(bad), None, "{}", bad.escape_ascii());
        }
    }
}
