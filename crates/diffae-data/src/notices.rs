//! Log messages that are emitted once, however often a file is encountered.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

/// All messages logged so far.
static GIVEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Logs a warning, unless this process has logged it already.
///
/// Training reads every picture many times, in several threads and stages, and lists its folder once a stage.
pub fn warn_once(warning: &str) {
    if is_new(warning) {
        tracing::warn!("{warning}");
    }
}

/// Logs a remark that only `--verbose` shows, unless this process has logged it already.
pub(crate) fn inform_once(remark: &str) {
    if is_new(remark) {
        tracing::info!("{remark}");
    }
}

fn is_new(message: &str) -> bool {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(message.to_owned())
}

/// Formats a count and its noun: `1 picture`, `2 pictures`.
pub(crate) fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

/// Chooses the form of a verb or pronoun for a count.
pub(crate) fn verb<'a>(count: usize, one: &'a str, several: &'a str) -> &'a str {
    if count == 1 { one } else { several }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_new_once() {
        let text = "a text that no other test uses";
        assert_eq!([is_new(text), is_new(text)], [true, false]);
        assert_eq!([counted(1_usize, "picture"), counted(0_usize, "picture")], ["1 picture", "0 pictures"]);
        assert_eq!([1, 2].map(|count| verb(count, "is", "are")), ["is", "are"]);
    }
}
