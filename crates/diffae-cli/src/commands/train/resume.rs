//! `diffae train --out RUN --resume`: arguments that are repeated agree with the run, or may change it.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use diffae_train::{Change, RunFolder, Stage, presets, require_same};

use super::{absolute, config, labels_path, model_path, note};
use crate::args::TrainArgs;

/// Opens the run, and takes over settings and labels of the command line.
pub(super) fn open(args: &TrainArgs, out: &Path) -> Result<RunFolder> {
    let mut folder = RunFolder::open(out)?;
    check_inputs(args, &folder)?;
    let wanted = match (&args.preset, &args.config) {
        (Some(preset), _) => folder.config_from(&presets::config(preset, &[])?, &args.assignments())?,
        (None, Some(_)) => config(args)?,
        (None, None) => folder.config_from(folder.config(), &args.assignments())?,
    };
    let done: Vec<Stage> = Stage::ALL.into_iter().filter(|&stage| folder.is_done(stage)).collect();
    let begun = Stage::ALL.map(|stage| (stage, folder.num_steps_made(stage)));
    for Change { setting, from, to, .. } in folder.change(&wanted)? {
        note(&format!("{setting} is {to} from now on; it was {from}"));
    }
    let first = [(Stage::Spatial, "spatial autoencoder"), (Stage::Autoencoder, "autoencoder")];
    let prolonged = first.into_iter().find(|&(stage, _)| done.contains(&stage) && !folder.is_done(stage));
    for (stage, steps) in begun {
        let Some((_, of)) = prolonged.filter(|&(first, _)| stage > first) else { continue };
        match steps {
            _ if done.contains(&stage) => {
                note(&format!("stage {} will be trained again, since it depends on the {of}", stage.name()));
            }
            Some(steps) => {
                note(&format!("the {steps} steps of stage {} are dropped, since it depends on the {of}", stage.name()));
            }
            None => {}
        }
    }
    if let Some(labels) = args.labels.as_deref() {
        folder.set_labels(labels_path(labels)?)?;
    }
    Ok(folder)
}

/// Fails if data or initial weights differ from those of the run.
fn check_inputs(args: &TrainArgs, folder: &RunFolder) -> Result<()> {
    let (notes, out) = (folder.notes(), folder.path().display());
    if let Some(data) = &args.data {
        require_same(folder, "--data", (&notes.data, &absolute(data)?))?;
    }
    match (&args.init_from, &notes.init_from) {
        (Some(given), Some(noted)) => require_same(folder, "--init-from", (noted, &model_path(given)?))?,
        (Some(given), None) => bail!("{out}: the run was started without --init-from, not with {}", given.display()),
        (None, _) => {}
    }
    for (option, given, noted) in [
        ("--spatial-weights", &args.spatial_weights, &notes.spatial_weights),
        ("--encoder-weights", &args.encoder_weights, &notes.encoder_weights),
        ("--lpips-weights", &args.lpips_weights, &notes.lpips_weights),
    ] {
        match (given, noted) {
            (Some(given), Some(noted)) => require_same(folder, option, (noted, &absolute(given)?))?,
            (Some(given), None) => bail!("{out}: the run was started without {option}, not with {}", given.display()),
            (None, _) => {}
        }
    }
    ensure!(
        args.freeze.is_empty() || args.freeze == notes.freeze,
        "{out}: the run was started with --freeze {:?}, not {:?}",
        notes.freeze,
        args.freeze
    );
    Ok(())
}
