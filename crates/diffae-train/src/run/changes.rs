//! Changes of settings after the start of a run.

use std::collections::BTreeMap;
use std::path::Path;

use diffae_data::{Overwrite, write_atomically};
use serde::{Deserialize, Serialize};

use super::{CONFIG_FILE, RunFolder, Stage};
use crate::checkpoint::Checkpoints;
use crate::config::{StageSettings, TrainConfig};
use crate::error::{Error, Result};

/// Settings of logging, checkpoints, previews and reading, which do not affect the model.
const OF_THE_PROCESS: [&str; 8] = [
    "run.save_every_secs",
    "run.keep",
    "run.log_every_steps",
    "run.preview_every_images",
    "run.preview_steps",
    "data.workers",
    "data.prefetch",
    "data.max_broken_share",
];
/// List of the settings that may change, for messages.
const WHAT_MAY: &str =
    "STAGE.images, STAGE.lr, run.*, polish.patience, data.workers, data.prefetch and data.max_broken_share may change";

/// A setting that was changed after the start of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Key of the setting, such as `autoencoder.images`.
    pub setting: String,
    /// Old value.
    pub from: String,
    /// New value.
    pub to: String,
    /// Number of steps that each stage had made at the change.
    pub steps: BTreeMap<String, usize>,
}

impl TrainConfig {
    /// Returns the stages that a run of this config may have, in order.
    #[must_use]
    pub fn stages(&self) -> &'static [Stage] {
        if self.spatial.is_some() { &Stage::ALL } else { &Stage::ALL[1..] }
    }

    /// Returns the settings of a stage; of a spatial autoencoder that the model has not, those of the first stage that it has.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> &StageSettings {
        match stage {
            Stage::Spatial => self.spatial.as_ref().unwrap_or(&self.autoencoder),
            Stage::Autoencoder => &self.autoencoder,
            Stage::Latent => &self.latent,
            Stage::Classifier => &self.classifier,
        }
    }

    /// Lists every setting by its dotted key.
    fn settings(&self) -> BTreeMap<String, toml::Value> {
        let mut settings = BTreeMap::new();
        flatten("", toml::Value::Table(self.to_table()), &mut settings);
        settings
    }

    fn to_table(&self) -> toml::Table {
        // Plain data: there is nothing in it that TOML could not hold.
        toml::Table::try_from(self).unwrap_or_default()
    }

    /// Lists the settings that differ in `other`: key, value here, value there.
    pub(super) fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let there = other.settings();
        let differs = |(key, here): (String, toml::Value)| {
            let there = there.get(&key)?;
            (here != *there).then(|| (key, here.to_string(), there.to_string()))
        };
        self.settings().into_iter().filter_map(differs).collect()
    }
}

impl RunFolder {
    /// Returns the step of a stage's newest checkpoint, if it has one.
    #[must_use]
    pub fn num_steps_made(&self, stage: Stage) -> Option<usize> {
        self.checkpoints(stage).newest_step()
    }

    /// Builds the config `base` with the run's own values where a run may differ from the preset that it was begun with, and
    /// then with assignments, `key=value`.
    ///
    /// # Errors
    /// As [`TrainConfig::from_toml_with`].
    pub fn config_from(&self, base: &TrainConfig, assignments: &[String]) -> Result<TrainConfig> {
        let mut table = base.to_table();
        for (key, value) in self.config().settings().into_iter().filter(|(key, _)| self.may_change(key)) {
            put(&mut table, &key, value);
        }
        TrainConfig::from_toml_with(&table.to_string(), assignments)
    }

    /// Replaces the settings by those of `wanted`. If a finished stage gets longer, it and the stages that depend
    /// on it are no longer done; until they are, the folder keeps the model that it has.
    ///
    /// The result has the same bits as a run that had these durations from its beginning, since neither the learning rate
    /// nor the order of the pictures depends on how long a stage is.
    ///
    /// # Errors
    /// [`Error::Run`] if a setting differs that a run keeps, if a stage has made more steps than it is to have, or if the
    /// checkpoints of a stage that is to go on are gone. The run is then as it was.
    pub fn change(&mut self, wanted: &TrainConfig) -> Result<Vec<Change>> {
        let differences = self.config().differences(wanted);
        let refused = |problem| Err(Error::Run { path: self.path().to_owned(), problem });
        if let Some((key, from, to)) = differences.iter().find(|(key, _, _)| !self.may_change(key)) {
            let problem = format!("the run was started with {key} = {from}, which cannot become {to}; only {WHAT_MAY}");
            return refused(problem);
        }
        let mut prolonged = vec![];
        for &stage in wanted.stages() {
            let (before, after) = (self.config().stage(stage).num_steps(), wanted.stage(stage).num_steps());
            let name = stage.name();
            match self.num_steps_made(stage) {
                Some(made) if after < made => {
                    let images = wanted.stage(stage).images;
                    return refused(format!("{name}.images = {images} is {after} steps, but {made} have been made"));
                }
                None if after != before && self.is_done(stage) => {
                    return refused(format!(
                        "stage {name} is finished and its checkpoints are gone, so it cannot go on"
                    ));
                }
                Some(made) if after > made && self.is_done(stage) => prolonged.push(stage),
                _ => {}
            }
        }
        let steps = |stage: Stage| Some((stage.name().to_owned(), self.num_steps_made(stage)?));
        let steps: BTreeMap<String, usize> = wanted.stages().iter().copied().filter_map(steps).collect();
        let change = |(setting, from, to)| Change { setting, from, to, steps: steps.clone() };
        let changes: Vec<Change> = differences.into_iter().map(change).collect();
        if !changes.is_empty() {
            self.forget(&prolonged)?;
            self.notes.changes.extend(changes.clone());
            // In this order: a process that is killed in between leaves a run that only has to finish again.
            self.write_notes()?;
            self.config = wanted.clone();
            let text = self.config.to_toml();
            write_atomically(&self.path().join(CONFIG_FILE), text.as_bytes(), Overwrite::Replace)?;
        }
        Ok(changes)
    }

    /// Marks prolonged stages as not done. Stages that depend on a prolonged one begin anew.
    fn forget(&mut self, prolonged: &[Stage]) -> Result<()> {
        let first = [Stage::Spatial, Stage::Autoencoder].into_iter().find(|stage| prolonged.contains(stage));
        let depends = |stage: &Stage| first.is_some_and(|first| *stage > first);
        let again: Vec<Stage> = Stage::ALL.into_iter().filter(depends).collect();
        for &stage in &again {
            self.checkpoints(stage).remove_all()?;
        }
        self.notes.done.retain(|stage| !prolonged.contains(stage) && !again.contains(stage));
        Ok(())
    }

    fn checkpoints(&self, stage: Stage) -> Checkpoints {
        Checkpoints::new(self.path(), stage.name(), 1)
    }

    /// Returns whether a setting may change after the start of the run.
    fn may_change(&self, key: &str) -> bool {
        let is_of = |stage: Stage, names: &[&str]| names.iter().any(|name| key == format!("{}.{name}", stage.name()));
        let untouched = |stage| !self.is_done(stage) && !self.checkpoints(stage).any();
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| key.starts_with(prefix));
        OF_THE_PROCESS.contains(&key)
            || key == "polish.patience"
            || Stage::ALL.into_iter().any(|stage| is_of(stage, &["images", "lr"]))
            || (self.config().spatial.is_some() && untouched(Stage::Autoencoder) && begins(&["autoencoder."]))
            || (untouched(Stage::Latent) && begins(&["latent.", "latent_net."]))
            || (untouched(Stage::Classifier) && begins(&["classifier.", "edit_directions"]))
    }
}

/// Checks that a path on the command line is the one that the run was started with.
///
/// # Errors
/// [`Error::Run`] with both paths.
pub fn require_same(run: &RunFolder, what: &'static str, (noted, given): (&Path, &Path)) -> Result<()> {
    let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if noted == given || place(noted) == place(given) {
        return Ok(());
    }
    let problem = format!("the run was started with {what} {}, not {}", noted.display(), given.display());
    Err(Error::Run { path: run.path().to_owned(), problem })
}

fn flatten(prefix: &str, value: toml::Value, to: &mut BTreeMap<String, toml::Value>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&key, value, to);
            }
        }
        value => {
            to.insert(prefix.to_owned(), value);
        }
    }
}

/// Replaces a value of an existing table by its dotted key.
fn put(table: &mut toml::Table, key: &str, value: toml::Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((name, rest)) => {
            if let Some(toml::Value::Table(inner)) = table.get_mut(name) {
                put(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Notes;

    fn config(assignments: &[&str]) -> TrainConfig {
        let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
        crate::presets::config("smoke", &assignments).unwrap()
    }

    /// A run whose stages are all done, with a checkpoint each of as many steps.
    fn finished(folder: &Path) -> RunFolder {
        let mut run = RunFolder::open_or_create(folder, &config(&[]), &Notes::default()).unwrap();
        for &stage in config(&[]).stages() {
            let steps = run.config().stage(stage).num_steps();
            std::fs::create_dir_all(folder.join(format!("checkpoints/{}-{steps:09}", stage.name()))).unwrap();
            run.set_done(stage).unwrap();
        }
        run
    }

    #[test]
    fn a_longer_first_stage_undoes_what_depends_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = finished(&folder.path().join("run"));
        let changes = run.change(&config(&["autoencoder.images=4800", "run.keep=3"])).unwrap();
        assert_eq!(changes.len(), 2);
        assert_eq!((&*changes[0].setting, &*changes[0].from, &*changes[0].to), ("autoencoder.images", "2400", "4800"));
        assert_eq!(changes[0].steps["autoencoder"], 300);
        assert!(Stage::ALL.into_iter().all(|stage| !run.is_done(stage)));
        assert_eq!((run.num_steps_made(Stage::Autoencoder), run.num_steps_made(Stage::Latent)), (Some(300), None));
        drop(run);
        let run = RunFolder::open(&folder.path().join("run")).unwrap();
        assert_eq!((run.config().autoencoder.images, run.config().run.keep), (4800, 3));
        assert_eq!(run.notes().changes, changes);
    }

    #[test]
    fn a_longer_later_stage_undoes_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = finished(&folder.path().join("run"));
        run.change(&config(&["latent.images=12800"])).unwrap();
        assert_eq!(Stage::ALL.map(|stage| run.is_done(stage)), [false, true, false, true]);
        assert_eq!(run.num_steps_made(Stage::Latent), Some(200));
        assert!(run.change(&config(&["latent.images=12800"])).unwrap().is_empty());
    }

    #[test]
    fn what_a_run_keeps_is_named_with_both_values() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = finished(&folder.path().join("run"));
        let mut message = |assignment: &str| run.change(&config(&[assignment])).unwrap_err().to_string();
        let problem = message("model.z_channels=16");
        assert!(problem.contains("model.z_channels = 32") && problem.contains("become 16"), "{problem}");
        assert!(message("autoencoder.batch_size=4").contains("batch_size"));
        assert!(message("latent.weight_decay=0.5").contains("latent.weight_decay"));
        let problem = message("autoencoder.images=80");
        assert!(problem.contains("10 steps, but 300"), "{problem}");
        assert_eq!(run.config(), &config(&[]));
        std::fs::remove_dir_all(folder.path().join("run/checkpoints")).unwrap();
        let problem = run.change(&config(&["autoencoder.images=4800"])).unwrap_err().to_string();
        assert!(problem.contains("checkpoints are gone"), "{problem}");
    }

    #[test]
    fn stages_to_come_are_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run = RunFolder::open_or_create(&path, &config(&[]), &Notes::default()).unwrap();
        run.set_done(Stage::Autoencoder).unwrap();
        let other = config(&["latent_net.hidden_channels=32", "edit_directions=\"class_means\""]);
        assert_eq!(run.change(&other).unwrap().len(), 2);
        // The preset that it was begun with says nothing of what may differ.
        let again = run.config_from(&config(&[]), &["latent.images=640".to_owned()]).unwrap();
        assert_eq!((again.latent_net.hidden_channels, again.latent.images), (32, 640));
    }
}
