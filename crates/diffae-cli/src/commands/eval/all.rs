//! `diffae eval all`: every measure that the given files allow.

use std::path::PathBuf;

use anyhow::{Result, bail};
use diffae_data::{Overwrite, write_atomically};

use super::report::Report;
use super::{attributes, edits, few_shot, fid, ppl, recon, z_usage};
use crate::args::{
    AllArgs, AttributesArgs, BackboneName, DisentanglementArgs, EditDirection, EditsArgs, EvalRunArgs, FewShotArgs,
    FidArgs, FidProtocol, FidSource, GlobalArgs, LabelledArgs, PplArgs, ReconArgs, ResizeName, XTerminalKind,
    ZUsageArgs,
};
use crate::output::{say, say_json};
use crate::pictures::PictureSet;
use crate::session::{Session, interrupted};

/// Numbers of labels for the few-shot classifiers.
const SHOTS: [usize; 2] = [10, 100];

/// Name of the file of all reports.
pub(super) const FILE: &str = "all.json";

/// Runs all measures, each in a folder of its own, where interrupted work is resumed, and writes all reports into
/// `all.json`. A measure that fails does not stop the others, but the command fails in the end.
pub(super) fn run(global: &GlobalArgs, args: &AllArgs) -> Result<()> {
    PictureSet::find(&args.data)?; // else every measure would fail by itself
    let (has_z_sem, is_one_shot, has_classifier) = {
        let session = Session::open(global, &args.model, &args.run.batch)?;
        (session.has_z_sem(), session.is_one_shot(), session.model().classifier().is_ok())
    };
    let run = |measure: &str| EvalRunArgs { out: args.run.out.join(measure), ..args.run.clone() };
    let mut sorted = args.steps.clone();
    sorted.sort_unstable();
    let steps = sorted.get(sorted.len().div_euclid(2)).copied().unwrap_or(20);
    let (model, data) = (|| args.model.clone(), || args.data.clone());
    let mut measures = Measures { is_quiet: args.run.json, reports: vec![], failed: vec![] };

    measures.run("recon", || recon::run(global, &recon_args(args, run("recon"))))?;
    if has_z_sem {
        let z_usage =
            ZUsageArgs { model: model(), data: data(), run: run("z-usage"), steps, sampler: args.sampler.clone() };
        measures.run("z-usage", || z_usage::run(global, &z_usage))?;
    }
    if let (Some(labels), true) = (&args.labels, has_z_sem) {
        let labelled = |measure: &str| LabelledArgs {
            model: model(),
            data: data(),
            run: run(measure),
            labels: labels.clone(),
            inverse_penalty: None,
        };
        let probes =
            AttributesArgs { labelled: labelled("attributes"), folds: 5, train_data: None, train_labels: None };
        measures.run("attributes", || attributes::run(global, &probes))?;
        let dimensions = DisentanglementArgs { labelled: labelled("disentanglement"), resamples: args.resamples };
        measures.run("disentanglement", || attributes::run_disentanglement(global, &dimensions))?;
        let few_shot = few_shot_args(args, labelled("few-shot"), steps);
        measures.run("few-shot", || few_shot::run(global, &few_shot))?;
    }
    if let (Some(pairs), true, false) = (&args.pairs, has_z_sem, is_one_shot) {
        let direction = if has_classifier { EditDirection::Classifier } else { EditDirection::Pairs };
        let edits = edits_args(args, (pairs.clone(), direction), run("edits"), steps);
        measures.run("edits", || edits::run(global, &edits))?;
    }
    if let Some(weights) = &args.feature_weights {
        let fid = fid_args(args, weights.clone(), run("fid"), steps);
        measures.run("fid", || fid::run(global, &fid))?;
    }
    if let (Some(weights), BackboneName::Vgg, true, false) =
        (&args.lpips.lpips_weights, args.lpips.lpips_backbone, has_z_sem, is_one_shot)
    {
        let ppl = ppl_args(args, weights.clone(), run("ppl"), steps);
        measures.run("ppl", || ppl::run(global, &ppl))?;
    }
    if !measures.reports.is_empty() {
        let text = format!("{}\n", serde_json::to_string_pretty(&measures.reports)?);
        write_atomically(&args.run.out.join(FILE), text.as_bytes(), Overwrite::Replace)?;
    }
    if args.run.json {
        say_json(&measures.reports)?;
    }
    match measures.failed[..] {
        [] => Ok(()),
        ref failed => bail!("some measures failed: {}", failed.join(", ")),
    }
}

/// The measures that were run, with their outcomes.
struct Measures {
    is_quiet: bool,
    reports: Vec<Report>,
    failed: Vec<&'static str>,
}

impl Measures {
    /// Runs one measure. Ctrl-C ends all.
    fn run(&mut self, name: &'static str, measure: impl FnOnce() -> Result<Report>) -> Result<()> {
        if !self.is_quiet {
            say(&format!("\n{name}"))?;
        }
        match measure() {
            Ok(report) => {
                if !self.is_quiet {
                    say(&report.table())?;
                }
                self.reports.push(report);
            }
            Err(error) if !interrupted() => {
                tracing::error!("{name}: {error:#}");
                self.failed.push(name);
            }
            Err(interrupted) => return Err(interrupted),
        }
        Ok(())
    }
}

fn recon_args(args: &AllArgs, run: EvalRunArgs) -> ReconArgs {
    ReconArgs {
        judged: args.model.clone().into(),
        made_with: XTerminalKind::Inverted,
        data: args.data.clone(),
        run,
        lpips: args.lpips.clone(),
        steps: args.steps.clone(),
        sampler: args.sampler.clone(),
        invert_steps: None,
    }
}

fn ppl_args(args: &AllArgs, weights: PathBuf, run: EvalRunArgs, steps: usize) -> PplArgs {
    PplArgs {
        model: args.model.clone(),
        data: args.data.clone(),
        run,
        pairs: None,
        epsilon: 1e-4,
        steps,
        sampler: args.sampler.clone(),
        invert_steps: steps,
        backbone: BackboneName::Vgg,
        weights,
    }
}

fn few_shot_args(args: &AllArgs, labelled: LabelledArgs, steps: usize) -> FewShotArgs {
    let sampler = args.sampler.clone();
    let shots = SHOTS.to_vec();
    FewShotArgs { labelled, shots, draws: 5, invented: 512, decoded: 8, steps, sampler, latent_steps: steps }
}

fn edits_args(
    args: &AllArgs,
    (pairs, direction): (PathBuf, EditDirection),
    run: EvalRunArgs,
    steps: usize,
) -> EditsArgs {
    EditsArgs {
        model: args.model.clone(),
        run,
        pairs,
        limit: args.data.limit,
        direction,
        strength: None,
        steps,
        sampler: args.sampler.clone(),
        invert_steps: steps,
        keep_residual: false,
    }
}

fn fid_args(args: &AllArgs, weights: PathBuf, run: EvalRunArgs, steps: usize) -> FidArgs {
    FidArgs {
        judged: args.model.clone().into(),
        data: Some(args.data.data.clone()),
        crop: args.data.crop,
        limit: args.data.limit,
        broken: args.data.broken.clone(),
        features: args.features,
        weights,
        resize: ResizeName::PytorchFid,
        protocol: FidProtocol::Plain,
        source: FidSource::Auto,
        count: None,
        steps,
        sampler: args.sampler.clone(),
        latent_steps: steps,
        reference_statistics: None,
        save_statistics: None,
        resamples: args.resamples,
        kid_subset: 1000,
        size: None,
        kid_subsets: 100,
        neighbors: 5,
        manifold_limit: 5000,
        run,
    }
}
