//! `cargo xtask cuda-kernels`: compiles our kernels to machine code, and lists the registers of each. Needs no GPU.
//!
//! A warning is an error, and so is a register that does not fit and spills to memory.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::repository;

use super::toolkit::Toolkit;

/// Compute capabilities: the oldest that is supported, and that of an H100 or H200.
const CAPABILITIES: [&str; 2] = ["80", "90"];

/// A kernel in machine code.
#[derive(Debug, PartialEq, Eq)]
struct Compiled {
    name: String,
    registers: u32,
    /// Bytes that are written to memory for lack of registers.
    spilled: u32,
}

/// Fetches the compiler where it is missing, and compiles all kernels.
pub(crate) fn run() -> Result<()> {
    let root = repository::root()?;
    let toolkit = Toolkit::fetch(&root.join("target").join("cuda-toolkit"))?;
    let folder = root.join("crates").join("diffae-kernels").join("src").join("cuda").join("kernels");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "cu"));
    files.sort();
    for capability in CAPABILITIES {
        for file in &files {
            for Compiled { name, registers, spilled } in compile(&toolkit, file, capability)? {
                println!("sm_{capability} {name:<32} {registers:>3} registers");
                ensure!(spilled == 0, "{name} spills {spilled} bytes for sm_{capability}");
            }
        }
    }
    Ok(())
}

/// Compiles a file, and returns its kernels.
fn compile(toolkit: &Toolkit, file: &Path, capability: &str) -> Result<Vec<Compiled>> {
    let mut command = Command::new(toolkit.nvcc());
    command.args(["-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings", "-o", "/dev/null"]);
    command.arg(format!("-gencode=arch=compute_{capability},code=sm_{capability}")).arg(file);
    let old = std::env::var_os("PATH").unwrap_or_default();
    let paths = toolkit.program_folders().into_iter().chain(std::env::split_paths(&old));
    command.env("PATH", std::env::join_paths(paths).context("PATH has a folder with a colon")?);
    let output = command.output().context("cannot start nvcc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} does not compile: {said}", file.display());
    let kernels = parse(&said);
    ensure!(!kernels.is_empty(), "{} has no kernel: {said}", file.display());
    Ok(kernels)
}

/// Reads the report of `ptxas -v`.
fn parse(report: &str) -> Vec<Compiled> {
    let number_before = |line: &str, word: &str| line.split(word).next()?.split_whitespace().next_back()?.parse().ok();
    let mut kernels: Vec<Compiled> = vec![];
    for line in report.lines() {
        if let Some(name) = line.split("Compiling entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            kernels.push(Compiled { name: name.to_owned(), registers: 0, spilled: 0 });
        } else if let Some(kernel) = kernels.last_mut() {
            if line.contains("bytes spill stores") {
                kernel.spilled = number_before(line, "bytes spill stores").unwrap_or(u32::MAX);
            } else if line.contains(" registers") {
                kernel.registers = number_before(line, " registers").unwrap_or_default();
            }
        }
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_spills_are_read() {
        let report = "ptxas info    : 0 bytes gmem\n\
                      ptxas info    : Compiling entry function 'squares' for 'sm_90'\n\
                      ptxas info    : Function properties for squares\n    \
                      0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                      ptxas info    : Used 24 registers, used 1 barriers\n\
                      ptxas info    : Compiling entry function 'adam' for 'sm_90'\n    \
                      16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n\
                      ptxas info    : Used 255 registers\n";
        let kernel = |name: &str, registers, spilled| Compiled { name: name.to_owned(), registers, spilled };
        assert_eq!(parse(report), [kernel("adam", 255, 12), kernel("squares", 24, 0)]);
    }
}
