//! Location of the repository, and the cargo to use in it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Returns the folder of the workspace's `Cargo.lock`: of the checkout in which cargo started this program, or else of
/// the one it was built from.
///
/// # Errors
/// If no folder above the package has one.
pub fn root() -> Result<PathBuf> {
    let started_in = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = started_in.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    let root = package.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
    root.map(Path::to_path_buf).with_context(|| format!("{} is in no workspace", package.display()))
}

/// Returns the name of the cargo that runs this program, or of the one in the path.
#[must_use]
pub fn cargo_program() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Builds a cargo command that runs in `root`.
#[must_use]
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(cargo_program());
    command.current_dir(root);
    command
}
