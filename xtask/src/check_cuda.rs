//! `cargo xtask check-cuda`: checks that the CUDA build compiles. Needs no GPU and no installed CUDA toolkit.
//!
//! The compiler and headers come from NVIDIA's packages on `PyPI`, below `target/cuda-toolkit`. The build scripts of
//! `candle-kernels` then compile Candle's kernels with it (minutes, once), and `cargo check` type-checks our code
//! with the feature `cuda`. Nothing is linked or run: that takes the libraries of a CUDA installation and a driver.

mod toolkit;

use std::env;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use self::toolkit::Toolkit;
use xtask::repository;

/// Compute capability to compile kernels for: the oldest (Ampere) on which Candle compiles all of them.
const COMPUTE_CAPABILITY: &str = "80";

/// Arguments of `cargo xtask check-cuda`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The workspace package whose feature `cuda` is turned on
    #[arg(long, default_value = "diffae-cli")]
    package: String,
}

/// Fetches the toolkit where it is missing and checks the package with it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repository::root()?;
    let target = root.join("target");
    let toolkit = Toolkit::fetch(&target.join("cuda-toolkit"))?;
    println!("checking {} with {}; nothing is linked or run", args.package, toolkit.nvcc().display());
    check(&root, &target.join("cuda-check"), &toolkit, &args.package)?;
    println!("check-cuda: {} type-checks with the feature cuda; linking was not attempted", args.package);
    Ok(())
}

fn check(root: &Path, target: &Path, toolkit: &Toolkit, package: &str) -> Result<()> {
    let inherited_path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(toolkit.program_folders().into_iter().chain(env::split_paths(&inherited_path)))
        .context("the folder of the CUDA compiler cannot stand in PATH")?;

    let mut command = repository::cargo(root);
    command.args(["check", "--locked", "--package", package, "--features", "cuda"]);
    command.env("CARGO_TARGET_DIR", target).env("PATH", path).env("NVCC", toolkit.nvcc());
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
        command.env(variable, toolkit.root());
    }
    command.env("CUDARC_CUDA_VERSION", toolkit::CUDARC_VERSION).env("CUDA_COMPUTE_CAP", COMPUTE_CAPABILITY);

    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "{package} does not compile with the feature cuda ({status})");
    Ok(())
}
