//! `diffae eval MEASURE --model MODEL .. --out DIR`

use std::ops::ControlFlow;

use anyhow::{Result, bail};
use diffae_data::Crop;
use diffae_eval::measures::{
    AllMeasures, AllOptions, Attributes, Disentanglement, Edits, FeatureExtractor, FewShot, Fid, FidProtocol,
    FidSubject, Inversion, LabeledPictures, LpipsPairs, PerceptualNetwork, Ppl, Recon, ReconSubject, ZUsage,
    ZUsageOptions,
};
use diffae_eval::{Comparison, Error, EvaluatedModel, Evaluation, EvaluationEvent, InceptionInput, Measure, Report};

use crate::args::{
    AllArgs, AttributesArgs, CompareArgs, DisentanglementArgs, EditsArgs, EvalArgs, EvalInversionArgs, EvalRunArgs,
    Evaluated, FewShotArgs, FidArgs, GlobalArgs, LpipsArgs, LpipsPairsArgs, MeasureArgs, ModelArgs, PplArgs,
    ReadingArgs, ReconArgs, ZUsageArgs,
};
use crate::device::device;
use crate::interrupt::{catch_interrupts, interrupted};
use crate::output::{Provenance, say, say_json};
use crate::pictures::{naming_way_out, pairs_of, picture_set, set_of};
use crate::progress::Progress;
use crate::session::Session;

/// Runs the measure that was asked for, and prints its report.
pub(crate) fn run(global: &GlobalArgs, args: &EvalArgs) -> Result<()> {
    match &args.measure {
        MeasureArgs::Recon(args) => recon(global, args),
        MeasureArgs::Attributes(args) => attributes(global, args),
        MeasureArgs::Disentanglement(args) => disentanglement(global, args),
        MeasureArgs::Edits(args) => edits(global, args),
        MeasureArgs::Lpips(args) => lpips_pairs(global, args),
        MeasureArgs::Ppl(args) => ppl(global, args),
        MeasureArgs::FewShot(args) => few_shot(global, args),
        MeasureArgs::Fid(args) => fid(global, args),
        MeasureArgs::ZUsage(args) => z_usage(global, args),
        MeasureArgs::Inversion(args) => inversion(global, args),
        MeasureArgs::All(args) => all(global, args),
        MeasureArgs::Compare(args) => compare(args),
    }
}

fn recon(global: &GlobalArgs, args: &ReconArgs) -> Result<()> {
    let pictures = picture_set(&args.data)?;
    let lpips = perceptual_network(global, &args.lpips)?;
    let (pictures, lpips, options) = (&pictures, lpips.as_ref(), args.options()?);
    let finish = |subject| conclude(&Recon { subject, pictures, lpips, options }, &args.run, Some(&args.data.reading));
    match args.evaluated.get()? {
        Evaluated::Model(model) => finish(ReconSubject::Model(&open_model(global, &model, &args.run)?)),
        Evaluated::Pictures(folder) => {
            let made = set_of(&folder, Crop::Center, None, &args.data.reading)?;
            finish(ReconSubject::Pictures { pictures: &made, made_with: args.made_with.into() })
        }
    }
}

fn attributes(global: &GlobalArgs, args: &AttributesArgs) -> Result<()> {
    let (labeled, data) = (&args.labeled, &args.labeled.data);
    let train = args.train_data.as_deref();
    let train = train.map(|train| set_of(train, data.crop.into(), None, &data.reading));
    let train = train.transpose()?;
    let train = train.as_ref().zip(args.train_labels.as_deref());
    let train = train.map(|(pictures, labels)| LabeledPictures::find(pictures, labels)).transpose()?;
    let pictures = picture_set(data)?;
    let pictures = LabeledPictures::find(&pictures, &labeled.labels)?;
    let model = open_model(global, &labeled.model, &labeled.run)?;
    let measure = Attributes { model: &model, labeled: &pictures, train: train.as_ref(), options: args.options() };
    conclude(&measure, &labeled.run, Some(&data.reading))
}

fn disentanglement(global: &GlobalArgs, args: &DisentanglementArgs) -> Result<()> {
    let labeled = &args.labeled;
    let pictures = picture_set(&labeled.data)?;
    let pictures = LabeledPictures::find(&pictures, &labeled.labels)?;
    let model = open_model(global, &labeled.model, &labeled.run)?;
    let measure = Disentanglement { model: &model, labeled: &pictures, options: args.options() };
    conclude(&measure, &labeled.run, Some(&labeled.data.reading))
}

fn few_shot(global: &GlobalArgs, args: &FewShotArgs) -> Result<()> {
    let labeled = &args.labeled;
    let pictures = picture_set(&labeled.data)?;
    let pictures = LabeledPictures::find(&pictures, &labeled.labels)?;
    let model = open_model(global, &labeled.model, &labeled.run)?;
    let measure = FewShot { model: &model, labeled: &pictures, options: args.options()? };
    conclude(&measure, &labeled.run, Some(&labeled.data.reading))
}

fn edits(global: &GlobalArgs, args: &EditsArgs) -> Result<()> {
    let pairs = pairs_of(&args.pairs, args.limit, &args.reading)?;
    let model = open_model(global, &args.model, &args.run)?;
    let measure = Edits { model: &model, pairs: &pairs, options: args.options()? };
    conclude(&measure, &args.run, Some(&args.reading))
}

fn lpips_pairs(global: &GlobalArgs, args: &LpipsPairsArgs) -> Result<()> {
    let pictures = picture_set(&args.data)?;
    let others = set_of(&args.pictures, Crop::Center, None, &args.data.reading)?;
    let device = device(global)?;
    let lpips = PerceptualNetwork::open(args.backbone.into(), &args.weights, &device)?;
    let measure = LpipsPairs { pictures: &pictures, others: &others, lpips: &lpips };
    conclude(&measure, &args.run, Some(&args.data.reading))
}

fn ppl(global: &GlobalArgs, args: &PplArgs) -> Result<()> {
    let pictures = picture_set(&args.data)?;
    let model = open_model(global, &args.model, &args.run)?;
    let lpips = PerceptualNetwork::open(args.backbone.into(), &args.weights, model.model().device())?;
    let measure = Ppl { model: &model, pictures: &pictures, lpips: &lpips, options: args.options()? };
    conclude(&measure, &args.run, Some(&args.data.reading))
}

fn inversion(global: &GlobalArgs, args: &EvalInversionArgs) -> Result<()> {
    let pictures = picture_set(&args.data)?;
    let model = open_model(global, &args.model, &args.run)?;
    conclude(
        &Inversion { model: &model, pictures: &pictures, options: args.options() },
        &args.run,
        Some(&args.data.reading),
    )
}

fn z_usage(global: &GlobalArgs, args: &ZUsageArgs) -> Result<()> {
    let pictures = picture_set(&args.data)?;
    let model = open_model(global, &args.model, &args.run)?;
    let options = ZUsageOptions { steps: args.steps, sampler: args.sampler.get()? };
    conclude(&ZUsage { model: &model, pictures: &pictures, options }, &args.run, Some(&args.data.reading))
}

fn fid(global: &GlobalArgs, args: &FidArgs) -> Result<()> {
    let is_reference = FidProtocol::from(args.protocol) == FidProtocol::Reference;
    let device = device(global)?;
    let features = FeatureExtractor::open(args.features.into(), &args.weights, args.resize.into(), &device)?;
    let real = args.data.as_ref().map(|data| {
        let limit = args.limit.or(is_reference.then_some(FidProtocol::REFERENCE_COUNT));
        set_of(data, args.crop.into(), limit, &args.reading)
    });
    let real = real.transpose()?;
    let (real, options) = (real.as_ref(), args.options()?);
    let finish =
        |subject| conclude(&Fid { subject, real, features: &features, options }, &args.run, Some(&args.reading));
    match args.evaluated.get()? {
        Evaluated::Model(model) => {
            let model = open_model(global, &model, &args.run)?;
            finish(FidSubject::Model { model: &model, source: args.source.into() })
        }
        Evaluated::Pictures(folder) => {
            let made = set_of(&folder, Crop::Center, args.count, &args.reading)?;
            finish(FidSubject::Pictures(&made))
        }
    }
}

/// Opens everything that is named, then runs all measures, each in a folder of its own, where interrupted work is
/// resumed, and writes all reports into one file. A measure that fails does not stop the others, but the command fails
/// in the end.
fn all(global: &GlobalArgs, args: &AllArgs) -> Result<()> {
    let pictures = picture_set(&args.data)?;
    let labeled = args.labels.as_deref().map(|labels| LabeledPictures::find(&pictures, labels)).transpose()?;
    let pairs = args.pairs.as_deref().map(|pairs| pairs_of(pairs, args.data.limit, &args.data.reading)).transpose()?;
    let device = device(global)?;
    let features = args.feature_weights.as_deref();
    let features = features
        .map(|weights| FeatureExtractor::open(args.features.into(), weights, InceptionInput::default(), &device));
    let (features, lpips) = (features.transpose()?, perceptual_network(global, &args.lpips)?);
    let model = open_model(global, &args.model, &args.run)?;
    let measures = AllMeasures {
        model: &model,
        pictures: &pictures,
        labeled: labeled.as_ref(),
        pairs: pairs.as_deref(),
        features: features.as_ref(),
        lpips: lpips.as_ref(),
    };
    let options = AllOptions { steps: args.steps.clone(), sampler: args.sampler.get()?, resamples: args.resamples };
    let evaluation = evaluation(&args.run);
    let (mut reports, mut failed) = (vec![], vec![]);
    for measure in measures.measures(&options) {
        let name = measure.name();
        if !args.run.json {
            say(&format!("\n{name}"))?;
        }
        match measure.run(&evaluation.within(name)) {
            Ok(report) if args.run.json => reports.push(report),
            Ok(report) => {
                say(&shown(&report, &args.run))?;
                reports.push(report);
            }
            Err(error) if interrupted() => return Err(error.into()),
            Err(error) => {
                // Of pairs none can be left out.
                let broken = (name != "edits").then_some(&args.data.reading);
                tracing::error!("{name}: {:#}", explained(error, broken));
                failed.push(name);
            }
        }
    }
    if !reports.is_empty() && args.run.shard.is_none() {
        Report::write_all(&reports, &args.run.out)?;
    }
    if args.run.json {
        say_json(&reports)?;
    }
    if failed.is_empty() { Ok(()) } else { bail!("some measures failed: {}", failed.join(", ")) }
}

fn compare(args: &CompareArgs) -> Result<()> {
    let comparison = Comparison::read(&args.reports)?;
    if let Some(folder) = &args.out {
        comparison.write(folder)?;
    }
    if args.json { say_json(&comparison.rows()) } else { say(&comparison.table()) }
}

/// Runs a measure, and prints its report.
fn conclude(measure: &dyn Measure, args: &EvalRunArgs, broken: Option<&ReadingArgs>) -> Result<()> {
    catch_interrupts();
    let report = measure.run(&evaluation(args)).map_err(|error| explained(error, broken))?;
    if args.json { say_json(&report) } else { say(&shown(&report, args)) }
}

/// The table of a report; of a shard, where its values are.
fn shown(report: &Report, args: &EvalRunArgs) -> String {
    args.shard.map_or_else(
        || report.table(),
        |shard| {
            let out = args.out.display();
            format!(
                "shard {shard} is measured, its values are in {out}; report all by the same command without --shard"
            )
        },
    )
}

/// Names the options that are a way out of an error; `broken` are those about unreadable pictures, if there are any.
fn explained(error: Error, broken: Option<&ReadingArgs>) -> anyhow::Error {
    match error {
        Error::OtherEvaluation { .. } => {
            anyhow::anyhow!("{error}; choose another --out, or start over with --force")
        }
        Error::DamagedJournal { .. } => anyhow::anyhow!("{:#}; start over with --force", anyhow::Error::from(error)),
        error => match broken {
            Some(broken) => naming_way_out(error.into(), broken),
            None => error.into(),
        },
    }
}

/// Returns the circumstances of the command line: progress is shown, and Ctrl-C ends the evaluation.
fn evaluation<'a>(args: &EvalRunArgs) -> Evaluation<'a> {
    let mut progress: Option<Progress> = None;
    let observer = move |event: &EvaluationEvent| match *event {
        EvaluationEvent::Begin { stage, num_items, calls_per_item } => {
            progress = Some(Progress::start(stage, num_items, calls_per_item));
            ControlFlow::Continue(())
        }
        EvaluationEvent::Calls { count } => {
            progress.as_ref().map_or(ControlFlow::Continue(()), |progress| progress.step(count))
        }
        EvaluationEvent::End => {
            if let Some(progress) = progress.take() {
                progress.finish();
            }
            ControlFlow::Continue(())
        }
    };
    Evaluation::new(&args.out, observer)
        .with_seed(args.random.seed)
        .with_shard(args.shard)
        .with_overwrite(args.force.overwrite())
        .with_provenance(Provenance::without_model().entries())
}

fn open_model(global: &GlobalArgs, args: &ModelArgs, run: &EvalRunArgs) -> Result<EvaluatedModel> {
    Ok(Session::open(global, args, &run.batch)?.into_evaluated())
}

fn perceptual_network(global: &GlobalArgs, args: &LpipsArgs) -> Result<Option<PerceptualNetwork>> {
    let Some(weights) = &args.lpips_weights else { return Ok(None) };
    let device = device(global)?;
    Ok(Some(PerceptualNetwork::open(args.lpips_backbone.into(), weights, &device)?))
}
