//! The page of `diffae serve` in a browser.

use std::path::Path;

use serde_json::json;

use crate::webdriver::Browser;

/// Keys as the protocol names them.
pub(crate) const LEFT: char = '\u{e012}';
pub(crate) const RIGHT: char = '\u{e014}';

/// Waits until nothing is asked of the server and the picture is drawn.
const WAIT: &str = "
    const after = document.getElementById('after');
    const isDone = () => document.body.dataset.ready && document.body.getAttribute('aria-busy') !== 'true'
        && (!after.getAttribute('src') || after.complete);
    return new Promise((resolve) => { const look = () => isDone() ? resolve() : setTimeout(look, 5); look(); });
";

/// A page in a browser of its own.
pub(crate) struct Page {
    pub(crate) browser: Browser,
}

impl Page {
    /// Opens the page of a server, `HOST:PORT`.
    pub(crate) fn open(address: &str, downloads: &Path) -> Self {
        let page = Self { browser: Browser::open(downloads) };
        page.browser.go(&format!("http://{address}/"));
        page.wait();
        page
    }

    /// Waits until the page has what it asked for.
    #[track_caller]
    pub(crate) fn wait(&self) {
        self.browser.script(WAIT, &[]);
    }

    /// Chooses a built-in face, and waits for it.
    #[track_caller]
    pub(crate) fn take_face(&self, idx: usize) {
        self.browser.script("document.querySelectorAll('#faces button')[arguments[0]].click()", &[json!(idx)]);
        self.wait();
    }

    /// Moves a slider by keys: to the right, or to the left if the number is negative.
    #[track_caller]
    pub(crate) fn nudge(&self, slider: &str, presses: i32) {
        self.browser.script("document.getElementById(arguments[0]).focus()", &[json!(slider)]);
        let key = if presses < 0 { LEFT } else { RIGHT };
        self.browser.press(&key.to_string().repeat(presses.unsigned_abs() as usize));
    }
}
