//! `cargo xtask cudnn-plans`: makes cuDNN's plans of our convolutions for an H200 that need not be there. Needs no GPU.
//!
//! It shows that the real library takes our calls, and which engines it chooses; what they compute only a card shows.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xtask::repository;

use super::toolkit;

/// The packages of cuDNN, and of cuBLASLt, which it opens.
const PACKAGES: [&str; 2] = ["nvidia-cudnn-cu13==9.28.1.4", "nvidia-cublas==13.10.0.20"];
/// Folder name of these packages; a new one for every change of them.
const RELEASE: &str = "cudnn-9.28.1.4";
/// Functions of the driver that cuDNN must find to be loaded. It calls none to make a plan.
const DRIVER: [&str; 6] = [
    "cuGetErrorString",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeIm2col",
    "cuTensorMapEncodeTiled",
];

/// Fetches cuDNN where it is missing, and prints the table of plans.
pub(crate) fn run() -> Result<()> {
    let root = repository::root()?;
    let folder = root.join("target").join("cuda-toolkit").join(RELEASE);
    if !folder.exists() {
        toolkit::download(&PACKAGES, &folder)?;
    }
    let packages = folder.join("nvidia");
    let (libraries, driver) = (packages.join("cudnn").join("lib"), folder.join("driver"));
    make_driver(&driver)?;
    let old = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = [libraries.clone(), packages.join("cu13").join("lib"), driver];
    let paths = folders.into_iter().chain(std::env::split_paths(&old));
    let mut cargo = repository::cargo(&root);
    cargo.args(["test", "--quiet", "--locked", "--package", "diffae-kernels", "--lib", "the_real_library", "--"]);
    cargo.args(["--ignored", "--nocapture"]).env("DIFFAE_CUDNN", libraries.join("libcudnn.so.9"));
    cargo.env("LD_LIBRARY_PATH", std::env::join_paths(paths).context("a path has a colon")?);
    println!("| channels | pixels | kernel | direction | numbers | engine | workspace, MiB |");
    println!("|---|---|---|---|---|---|---|");
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "cuDNN refuses what the test shows ({status})");
    Ok(())
}

/// Makes a library in the place of the driver's, whose functions all say that there is no card.
fn make_driver(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let source = DRIVER.map(|name| format!("int {name}(void) {{ return 100; }}\n")).concat();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-o"])
        .arg(folder.join("libcuda.so.1"))
        .arg("-");
    let mut child = cc.stdin(Stdio::piped()).spawn().context("cannot start cc, the C compiler")?;
    let mut input = child.stdin.take().context("a compiler without input")?;
    input.write_all(source.as_bytes()).context("the C compiler takes no source")?;
    drop(input);
    let status = child.wait().context("the C compiler is lost")?;
    ensure!(status.success(), "cc cannot make a library ({status})");
    Ok(())
}
