//! Warnings that are given once, however often a file is met.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// All warnings so far.
static GIVEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Warns, unless this process has given the same warning already.
///
/// Training reads every picture many times, in several threads and stages, and lists its folder once a stage.
pub fn warn_once(warning: &str) {
    let is_new = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(warning.to_owned());
    if is_new {
        tracing::warn!("{warning}");
    }
}
