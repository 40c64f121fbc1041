//! `diffae train --dry-run`: checks whether a run would succeed, and estimates how long it would take.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use diffae_data::{Labels, Pictures, Split};
use diffae_infer::free_memory;
use diffae_train::{
    Compute, Estimate, GroupEstimate, GroupKind, Kind, Notes, Planned, RunFolder, Stage, StageEstimate, StageSettings,
    TrainConfig, Trainer, check_data, check_given_weights, check_parts,
};
use image::ImageReader;

use super::times::{about, in_words};
use super::{config, notes, stage};
use crate::args::TrainArgs;
use crate::group;
use crate::one_sentence;
use crate::output::say;
use crate::progress::Noun;

/// Maximum number of pictures that are opened, and maximum time for it.
const MAX_OPENED: usize = 256;
const OPEN_FOR: Duration = Duration::from_secs(20);
/// Maximum number of broken pictures that are listed.
const MAX_LISTED: usize = 5;

/// Prints the config, the estimated time of a run, and the problems that would stop it.
pub(super) fn run(args: &TrainArgs, compute: &Compute) -> Result<()> {
    let config = config(args)?;
    say(&config.to_toml())?;
    let notes = notes(args, args.data.as_deref().unwrap_or(Path::new(".")))?;
    let mut refusals = Refusals::default();
    let kind = group::kind(&args.group);
    let is_wanted = |it: &Stage| stage(args).is_none_or(|only| only == *it);
    let stages: Vec<Stage> = config.stages().iter().copied().filter(is_wanted).collect();
    if let Some(kind) = kind {
        refusals.take(check_parts(&config, &stages, kind.size));
    }
    if let Some(stage) = stage(args) {
        refusals.take(config.check_stage(stage));
    }
    let has_weights = refusals.take(check_given_weights(&config, &notes)).is_some();
    if let Some(out) = &args.out {
        refusals.take(RunFolder::check(out, &config, &notes));
    }
    let planned = if let Some(data) = &args.data {
        look_at_data(&config, &stages, (data, &notes), &mut refusals)?
    } else {
        say("no --data: pictures and labels are not looked at")?;
        Planned::default()
    };
    let free_bytes = free_memory(&compute.device);
    let trainer = if has_weights { refusals.take(Trainer::of_run(&config, &notes, compute)) } else { None };
    let Some(mut trainer) = trainer.filter(|_| refusals.0.is_empty()) else { return refusals.report() };
    let estimate = Estimate::new(&config, &notes, &mut trainer, planned)?;
    say_sizes(&config, &estimate, free_bytes)?;
    if let Some(kind) = kind {
        say(&in_group(&config, &estimate, kind))?;
    }
    say_times(&of_stages(&estimate, &stages), planned)
}

/// Selects the estimates of some stages; the first of them after the autoencoder encodes the pictures.
fn of_stages(estimate: &Estimate, stages: &[Stage]) -> Vec<StageEstimate> {
    let encoding_secs: f64 = estimate.stages.iter().map(|estimated| estimated.encoding_secs).sum();
    let wanted = estimate.stages.iter().copied().filter(|estimated| stages.contains(&estimated.stage));
    let mut wanted: Vec<StageEstimate> =
        wanted.map(|estimated| StageEstimate { encoding_secs: 0., ..estimated }).collect();
    if let Some(first) = wanted.iter_mut().find(|estimated| estimated.stage > Stage::Autoencoder) {
        first.encoding_secs = encoding_secs;
    }
    wanted
}

/// Reasons to refuse a run, in sentences.
#[derive(Default)]
struct Refusals(Vec<String>);

impl Refusals {
    fn take<T>(&mut self, result: Result<T, impl Into<anyhow::Error>>) -> Option<T> {
        result.map_err(|error| self.0.push(one_sentence(&error.into()))).ok()
    }

    fn report(self) -> Result<()> {
        let count = self.0.len();
        match &self.0[..] {
            [only] => bail!("this run would be refused: {only}"),
            all => {
                for (idx, problem) in all.iter().enumerate() {
                    say(&format!("problem {} of {count}: {problem}", idx + 1))?;
                }
                let first = all.first().map_or("", String::as_str);
                bail!("this run would be refused for {count} reasons; the first is: {first}")
            }
        }
    }
}

/// Checks pictures and labels.
fn look_at_data(
    config: &TrainConfig,
    stages: &[Stage],
    (data, notes): (&Path, &Notes),
    refusals: &mut Refusals,
) -> Result<Planned> {
    let mut find = |split| refusals.take(Pictures::find(data, &config.data.find_settings(), split));
    let Some(train) = find(Split::Train) else { return Ok(Planned::default()) };
    let Some(validation) = find(Split::Validation) else { return Ok(Planned::default()) };
    let (num_train, num_validation) = (train.len(), validation.len());
    let epochs = config.autoencoder.images as f64 / num_train.max(1) as f64;
    say(&format!("pictures: {num_train} to train on, {num_validation} kept for validation"))?;
    say(&format!("epochs: {epochs:.2} over {num_train} {}", if num_train == 1 { "picture" } else { "pictures" }))?;
    open_pictures(config, [&train, &validation], refusals)?;
    let mut num_attributes = 0;
    let mut labels = None;
    if let Some(path) = &notes.labels {
        labels = refusals.take(Labels::of_pictures(path, &[&train, &validation]));
        if let Some(labels) = &labels {
            num_attributes = labels.names.len();
            say_labels(labels, [&train, &validation])?;
        }
    } else if stages == [Stage::Classifier] {
        refusals.0.push("stage classifier needs labels: give the file, or `folders`, by --labels".to_owned());
    } else if config.model.kind != Kind::Ddpm {
        say("labels: none, so the stage classifier is left out")?;
    }
    refusals.take(check_data(config, stages, (&train, labels.as_ref())));
    Ok(Planned { num_train, num_validation, num_attributes })
}

/// Decodes some pictures, spread over all, and lists those that cannot be read.
fn open_pictures(config: &TrainConfig, splits: [&Pictures; 2], refusals: &mut Refusals) -> Result<()> {
    let all: Vec<(&Pictures, usize)> =
        splits.into_iter().flat_map(|pictures| (0..pictures.len()).map(move |idx| (pictures, idx))).collect();
    let size = config.model.image_size;
    let (mut opened, mut enlarged, mut broken) = (0, 0, vec![]);
    let start = Instant::now();
    for place in spread(all.len(), MAX_OPENED) {
        if start.elapsed() > OPEN_FOR {
            break;
        }
        let Some(&(pictures, idx)) = all.get(place) else { break };
        opened += 1;
        match pictures.read(idx, config.picture_format()) {
            Ok(_) => enlarged += usize::from(size.square().is_some_and(|size| is_smaller(pictures, idx, size))),
            Err(error) => broken.push(one_sentence(&error.into())),
        }
    }
    let all = Noun::Pictures.counted(all.len());
    say(&format!("opened {opened} of {all}: {} cannot be read", broken.len()))?;
    for line in broken.iter().take(MAX_LISTED) {
        say(&format!("  {line}"))?;
    }
    if broken.len() > MAX_LISTED {
        say(&format!("  and {} more", broken.len() - MAX_LISTED))?;
    }
    if enlarged > 0 {
        say(&format!("smaller than {size} pixels, and enlarged: {enlarged}"))?;
    }
    let allowed = (config.data.max_broken_share * opened as f64).max(1.);
    let share = config.data.max_broken_share;
    let root = splits[0].root().display();
    if opened > 0 && broken.len() == opened {
        refusals.0.push(format!("{root}: none of the {opened} pictures that were opened can be read"));
    } else if broken.len() as f64 > allowed {
        let count = broken.len();
        refusals.0.push(format!(
            "{root}: {count} of {opened} pictures cannot be read, more than the share {share} that data.max_broken_share \
             allows"
        ));
    }
    Ok(())
}

/// Returns at most `most` of the numbers below `count`, as far from each other as can be.
fn spread(count: usize, most: usize) -> BTreeSet<usize> {
    let some = count.min(most);
    (0..some).map(|i| (i * count).checked_div(some).unwrap_or(0)).collect()
}

/// Returns whether the shorter side of a picture has fewer pixels than the model's images.
fn is_smaller(pictures: &Pictures, idx: usize, size: usize) -> bool {
    let Ok(bytes) = pictures.bytes(idx) else { return false };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let sides = reader.ok().and_then(|reader| reader.into_dimensions().ok());
    sides.is_some_and(|(width, height)| usize::try_from(width.min(height)).is_ok_and(|side| side < size))
}

fn say_labels(labels: &Labels, splits: [&Pictures; 2]) -> Result<()> {
    let names = splits.into_iter().flat_map(|pictures| (0..pictures.len()).map(|idx| pictures.name(idx)));
    let mut present = vec![0usize; labels.names.len()];
    let (mut labeled, mut all) = (0, 0);
    for name in names {
        all += 1;
        let Some(row) = labels.of(&name) else { continue };
        labeled += 1;
        present.iter_mut().zip(row).for_each(|(count, &present)| *count += usize::from(present));
    }
    say(&format!("labels: {labeled} of {all} pictures"))?;
    let width = labels.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    labels.names.iter().zip(present).try_for_each(|(name, count)| say(&format!("  {name:width$}  {count} have it")))
}

fn say_sizes(config: &TrainConfig, estimate: &Estimate, free_bytes: Option<usize>) -> Result<()> {
    let stage = &config.autoencoder;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let (count, state_mib) = (estimate.num_parameters, mib(estimate.state_bytes()));
    say(&format!("parameters of encoder and UNet: {count} ({:.1} million)", count as f64 / 1e6))?;
    say(&format!("memory of parameters, gradients, moments and averages: {state_mib:.0} MiB"))?;
    let at_once = stage.batch_size.checked_div(stage.accumulate).unwrap_or(0);
    let per_image = estimate.kept_bytes_per_image;
    let (activations, per_image) = (mib(per_image * at_once), mib(per_image));
    let step_mib = mib(estimate.step_bytes(at_once));
    say(&format!(
        "memory of activations saved for the backward pass: {activations:.0} MiB, {per_image:.1} MiB a picture; a step takes \
         at least {step_mib:.0} MiB",
    ))?;
    free_bytes.map_or(Ok(()), |free| say(&advice(stage, estimate, free)))
}

/// Says what each process of a group holds, computes and sends.
fn in_group(config: &TrainConfig, estimate: &Estimate, kind: GroupKind) -> String {
    let accumulate = config.autoencoder.accumulate;
    let GroupEstimate { num_parts, state_bytes, exchange_bytes, sent_bytes } = estimate.in_group(accumulate, kind);
    let [state, exchange, sent] = [state_bytes, exchange_bytes, sent_bytes].map(|bytes| bytes / f64::from(1 << 20));
    format!(
        "in a group of {}: each process computes {num_parts} of {accumulate} micro-batches of a step, holds {state:.0} MiB of \
         parameters, gradients, moments and averages (at most {exchange:.0} MiB more while gradients are exchanged), and \
         sends and receives {sent:.0} MiB a step",
        format_args!("{} {}", kind.size, if kind.size == 1 { "process" } else { "processes" }),
    )
}

/// Says whether steps of the first stage fit the free memory of a card, and how they would.
fn advice(stage: &StageSettings, estimate: &Estimate, free_bytes: usize) -> String {
    // Results between two layers, and gradients on their way, take memory for a moment.
    let usable = free_bytes.div_euclid(4) * 3;
    let mib = |bytes: usize| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let batch = stage.batch_size;
    let at_once = |accumulate: usize| batch.checked_div(accumulate).unwrap_or(0);
    let free = format!("memory of the card: {} free", mib(free_bytes));
    if estimate.step_bytes(at_once(stage.accumulate)) <= usable {
        return format!("{free}, enough");
    }
    let kept = "with a quarter kept for intermediate results";
    match estimate.accumulate_within(batch, usable) {
        Some(count) => {
            let step = mib(estimate.step_bytes(at_once(count)));
            format!("{free}, too little {kept}; with --set autoencoder.accumulate={count} a step takes at least {step}")
        }
        None => format!("{free}, too little for a picture at a time {kept}: take a smaller model or smaller pictures"),
    }
}

/// Prints a line for each stage, from steps measured on this machine.
fn say_times(stages: &[StageEstimate], planned: Planned) -> Result<()> {
    say("measured on this machine as busy as it is now:")?;
    for estimated in stages {
        let StageEstimate { stage, num_steps, training_secs, encoding_secs, preview_secs } = *estimated;
        let parts = [("training", training_secs), ("encoding", encoding_secs), ("previews", preview_secs)];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, secs)| *secs >= 1.)
            .map(|(name, secs)| format!("{name} {}", in_words(*secs)))
            .collect();
        let parts = if parts.len() > 1 { format!(" ({})", parts.join(", ")) } else { String::new() };
        let (name, total) = (stage.name(), about(estimated.secs()));
        say(&format!("  {name:<12} {num_steps} steps: {total}{parts}"))?;
    }
    let all: f64 = stages.iter().map(StageEstimate::secs).sum();
    let without = if planned.num_train == 0 { ", without encoding the pictures between stages" } else { "" };
    say(&format!("  {:<12} {}{without}", "all", about(all)))
}

#[cfg(test)]
mod tests {
    use diffae_train::presets;

    use super::*;

    #[test]
    fn a_step_that_does_not_fit_a_card_is_cut() {
        const MIB: usize = 1 << 20;
        let estimate = Estimate { num_parameters: MIB, kept_bytes_per_image: 10 * MIB, stages: vec![] };
        let stage =
            StageSettings { batch_size: 32, accumulate: 1, ..presets::config("small64", &[]).unwrap().autoencoder };
        let said = |free: usize| advice(&stage, &estimate, free * MIB);
        assert_eq!(said(600), "memory of the card: 600 MiB free, enough");
        assert!(said(300).ends_with("--set autoencoder.accumulate=2 a step takes at least 180 MiB"), "{}", said(300));
        assert!(said(30).contains("smaller model"), "{}", said(30));
    }
}
