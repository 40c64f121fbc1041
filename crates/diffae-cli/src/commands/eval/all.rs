//! `diffae eval all`: every measure that the given files allow.

use anyhow::Result;

use super::{attributes, edits, few_shot, fid, ppl, recon, z_usage};
use crate::args::{
    AllArgs, AttributesArgs, BackboneName, EditDirection, EditsArgs, EvalRunArgs, FewShotArgs, FidArgs, FidProtocol,
    FidSource, GlobalArgs, LabelledArgs, PplArgs, ReconArgs, XTerminalKind, ZUsageArgs,
};
use crate::output::say;
use crate::session::Session;

/// Each measure writes into a folder of its own; those that are there already are only read again.
pub(super) fn run(global: &GlobalArgs, args: &AllArgs) -> Result<()> {
    let (has_z_sem, is_one_shot, has_latent, has_classifier) = {
        let session = Session::open(global, &args.model, &args.run.batch)?;
        let model = &session.model;
        (session.has_z_sem(), session.is_one_shot(), model.latent_net().is_ok(), model.classifier().is_ok())
    };
    let run = |measure: &str| EvalRunArgs { out: args.run.out.join(measure), ..args.run.clone() };
    let mut sorted = args.steps.clone();
    sorted.sort_unstable();
    let steps = sorted.get(sorted.len().div_euclid(2)).copied().unwrap_or(20);
    let announce = |measure: &str| if args.run.json { Ok(()) } else { say(&format!("\n{measure}")) };

    announce("recon")?;
    recon::run(global, &recon_args(args, run("recon")))?;
    if has_z_sem {
        announce("z-usage")?;
        let (model, data) = (args.model.clone(), args.data.clone());
        z_usage::run(global, &ZUsageArgs { model, data, run: run("z-usage"), steps })?;
    }
    if let (Some(labels), true) = (&args.labels, has_z_sem) {
        let labelled = |measure: &str| LabelledArgs {
            model: args.model.clone(),
            data: args.data.clone(),
            run: run(measure),
            labels: labels.clone(),
            inverse_penalty: 1.,
        };
        announce("attributes")?;
        attributes::run(global, &AttributesArgs { labelled: labelled("attributes"), folds: 5 })?;
        announce("disentanglement")?;
        attributes::run_disentanglement(global, &labelled("disentanglement"))?;
        announce("few-shot")?;
        few_shot::run(global, &few_shot_args(labelled("few-shot"), steps))?;
    }
    if let (Some(pairs), true, false) = (&args.pairs, has_classifier, is_one_shot) {
        announce("edits")?;
        edits::run(global, &edits_args(args, pairs.clone(), run("edits"), steps))?;
    }
    if let Some(weights) = &args.feature_weights
        && (has_latent || has_z_sem || !is_one_shot)
    {
        announce("fid")?;
        fid::run(global, &fid_args(args, weights.clone(), run("fid"), steps))?;
    }
    if let (Some(weights), true, false) = (&args.lpips.lpips_weights, has_z_sem, is_one_shot)
        && args.lpips.lpips_backbone == BackboneName::Vgg
    {
        announce("ppl")?;
        ppl::run(
            global,
            &PplArgs {
                model: args.model.clone(),
                data: args.data.clone(),
                run: run("ppl"),
                pairs: None,
                epsilon: 1e-4,
                steps,
                invert_steps: steps,
                backbone: BackboneName::Vgg,
                weights: weights.clone(),
            },
        )?;
    }
    Ok(())
}

fn recon_args(args: &AllArgs, run: EvalRunArgs) -> ReconArgs {
    ReconArgs {
        model: Some(args.model.model.clone()),
        hints: args.model.hints.clone(),
        pictures: None,
        made_with: XTerminalKind::Inverted,
        data: args.data.clone(),
        run,
        lpips: args.lpips.clone(),
        steps: args.steps.clone(),
        invert_steps: None,
    }
}

fn few_shot_args(labelled: LabelledArgs, steps: usize) -> FewShotArgs {
    FewShotArgs { labelled, shots: vec![10, 100], draws: 5, invented: 512, decoded: 8, steps, latent_steps: steps }
}

fn edits_args(args: &AllArgs, pairs: std::path::PathBuf, run: EvalRunArgs, steps: usize) -> EditsArgs {
    EditsArgs {
        model: args.model.clone(),
        run,
        pairs,
        limit: args.data.limit,
        direction: EditDirection::Classifier,
        strength: None,
        steps,
        invert_steps: steps,
    }
}

fn fid_args(args: &AllArgs, weights: std::path::PathBuf, run: EvalRunArgs, steps: usize) -> FidArgs {
    FidArgs {
        model: Some(args.model.model.clone()),
        hints: args.model.hints.clone(),
        pictures: None,
        data: Some(args.data.data.clone()),
        crop: args.data.crop,
        limit: args.data.limit,
        features: args.features,
        weights,
        protocol: FidProtocol::Plain,
        source: FidSource::Auto,
        count: None,
        steps,
        latent_steps: steps,
        reference_statistics: None,
        save_statistics: None,
        resamples: 0,
        kid_subset: 1000,
        kid_subsets: 100,
        neighbors: 5,
        manifold_limit: 5000,
        run,
    }
}
