//! `cargo xtask check-cuda`: checks that the CUDA build compiles. Needs no GPU, no toolkit and no download but Candle's.

use anyhow::{Context, Result, ensure};
use xtask::repository;

use super::Installation;
use super::compiler::Compiler;

/// The package of the program.
const PROGRAM: &str = "diffae-cli";

/// Arguments of `cargo xtask check-cuda`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The workspace package whose feature `cuda` is turned on
    #[arg(long, default_value = PROGRAM)]
    package: String,
    /// Lint with clippy instead of checking types alone
    #[arg(long)]
    clippy: bool,
}

impl Args {
    /// The arguments of the gate.
    pub(crate) fn of_gate() -> Self {
        Self { package: PROGRAM.to_owned(), clippy: false }
    }
}

/// Type-checks the package with the feature `cuda`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let target = repository::root()?.join("target").join("cuda-check");
    let installation = Installation::prepare(&target.join("toolkit"), &Compiler::StandIn)?;
    let mut command = installation.cargo(&target)?;
    command.arg(if args.clippy { "clippy" } else { "check" });
    // The program also has NCCL, which is loaded when it is asked for.
    let features = if args.package == PROGRAM { "cuda,nccl" } else { "cuda" };
    command.args(["--locked", "--package", &args.package, "--features", features]);
    if args.clippy {
        command.args(["--", "-D", "warnings"]);
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "{} does not compile with {features} ({status})", args.package);
    println!("check-cuda: {} type-checks with {features}; no kernel was compiled, nothing linked", args.package);
    Ok(())
}
