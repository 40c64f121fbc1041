//! CUDA builds on machines without a GPU and without NVIDIA's toolkit or libraries.
//!
//! `check-cuda` type-checks: kernels are not compiled, for their text does not matter to types. `cuda-kernels` compiles ours, for
//! what the compiler says of them, and `cudnn-plans` makes the plans of our convolutions. `cuda-build` compiles those kernels that we
//! call with NVIDIA's compiler from `PyPI`, and links a program that opens NVIDIA's libraries when CUDA is asked for.

pub(crate) mod build;
pub(crate) mod check;
mod compiler;
pub(crate) mod kernels;
mod libraries;
pub(crate) mod plans;
mod toolkit;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::repository;

use self::compiler::Compiler;

/// Version of cudarc's bindings: CUDA 13.0.
const BINDINGS: &str = "13000";
/// Compute capability that kernels are compiled for: the oldest (Ampere) that Candle's kernels support. Their form is PTX, which
/// the driver translates for the card that is there.
const COMPUTE_CAPABILITY: &str = "80";

/// A folder that Candle's build scripts take for an installed toolkit.
struct Installation {
    root: PathBuf,
}

impl Installation {
    /// Prepares the folder, with a compiler.
    fn prepare(root: &Path, compiler: &Compiler<'_>) -> Result<Self> {
        compiler.install(root, &source_of("candle-kernels")?)?;
        Ok(Self { root: root.to_owned() })
    }

    /// Returns a cargo command with the variables that the build scripts look at, and its own target folder.
    fn cargo(&self, target: &Path) -> Result<Command> {
        let mut command = repository::cargo(&repository::root()?);
        for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
            command.env(variable, &self.root);
        }
        command.env("NVCC", self.root.join("bin").join("nvcc")).env("CARGO_TARGET_DIR", target);
        command.env("CUDARC_CUDA_VERSION", BINDINGS).env("CUDA_COMPUTE_CAP", COMPUTE_CAPABILITY);
        Ok(command)
    }
}

/// Returns the folder with the source of a dependency, which is downloaded if it is not there.
fn source_of(package: &str) -> Result<PathBuf> {
    let mut cargo = repository::cargo(&repository::root()?);
    cargo.args(["metadata", "--locked", "--format-version", "1", "--features", "diffae-cli/cuda,diffae-cli/nccl"]);
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata says")?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let manifest = packages.iter().find(|it| it["name"] == package).and_then(|it| it["manifest_path"].as_str());
    let manifest = manifest.with_context(|| format!("{package} is no dependency"))?;
    Ok(Path::new(manifest).parent().unwrap_or(Path::new("")).to_owned())
}
