//! One harness: a fresh folder a test, and the program run in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Few steps: tests look at behavior, golden checks at numbers.
pub(crate) const FEW_STEPS: [&str; 2] = ["--steps", "2"];
/// Few steps of the inversion.
pub(crate) const FEW_INVERSION_STEPS: [&str; 2] = ["--invert-steps", "2"];

/// A fixture.
pub(crate) fn fixture(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path).to_str().unwrap().to_owned()
}

/// The checkpoint of a golden model.
pub(crate) fn checkpoint(model: &str) -> String {
    fixture(&format!("golden/{model}/last.ckpt"))
}

/// A real photograph.
pub(crate) fn photograph() -> String {
    fixture("photographs/astronaut.jpg")
}

/// A folder that vanishes with the test, and the program in it.
pub(crate) struct Workspace(tempfile::TempDir);

impl Workspace {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the program on the CPU.
    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        self.run_with_environment(args, &[])
    }

    /// Runs the program with some environment variables.
    pub(crate) fn run_with_environment(&self, args: &[&str], environment: &[(&str, &str)]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffae"));
        command.args(args).args(["--device", "cpu"]).envs(environment.iter().copied()).current_dir(self.0.path());
        Finished(command.output().unwrap())
    }

    /// Starts the program on the CPU.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffae"));
        command.args(args).args(["--device", "cpu"]).current_dir(self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    /// Folders of results that are not complete, in a folder.
    pub(crate) fn partials(&self, folder: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else { return vec![] };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(".diffae-partial-")).collect()
    }

    /// Items that an interrupted run into a folder has kept.
    pub(crate) fn num_kept(&self, folder: &str) -> usize {
        let journals = self.partials(folder).into_iter().map(|path| path.join("kept.jsonl"));
        let lines = journals.filter_map(|path| fs::read_to_string(path).ok()).map(|text| text.lines().count());
        lines.sum::<usize>().saturating_sub(1)
    }

    /// The pixels of a picture.
    pub(crate) fn pixels(&self, name: &str) -> image::RgbImage {
        image::open(self.path(name)).unwrap().into_rgb8()
    }

    /// Imports a golden model with everything that belongs to it, as `model`.
    pub(crate) fn import(&self, model: &str) {
        let file = |name: &str| fixture(&format!("golden/{model}/{name}"));
        self.run(&[
            "import",
            &checkpoint(model),
            "--out",
            "model",
            "--latent",
            &file("latent.pkl"),
            "--classifier",
            &file("classifier.ckpt"),
        ])
        .succeeds();
    }

    /// Names of what is in a folder, sorted, hidden files too.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The text entries of a PNG.
    pub(crate) fn png_text(&self, name: &str) -> Vec<(String, String)> {
        let file = std::io::BufReader::new(fs::File::open(self.path(name)).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        reader.finish().unwrap();
        let text = &reader.info().utf8_text;
        text.iter().map(|entry| (entry.keyword.clone(), entry.get_text().unwrap())).collect()
    }
}

/// A program at work; it is killed with the test.
pub(crate) struct Running(Child);

impl Running {
    /// Waits until something is so.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(self.0.try_wait().unwrap().is_none(), "the program has ended too early");
            assert!(start.elapsed() < Duration::from_mins(2), "the program is too slow");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal, such as `INT` or `KILL`, and waits for the end.
    pub(crate) fn signal(self, name: &str) -> (Option<i32>, String) {
        self.send(name);
        self.end()
    }

    /// Sends a signal.
    pub(crate) fn send(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Waits for the end; returns the exit code, and what the program has told.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        std::io::Read::read_to_string(self.0.stderr.as_mut().unwrap(), &mut stderr).unwrap();
        (self.0.wait().unwrap().code(), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The end of the program: exit code and output.
pub(crate) struct Finished(Output);

impl Finished {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    pub(crate) fn is_success(&self) -> bool {
        self.0.status.success()
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert!(self.0.status.success(), "{:?}: {}", self.0.status, self.stderr());
        self
    }

    /// The program ended with exit code 2 and one line of error that contains `text`.
    #[track_caller]
    pub(crate) fn fails_with(self, text: &str) -> Self {
        let stderr = self.stderr();
        assert_eq!(self.0.status.code(), Some(2), "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{stderr}");
        assert!(errors[0].contains(text), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        self
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout()).unwrap()
    }
}
