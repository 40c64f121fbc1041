//! The view of developers: console, screenshots, other screens.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::gestures::ELEMENT;
use crate::webdriver::Browser;

impl Browser {
    /// The console has no errors and no warnings but those that contain one of these texts. The browser itself notes there
    /// each response that is a refusal, and nothing can stop it; so it notes a request that an older one has overtaken.
    #[track_caller]
    pub(crate) fn console_is_clean_but_for(&self, expected: &[&str]) {
        let entries = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        let text = |entry: &Value| format!("{} {}", entry["level"], entry["message"]);
        let is_bad = |entry: &&Value| entry["level"] == "SEVERE" || entry["level"] == "WARNING";
        let bad = entries.as_array().unwrap().iter().filter(is_bad).map(text);
        let unexpected: Vec<String> =
            bad.filter(|entry| !expected.iter().chain(&["status of 409"]).any(|text| entry.contains(text))).collect();
        assert!(unexpected.is_empty(), "{unexpected:?}");
    }

    /// Sends a command of Chromium's own protocol.
    pub(crate) fn chromium(&self, command: &str, parameters: &Value) {
        self.command("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
    }

    /// Shows the page as a phone of this many pixels does.
    pub(crate) fn become_phone(&self, width: u32, height: u32) {
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": true });
        self.chromium("Emulation.setDeviceMetricsOverride", &screen);
    }

    /// Prefers dark pages.
    pub(crate) fn become_dark(&self) {
        let feature = json!([{ "name": "prefers-color-scheme", "value": "dark" }]);
        self.chromium("Emulation.setEmulatedMedia", &json!({ "features": feature }));
    }

    /// The picture of an element as it is on the screen.
    pub(crate) fn picture_of(&self, css: &str) -> image::RgbImage {
        let id = self.find(css)[ELEMENT].as_str().unwrap().to_owned();
        let base64 = self.command("GET", &format!("/element/{id}/screenshot"), &Value::Null);
        image::load_from_memory(&STANDARD.decode(base64.as_str().unwrap()).unwrap()).unwrap().into_rgb8()
    }

    /// Leaves a picture of the whole page in the folder that `DIFFAE_SCREENSHOTS` names, if it names one.
    pub(crate) fn screenshot(&self, name: &str) {
        self.leave_picture(name, &json!({ "captureBeyondViewport": true }));
    }

    /// Leaves a picture of the part of the page that the screen shows.
    pub(crate) fn screenshot_of_screen(&self, name: &str) {
        self.leave_picture(name, &json!({}));
    }

    fn leave_picture(&self, name: &str, parameters: &Value) {
        let Some(folder) = std::env::var_os("DIFFAE_SCREENSHOTS") else { return };
        let capture = json!({ "cmd": "Page.captureScreenshot", "params": parameters });
        let taken = self.command("POST", "/goog/cdp/execute", &capture);
        let bytes = STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}
