//! Text from a file for an error message.

/// How many bytes of a file's own text an error message repeats.
const MAX_EXCERPT_BYTES: usize = 120;

/// The start of `text`, lossily as UTF-8; `...` marks what was cut off.
pub(in crate::weights) fn excerpt(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    match text.split_at_checked(MAX_EXCERPT_BYTES) {
        Some((start, rest)) if !rest.is_empty() => format!("{}...", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_text_is_whole_and_long_text_is_cut() {
        assert_eq!(excerpt("ema_model.x"), "ema_model.x");
        assert_eq!(excerpt([b'a'; MAX_EXCERPT_BYTES]), "a".repeat(MAX_EXCERPT_BYTES));
        assert_eq!(excerpt([b'a'; 1000]), format!("{}...", "a".repeat(MAX_EXCERPT_BYTES)));
        assert_eq!(excerpt([0xff, b'b']), "\u{fffd}b");
    }
}
