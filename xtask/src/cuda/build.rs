//! `cargo xtask cuda-build`: builds and links the program with CUDA. Needs no GPU and no installed CUDA toolkit.
//!
//! NVIDIA's compiler comes from its packages on `PyPI`, below `target/cuda-toolkit`. The program opens NVIDIA's libraries when
//! CUDA is asked for, so that it starts and works without them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::repository;

use super::compiler::Compiler;
use super::toolkit::Toolkit;
use super::{Installation, libraries, source_of};

/// Arguments of `cargo xtask cuda-build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package whose program is built
    #[arg(long, default_value = "diffae-cli")]
    package: String,
    /// Features of the program besides `cuda`, with commas
    #[arg(long, default_value = "")]
    features: String,
    /// Build without optimization of our own code, faster
    #[arg(long)]
    debug: bool,
}

/// Fetches the compiler where it is missing, builds the program, and starts it once.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(cfg!(all(target_arch = "x86_64", target_os = "linux")), "cuda-build builds for Linux on x86-64 only");
    let target = repository::root()?.join("target");
    let toolkit = Toolkit::fetch(&target.join("cuda-toolkit"))?;
    let folder = target.join("cuda-build");
    let installation = Installation::prepare(&folder.join("toolkit"), &Compiler::Nvidia(&toolkit))?;
    libraries::build(&installation.root.join("lib"), &source_of("cudarc")?)?;
    let mut command = installation.cargo(&folder)?;
    command.args(["build", "--locked", "--package", &args.package, "--features"]);
    command.arg(format!("cuda,{}", args.features));
    if !args.debug {
        command.arg("--release");
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "{} does not build with the feature cuda ({status})", args.package);
    let name = if args.package == "diffae-cli" { "diffae" } else { &args.package };
    let program: PathBuf = [folder, if args.debug { "debug" } else { "release" }.into(), name.into()].iter().collect();
    let output = Command::new(&program).arg("--help").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} does not start: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{}", program.display());
    Ok(())
}
