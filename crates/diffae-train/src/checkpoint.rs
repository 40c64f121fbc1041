//! Checkpoints of a stage, which are complete or absent even after a crash.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, at};
use crate::loss_scale::LossScale;
use crate::parameters::Parameters;

const STATE_FILE: &str = "state.json";
const TENSORS_FILE: &str = "state.safetensors";
const PARTIAL_PREFIX: &str = ".partial-";

/// Held while a checkpoint is written.
static SAVING: Mutex<()> = Mutex::new(());
/// Time between two looks at whether a checkpoint is written.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until no checkpoint is being written in this process, for so long at most; for a program that is about to end while it
/// trains.
pub fn wait_for_checkpoint(patience: Duration) {
    let until = Instant::now() + patience;
    while matches!(SAVING.try_lock(), Err(TryLockError::WouldBlock)) && Instant::now() < until {
        thread::sleep(LOOK_EVERY);
    }
}

/// Metadata of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Number of optimizer steps made.
    step: usize,
    /// Scale of the loss of the next step, in training that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
    /// Checksum of the tensor file.
    blake3: String,
}

/// Progress of a stage: all that a checkpoint holds besides tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Number of optimizer steps made.
    pub(crate) step: usize,
    /// Scale of the loss of the next step; `None` for number types that need none.
    pub(crate) loss_scale: Option<LossScale>,
}

/// The checkpoints of one stage, in folders named `STAGE-STEP`.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    stage: &'static str,
    keep: usize,
}

impl Checkpoints {
    pub(crate) fn new(run: &Path, stage: &'static str, keep: usize) -> Self {
        Self { folder: run.join("checkpoints"), stage, keep }
    }

    /// Returns whether there is a checkpoint, broken or not.
    pub(crate) fn any(&self) -> bool {
        !self.list().is_empty()
    }

    /// Returns the step of the newest checkpoint, broken or not.
    pub(crate) fn newest_step(&self) -> Option<usize> {
        self.list().last().map(|&(step, _)| step)
    }

    /// Removes all checkpoints of the stage.
    pub(crate) fn remove_all(&self) -> Result<()> {
        for (_, path) in self.list() {
            fs::remove_dir_all(&path).map_err(at(&path))?;
        }
        Ok(())
    }

    /// Writes a checkpoint atomically (temporary name, sync, rename), and removes the oldest.
    pub(crate) fn save(&self, parameters: &Parameters, progress: Progress) -> Result<()> {
        let Progress { step, loss_scale } = progress;
        let _saving = SAVING.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&self.folder).map_err(at(&self.folder))?;
        let prepared =
            tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempdir_in(&self.folder).map_err(at(&self.folder))?;
        let tensors = prepared.path().join(TENSORS_FILE);
        parameters.save(&tensors)?;
        sync(&tensors)?;
        let state = State { step, loss_scale, blake3: checksum(&tensors)? };
        let text = serde_json::to_string_pretty(&state).unwrap_or_default();
        let state_path = prepared.path().join(STATE_FILE);
        fs::write(&state_path, text).map_err(at(&state_path))?;
        sync(&state_path)?;
        sync(prepared.path())?;
        let path = self.path(step);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(at(&path))?;
        }
        let prepared = prepared.keep();
        if let Err(source) = fs::rename(&prepared, &path) {
            // Best effort: the error that matters is the first one.
            let _ = fs::remove_dir_all(&prepared);
            return Err(at(&path)(source));
        }
        sync(&self.folder)?;
        let old = self.list();
        for (_, path) in old.iter().rev().skip(self.keep) {
            fs::remove_dir_all(path).map_err(at(path))?;
        }
        Ok(())
    }

    /// Loads the newest complete checkpoint and returns its step; warns of newer ones that are broken.
    ///
    /// # Errors
    /// If there is no complete checkpoint.
    pub(crate) fn load_newest(&self, parameters: &mut Parameters) -> Result<Progress> {
        for (step, path) in self.list().iter().rev() {
            match load(path, *step, parameters) {
                Ok(progress) => return Ok(progress),
                Err(error) => tracing::warn!("{} is broken and passed over: {error}", path.display()),
            }
        }
        let problem = format!("there is no whole checkpoint of stage {} to resume from", self.stage);
        Err(Error::Run { path: self.folder.clone(), problem })
    }

    /// Removes partial checkpoints of a killed process.
    pub(crate) fn clear_partial(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL_PREFIX)) {
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!("cannot remove {}: {error}", entry.path().display());
            }
        }
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("{}-{step:09}", self.stage))
    }

    /// Lists steps and folders, oldest first.
    fn list(&self) -> Vec<(usize, PathBuf)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let prefix = format!("{}-", self.stage);
        let step = |name: &str| name.strip_prefix(&prefix)?.parse::<usize>().ok();
        let mut found: Vec<(usize, PathBuf)> =
            entries.filter_map(|entry| Some((step(&entry.file_name().to_string_lossy())?, entry.path()))).collect();
        found.sort();
        found
    }
}

fn load(path: &Path, step: usize, parameters: &mut Parameters) -> Result<Progress> {
    let broken = |problem: &str| Error::Run { path: path.to_owned(), problem: problem.to_owned() };
    let text = fs::read_to_string(path.join(STATE_FILE)).map_err(at(path.join(STATE_FILE)))?;
    let state: State = serde_json::from_str(&text).map_err(|error| broken(&error.to_string()))?;
    let tensors = path.join(TENSORS_FILE);
    if state.step != step || checksum(&tensors)? != state.blake3 {
        return Err(broken("its contents do not match their checksum"));
    }
    parameters.load(&tensors)?;
    Ok(Progress { step, loss_scale: state.loss_scale })
}

fn checksum(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).map_err(at(path))?;
    std::io::copy(&mut file, &mut hasher).map_err(at(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use candle_nn::{Init, VarBuilder};
    use std::collections::HashMap;

    fn parameters(seed: u64) -> Parameters {
        let init = Init::Uniform { lo: -1., up: 1. };
        let build = |vb: &VarBuilder<'_>| Ok(vb.get_with_hints((2, 3), "unet.weight", init)?);
        Parameters::build((seed, &candle_core::Device::Cpu), HashMap::new(), build).unwrap().1
    }

    fn values(parameters: &Parameters) -> Vec<f32> {
        parameters.current().unwrap()["unet.weight"].flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_newest_whole_one_is_loaded_and_old_ones_go() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(run.path(), "autoencoder", 2);
        for step in [1, 2, 3] {
            let loss_scale = (step > 1).then(|| LossScale::first(DType::F16)).flatten();
            checkpoints.save(&parameters(step as u64), Progress { step, loss_scale }).unwrap();
        }
        assert_eq!(checkpoints.list().len(), 2);
        // The newest is cut short, as a full disk or a crash would leave it.
        let newest = checkpoints.path(3).join(TENSORS_FILE);
        let bytes = fs::read(&newest).unwrap();
        fs::write(&newest, &bytes[..bytes.len() - 4]).unwrap();
        let mut loaded = parameters(9);
        let expected = Progress { step: 2, loss_scale: LossScale::first(DType::F16) };
        assert_eq!(checkpoints.load_newest(&mut loaded).unwrap(), expected);
        assert_eq!(values(&loaded), values(&parameters(2)));
    }

    #[test]
    fn what_a_killed_process_left_is_not_a_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(run.path(), "autoencoder", 2);
        checkpoints.save(&parameters(1), Progress { step: 1, loss_scale: None }).unwrap();
        let partial = run.path().join("checkpoints").join(".partial-abc");
        fs::create_dir(&partial).unwrap();
        assert_eq!(checkpoints.list().len(), 1);
        checkpoints.clear_partial();
        assert!(!partial.exists());
    }

    #[test]
    fn without_a_checkpoint_there_is_nothing_to_resume() {
        let run = tempfile::tempdir().unwrap();
        let error = Checkpoints::new(run.path(), "latent", 2).load_newest(&mut parameters(1)).unwrap_err();
        assert!(error.to_string().contains("latent"), "{error}");
    }
}
