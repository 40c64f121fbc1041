//! `cargo xtask ci`: every check that a change must pass, quickest first, up to the first failure.
//!
//! This is the one definition of the gate: `.ci/run`, which the server starts, only calls it. The tests are run by
//! the very command that the README tells its readers to run.

mod gate;
mod readme;

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xtask::repository;

use self::gate::{Outcome, Step};
use crate::{browser, cuda, tidy, wheel};

/// The work of a step.
#[derive(Debug)]
enum Action {
    /// Cargo with these arguments; a warning of rustdoc is an error.
    Cargo(&'static str),
    /// The rules of `cargo xtask tidy`.
    Tidy,
    /// `cargo machete`, where it is installed.
    UnusedDependencies,
    /// A piece of shell script.
    Shell(String),
    /// The page in a browser, where there is one.
    Browser,
    /// The Python module in a virtual environment, where there is what builds it.
    Wheel,
    /// The program as MPI connects it, where there is what builds it.
    Mpi,
    /// The types of the CUDA build.
    CheckCuda,
    /// `cargo deny`, as far as it is available.
    Deny,
}

/// Runs the gate on this repository.
pub(crate) fn run() -> Result<()> {
    let root = repository::root()?;
    let path = root.join("README.md");
    let readme = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let test_command = readme::test_command(&readme)?;
    gate::pass(&steps(test_command), |action| perform(&root, action))
}

/// All of them build the same packages with the same features: with others, cargo compiles most dependencies once more.
fn steps(test_command: String) -> [Step<Action>; 12] {
    [
        Step { name: "fmt", action: Action::Cargo("fmt --all --check") },
        Step { name: "tidy", action: Action::Tidy },
        Step { name: "machete", action: Action::UnusedDependencies },
        Step {
            name: "clippy",
            action: Action::Cargo(
                "clippy --workspace --all-targets --features parquet,toonheads,dicom --locked -- -D warnings",
            ),
        },
        // Targets that `cargo test` leaves out are not among "all targets".
        Step {
            name: "clippy of the browser tests",
            action: Action::Cargo(
                "clippy --workspace --test browser --features parquet,toonheads,dicom --locked -- -D warnings",
            ),
        },
        Step { name: "test", action: Action::Shell(test_command) },
        Step { name: "browser", action: Action::Browser },
        Step { name: "wheel", action: Action::Wheel },
        Step { name: "mpi", action: Action::Mpi },
        Step { name: "cuda", action: Action::CheckCuda },
        Step {
            name: "doc",
            action: Action::Cargo("doc --workspace --no-deps --features parquet,toonheads,dicom --locked"),
        },
        Step { name: "deny", action: Action::Deny },
    ]
}

fn perform(root: &Path, action: &Action) -> Result<Outcome> {
    match action {
        Action::Cargo(arguments) => {
            println!("cargo {arguments}");
            let mut command = repository::cargo(root);
            command.args(arguments.split(' ')).env("RUSTDOCFLAGS", "-D warnings");
            succeed(&mut command)
        }
        Action::Tidy => tidy::check(root).map(|()| Outcome::Passed),
        Action::UnusedDependencies => unused_dependencies(root),
        Action::Shell(script) => {
            println!("{script}");
            succeed(Command::new("sh").args(["-e", "-u", "-c", script]).current_dir(root))
        }
        Action::Browser => in_browser(),
        Action::Wheel => in_python(),
        Action::Mpi => with_mpi(root),
        Action::CheckCuda => cuda::check::run(&cuda::check::Args::of_gate()).map(|()| Outcome::Passed),
        Action::Deny => deny(root),
    }
}

/// Dependencies that a manifest names and no source file uses.
fn unused_dependencies(root: &Path) -> Result<Outcome> {
    let machete = |argument: &str| {
        let mut command = repository::cargo(root);
        // With the variable that `cargo run` sets for its child, it takes its own name for a folder to look into.
        command.args(["machete", argument]).env_remove("CARGO_PKG_NAME");
        command
    };
    if !is_quietly_successful(&mut machete("--version")) {
        return Ok(Outcome::Skipped("cargo-machete is not installed"));
    }
    succeed(&mut machete("--skip-target-dir"))
}

/// The page in Chromium. Whoever has none can run the gate all the same.
fn in_browser() -> Result<Outcome> {
    if !browser::is_there() {
        return Ok(Outcome::Skipped("the page was not tested, for there is no chromedriver with a Chromium"));
    }
    browser::run(&browser::Args::default()).map(|()| Outcome::Passed)
}

/// The Python module as users install it. Whoever has no maturin can run the gate all the same.
fn in_python() -> Result<Outcome> {
    if !wheel::can_be_tested() {
        return Ok(Outcome::Skipped(
            "the Python module was not tested, for there is no maturin, or no Python with venv",
        ));
    }
    wheel::run(&wheel::Args::of_gate()).map(|()| Outcome::Passed)
}

/// Training in processes that `mpirun` starts and MPI connects. Whoever has no MPI can run the gate all the same.
fn with_mpi(root: &Path) -> Result<Outcome> {
    let is_there = |program: &str| is_quietly_successful(Command::new(program).arg("--version"));
    if !is_there("mpicc") || !is_there("mpirun") || !has_libclang() {
        return Ok(Outcome::Skipped("the feature mpi was not tested, for there is no mpicc, no mpirun or no libclang"));
    }
    let arguments = "test --workspace --features parquet,toonheads,dicom,mpi --locked --test cli -- clusters::mpirun";
    println!("cargo {arguments}");
    succeed(repository::cargo(root).args(arguments.split(' ')))
}

/// Returns whether bindings of C can be made: by a libclang that the environment names, or that the loader knows.
fn has_libclang() -> bool {
    let known = Command::new("ldconfig").arg("-p").output();
    env::var_os("LIBCLANG_PATH").is_some()
        || known.is_ok_and(|known| String::from_utf8_lossy(&known.stdout).contains("libclang"))
}

/// Licenses, sources and bans of the dependencies, and known vulnerabilities if their database can be had.
fn deny(root: &Path) -> Result<Outcome> {
    let cargo_deny = || {
        let mut command = repository::cargo(root);
        command.args(["deny", "--config", ".deny.toml"]);
        command
    };
    if !is_quietly_successful(cargo_deny().arg("--version")) {
        return Ok(Outcome::Skipped("cargo-deny is not installed"));
    }
    if is_quietly_successful(cargo_deny().args(["fetch", "db"])) {
        return succeed(cargo_deny().args(["check", "--disable-fetch"]));
    }
    println!("the advisory database cannot be fetched: checking licenses, bans and sources only");
    succeed(cargo_deny().args(["check", "licenses", "bans", "sources"]))
}

fn is_quietly_successful(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn succeed(command: &mut Command) -> Result<Outcome> {
    let status = command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(status.success(), "{} ended with {status}", command.get_program().display());
    Ok(Outcome::Passed)
}
