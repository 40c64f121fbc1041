//! The program that Candle's build script takes for `nvcc`.
//!
//! It leaves out what this project never calls, Candle's kernels for quantized weights: nine tenths of the time of a build. Their
//! modules become empty; their functions in C become ones that abort.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::toolkit::Toolkit;

/// The compiler of a build.
pub(super) enum Compiler<'a> {
    /// NVIDIA's.
    Nvidia(&'a Toolkit),
    /// None at all: every module becomes empty.
    StandIn,
}

/// The script: `$nvcc` is the path of NVIDIA's compiler or empty, `$here` the folder of the files beside it.
const SCRIPT: &str = include_str!("nvcc.sh");
/// A module without kernels.
const EMPTY_MODULE: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

impl Compiler<'_> {
    /// Writes the program and what it needs below `root`; `candle_kernels` is the folder of that crate.
    pub(super) fn install(&self, root: &Path, candle_kernels: &Path) -> Result<()> {
        let folder = root.join("bin");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (nvcc, programs) = match self {
            Self::Nvidia(toolkit) => (
                toolkit.nvcc().display().to_string(),
                toolkit.program_folders().map(|it| it.display().to_string()).join(":"),
            ),
            Self::StandIn => (String::new(), String::new()),
        };
        let head = format!("#!/bin/sh\nnvcc='{nvcc}'\nPATH=\"{programs}:$PATH\"\nhere='{}'\n", folder.display());
        write(&folder.join("empty.ptx"), EMPTY_MODULE)?;
        write(&folder.join("quantized.c"), &stubs(&candle_kernels.join("src").join("ffi.rs"))?)?;
        let script = folder.join("nvcc");
        // What has not changed keeps its time, by which build scripts decide whether to run again.
        write(&script, &(head + SCRIPT))?;
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&script, executable).with_context(|| format!("cannot change {}", script.display()))
    }
}

/// Writes a file unless it holds this text already.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes functions in C that abort, one for each that a file of Rust declares.
fn stubs(declarations: &Path) -> Result<String> {
    let text = fs::read_to_string(declarations).with_context(|| format!("cannot read {}", declarations.display()))?;
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.trim().strip_prefix("pub fn ")?.split('(').next()).collect();
    ensure!(!names.is_empty(), "{} declares no function", declarations.display());
    let functions = names.iter().map(|name| format!("void {name}(void) {{ abort(); }}\n"));
    Ok(format!("#include <stdlib.h>\n{}", functions.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn without_a_compiler_modules_are_empty_and_functions_abort() {
        let folder = tempfile::tempdir().unwrap();
        let (root, source) = (folder.path().join("kit"), folder.path().join("kernels"));
        fs::create_dir_all(source.join("src")).unwrap();
        fs::write(
            source.join("src").join("ffi.rs"),
            "extern \"C\" {\n    pub fn gemm_q4(\n        x: u32,\n    );\n}\n",
        )
        .unwrap();
        Compiler::StandIn.install(&root, &source).unwrap();
        let nvcc = |args: &[&str]| {
            let output = Command::new(root.join("bin").join("nvcc")).current_dir(&source).args(args).output().unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(nvcc(&["--version"]).contains("release 13.0"));
        nvcc(&["-gencode=x", "--ptx", "--output-directory", ".", "-O3", "src/unary.cu"]);
        assert_eq!(fs::read_to_string(source.join("unary.ptx")).unwrap(), EMPTY_MODULE);
        nvcc(&["-c", "-o", "a.o", "-O3", "src/mmvq_gguf.cu"]);
        nvcc(&["-c", "-o", "b.o", "-O3", "src/moe/moe_gguf.cu"]);
        nvcc(&["--lib", "-o", "libmoe.a", "a.o", "b.o"]);
        let symbols = Command::new("nm").arg(source.join("libmoe.a")).output().unwrap();
        let symbols = String::from_utf8(symbols.stdout).unwrap();
        assert_eq!(symbols.matches("T gemm_q4").count(), 1, "{symbols}");
    }
}
