//! Exports models as ONNX and compares a peer runtime with our own numbers, as `cargo xtask onnx --out DIR`.
//!
//! The models are the golden ones, the built-in one and a one-shot autoencoder with random weights. Each gets a folder below
//! DIR with `f32/`, `f16/` and `numbers.safetensors`, the built-in one `pictures.safetensors` too;
//! `xtask/peer/onnx_parity.py` runs the graphs and the program of docs/onnx.md, and compares.

mod numbers;
mod one_shot;
mod pictures;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use diffae_data::Overwrite;
use diffae_infer::{BUILT_IN_MODEL, LoadOptions, ModelSource, Pipeline};
use diffae_nets::weights::safetensors_bytes;
use diffae_onnx::{Export, Precision};
use xtask::repository;

use crate::bench::python_command;
use crate::golden::complete_source;

/// Arguments of `cargo xtask onnx`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write the exports and our numbers into.
    #[arg(long)]
    out: PathBuf,
    /// Python with xtask/peer/requirements-onnx.txt, which then compares; without it the exports are written alone.
    #[arg(long)]
    python: Option<PathBuf>,
}

/// Exports all models with our numbers, and compares if there is a Python.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repository::root()?;
    for (name, source) in sources(&root.join("tests/fixtures/golden"), &args.out)? {
        let folder = args.out.join(&name);
        export(&source, &folder).with_context(|| format!("exporting {name}"))?;
        if name == BUILT_IN_MODEL {
            pictures::write(&source, &folder.join("pictures.safetensors"))?;
        }
        println!("{name}: exported with our numbers");
    }
    let Some(python) = &args.python else { return Ok(()) };
    let status = python_command(python, &root.join("xtask/peer/onnx_parity.py")).arg(&args.out).status();
    let status = status.with_context(|| format!("cannot start {}", python.display()))?;
    if status.success() { Ok(()) } else { bail!("the peer and our numbers differ") }
}

/// Opens all models, each with its name.
fn sources(golden: &Path, out: &Path) -> Result<Vec<(String, ModelSource)>> {
    let mut sources = vec![
        (BUILT_IN_MODEL.to_owned(), ModelSource::built_in()?),
        ("one_shot".to_owned(), one_shot::source(&out.join("one_shot/model"))?),
    ];
    let entries = fs::read_dir(golden)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut folders: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    folders.sort();
    for folder in folders.into_iter().filter(|folder| folder.join("last.ckpt").is_file()) {
        let name = folder.file_name().context("a fixture without a name")?.to_string_lossy().into_owned();
        sources.push((name, complete_source(&folder)?));
    }
    Ok(sources)
}

fn export(source: &ModelSource, folder: &Path) -> Result<()> {
    for (name, precision) in [("f32", Precision::F32), ("f16", Precision::F16)] {
        Export::new(source, precision)?.write(&folder.join(name), Overwrite::Replace)?;
    }
    let pipeline = Pipeline::new(source.build(&LoadOptions::cpu())?);
    let bytes = safetensors_bytes(&numbers::numbers(&pipeline)?, &BTreeMap::new())?;
    Ok(diffae_data::write_atomically(&folder.join("numbers.safetensors"), &bytes, Overwrite::Replace)?)
}
