//! `diffae polish --model M --data DIR --lpips-weights vgg16.pth --out RUN`: better pictures of `z_sem` alone.

use anyhow::Result;
use diffae_infer::{DistilledChain, ModelSource};
use diffae_nets::weights::ArchitectureHints;
use diffae_train::{Notes, PolishSettings, TrainConfig, TrainOptions, check_lpips_weights};

use super::decoder_run::DecoderRun;
use super::train::{absolute, compute};
use crate::args::{GlobalArgs, PolishArgs};
use crate::group;
use crate::interrupt::catch_interrupts;

/// Begins a run that polishes the model's decoder, or resumes one.
pub(crate) fn run(global: &GlobalArgs, args: &PolishArgs) -> Result<()> {
    let options = TrainOptions { stage: None, resume: args.run.resume, compute: compute(global)? };
    let group = group::join(&args.group, &options, &args.subject.out)?;
    catch_interrupts();
    let model = ModelSource::open(&args.subject.model, &ArchitectureHints::default())?;
    let PolishArgs { steps, spacing, endpoint_channels, pixel_weight, patience, .. } = *args;
    let chain = DistilledChain { steps, spacing };
    let polish = PolishSettings { chain, endpoint_channels, pixel_weight, patience };
    let config = TrainConfig::of_polished(&model, polish, &args.run.assignments(&args.subject))?;
    check_lpips_weights(&args.lpips_weights)?;
    let lpips_weights = Some(absolute(&args.lpips_weights)?);
    let notes = Notes { freeze: vec!["encoder".to_owned()], lpips_weights, ..Notes::default() };
    let (subject, json) = (&args.subject, &args.json);
    DecoderRun { command: "polish", subject, config, notes, options, group, json }.train(steps)
}
