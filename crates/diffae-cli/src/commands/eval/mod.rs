//! `diffae eval MEASURE --model MODEL .. --out DIR`

mod all;
mod attributes;
mod codes;
mod compare;
mod edits;
mod feature_file;
mod few_shot;
mod fid;
mod journal;
mod perceptual;
mod ppl;
mod recon;
mod report;
mod z_usage;

use anyhow::Result;

use crate::args::{EvalArgs, GlobalArgs, Measure};
use crate::output::{say, say_json};

/// Runs the measure that was asked for, and prints its report.
pub(crate) fn run(global: &GlobalArgs, args: &EvalArgs) -> Result<()> {
    let (report, run) = match &args.measure {
        Measure::Recon(args) => (recon::run(global, args)?, &args.run),
        Measure::Attributes(args) => (attributes::run(global, args)?, &args.labelled.run),
        Measure::Disentanglement(args) => (attributes::run_disentanglement(global, args)?, &args.labelled.run),
        Measure::Edits(args) => (edits::run(global, args)?, &args.run),
        Measure::Lpips(args) => (perceptual::run(global, args)?, &args.run),
        Measure::Ppl(args) => (ppl::run(global, args)?, &args.run),
        Measure::FewShot(args) => (few_shot::run(global, args)?, &args.labelled.run),
        Measure::Fid(args) => (fid::run(global, args)?, &args.run),
        Measure::ZUsage(args) => (z_usage::run(global, args)?, &args.run),
        Measure::All(args) => return all::run(global, args),
        Measure::Compare(args) => return compare::run(args),
    };
    if run.json { say_json(&report) } else { say(&report.table()) }
}
