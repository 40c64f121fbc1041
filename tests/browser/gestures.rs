//! Gestures of a user besides keys: clicks, drags, files, windows.

use std::path::Path;

use serde_json::{Value, json};

use crate::webdriver::Browser;

/// Name of an element's id in the JSON of the protocol.
pub(crate) const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    /// The element of a selector, as other commands take it.
    #[track_caller]
    pub(crate) fn find(&self, css: &str) -> Value {
        self.command("POST", "/element", &json!({ "using": "css selector", "value": css }))
    }

    /// Scrolls to an element and clicks in its middle.
    #[track_caller]
    pub(crate) fn click(&self, css: &str) {
        let id = self.find(css)[ELEMENT].as_str().unwrap().to_owned();
        self.command("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// Drags the pointer from the middle of an element to each place in turn, in pixels beside it, as fast as
    /// a screen shows.
    #[track_caller]
    pub(crate) fn drag(&self, css: &str, places: &[i32]) {
        let element = self.find(css);
        self.script("arguments[0].scrollIntoView({ block: 'center' })", std::slice::from_ref(&element));
        let to = |x: i32| json!({ "type": "pointerMove", "origin": element, "x": x, "y": 0, "duration": 8 });
        let button = |kind: &str| json!({ "type": kind, "button": 0 });
        let moves = places.iter().map(|&x| to(x));
        let actions: Vec<Value> =
            [to(0), button("pointerDown")].into_iter().chain(moves).chain([button("pointerUp")]).collect();
        let pointer = json!({ "type": "pointer", "id": "mouse", "actions": actions });
        self.command("POST", "/actions", &json!({ "actions": [pointer] }));
    }

    /// Chooses a file of this machine in the page's dialog.
    #[track_caller]
    pub(crate) fn choose_file(&self, css: &str, path: &Path) {
        let id = self.find(css)[ELEMENT].as_str().unwrap().to_owned();
        self.command("POST", &format!("/element/{id}/value"), &json!({ "text": path }));
    }

    /// Opens a tab beside the others and goes there; returns its name.
    pub(crate) fn new_tab(&self) -> String {
        let tab = self.command("POST", "/window/new", &json!({ "type": "tab" }));
        let name = tab["handle"].as_str().unwrap().to_owned();
        self.go_to_tab(&name);
        name
    }

    /// Goes to a tab.
    pub(crate) fn go_to_tab(&self, name: &str) {
        self.command("POST", "/window", &json!({ "handle": name }));
    }
}
