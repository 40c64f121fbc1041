//! The stage of a test: a server, its page in a browser, and a folder for downloads and for the program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use image::RgbImage;
use serde_json::json;
use tempfile::TempDir;

use crate::page::Page;
use crate::served::Served;

/// The bytes of the file of a picture on the page.
const SHOWN: &str = "
    const response = await fetch(document.getElementById(arguments[0]).src);
    return Array.from(new Uint8Array(await response.arrayBuffer()));
";
/// Maximum time that a download takes.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_mins(1);

/// The program of this repository.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_diffae"))
}

/// Server, page and folder of a test.
pub(crate) struct Stage {
    /// Closed before the folder vanishes.
    pub(crate) page: Page,
    /// The server; that of another stage if there is none.
    pub(crate) served: Option<Served>,
    pub(crate) address: String,
    pub(crate) folder: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), &[])
    }

    /// Serves from a folder, with more arguments.
    pub(crate) fn in_folder(folder: TempDir, more: &[&str]) -> Self {
        let served = Served::start(program(), folder.path(), 0, more);
        let (page, address) = (Page::open(&served.address, folder.path()), served.address.clone());
        Self { page, served: Some(served), address, folder }
    }

    /// Opens another browser with the page of the same server.
    pub(crate) fn beside(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let page = Page::open(&self.address, folder.path());
        Self { page, served: None, address: self.address.clone(), folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the folder.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Clicks what saves a file, and waits for the whole file.
    #[track_caller]
    pub(crate) fn save(&self, css: &str, name: &str) -> Vec<u8> {
        self.page.browser.click(css);
        let started = Instant::now();
        while !self.path(name).exists() {
            assert!(started.elapsed() < DOWNLOAD_TIMEOUT, "{name} is not saved: {}", self.page.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.page.wait();
        std::fs::read(self.path(name)).unwrap()
    }

    /// Runs the command that the page shows, and returns the picture that it makes or that its comment names.
    #[track_caller]
    pub(crate) fn picture_of_command(&self) -> RgbImage {
        let line = self.page.text("#command");
        let (line, file) = line.split_once("  # ").map_or((line.as_str(), None), |(line, file)| (line, Some(file)));
        let script = format!("diffae() {{ \"$PROGRAM\" \"$@\" --device cpu --force; }}\n{line}");
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &script]).env("PROGRAM", program()).current_dir(self.folder.path());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let is_result =
            |name: &String| Path::new(name).extension().is_some_and(|end| end == "png") && name != "sheet.png";
        let made = self.path(line.rsplit(' ').next().unwrap());
        let entries = std::fs::read_dir(&made).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let pictures: Vec<String> = entries.filter(|name| is_result(name)).collect();
        let name = file.map_or_else(|| pictures[0].clone(), str::to_owned);
        assert!(file.is_some() || pictures.len() == 1, "{line}: {pictures:?}");
        let picture = image::open(made.join(name)).unwrap().into_rgb8();
        std::fs::remove_dir_all(made).unwrap();
        picture
    }

    /// The picture on the page is, pixel for pixel, that of the command beside it.
    #[track_caller]
    pub(crate) fn page_and_command_agree(&self) {
        let (page, command) = (self.page.picture("after"), self.picture_of_command());
        let differing = page.pixels().zip(command.pixels()).filter(|(x, y)| x != y).count();
        assert_eq!(page.dimensions(), command.dimensions());
        assert_eq!(differing, 0, "pixels differ from those of {}", self.page.text("#command"));
    }
}

impl Page {
    /// The text of an element.
    #[track_caller]
    pub(crate) fn text(&self, css: &str) -> String {
        let text = self.browser.script("return document.querySelector(arguments[0]).textContent", &[json!(css)]);
        text.as_str().unwrap().to_owned()
    }

    /// The sentence that the page says to its user.
    #[track_caller]
    pub(crate) fn said(&self) -> String {
        self.text("#said")
    }

    /// Waits until the page says something.
    #[track_caller]
    pub(crate) fn wait_until_it_says(&self, text: &str) {
        let started = Instant::now();
        while !self.said().contains(text) {
            assert!(started.elapsed() < Duration::from_mins(1), "expected {text:?}, got {:?}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The pixels of a picture on the page, `before` or `after`.
    #[track_caller]
    pub(crate) fn picture(&self, id: &str) -> RgbImage {
        let bytes: Vec<u8> = serde_json::from_value(self.browser.script(SHOWN, &[json!(id)])).unwrap();
        image::load_from_memory(&bytes).unwrap().into_rgb8()
    }

    /// The value of a control.
    #[track_caller]
    pub(crate) fn value(&self, id: &str) -> f64 {
        self.browser
            .script("return Number(document.getElementById(arguments[0]).value)", &[json!(id)])
            .as_f64()
            .unwrap()
    }

    /// Whether something is so in the page, by an expression.
    #[track_caller]
    pub(crate) fn holds(&self, expression: &str) -> bool {
        self.browser.script(&format!("return Boolean({expression})"), &[]).as_bool().unwrap()
    }
}
