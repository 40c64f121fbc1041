//! Benchmarks of a whole program: from the start of its process to the picture on the disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use diffae_data::{Overwrite, png_bytes, rgb_from_tensor};
use diffae_infer::ModelSource;
use diffae_nets::DiffusionAutoencoder;

use super::PAUSE;
use super::peer::{KEEP_MEMORY, python_command};
use super::report::Measurement;
use super::work::{Kind, Work};
use xtask::repository;

/// Number of steps in each direction.
const STEPS: &str = "20";

/// Reconstructs a picture with `diffae reconstruct` and, in turn, with the twin's script.
pub(crate) fn measure(work: &Work, python: Option<&Path>, threads: usize, rounds: usize) -> Result<Measurement> {
    let folder = std::env::temp_dir().join(format!("diffae-bench-{}", std::process::id()));
    let result = measure_in(&folder, work, python, threads, rounds);
    // Best effort: what matters is the measurement.
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn measure_in(folder: &Path, work: &Work, python: Option<&Path>, threads: usize, rounds: usize) -> Result<Measurement> {
    let root = repository::root()?;
    let program = build_program(&root)?;
    let (model, picture) = prepare(folder, work)?;
    let threads = threads.to_string();
    let out = folder.join("out");
    let ours = || -> Result<f64> {
        let mut command = Command::new(&program);
        command.args(["reconstruct", "--quiet", "--force", "--threads", &threads, "--steps", STEPS]);
        command.args(super::exact_flag());
        command.args(["--invert-steps", STEPS, "--model"]).arg(&model).arg(&picture).arg("--out").arg(&out);
        timed(command)
    };
    let peer = |python: &Path, environment: &[(&str, &str)]| -> Result<f64> {
        let mut command = python_command(python, &root.join("xtask/peer/reconstruct.py"));
        command.arg(&model).arg(&picture).arg(folder.join("peer.png")).args([STEPS, &threads]);
        command.envs(environment.iter().copied());
        timed(command)
    };
    let peers = python.map_or(0, |_| 2);
    let mut measurement = Measurement { ours_ms: vec![], peers_ms: vec![vec![]; peers], memory: None, gflop: None };
    // The first round brings files into the system's cache.
    for round in 0..=rounds {
        std::thread::sleep(PAUSE);
        let ms = ours()?;
        let mut peers_ms = vec![];
        if let Some(python) = python {
            peers_ms.extend([peer(python, &[])?, peer(python, &KEEP_MEMORY)?]);
        }
        if round > 0 {
            measurement.ours_ms.push(ms);
            measurement.peers_ms.iter_mut().zip(peers_ms).for_each(|(all, ms)| all.push(ms));
        }
    }
    Ok(measurement)
}

/// Builds the program in release mode, and returns its path.
fn build_program(root: &Path) -> Result<PathBuf> {
    let built = repository::cargo(root)
        .args(["build", "--quiet", "--release", "--package", "diffae-cli"])
        .status()
        .context("cannot start cargo")?;
    if !built.success() {
        bail!("diffae-cli does not build")
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    Ok(target.join("release").join("diffae"))
}

/// Measures `diffae` with the built-in model, reconstructing or sampling; the twin has no such model.
pub(crate) fn measure_built_in(work: &Work, threads: usize, rounds: usize) -> Result<Measurement> {
    let root = repository::root()?;
    let program = build_program(&root)?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let picture = root.join("tests/fixtures/photographs/astronaut.jpg");
    let mut measurement = Measurement { ours_ms: vec![], peers_ms: vec![], memory: None, gflop: None };
    for round in 0..=rounds {
        std::thread::sleep(PAUSE);
        let mut command = Command::new(&program);
        if work.kind == Kind::BuiltInSample {
            command.args(["sample", "--count", &work.batch.to_string(), "--latent-steps", "100"]);
        } else {
            command.args(["reconstruct", "--invert-steps", STEPS]).arg(&picture);
        }
        command.args(["--model", "toonheads", "--quiet", "--force", "--steps", STEPS]);
        command.args(["--threads", &threads.to_string(), "--out"]).arg(folder.path().join("out"));
        command.args(super::exact_flag());
        let ms = timed(command)?;
        if round > 0 {
            measurement.ours_ms.push(ms);
        }
    }
    Ok(measurement)
}

/// Writes a model directory of random weights, and a picture.
fn prepare(folder: &Path, work: &Work) -> Result<(PathBuf, PathBuf)> {
    let (model, picture) = (folder.join("model"), folder.join("picture.png"));
    write_model(&model, work)?;
    let size = work.preset.image_size;
    let x = Tensor::rand(-1f32, 1., (3, size, size), &Device::Cpu)?;
    std::fs::write(&picture, png_bytes(&rgb_from_tensor(&x)?, &[], &picture)?).context("cannot write the picture")?;
    Ok((model, picture))
}

/// Writes a model directory of random weights.
pub(crate) fn write_model(folder: &Path, work: &Work) -> Result<()> {
    let vars = VarMap::new();
    DiffusionAutoencoder::new(&work.preset.config()?, &VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let tensors = match vars.data().lock() {
        Ok(data) => data.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect(),
        Err(_) => bail!("the variables are locked"),
    };
    let config = work.preset.model_config(None)?;
    Ok(ModelSource::from_networks(config, tensors).write(folder, DType::F32, Overwrite::Replace)?)
}

fn timed(mut command: Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output().context("cannot start the program")?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        bail!("the program failed: {}", String::from_utf8_lossy(&output.stderr).trim())
    }
    Ok(ms)
}
