//! Compares this implementation with the numbers of the reference one, as `cargo xtask golden DIR..`.
//!
//! A folder of golden numbers holds model folders (`last.ckpt`, `golden.safetensors`, and where the model has them
//! `latent.pkl` and `classifier.ckpt`) and may hold `math.safetensors`. Every quantity that is there is checked, and one
//! line is printed for it: `model quantity max-rel-error tolerance ok|FAIL`. Tolerances are those of docs/parity.md.

mod fixture;
mod math;
mod model;
mod report;
mod steps;
mod training;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub(crate) use model::complete_source;
use report::Report;

/// Arguments of `cargo xtask golden`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folders of golden numbers, or single model folders.
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
}

/// Checks all folders and prints the report; fails if anything is out of tolerance.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut report = Report::printing();
    for dir in &args.dirs {
        check_dir(dir, &mut report)?;
    }
    report.conclude()
}

/// Checks a folder of golden numbers, or one model folder.
fn check_dir(dir: &Path, report: &mut Report) -> Result<()> {
    let folders = model_folders(dir)?;
    let math = dir.join("math.safetensors");
    if folders.is_empty() && !math.is_file() {
        bail!("{} holds neither model folders nor math.safetensors", dir.display())
    }
    if math.is_file() {
        math::check(&math, report).with_context(|| format!("checking {}", math.display()))?;
    }
    for folder in folders {
        check_model(&folder, report)?;
    }
    Ok(())
}

/// Checks one model folder.
fn check_model(folder: &Path, report: &mut Report) -> Result<()> {
    let context = || format!("checking {}", folder.display());
    report.begin(&folder.file_name().map_or_else(|| ".".to_owned(), |name| name.to_string_lossy().into_owned()));
    model::check(folder, report).with_context(context)?;
    training::check(folder, report).with_context(context)?;
    steps::check(folder, report).with_context(context)
}

/// Returns `dir` itself if it is a model folder, else the model folders in it, sorted.
fn model_folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let is_model = |folder: &Path| folder.join("last.ckpt").is_file() && folder.join("golden.safetensors").is_file();
    if is_model(dir) {
        return Ok(vec![dir.to_owned()]);
    }
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut folders = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folders.retain(|folder| is_model(folder));
    folders.sort();
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden")
    }

    #[track_caller]
    fn passes(name: &str) {
        let mut report = Report::silent();
        check_dir(&fixtures().join(name), &mut report).unwrap();
        report.conclude().unwrap();
    }

    #[test]
    fn autoencoder_of_32_pixels_is_the_reference() {
        passes("autoenc32");
    }

    #[test]
    fn autoencoder_with_latent_net_is_the_reference() {
        passes("autoenc16_latent");
    }

    #[test]
    fn plain_ddpm_is_the_reference() {
        passes("ddpm16");
    }

    /// Covers options that the reference's own models do not use: heads, one channel, halves of different length, own
    /// attention list.
    #[test]
    fn gray_autoencoder_with_two_heads_is_the_twin() {
        passes("gray16_heads2");
    }

    #[test]
    fn schedules_embeddings_and_measures_are_the_reference() {
        let mut report = Report::silent();
        math::check(&fixtures().join("math.safetensors"), &mut report).unwrap();
        report.conclude().unwrap();
    }

    #[test]
    fn a_folder_without_golden_numbers_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_dir(folder.path(), &mut Report::silent()).is_err());
    }
}
