//! `diffae serve` at work.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server of this machine, killed with the test.
pub(crate) struct Served {
    pub(crate) child: Child,
    /// Address and port.
    pub(crate) address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    /// Starts a program in a folder on a port, 0 for any that is free, and waits until it listens.
    pub(crate) fn start(program: &Path, folder: &Path, port: u16, more: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(["serve", "--device", "cpu", "--port", &port.to_string()]).args(more).current_dir(folder);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).map(str::to_owned);
        Self { child, address: address.unwrap() }
    }
}
