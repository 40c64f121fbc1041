//! Repository chores, started as `cargo xtask <command>`.
//!
//! Each command is a module of its name with a `run` function; a new one also needs a line in [`Command`] and one
//! in [`run`].

#![expect(clippy::print_stdout, reason = "a command line tool reports on standard output")]

mod bench;
mod check_cuda;
mod ci;
mod curves;
mod dataset;
mod font;
mod golden;
mod repository;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Large tensors come and go at every step; glibc would give their memory back to the system each time.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Compare with the numbers of the reference implementation.
    Golden(golden::Args),
    /// Measure speed and memory, beside PyTorch if wanted.
    Bench(bench::Args),
    /// Draw the log of a training run.
    Curves(curves::Args),
    /// Make a data set from its original source.
    Dataset(dataset::Args),
    /// Type-check the CUDA build with NVIDIA's compiler from the Python package index; needs no GPU.
    CheckCuda(check_cuda::Args),
}

fn main() -> ExitCode {
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
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Golden(args) => golden::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Curves(args) => curves::run(args),
        Command::Dataset(args) => dataset::run(args),
        Command::CheckCuda(args) => check_cuda::run(args),
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
