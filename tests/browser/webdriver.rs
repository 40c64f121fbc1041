//! A browser that is driven through [WebDriver](https://www.w3.org/TR/webdriver2/): Chromium, by chromedriver.
//!
//! The protocol is one JSON request per command, over HTTP on this machine. That takes no crate: those that speak it
//! bring 15 others, and features of hyper with which the gate would compile all that uses it once more.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http;

/// Ends chromedriver when its standard input ends, so also when the test is killed; the browser ends with chromedriver. The
/// shell closes its own end of the output, which then ends if chromedriver does not start.
const WATCH: &str = r#"chromedriver --port=0 & driver=$!; exec >&-; read -r _; kill "$driver"; wait "$driver""#;
/// Maximum time that a script may take, in milliseconds.
const SCRIPT_TIMEOUT_MS: u64 = 60_000;

/// A chromedriver on a port that was free.
struct Driver {
    watch: Child,
    address: String,
    /// Kept open: chromedriver may print more.
    _stdout: BufReader<ChildStdout>,
}

impl Driver {
    fn start() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", WATCH]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut watch = command.spawn().unwrap();
        let mut stdout = BufReader::new(watch.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "chromedriver does not start");
            if let Some((_, rest)) = line.split_once("successfully on port ") {
                break rest.trim().trim_end_matches('.').to_owned();
            }
        };
        Self { watch, address: format!("127.0.0.1:{port}"), _stdout: stdout }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.watch.stdin.take());
        let _ = self.watch.wait();
    }
}

/// A browser with a profile of its own, closed with the test.
pub(crate) struct Browser {
    session: String,
    driver: Driver,
    /// Removed after the browser has ended.
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let path = format!("/session/{}", self.session);
        let _ = http::request(&self.driver.address, ("DELETE", &path), "", b"");
    }
}

impl Browser {
    /// Opens a browser that saves downloads in a folder.
    pub(crate) fn open(downloads: &Path) -> Self {
        let (driver, profile) = (Driver::start(), tempfile::tempdir().unwrap());
        let capabilities = capabilities(profile.path(), downloads);
        let mut browser = Self { session: String::new(), driver, _profile: profile };
        let created = browser.send("POST", "/session", &json!({ "capabilities": { "alwaysMatch": capabilities } }));
        created["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        browser.command("POST", "/timeouts", &json!({ "script": SCRIPT_TIMEOUT_MS }));
        browser
    }

    /// Sends a command of the session, and returns its value.
    #[track_caller]
    pub(crate) fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.send(method, &format!("/session/{}{path}", self.session), body)
    }

    #[track_caller]
    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let json = "Content-Type: application/json; charset=utf-8\r\n";
        let (status, bytes) = http::request(&self.driver.address, (method, path), json, body.as_bytes()).unwrap();
        let mut response: Value = serde_json::from_slice(&bytes).unwrap();
        let value = response["value"].take();
        assert_eq!(status, 200, "{method} {path} {body}: {}", value["message"]);
        value
    }

    /// Opens a page, and waits until it is loaded.
    #[track_caller]
    pub(crate) fn go(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url }));
    }

    /// Runs the body of a function with arguments in the page; waits for a promise.
    #[track_caller]
    pub(crate) fn script(&self, body: &str, arguments: &[Value]) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": body, "args": arguments }))
    }

    /// Presses and releases keys, one after the other, for the element that has the focus.
    #[track_caller]
    pub(crate) fn press(&self, keys: &str) {
        let of_key = |key: char| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }));
        let actions: Vec<Value> = keys.chars().flat_map(of_key).collect();
        self.command("POST", "/actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] }));
    }
}

fn capabilities(profile: &Path, downloads: &Path) -> Value {
    let profile = format!("--user-data-dir={}", profile.display());
    let mut args = vec![
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--force-color-profile=srgb",
        "--no-first-run",
        // With a pipe in place of a port, the browser ends with chromedriver.
        "--remote-debugging-pipe",
        "--window-size=1200,1000",
        &profile,
    ];
    if is_root() {
        args.push("--no-sandbox");
    }
    json!({
        "browserName": "chrome",
        "goog:loggingPrefs": { "browser": "ALL" },
        "goog:chromeOptions": {
            "args": args,
            "prefs": { "download.default_directory": downloads, "download.prompt_for_download": false },
        },
    })
}

/// Returns whether this is root, for whom Chromium has no sandbox.
fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
