//! `diffae fit-edits --model MODEL --pairs DIR --out DIR`: directions of edits from pairs of pictures.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use diffae_infer::{CONFIG_FILE, Error, LoadOptions, LocalDirection, ModelSource, Overwrite, WEIGHTS_FILE};
use diffae_nets::RawClassifierConfig;
use diffae_train::{NUM_JUDGEMENTS, OtherCodes, PairedCodes, fit_local_direction};

use super::edit::whole_way;
use crate::args::{FitEditsArgs, GlobalArgs};
use crate::output::say;
use crate::pictures::{OtherPictures, Pairs, PictureSet};
use crate::progress::Progress;
use crate::session::{Session, architecture_hints};

/// Fits a direction to the pairs of each attribute, and writes the model with them. Its networks stay what they are, number
/// type included, so that codes of the model are codes of the written one.
pub(crate) fn run(global: &GlobalArgs, args: &FitEditsArgs) -> Result<()> {
    let most = RawClassifierConfig::MOST_LOCAL_UNITS;
    ensure!(args.units <= most, "--units is {}, expected at most {most}", args.units);
    let all = Pairs::find(&args.pairs, args.limit)?;
    let (out, overwrite) = (&args.out.out, args.out.force.overwrite());
    ensure!(!out.is_file(), "--out {} is a file, expected a folder", out.display());
    let exists = [WEIGHTS_FILE, CONFIG_FILE].map(|name| out.join(name)).into_iter().find(|path| path.exists());
    if let (Overwrite::Refuse, Some(path)) = (overwrite, exists) {
        return Err(Error::Exists { path }.into());
    }
    let session = Session::open(global, &args.model, &args.batch)?;
    let model = &session.model;
    model.classifier()?;
    model.latent_moments()?;
    let known = known(&session, all)?;
    if known.is_empty() {
        bail!("the model has none of the attributes of {}", args.pairs.display())
    }
    let num_calls = if args.units == 0 { 0 } else { NUM_JUDGEMENTS };
    let others = |pairs: &Pairs| if args.units == 0 { Ok(None) } else { pairs.others() };
    let others = known.values().map(others).collect::<Result<Vec<_>>>()?;
    let num_others: usize = others.iter().flatten().map(|others| others.places.len()).sum();
    let total = num_others + known.values().map(|pairs| 2 * pairs.without.len() + num_calls).sum::<usize>();
    let progress = Progress::start("fit", total, 1);
    let mut directions = BTreeMap::new();
    for ((idx, pairs), others) in known.iter().zip(&others) {
        let direction = fit(args, &session, (pairs, others.as_ref()), &progress);
        directions.insert(*idx, direction.with_context(|| pairs.attribute.clone())?);
    }
    progress.finish();
    let mut source = ModelSource::open(&args.model.model, &architecture_hints(&args.model.hints))?;
    source.set_local_directions(&directions)?;
    let taught = source.build(&LoadOptions::cpu())?;
    source.write(out, source.number_type()?, overwrite)?;
    say(&format!("wrote {}; the whole way is at these strengths:", out.display()))?;
    for (idx, pairs) in &known {
        let whole_way = whole_way(taught.classifier()?, *idx)?.context("a direction that was fitted has no length")?;
        say(&format!("{:<16} {whole_way}", pairs.attribute))?;
    }
    Ok(())
}

/// The direction of an attribute.
fn fit(
    args: &FitEditsArgs,
    session: &Session,
    (pairs, others): (&Pairs, Option<&OtherPictures>),
    progress: &Progress,
) -> Result<LocalDirection> {
    let codes = |pictures: &PictureSet, places: &[usize]| normalized_codes(session, pictures, places, progress);
    let places: Vec<usize> = (0..pairs.with.len()).collect();
    let (without, with) = (codes(&pairs.without, &places)?, codes(&pairs.with, &places)?);
    let other_codes = others.map(|others| codes(&others.pictures, &others.places)).transpose()?;
    let others = other_codes.as_ref().zip(others).map(|(codes, others)| OtherCodes { codes, pairs: &others.pairs });
    let paired = PairedCodes { without: &without, with: &with, others };
    fit_local_direction(paired, args.units, args.seed, &mut || Ok(progress.check(1)?))
}

/// The codes of some pictures, `[N, D]`.
fn normalized_codes(session: &Session, pictures: &PictureSet, places: &[usize], progress: &Progress) -> Result<Tensor> {
    let mut codes = vec![];
    for batch in places.chunks(session.batch_size()) {
        let z_sem = session.model.encode_semantic(&pictures.read(session, batch.iter().copied())?)?;
        codes.push(session.model.normalize(&z_sem)?);
        progress.check(batch.len())?;
    }
    Ok(Tensor::cat(&codes, 0)?)
}

/// The pairs of the model's attributes, by their numbers.
fn known(session: &Session, all: Vec<Pairs>) -> Result<BTreeMap<usize, Pairs>> {
    let mut known: BTreeMap<usize, Pairs> = BTreeMap::new();
    for pairs in all {
        let Pairs { attribute, without, .. } = &pairs;
        let idx = match session.model.attribute_idx(attribute) {
            Ok(idx) => idx,
            Err(error @ Error::UnknownAttribute { .. }) => {
                tracing::warn!("{error}; its pairs are left out");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        ensure!(without.len() > 1, "{attribute} has {} pair, at least two are needed", without.len());
        if let Some(twice) = known.get(&idx) {
            bail!("{} and {attribute} are the same attribute of the model", twice.attribute)
        }
        known.insert(idx, pairs);
    }
    Ok(known)
}
