//! `diffae fit-edits --model MODEL --pairs DIR --out DIR`: directions of edits from pairs of pictures.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
use diffae_infer::{Error, LoadOptions, ModelSource, Overwrite};
use diffae_train::fit_local_direction;

use super::eval::pictures::Pairs;
use crate::args::{FitEditsArgs, GlobalArgs};
use crate::device::dtype;
use crate::output::say;
use crate::progress::Progress;
use crate::session::{Session, architecture_hints};

/// Fits a direction to the pairs of each attribute, and writes the model with them.
pub(crate) fn run(global: &GlobalArgs, args: &FitEditsArgs) -> Result<()> {
    let all = Pairs::find(&args.pairs, args.limit)?;
    let out = &args.out.out;
    if args.out.force.overwrite() == Overwrite::Refuse && out.exists() {
        return Err(Error::Exists { path: out.clone() }.into());
    }
    let session = Session::open(global, &args.model, &args.batch)?;
    let model = &session.model;
    let width = model.classifier()?.config().z_channels;
    model.latent_moments()?;
    ensure!(args.rank <= width, "--rank is {}, expected at most {width}, the width of z_sem", args.rank);
    let mut known = vec![];
    for pairs in all {
        match model.attribute_idx(&pairs.attribute) {
            Ok(idx) => known.push((idx, pairs)),
            Err(error @ Error::UnknownAttribute { .. }) => tracing::warn!("{error}; its pairs are left out"),
            Err(error) => return Err(error.into()),
        }
    }
    if known.is_empty() {
        bail!("the model has none of the attributes of {}", args.pairs.display())
    }
    let total = known.iter().map(|(_, pairs)| 2 * pairs.without.len()).sum();
    let progress = Progress::start("encode", total, 1);
    let mut directions = BTreeMap::new();
    for (idx, pairs) in &known {
        let [mut without, mut with] = [vec![], vec![]];
        for batch in pairs.without.batches(session.batch_size()) {
            for (side, codes) in [(&pairs.without, &mut without), (&pairs.with, &mut with)] {
                codes.push(model.normalize(&side.encode(&session, batch.clone())?)?);
                progress.check(batch.len())?;
            }
        }
        let [without, with] = [Tensor::cat(&without, 0)?, Tensor::cat(&with, 0)?];
        directions.insert(*idx, fit_local_direction(&without, &with, args.rank)?);
    }
    progress.finish();
    let mut source = ModelSource::open(&args.model.model, &architecture_hints(&args.model.hints))?;
    source.set_local_directions(&directions)?;
    source.write(out, dtype(global.dtype), args.out.force.overwrite())?;
    let taught = source.build(&LoadOptions::cpu())?;
    say(&format!("wrote {}; the whole way is at these strengths:", out.display()))?;
    for (idx, pairs) in &known {
        say(&format!("{:<16} {:.2}", pairs.attribute, taught.classifier()?.whole_way(*idx)?))?;
    }
    Ok(())
}
