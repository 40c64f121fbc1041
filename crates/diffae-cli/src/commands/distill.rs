//! `diffae distill --model M --data DIR --steps 2 --out RUN`: a decoder of few steps, from one of many.

use anyhow::{Context, Result};
use diffae_infer::{DistilledChain, ModelSource};
use diffae_nets::weights::ArchitectureHints;
use diffae_schedule::Spacing;
use diffae_train::{DistillationSettings, Notes, Outcome, RunFolder, TrainConfig, TrainOptions};
use serde_json::json;

use super::say_either;
use super::train::{StepProgress, absolute, compute, model_path, picture_key_setting};
use crate::args::{DistillArgs, GlobalArgs};
use crate::group;
use crate::interrupt::{Interruption, catch_interrupts};
use crate::progress::Noun;

/// Begins a run that distills the model's decoder, or resumes one.
pub(crate) fn run(global: &GlobalArgs, args: &DistillArgs) -> Result<()> {
    let options = TrainOptions { stage: None, resume: args.resume, compute: compute(global)? };
    let mut group = group::join(&args.group, &options, &args.out)?;
    catch_interrupts();
    let teacher = ModelSource::open(&args.model, &ArchitectureHints::default())?;
    let timesteps = args.timesteps.clone();
    let chain = match &timesteps {
        Some(timesteps) => DistilledChain { steps: timesteps.len(), spacing: Spacing::Tuned },
        None => DistilledChain { steps: args.steps, spacing: args.spacing },
    };
    let DistillArgs { teacher_steps, semantic_weight, .. } = *args;
    let distillation = DistillationSettings { chain, timesteps, teacher_steps, semantic_weight };
    let given = [
        args.images.map(|images| format!("autoencoder.images={images}")),
        args.batch_size.map(|size| format!("autoencoder.batch_size={size}")),
        args.lr.map(|lr| format!("autoencoder.lr={lr}")),
        args.seed.map(|seed| format!("seed={seed}")),
        args.picture_key.as_ref().map(|key| picture_key_setting(key)),
    ];
    let assignments: Vec<String> = args.set.iter().cloned().chain(given.into_iter().flatten()).collect();
    let config = TrainConfig::of_teacher(&teacher, distillation, &assignments)?;
    let notes = Notes {
        data: absolute(&args.data)?,
        init_from: Some(model_path(&args.model)?),
        freeze: teacher.config().encoder().map(|_| "encoder".to_owned()).into_iter().collect(),
        ..Notes::default()
    };
    let open = || RunFolder::open_or_create(&args.out, &config, &notes).context("distill");
    let mut folder = RunFolder::open_in_group(&mut group, open)?;
    let progress = StepProgress::new();
    let is_first = group.is_first();
    let outcome = progress.train(&mut folder, &options, &mut group)?;
    group.leave();
    progress.finish();
    match outcome {
        Outcome::Finished if !is_first => Ok(()),
        Outcome::Finished => {
            let report = json!({ "command": "distill", "out": args.out, "steps": chain.steps });
            let steps = Noun::Steps.counted(chain.steps);
            say_either(&args.json, &report, &format!("the model is in {}; it decodes in {steps}", args.out.display()))
        }
        Outcome::Stopped => {
            let go_on = format!("diffae train --out {} --resume", args.out.display());
            Err(Interruption::new(format!("the run is saved; go on with: {go_on}")).into())
        }
    }
}
