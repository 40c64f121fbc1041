//! Warnings about data, each given once a process: data are listed several times, for each split and each command part.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Texts that have been logged.
static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Logs a warning, unless the same text has been logged before.
pub(super) fn warn_once(text: &str) {
    if is_new(text) {
        tracing::warn!("{text}");
    }
}

/// Logs a remark that only `--verbose` shows, unless the same text has been logged before.
pub(super) fn inform_once(text: &str) {
    if is_new(text) {
        tracing::info!("{text}");
    }
}

fn is_new(text: &str) -> bool {
    LOGGED.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned())
}

/// `1 picture`, `2 pictures`: a count and its noun.
pub(super) fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_new_once() {
        let text = "a text that no other test uses";
        assert_eq!([is_new(text), is_new(text)], [true, false]);
        assert_eq!([counted(1, "picture"), counted(0, "picture")], ["1 picture", "0 pictures"]);
    }
}
