//! Repository chores, started as `cargo xtask <command>`.
//!
//! This package does what needs no crate of ours: the gate and its checks. Commands that compute are those of `xtask-lab`,
//! which is built when one of them is asked for; a new one needs a line in [`Command`] and one in [`run`], here and there.

#![expect(clippy::print_stdout, reason = "a command line tool reports on standard output")]

mod browser;
mod ci;
mod cuda;
mod scaling;
mod tidy;
mod wheel;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use xtask::repository;

/// Repository chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every check that a change must pass, as the server does.
    Ci,
    /// Check layout, sources, manifests and documentation against docs/style.md.
    Tidy,
    /// Test the page of `diffae serve` in Chromium, or measure it there.
    Browser(browser::Args),
    /// Compare with the numbers of the reference implementation.
    Golden(Forwarded),
    /// Measure speed and memory, beside PyTorch if wanted.
    Bench(Forwarded),
    /// Check and measure a GPU, beside the CPU of the same machine.
    Gpu(Forwarded),
    /// Draw the log of a training run.
    Curves(Forwarded),
    /// Export models as ONNX with our numbers for them, and compare another runtime.
    Onnx(Forwarded),
    /// Write a page without a server: static files that compute in the browser.
    Page(Forwarded),
    /// Create a data set from its original source: `diffae dataset`, built with its renderer of cartoon faces.
    Dataset(Forwarded),
    /// Type-check the CUDA build; needs neither a GPU nor CUDA.
    CheckCuda(cuda::check::Args),
    /// Build the program with CUDA, with NVIDIA's compiler from the Python package index; needs no GPU.
    CudaBuild(cuda::build::Args),
    /// Compile diffae's kernels for cards, with NVIDIA's compiler from the Python package index, and list their registers.
    CudaKernels,
    /// Make cuDNN's plans of our convolutions, for an H200 that need not be there, with the library from the Python package index.
    CudnnPlans,
    /// Simulate training on many processes: what links of several kinds leave of the speed.
    Scaling(scaling::Args),
    /// Build the Python package with maturin, and run its tests.
    Wheel(wheel::Args),
}

/// Arguments of a command of `xtask-lab`, or of the program.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
struct Forwarded {
    /// Arguments of the command; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Browser(args) => browser::run(&args),
        Command::Golden(golden) => in_lab("golden", &golden, &[]),
        // What is measured is what users run.
        Command::Bench(bench) => in_lab("bench", &bench, &["--release"]),
        Command::Gpu(gpu) => in_lab("gpu", &gpu, on_gpu(&gpu)),
        Command::Curves(curves) => in_lab("curves", &curves, &[]),
        Command::Onnx(onnx) => in_lab("onnx", &onnx, &[]),
        Command::Page(page) => in_lab("page", &page, &[]),
        Command::Dataset(dataset) => in_program("dataset", &dataset),
        Command::CheckCuda(args) => cuda::check::run(&args),
        Command::CudaBuild(args) => cuda::build::run(&args),
        Command::CudaKernels => cuda::kernels::run(),
        Command::CudnnPlans => cuda::plans::run(),
        Command::Scaling(args) => scaling::run(&args),
        Command::Wheel(args) => wheel::run(&args),
    }
}

/// Returns how the program that checks a GPU is built where there is Rust; `cuda-build --package xtask-lab` builds it for other
/// machines.
fn on_gpu(gpu: &Forwarded) -> &'static [&'static str] {
    if gpu.args.iter().any(|arg| arg.to_string_lossy().contains("composed")) {
        return &["--release"];
    }
    if cfg!(target_os = "macos") { &["--release", "--features", "metal"] } else { &["--release", "--features", "cuda"] }
}

/// Builds `xtask-lab` in the foreground, and passes the command on; ends with its exit code.
fn in_lab(command: &str, forwarded: &Forwarded, profile: &[&str]) -> Result<()> {
    cargo_run(&[&["--package", "xtask-lab"], profile].concat(), command, forwarded)
}

/// Builds the program with its renderer, as users build it, and passes the command on; ends with its exit code.
fn in_program(command: &str, forwarded: &Forwarded) -> Result<()> {
    println!(
        "building diffae with its renderer of faces: about ten minutes on two cores the first time, a second later on"
    );
    cargo_run(&["--release", "--package", "diffae-cli", "--features", "toonheads"], command, forwarded)
}

fn cargo_run(package: &[&str], command: &str, forwarded: &Forwarded) -> Result<()> {
    let mut cargo = std::process::Command::new(repository::cargo_program());
    cargo.args(["run", "--locked", "--manifest-path"]).arg(repository::root()?.join("Cargo.toml")).args(package);
    let status = cargo.args(["--", command]).args(&forwarded.args).status().context("cannot start cargo")?;
    // It has said what is wrong.
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// With the renderer no dependency of Candle may have other features than without: it would be compiled again.
    #[test]
    fn the_renderer_leaves_candle_as_it_is() {
        let tree = |package: &str, features: &[&str]| {
            let mut cargo = std::process::Command::new(repository::cargo_program());
            cargo.current_dir(repository::root().unwrap()).args(["tree", "--locked", "--package", package]);
            cargo.args(["--edges", "normal,build", "--format", "{p} {f}", "--prefix", "none", "--no-dedupe"]);
            let output = cargo.args(features).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let of_candle: Vec<String> = tree("candle-nn", &[]).iter().map(|line| name(line)).collect();
        let (plain, with_renderer) = (tree("diffae-cli", &[]), tree("diffae-cli", &["--features", "toonheads"]));
        // The compiler of C is there for others.
        let is_candles = |line: &&String| of_candle.contains(&name(line)) && !line.starts_with("cc ");
        let changed: Vec<&String> = plain.difference(&with_renderer).filter(is_candles).collect();
        assert!(of_candle.len() > 50 && changed.is_empty(), "{changed:?}");
    }

    #[test]
    fn the_page_is_tested_or_measured() {
        let parsed = |words: &[&str]| Cli::try_parse_from([&["cargo xtask", "browser"], words].concat());
        for accepted in [&[][..], &["drag", "--screenshots", "seen"], &["--bench"], &["--bench", "--program", "diffae"]]
        {
            assert!(parsed(accepted).is_ok(), "{accepted:?}");
        }
        for refused in [&["--program", "diffae"][..], &["--bench", "--screenshots", "seen"], &["--bench", "drag"]] {
            assert!(parsed(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn options_of_commands_that_compute_are_handed_on() {
        let words = ["cargo xtask", "dataset", "folder", "--from", "pets", "--help"];
        let Command::Dataset(Forwarded { args }) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        assert_eq!(args, words[2..]);
    }
}
