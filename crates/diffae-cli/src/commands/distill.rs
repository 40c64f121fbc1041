//! `diffae distill --model M --data DIR --steps 2 --out RUN`: a decoder of few steps, from one of many.

use anyhow::Result;
use diffae_infer::{DistilledChain, ModelSource};
use diffae_nets::weights::ArchitectureHints;
use diffae_schedule::Spacing;
use diffae_train::{DistillationSettings, Notes, TrainConfig, TrainOptions};

use super::decoder_run::DecoderRun;
use super::train::compute;
use crate::args::{DistillArgs, GlobalArgs};
use crate::group;
use crate::interrupt::catch_interrupts;

/// Begins a run that distills the model's decoder, or resumes one.
pub(crate) fn run(global: &GlobalArgs, args: &DistillArgs) -> Result<()> {
    let options = TrainOptions { stage: None, resume: args.run.resume, compute: compute(global)? };
    let group = group::join(&args.group, &options, &args.subject.out)?;
    catch_interrupts();
    let teacher = ModelSource::open(&args.subject.model, &ArchitectureHints::default())?;
    let timesteps = args.timesteps.clone();
    let chain = match &timesteps {
        Some(timesteps) => DistilledChain { steps: timesteps.len(), spacing: Spacing::Tuned },
        None => DistilledChain { steps: args.steps, spacing: args.spacing },
    };
    let DistillArgs { teacher_steps, semantic_weight, .. } = *args;
    let distillation = DistillationSettings { chain, timesteps, teacher_steps, semantic_weight };
    let config = TrainConfig::of_teacher(&teacher, distillation, &args.run.assignments(&args.subject))?;
    let freeze = teacher.config().encoder().map(|_| "encoder".to_owned()).into_iter().collect();
    let notes = Notes { freeze, ..Notes::default() };
    let (subject, json) = (&args.subject, &args.json);
    DecoderRun { command: "distill", subject, config, notes, options, group, json }.train(chain.steps)
}
