//! Chores that compute with the crates of this repository, started through `cargo xtask <command>`.
//!
//! They are a package of their own so that `cargo xtask ci` and `cargo xtask tidy` need none of these crates.

#![expect(clippy::print_stdout, reason = "a command line tool reports on standard output")]

mod bench;
mod curves;
mod font;
mod golden;
mod gpu;
mod onnx;
mod page;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Allocator that keeps memory: large tensors come and go at every step, and glibc would give theirs back to the system
/// each time.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Repository chores that compute.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare with the numbers of the reference implementation.
    Golden(golden::Args),
    /// Measure speed and memory, beside PyTorch if wanted.
    Bench(bench::Args),
    /// Check and measure a GPU, beside the CPU of the same machine.
    Gpu(gpu::Args),
    /// Draw the log of a training run.
    Curves(curves::Args),
    /// Export models as ONNX with our numbers for them, and compare another runtime.
    Onnx(onnx::Args),
    /// Write a page without a server: static files that compute in the browser.
    Page(page::Args),
}

fn main() -> ExitCode {
    // Warnings of the crates, such as of a network that a card cannot record.
    let warnings = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN);
    warnings.with_writer(std::io::stderr).with_ansi(false).without_time().init();
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Golden(args) => golden::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Gpu(args) => gpu::run(args),
        Command::Curves(args) => curves::run(args),
        Command::Onnx(args) => onnx::run(args),
        Command::Page(args) => page::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
