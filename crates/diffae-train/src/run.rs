//! The folder of a run: config, notes on its progress, lock and log.

mod changes;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use diffae_data::{Overwrite, write_atomically};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoints;
use crate::collective::Group;
use crate::config::TrainConfig;
use crate::error::{Error, Result, at};
use crate::tensorboard::EventFile;
use diffae_data::{Labels, Pictures, Split};

pub use changes::{Change, require_same};

const CONFIG_FILE: &str = "train.toml";
const NOTES_FILE: &str = "run.json";
const LOCK_FILE: &str = ".lock";
const METRICS_FILE: &str = "metrics.jsonl";

/// A stage of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Trains the spatial autoencoder of a model on latents; other models have none.
    Spatial,
    /// Trains encoder and `UNet`, or the `UNet` of a plain DDPM.
    Autoencoder,
    /// Trains the diffusion over `z_sem`.
    Latent,
    /// Trains the attribute classifier.
    Classifier,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 4] = [Self::Spatial, Self::Autoencoder, Self::Latent, Self::Classifier];

    /// Name of the stage in settings and folders.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spatial => "spatial",
            Self::Autoencoder => "autoencoder",
            Self::Latent => "latent",
            Self::Classifier => "classifier",
        }
    }
}

/// Inputs and progress of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notes {
    /// Folder or file of the pictures.
    pub data: PathBuf,
    /// File of attributes, or [`FOLDER_LABELS`](diffae_data::FOLDER_LABELS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// Model that provides the initial weights of the first stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// Parts that are frozen in the first stage: `encoder`, `unet`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Weights of a spatial autoencoder, in place of the stage that trains one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spatial_weights: Option<PathBuf>,
    /// Weights of the pretrained network that is the encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_weights: Option<PathBuf>,
    /// Weights of VGG-16, for the perceptual loss of a spatial autoencoder or of a run that polishes a decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lpips_weights: Option<PathBuf>,
    /// Finished stages.
    #[serde(default)]
    pub done: Vec<Stage>,
    /// Fingerprint of the labels that classifier training started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels_fingerprint: Option<String>,
    /// Settings that were changed after the start of the run, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// A run folder, locked by this process, or by the first process of its group.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    config: TrainConfig,
    notes: Notes,
    /// Lock that the system releases when the process ends or is killed; only who holds it writes.
    lock: Option<File>,
}

impl RunFolder {
    /// Opens a run, or starts one.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process works there; [`Error::Started`] if it holds a run of another config or data that
    /// was begun; [`Error::Run`] if it holds files that are no run.
    pub fn open_or_create(path: &Path, config: &TrainConfig, notes: &Notes) -> Result<Self> {
        if let Some(mut run) = Self::suitable(path, config, notes)? {
            if run.config != *config || run.begun_on() != *notes {
                (run.config, run.notes) = (config.clone(), notes.clone());
                run.write()?;
            }
            return Ok(run);
        }
        fs::create_dir_all(path).map_err(at(path))?;
        let lock = locked(path)?;
        let run = Self { path: path.to_owned(), config: config.clone(), notes: notes.clone(), lock: Some(lock) };
        run.write()?;
        Ok(run)
    }

    /// Checks that [`RunFolder::open_or_create`] would succeed, without creating anything.
    ///
    /// # Errors
    /// As [`RunFolder::open_or_create`].
    pub fn check(path: &Path, config: &TrainConfig, notes: &Notes) -> Result<()> {
        if Self::suitable(path, config, notes)?.is_some() {
            return Ok(());
        }
        let is_there = |folder: &&Path| folder.as_os_str().is_empty() || folder.exists();
        let above = path.ancestors().find(is_there).filter(|folder| !folder.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new("."));
        tempfile::tempdir_in(above).map(drop).map_err(at(path))
    }

    /// Opens an existing run that may be continued or replaced; `None` if there is none.
    fn suitable(path: &Path, config: &TrainConfig, notes: &Notes) -> Result<Option<Self>> {
        if let Some(part) = notes.freeze.iter().find(|part| !["encoder", "unet"].contains(&part.as_str())) {
            return Err(Error::Setting { key: "freeze", got: part.clone(), expected: "encoder or unet" });
        }
        let freezes = |part: &str| notes.freeze.iter().any(|frozen| frozen == part);
        if config.model.encoder.frozen().is_some() && (freezes("encoder") || freezes("unet")) {
            let expected = "nothing: a pretrained encoder is never trained, and the decoder is all that is";
            return Err(Error::Setting { key: "freeze", got: notes.freeze.join(", "), expected });
        }
        config.check_uses(notes)?;
        if path.join(CONFIG_FILE).exists() {
            let run = Self::open(path)?;
            // A first attempt that failed before its first checkpoint is in nobody's way.
            if !run.is_begun() {
                return Ok(Some(run));
            }
            let difference = match run.config.differences(config).first() {
                Some((key, from, to)) => format!("with {key} = {from}, not {to}"),
                None if run.begun_on() != *notes => "with other data, labels or weights to begin with".to_owned(),
                None => return Ok(Some(run)),
            };
            return Err(Error::Started { path: path.to_owned(), how: format!(" {difference}") });
        }
        let foreign = fs::read_dir(path).into_iter().flatten().flatten().any(|entry| entry.file_name() != LOCK_FILE);
        if foreign {
            let problem = "the folder is not empty and holds no run".to_owned();
            return Err(Error::Run { path: path.to_owned(), problem });
        }
        Ok(None)
    }

    /// Inputs of the run, without its progress.
    fn begun_on(&self) -> Notes {
        Notes { done: vec![], labels_fingerprint: None, changes: vec![], ..self.notes.clone() }
    }

    /// Opens an existing run.
    ///
    /// # Errors
    /// As [`RunFolder::open_or_create`].
    pub fn open(path: &Path) -> Result<Self> {
        let config_path = path.join(CONFIG_FILE);
        if !config_path.exists() {
            let problem = "there is no run to resume in it".to_owned();
            return Err(Error::Run { path: path.to_owned(), problem });
        }
        let lock = locked(path)?;
        let config = TrainConfig::from_toml(&fs::read_to_string(&config_path).map_err(at(&config_path))?)?;
        let notes_path = path.join(NOTES_FILE);
        let text = fs::read_to_string(&notes_path).map_err(at(&notes_path))?;
        let notes = serde_json::from_str(&text)
            .map_err(|error| Error::Run { path: notes_path, problem: format!("it is damaged: {error}") })?;
        Ok(Self { path: path.to_owned(), config, notes, lock: Some(lock) })
    }

    /// Opens the run of the first process of a group in all its processes: `open` is called there alone, and the others follow
    /// it, without writing anything. The folder and its data have the same paths for all.
    ///
    /// # Errors
    /// That of `open`, in the first process; [`Error::Elsewhere`] in the others; as
    /// [`Collective::exchange`](crate::Collective::exchange).
    pub fn open_in_group<E: From<Error> + std::fmt::Display>(
        group: &mut Group,
        open: impl FnOnce() -> std::result::Result<Self, E>,
    ) -> std::result::Result<Self, E> {
        let mut opened = None;
        let mut message = vec![];
        if group.is_first() {
            let folder = open();
            // A path that is not Unicode cannot be told.
            let told = |folder: &Self| serde_json::to_vec(&(&folder.path, folder.config.to_toml(), &folder.notes));
            let untold =
                |error: serde_json::Error| Error::Group { problem: format!("the run cannot be told: {error}") };
            let folder = folder.and_then(|folder| Ok((told(&folder).map_err(untold)?, folder)));
            message = match &folder {
                Ok((told, _)) => told.clone(),
                Err(error) => serde_json::to_vec(&format!("{error:#}")).unwrap_or_default(),
            };
            opened = Some(folder.map(|(_, folder)| folder));
        }
        let message = group.collective.broadcast(&message)?;
        if let Some(opened) = opened {
            return opened;
        }
        let Ok((path, config, notes)) = serde_json::from_slice::<(PathBuf, String, Notes)>(&message) else {
            let problem = serde_json::from_slice(&message).unwrap_or_default();
            return Err(Error::Elsewhere { rank: 0, size: group.size(), problem }.into());
        };
        Ok(Self { path, config: TrainConfig::from_toml(&config)?, notes, lock: None })
    }

    /// Returns whether another process, the first of the group, writes in the folder.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.lock.is_none()
    }

    /// Path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Config of the run.
    #[must_use]
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Inputs and progress of the run.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Returns whether a stage is finished.
    #[must_use]
    pub fn is_done(&self, stage: Stage) -> bool {
        self.notes.done.contains(&stage)
    }

    /// Marks a stage as finished.
    pub(crate) fn set_done(&mut self, stage: Stage) -> Result<()> {
        if !self.is_done(stage) {
            self.notes.done.push(stage);
        }
        self.write_notes()
    }

    /// Returns whether anything has been trained.
    pub(crate) fn is_begun(&self) -> bool {
        let has_checkpoint = |stage: &Stage| Checkpoints::new(&self.path, stage.name(), 1).any();
        !self.notes.done.is_empty() || Stage::ALL.iter().any(has_checkpoint)
    }

    /// Sets the labels of the run. A classifier that is trained or begun on other labels will be trained anew; the
    /// model keeps the old one until then. Labels that the run has already change nothing.
    ///
    /// # Errors
    /// If they cannot be read or do not fit the pictures, in which case the run is as it was; [`Error::Io`] if that cannot
    /// be noted.
    pub fn set_labels(&mut self, path: PathBuf) -> Result<()> {
        let find = |split| Pictures::find(&self.notes.data, &self.config.data.find_settings(), split);
        let labels = Labels::of_pictures(&path, &[&find(Split::Train)?, &find(Split::Validation)?])?;
        if self.notes.labels.as_ref() == Some(&path)
            && self.notes.labels_fingerprint.as_ref().is_none_or(|noted| *noted == labels.fingerprint())
        {
            return Ok(());
        }
        Checkpoints::new(&self.path, Stage::Classifier.name(), 1).remove_all()?;
        self.notes.done.retain(|stage| *stage != Stage::Classifier);
        self.notes.labels = Some(path);
        self.note_labels(&labels)
    }

    /// Notes the labels of the classifier. The checkpoints of one that was begun on other labels are removed.
    pub(crate) fn note_labels(&mut self, labels: &Labels) -> Result<()> {
        let fingerprint = labels.fingerprint();
        if !self.is_followed() && self.notes.labels_fingerprint.as_ref().is_some_and(|noted| *noted != fingerprint) {
            Checkpoints::new(&self.path, Stage::Classifier.name(), 1).remove_all()?;
        }
        self.notes.labels_fingerprint = Some(fingerprint);
        self.write_notes()
    }

    fn write(&self) -> Result<()> {
        self.write_notes()?;
        Ok(write_atomically(&self.path.join(CONFIG_FILE), self.config.to_toml().as_bytes(), Overwrite::Replace)?)
    }

    fn write_notes(&self) -> Result<()> {
        if self.is_followed() {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&self.notes).unwrap_or_default();
        Ok(write_atomically(&self.path.join(NOTES_FILE), text.as_bytes(), Overwrite::Replace)?)
    }

    /// Reads the losses of validation that the log of a stage has, the oldest first.
    pub(crate) fn validation_losses(&self, stage: Stage) -> Result<Vec<f64>> {
        let path = self.path.join(METRICS_FILE);
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        Ok(lines.filter(|line| line.stage == stage).filter_map(|line| line.validation_loss).collect())
    }

    /// Opens the log of a stage that resumes after `step` steps, without the later lines of a killed process.
    pub(crate) fn metrics(&self, stage: Stage, step: usize) -> Result<Metrics> {
        let path = self.path.join(METRICS_FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let stays = |line: &&str| {
            let parsed: Option<Line> = serde_json::from_str(line).ok();
            parsed.is_some_and(|line| line.stage != stage || line.step <= step)
        };
        let kept: String = text.lines().filter(stays).flat_map(|line| [line, "\n"]).collect();
        write_atomically(&path, kept.as_bytes(), Overwrite::Replace)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(at(&path))?;
        let events = EventFile::create(&self.path.join("tensorboard").join(stage.name()), step + 1)?;
        Ok(Metrics { path, file, events })
    }
}

/// Fields of every line of the log.
#[derive(Debug, Deserialize)]
struct Line {
    stage: Stage,
    step: usize,
    #[serde(default)]
    validation_loss: Option<f64>,
}

/// Writes `metrics.jsonl`, and the same numbers for `TensorBoard`.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    events: EventFile,
}

/// A validation line of the log.
#[derive(Debug, Serialize)]
pub(crate) struct ValidationLine {
    pub(crate) stage: Stage,
    pub(crate) step: usize,
    pub(crate) images: usize,
    pub(crate) validation_loss: f64,
    /// Relative increase of the loss with the codes of other images; of the first stage of an autoencoder only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) z_usage: Option<f64>,
}

impl Metrics {
    /// Adds a line.
    pub(crate) fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(at(&self.path))?;
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
        let step = fields.get("step").and_then(serde_json::Value::as_u64).unwrap_or(0);
        let curves = fields.iter().filter(|(name, _)| *name != "step" && *name != "images");
        let values: Vec<(&str, f64)> =
            curves.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))).collect();
        self.events.scalars(usize::try_from(step).unwrap_or(0), &values)
    }
}

fn locked(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK_FILE);
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(at(path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_locked_and_keeps_its_config() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let config = crate::presets::config("smoke", &[]).unwrap();
        let data = parent.path().join("data");
        fs::create_dir(&data).unwrap();
        for name in ["a.png", "b.png"] {
            fs::write(data.join(name), "").unwrap();
        }
        let labels = |name: &str, text: &str| {
            let path = parent.path().join(name);
            fs::write(&path, format!("file,Blue\n{text}")).unwrap();
            path
        };
        let notes = Notes { data, ..Notes::default() };
        let open = |config: &TrainConfig| RunFolder::open_or_create(&path, config, &notes);
        let run = open(&config).unwrap();
        assert!(matches!(open(&config), Err(Error::Locked { .. })));
        drop(run);
        let other = TrainConfig { seed: 7, ..config.clone() };
        // As long as nothing is trained, another attempt replaces the first.
        drop(open(&other).unwrap());
        let mut run = open(&config).unwrap();
        let first = labels("labels.csv", "a.png,1\nb.png,0\n");
        run.set_labels(first.clone()).unwrap();
        run.set_done(Stage::Autoencoder).unwrap();
        drop(run);
        let error = open(&other).unwrap_err().to_string();
        assert!(error.contains("already started") && error.contains("seed = 0, not 7"), "{error}");
        let same = Notes { labels: Some(first.clone()), ..notes.clone() };
        assert!(RunFolder::check(&path, &other, &same).is_err() && RunFolder::check(&path, &config, &same).is_ok());
        let mut run = RunFolder::open(&path).unwrap();
        assert!(run.is_done(Stage::Autoencoder) && run.config() == &config);
        assert_eq!(run.notes().labels.as_ref(), Some(&first));
        run.set_done(Stage::Classifier).unwrap();
        // Labels that do not fit change nothing.
        assert!(run.set_labels(parent.path().join("missing.csv")).is_err());
        assert!(run.set_labels(labels("wrong.csv", "c.png,1\nb.png,0\n")).is_err());
        assert!(run.is_done(Stage::Classifier) && run.notes().labels.as_ref() == Some(&first));
        // The same ones again neither.
        run.set_labels(first.clone()).unwrap();
        assert!(run.is_done(Stage::Classifier));
        // Other labels ask for another classifier, and for nothing else.
        run.set_labels(labels("other.csv", "a.png,0\nb.png,1\n")).unwrap();
        assert!(run.is_done(Stage::Autoencoder) && !run.is_done(Stage::Classifier));
    }

    #[test]
    fn folders_of_other_things_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "").unwrap();
        let config = crate::presets::config("smoke", &[]).unwrap();
        let error = RunFolder::open_or_create(folder.path(), &config, &Notes::default()).unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
    }
}
