//! Labelled cartoon faces: builds and starts the renderer, which is a crate of its own.

use std::ffi::OsString;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::repository;

/// Arguments of `cargo xtask dataset toonheads`, which are those of the renderer.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Options of the renderer; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    of_renderer: Vec<OsString>,
}

impl Args {
    /// Takes arguments for the renderer that were not parsed yet.
    pub fn new(of_renderer: impl Iterator<Item = OsString>) -> Self {
        Self { of_renderer: of_renderer.collect() }
    }
}

/// Builds the renderer in the foreground, since that takes minutes the first time, and starts it.
///
/// # Errors
/// If cargo or the renderer cannot be started.
pub fn run(args: &Args) -> Result<()> {
    let root = repository::root()?;
    let start = Instant::now();
    println!("building the renderer; the first time it takes some minutes (about 110 crates that nothing else needs)");
    let mut build = repository::cargo(&root);
    build.args(["build", "--locked", "--package", "xtask-datasets", "--features", "toonheads", "--bin", "toonheads"]);
    build.args(["--message-format", "json-render-diagnostics"]).stdout(std::process::Stdio::piped());
    let built = build.spawn().and_then(std::process::Child::wait_with_output).context("cannot start cargo")?;
    if !built.status.success() {
        // It has said what is wrong.
        std::process::exit(built.status.code().unwrap_or(1));
    }
    println!("built the renderer in {:.0} s", start.elapsed().as_secs_f64());
    let renderer = executable(&String::from_utf8_lossy(&built.stdout)).context("cargo names no program toonheads")?;
    let status = std::process::Command::new(&renderer).args(&args.of_renderer).status();
    let status = status.with_context(|| format!("cannot start {renderer}"))?;
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}

/// Returns the path of the program that cargo has built, from its messages.
fn executable(messages: &str) -> Option<String> {
    let mut programs = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(str::to_owned)
    });
    programs.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_messages_of_cargo() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nnot json\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/toonheads\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages).as_deref(), Some("/t/debug/toonheads"));
        assert_eq!(executable(""), None);
    }
}
