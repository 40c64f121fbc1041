//! `diffae train --preset PRESET --data DIR --out RUN`

mod dry_run;
mod progress;
mod resume;
mod times;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use diffae_data::FOLDER_LABELS;
use diffae_infer::BUILT_IN_MODEL;
use diffae_train::{Compute, Notes, Outcome, RunFolder, Stage, TrainConfig, TrainOptions, presets};
use serde_json::{Value, json};

use crate::args::{GlobalArgs, StageChoice, TrainArgs};
use crate::device::dtype;
use crate::group;
use crate::interrupt::{Interruption, catch_interrupts};
use crate::output::{say, say_json};

pub(super) use progress::StepProgress;

/// Trains the missing stages of a run folder, or reports what would be done.
pub(crate) fn run(global: &GlobalArgs, args: &TrainArgs) -> Result<()> {
    let compute = compute(global)?;
    if args.dry_run {
        return dry_run::run(args, &compute);
    }
    let out = args.out.as_deref().context("--out is missing")?;
    let stage = stage(args);
    let options = TrainOptions { stage, resume: args.resume, compute };
    let mut group = group::join(&args.group, &options, out)?;
    catch_interrupts();
    let open = || if args.resume { resume::open(args, out) } else { begin(args, out) };
    let mut folder = RunFolder::open_in_group(&mut group, open)?;
    let progress = if args.resume { StepProgress::going_on() } else { StepProgress::new() };
    let is_first = group.is_first();
    let outcome = progress.train(&mut folder, &options, &mut group)?;
    group.leave();
    let has_trained = progress.finish();
    match outcome {
        Outcome::Finished if !is_first => Ok(()),
        Outcome::Finished if args.json => {
            let config = folder.config();
            let done = config.stages().iter().copied().filter(|&stage| folder.is_done(stage));
            let stages: Vec<_> =
                done.map(|stage| json!({ "stage": stage.name(), "steps": config.stage(stage).num_steps() })).collect();
            say_json(&json!({ "command": "train", "out": out, "stages": stages }))
        }
        Outcome::Finished if args.resume && !has_trained => {
            let images = folder.config().autoencoder.images;
            // Held-out pictures may have ended it.
            let patience = folder.config().polish.as_ref().is_some_and(|polish| polish.patience > 0);
            let patience = if patience { " --set polish.patience=0" } else { "" };
            say(&format!(
                "the model is in {}; nothing is left to train (to go on longer: --set autoencoder.images=N{patience}, \
                 where N is {images} now)",
                out.display()
            ))
        }
        Outcome::Finished if !folder.is_done(Stage::Autoencoder) => {
            let out = out.display();
            say(&format!(
                "the spatial autoencoder is in {out}/spatial.safetensors, with a sheet in {out}/previews; go on with: diffae \
                 train --out {out} --resume"
            ))
        }
        Outcome::Finished => say(&format!("the model is in {}", out.display())),
        Outcome::Stopped => {
            let stage = stage.map(|stage| format!(" --stage {}", stage.name())).unwrap_or_default();
            let go_on = format!("diffae train --out {} --resume{stage}", out.display());
            Err(Interruption::new(format!("the run is saved; go on with: {go_on}")).into())
        }
    }
}

fn stage(args: &TrainArgs) -> Option<Stage> {
    args.stage.map(|stage| match stage {
        StageChoice::Spatial => Stage::Spatial,
        StageChoice::Autoencoder => Stage::Autoencoder,
        StageChoice::Latent => Stage::Latent,
        StageChoice::Classifier => Stage::Classifier,
    })
}

/// Returns where and in which numbers to train: on the CPU unless another device is named. Refuses what training does not support.
pub(super) fn compute(global: &GlobalArgs) -> Result<Compute> {
    let named = match global.device.as_str() {
        "auto" => "cpu".to_owned(),
        "cuda" => group::card(),
        named => named.to_owned(),
    };
    let device = crate::device::device(&GlobalArgs { device: named, ..global.clone() })?;
    Ok(Compute::new(device, dtype(global.dtype))?)
}

fn begin(args: &TrainArgs, out: &Path) -> Result<RunFolder> {
    let data = args.data.as_deref().context("--data is missing: the folder of pictures")?;
    Ok(RunFolder::open_or_create(out, &config(args)?, &notes(args, data)?)?)
}

/// Returns the inputs that a run of these arguments starts from.
fn notes(args: &TrainArgs, data: &Path) -> Result<Notes> {
    Ok(Notes {
        data: absolute(data)?,
        labels: args.labels.as_deref().map(labels_path).transpose()?,
        init_from: args.init_from.as_deref().map(model_path).transpose()?,
        spatial_weights: args.spatial_weights.as_deref().map(absolute).transpose()?,
        encoder_weights: args.encoder_weights.as_deref().map(absolute).transpose()?,
        lpips_weights: args.lpips_weights.as_deref().map(absolute).transpose()?,
        freeze: args.freeze.clone(),
        ..Notes::default()
    })
}

/// Returns the absolute path, since a run may be resumed from anywhere.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is not a path", path.display()))
}

/// Returns the absolute path of a model, unless it is the built-in one.
pub(super) fn model_path(model: &Path) -> Result<PathBuf> {
    if model == Path::new(BUILT_IN_MODEL) { Ok(model.to_owned()) } else { absolute(model) }
}

/// Returns the setting that `--picture-key` stands for.
pub(super) fn picture_key_setting(key: &str) -> String {
    // A string of JSON is one of TOML.
    format!("data.picture_key={}", Value::from(key))
}

impl TrainArgs {
    /// Returns the settings of the command line.
    fn assignments(&self) -> Vec<String> {
        self.set.iter().cloned().chain(self.picture_key.as_deref().map(picture_key_setting)).collect()
    }
}

fn labels_path(labels: &Path) -> Result<PathBuf> {
    if labels == Path::new(FOLDER_LABELS) { Ok(labels.to_owned()) } else { absolute(labels) }
}

fn config(args: &TrainArgs) -> Result<TrainConfig> {
    match (&args.preset, &args.config) {
        (Some(preset), None) => Ok(presets::config(preset, &args.assignments())?),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            TrainConfig::from_toml_with(&text, &args.assignments())
                .with_context(|| format!("{} is no config", path.display()))
        }
        _ => bail!("name a preset (--preset; `diffae presets` lists them) or a config file (--config)"),
    }
}

/// Reports progress on standard error, unless `--quiet` is set.
fn note(line: &str) {
    if tracing::enabled!(tracing::Level::WARN) {
        eprintln!("{line}");
    }
}
