//! `diffae fit-attributes --model MODEL --data DIR --labels FILE --out DIR`: attributes of one's own.

use anyhow::{Context, Result, anyhow, bail, ensure};
use diffae_data::{FindSettings, Labels, Overwrite, Pictures, Split};
use diffae_infer::{CONFIG_FILE, LoadOptions, ModelSource, WEIGHTS_FILE, is_same_attribute, rounded_full_strength};
use diffae_train::{AttributeScore, AttributeSettings, EditDirections, Lesson, Taught, teach};
use serde_json::{Value, json};

use super::train::StepProgress;
use crate::args::{DirectionChoice, FitAttributesArgs, GlobalArgs, NumberType};
use crate::interrupt::{Interruption, catch_interrupts};
use crate::output::{OutputDir, say, say_json};
use crate::progress::Noun;
use crate::session::{architecture_hints, load_options};

/// Trains a classifier of the labels' attributes on the model's codes, and writes the model with them. Networks and
/// number type stay the same, so that codes of the model are codes of the written one.
pub(crate) fn run(global: &GlobalArgs, args: &FitAttributesArgs) -> Result<()> {
    catch_interrupts();
    ensure!(global.dtype == NumberType::F32, "codes are computed in f32, not in another --dtype");
    let (out, overwrite) = (args.out.out.as_path(), args.out.force.overwrite());
    // That it can be written is known now; what is prepared there goes again.
    drop(OutputDir::new(out, &[CONFIG_FILE, WEIGHTS_FILE].map(str::to_owned), overwrite)?);
    let mut source = ModelSource::open(&args.model.model, &architecture_hints(&args.model.hints))?;
    let find = FindSettings {
        crop: args.crop.into(),
        picture_key: &args.reading.picture_key,
        max_broken_share: if args.reading.skip_broken { 1. } else { 0. },
        ..FindSettings::default()
    };
    let pictures = Pictures::find(&args.data, &find, Split::Train)?;
    let labels = Labels::of_pictures(&args.labels, &[&pictures])?;
    let existing = if args.replace { Overwrite::Replace } else { Overwrite::Refuse };
    check_names(&source, &labels, existing)?;
    let model = source.build(&load_options(global, &args.model.hints)?)?;
    ensure!(model.has_z_sem(), "{} is a plain DDPM, which has no codes to learn from", args.model.model.display());
    if source.latent_moments().is_none() {
        let consequence = if source.config().latent().is_some() {
            "; its latent net was trained with others, so its samples will be off: import them with --latent"
        } else {
            ""
        };
        tracing::warn!("the model has no latent statistics; those of these pictures are taken{consequence}");
    }
    let settings = settings(args)?;
    let moments = source.latent_moments().cloned();
    let (moments, folder) = (moments.as_ref(), out);
    let lesson = Lesson { model: &model, moments, pictures: &pictures, labels: &labels, settings: &settings, folder };
    let progress = StepProgress::new();
    let taught = teach(&lesson, &mut |report| progress.step(report)).map_err(explained)?;
    progress.finish();
    pictures.unreadable().say();
    let Some(Taught { attributes, moments, num_trained, scores }) = taught else {
        let kept = if out.exists() {
            format!("the codes so far are kept in {}; the same command goes on", out.display())
        } else {
            "nothing was written".to_owned()
        };
        return Err(Interruption::new(kept).into());
    };
    if source.latent_moments().is_none() {
        source.set_latent_moments(moments)?;
    }
    source.add_attributes(attributes, existing)?;
    let full_strengths = full_strengths(&source, &scores)?;
    source.write(out, source.number_type()?, overwrite)?;
    if args.json {
        return say_json(&json!({
            "out": out,
            "trained_on": num_trained,
            "attributes": scores.iter().zip(&full_strengths).map(|(score, way)| as_json(score, *way)).collect::<Vec<_>>(),
        }));
    }
    say_scores(&scores, &full_strengths)?;
    say(&format!("learned from {num_trained} pictures; wrote {}", out.display()))
}

/// Names the option that leaves out pictures that cannot be read.
fn explained(error: diffae_train::Error) -> anyhow::Error {
    match error {
        diffae_train::Error::Data(diffae_data::Error::TooManyBroken { broken, seen, last, .. }) => anyhow!(
            "{broken} of {} cannot be read, the last because of this: {last}; --skip-broken leaves such pictures out",
            Noun::Pictures.counted(seen)
        ),
        error => error.into(),
    }
}

/// Fails if the model already has one of the attributes and is to keep it.
fn check_names(source: &ModelSource, labels: &Labels, existing: Overwrite) -> Result<()> {
    let is_new = |name: &&String| labels.names.iter().any(|new| is_same_attribute(name, new));
    let there: Vec<&str> = source.attributes().iter().filter(is_new).map(String::as_str).collect();
    if existing == Overwrite::Refuse && !there.is_empty() {
        bail!("the model has {} already; --replace learns anew what the labels name", there.join(", "))
    }
    Ok(())
}

fn settings(args: &FitAttributesArgs) -> Result<AttributeSettings> {
    let mut settings = AttributeSettings::usual()?;
    settings.classifier.images = args.images.unwrap_or(settings.classifier.images);
    settings.classifier.lr = args.lr.unwrap_or(settings.classifier.lr);
    settings.edit_directions = match args.directions {
        DirectionChoice::ClassMeans => EditDirections::ClassMeans,
        DirectionChoice::Weights => EditDirections::Weights,
    };
    Ok(AttributeSettings { seed: args.seed, held_out: args.held_out, crop: args.crop.into(), ..settings })
}

/// Returns the calibrated full-edit strengths of the new attributes, where the model has them.
fn full_strengths(source: &ModelSource, scores: &[AttributeScore]) -> Result<Vec<Option<f64>>> {
    let model = source.build(&LoadOptions::cpu())?;
    let of = |score: &AttributeScore| {
        let place = source.attributes().iter().position(|name| *name == score.attribute);
        Ok(rounded_full_strength(model.classifier()?, place.context("a new attribute is missing")?)?)
    };
    scores.iter().map(of).collect()
}

/// Accuracy of an attribute on held-out pictures.
struct Figures<'a> {
    attribute: &'a str,
    count: usize,
    present: usize,
    accuracy: Option<f64>,
    /// `None` unless some pictures have the attribute and some lack it.
    auroc: Option<f64>,
}

impl<'a> Figures<'a> {
    fn of(score: &'a AttributeScore) -> Self {
        let (logits, present): (Vec<f64>, Vec<bool>) = score.held_out.iter().copied().unzip();
        Self {
            attribute: &score.attribute,
            count: present.len(),
            present: score.num_present(),
            accuracy: score.accuracy(),
            auroc: diffae_eval::auroc(&logits, &present).ok(),
        }
    }
}

fn as_json(score: &AttributeScore, full_strength: Option<f64>) -> Value {
    let Figures { attribute, count, present, accuracy, auroc } = Figures::of(score);
    json!({
        "attribute": attribute,
        "held_out": count,
        "present": present,
        "accuracy": accuracy,
        "auroc": auroc,
        "full_strength": full_strength,
    })
}

/// Prints a table of the accuracy of each attribute on held-out pictures.
fn say_scores(scores: &[AttributeScore], full_strengths: &[Option<f64>]) -> Result<()> {
    let width = scores.iter().map(|score| score.attribute.chars().count()).max().unwrap_or(0).max(9);
    say(&format!("{:width$}  held out  present  accuracy  AUROC  full strength", "attribute"))?;
    for (score, strength) in scores.iter().zip(full_strengths) {
        let Figures { attribute, count, present, accuracy, auroc } = Figures::of(score);
        let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let strength = strength.map_or_else(|| "-".to_owned(), |strength| strength.to_string());
        let (accuracy, auroc) = (figure(accuracy), figure(auroc));
        say(&format!("{attribute:width$}  {count:>8}  {present:>7}  {accuracy:>8}  {auroc:>5}  {strength:>13}"))?;
    }
    Ok(())
}
