//! Excerpts from a file for error messages.

/// Maximum number of bytes of a file's own text in an error message.
const MAX_EXCERPT_BYTES: usize = 120;

/// Returns the start of `text`, lossily as UTF-8; `...` marks a cut.
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
