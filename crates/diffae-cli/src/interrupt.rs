//! Ctrl-C: noticed by running work, which ends in an orderly way.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C; chains look at it after every step.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The end of a command by Ctrl-C: says which results are kept, and how to continue.
#[derive(Debug)]
pub(crate) struct Interruption(String);

impl Interruption {
    pub(crate) fn new(sentence: String) -> Self {
        Self(sentence)
    }
}

impl std::fmt::Display for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interruption {}

/// Returns whether Ctrl-C was pressed.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Lets the first Ctrl-C end the work in an orderly way, and the second at once.
pub(crate) fn catch_interrupts() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let installed = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
        if let Err(error) = installed {
            tracing::warn!("Ctrl-C will end this program without cleaning up: {error}");
        }
    });
}
