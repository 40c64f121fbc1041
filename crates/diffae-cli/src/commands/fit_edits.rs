//! `diffae fit-edits --model MODEL --pairs DIR --out DIR`: edit directions from pairs of pictures.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use diffae_data::{AttributePairs, OtherPictures, Overwrite, PictureSet};
use diffae_infer::{
    CONFIG_FILE, Error, LoadOptions, ModelSource, NewAttributes, NewDirections, WEIGHTS_FILE, is_same_attribute,
    rounded_full_strength,
};
use diffae_nets::weights::LatentMoments;
use diffae_nets::{EditDirection, RawClassifierConfig};
use diffae_train::{NUM_VALIDATIONS, OtherCodes, PairedCodes, fit_edit_direction, fit_pair_row, moments_of};
use serde_json::json;

use crate::args::{FitEditsArgs, GlobalArgs, ReadingArgs};
use crate::output::{OutputDir, say, say_json};
use crate::pictures::{kept_of, pairs_of};
use crate::progress::Progress;
use crate::session::{Session, architecture_hints};

/// Fits a direction to the pairs of each attribute, and writes the model with them. Networks and number type stay the
/// same, so that codes of the model are codes of the written one.
pub(crate) fn run(global: &GlobalArgs, args: &FitEditsArgs) -> Result<()> {
    let most = RawClassifierConfig::MAX_LOCAL_UNITS;
    ensure!(args.units <= most, "--units is {}, expected at most {most}", args.units);
    let all = pairs_of(&args.pairs, args.limit, &args.reading)?;
    let (out, overwrite) = (&args.out.out, args.out.force.overwrite());
    // That it can be written is known now; what is prepared there goes again.
    drop(OutputDir::new(out, &[CONFIG_FILE, WEIGHTS_FILE].map(str::to_owned), overwrite)?);
    let session = Session::open(global, &args.model, &args.batch)?;
    ensure!(session.has_z_sem(), "{} is a plain DDPM, which has no codes to learn from", args.model.model.display());
    let mut source = ModelSource::open(&args.model.model, &architecture_hints(&args.model.hints))?;
    let wanted = wanted(&session, source.attributes(), all, args)?;
    let num_calls = if args.units == 0 { 0 } else { NUM_VALIDATIONS };
    let progress = Progress::start("fit", wanted.iter().map(|it| it.num_pictures() + num_calls).sum(), 1);
    let coded = wanted.iter().map(|it| Coded::new(it, &session, &progress)).collect::<Result<Vec<_>>>()?;
    let moments = if let Some(moments) = source.latent_moments() {
        moments.clone()
    } else {
        tracing::warn!("the model has no latent statistics; those of the pairs are taken");
        let all = coded.iter().flat_map(|coded| [&coded.without, &coded.with]).collect::<Vec<_>>();
        moments_of(&Tensor::cat(&all, 0)?)?
    };
    for (wanted, coded) in wanted.iter().zip(coded) {
        let coded = coded.normalized(&moments)?;
        fit(args, (wanted, &coded), &mut source, &progress).with_context(|| wanted.pairs.attribute.clone())?;
    }
    progress.finish();
    if source.latent_moments().is_none() {
        source.set_latent_moments(moments)?;
    }
    let full_strengths = full_strengths(&source, &wanted)?;
    source.write(out, source.number_type()?, overwrite)?;
    report(args, &wanted, &full_strengths)
}

/// An attribute to fit, with its pairs.
struct Wanted {
    pairs: AttributePairs,
    others: Option<OtherPictures>,
    /// Index of the attribute; `None` if the model does not have it yet.
    idx: Option<usize>,
}

impl Wanted {
    fn num_pictures(&self) -> usize {
        2 * self.pairs.without.len() + self.others.as_ref().map_or(0, |others| others.places.len())
    }
}

/// Codes of the pictures of an attribute, `[N, D]` each.
struct Coded {
    without: Tensor,
    with: Tensor,
    others: Option<Tensor>,
}

impl Coded {
    fn new(Wanted { pairs, others, .. }: &Wanted, session: &Session, progress: &Progress) -> Result<Self> {
        let codes = |pictures: &PictureSet, places: &[usize]| -> Result<Tensor> {
            let mut codes = vec![];
            for batch in places.chunks(session.batch_size()) {
                let z_sem =
                    session.model().encode_semantic(&session.pipeline.read_batch(pictures, batch.iter().copied())?)?;
                codes.push(z_sem.to_device(&Device::Cpu)?.to_dtype(DType::F32)?);
                progress.check(batch.len())?;
            }
            Ok(Tensor::cat(&codes, 0)?)
        };
        let places: Vec<usize> = (0..pairs.with.len()).collect();
        Ok(Self {
            without: codes(&pairs.without, &places)?,
            with: codes(&pairs.with, &places)?,
            others: others.as_ref().map(|others| codes(&others.pictures, &others.places)).transpose()?,
        })
    }

    fn normalized(&self, moments: &LatentMoments) -> Result<Self> {
        Ok(Self {
            without: moments.normalize(&self.without)?,
            with: moments.normalize(&self.with)?,
            others: self.others.as_ref().map(|others| moments.normalize(others)).transpose()?,
        })
    }
}

/// Fits the direction of an attribute, and the classifier's row of one that the model does not have yet.
fn fit(
    args: &FitEditsArgs,
    (Wanted { pairs, others, idx }, coded): (&Wanted, &Coded),
    source: &mut ModelSource,
    progress: &Progress,
) -> Result<()> {
    let others = coded.others.as_ref().zip(others.as_ref());
    let others = others.map(|(codes, others)| OtherCodes { codes, pairs: &others.pairs });
    let paired = PairedCodes { without: &coded.without, with: &coded.with, others };
    let between = &mut || anyhow::Ok(progress.check(1)?);
    let direction: EditDirection = fit_edit_direction(paired, args.units, args.seed, between)?;
    if let Some(idx) = idx {
        return Ok(source.set_edit_directions(BTreeMap::from([(*idx, direction)]))?);
    }
    let (weight, bias) = fit_pair_row(paired, args.seed)?;
    let (names, directions) = (vec![pairs.attribute.clone()], NewDirections::MeanDifferences(vec![direction]));
    Ok(source.add_attributes(NewAttributes { names, weight, bias, directions }, Overwrite::Refuse)?)
}

/// Returns the pairs of each attribute, in order of their names.
fn wanted(
    session: &Session,
    attributes: &[String],
    all: Vec<AttributePairs>,
    args: &FitEditsArgs,
) -> Result<Vec<Wanted>> {
    let mut wanted: Vec<Wanted> = vec![];
    for pairs in all {
        let AttributePairs { attribute, without, .. } = &pairs;
        let idx = match session.model().attribute_idx(attribute) {
            Ok(idx) => Some(idx),
            Err(Error::UnknownAttribute { .. }) => None,
            Err(Error::MissingPart { .. }) if attributes.is_empty() => None,
            Err(error) => return Err(error.into()),
        };
        ensure!(without.len() > 1, "{attribute} has {} pair, at least two are needed", without.len());
        let is_same = |other: &&Wanted| match idx {
            Some(_) => other.idx == idx,
            None => is_same_attribute(&other.pairs.attribute, attribute),
        };
        if let Some(twice) = wanted.iter().find(is_same) {
            bail!("{} and {attribute} are the same attribute of the model", twice.pairs.attribute)
        }
        let others = if args.units == 0 { None } else { pairs.others()? };
        let others = others.map(|others| readable(others, &args.reading)).transpose()?;
        wanted.push(Wanted { pairs, others, idx });
    }
    Ok(wanted)
}

/// Leaves out pictures that cannot be read, with `--skip-broken`.
fn readable(mut others: OtherPictures, reading: &ReadingArgs) -> Result<OtherPictures> {
    if reading.skip_broken {
        let kept = kept_of(&others.pictures, reading)?;
        let both = others.places.into_iter().zip(others.pairs).filter(|(place, _)| kept.get(*place) != Some(&false));
        (others.places, others.pairs) = both.unzip();
    }
    Ok(others)
}

/// Returns the calibrated full-edit strength of each attribute.
fn full_strengths(source: &ModelSource, wanted: &[Wanted]) -> Result<Vec<f64>> {
    let taught = source.build(&LoadOptions::cpu())?;
    let of = |wanted: &Wanted| {
        let idx = taught.attribute_idx(&wanted.pairs.attribute)?;
        rounded_full_strength(taught.classifier()?, idx)?.context("a direction that was fitted has no length")
    };
    wanted.iter().map(of).collect()
}

fn report(args: &FitEditsArgs, wanted: &[Wanted], full_strengths: &[f64]) -> Result<()> {
    let out = &args.out.out;
    if args.json {
        let attribute = |(wanted, full_strength): (&Wanted, &f64)| {
            json!({
                "attribute": wanted.pairs.attribute,
                "new": wanted.idx.is_none(),
                "pairs": wanted.pairs.with.len(),
                "full_strength": full_strength,
            })
        };
        let attributes: Vec<_> = wanted.iter().zip(full_strengths).map(attribute).collect();
        return say_json(&json!({ "out": out, "attributes": attributes }));
    }
    say(&format!("wrote {}; the calibrated full strengths:", out.display()))?;
    for (Wanted { pairs, idx, .. }, full_strength) in wanted.iter().zip(full_strengths) {
        let new = if idx.is_none() { "  (new)" } else { "" };
        say(&format!("{:<16} {full_strength}{new}", pairs.attribute))?;
    }
    Ok(())
}
