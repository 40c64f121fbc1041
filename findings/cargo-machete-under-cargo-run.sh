#!/usr/bin/env bash
# cargo-machete 0.9.2 cannot be started by a program that `cargo run` started: it takes its own name for a folder.
#
# Expected: `cargo machete --version` prints a version wherever a shell can, also from the chore program of a workspace
#           (`cargo run --package xtask`), which is how such checks are usually run.
# Seen:     `cargo run` sets CARGO_PKG_NAME for its child. With that variable cargo-machete does not drop the word that cargo puts
#           before the arguments of a subcommand: it looks for folders named `machete` and `--version`, and ends with 2. So a
#           test whether it is installed says no. Without the variable all is well.
# For us:   the gate starts it without the variable; before, its step was skipped as not installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
CARGO_TARGET_DIR="$folder/target" cargo install --quiet --debug --locked --root "$folder" --version 0.9.2 cargo-machete
export PATH="$folder/bin:$PATH"
mkdir -p "$folder/chores/src"
cat >"$folder/chores/Cargo.toml" <<'TOML'
[package]
name = "chores"
version = "0.1.0"
edition = "2024"
TOML
cat >"$folder/chores/src/main.rs" <<'RUST'
use std::process::Command;

fn main() {
    for (label, removed) in [("as started by cargo run", "NOTHING"), ("without CARGO_PKG_NAME", "CARGO_PKG_NAME")] {
        let mut command = Command::new("cargo");
        let output = command.args(["machete", "--version"]).env_remove(removed).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        let folder = if errors.contains("IO error for operation on --version") { ", takes --version for a folder" } else { "" };
        println!("{label}: exit code {}{folder}", output.status.code().unwrap());
    }
}
RUST
cat >"$folder/expected" <<'OUTPUT'
as started by cargo run: exit code 2, takes --version for a folder
without CARGO_PKG_NAME: exit code 0
OUTPUT
(cd "$folder/chores" && cargo run --quiet) >"$folder/got"
cat "$folder/got"
diff "$folder/expected" "$folder/got" && echo "as described: cargo-machete 0.9.2"
