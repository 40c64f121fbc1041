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
mod pictures;
mod ppl;
mod recon;
mod report;
mod z_usage;

use anyhow::Result;

use crate::args::{EvalArgs, GlobalArgs, Measure};

/// Runs the measure that was asked for.
pub(crate) fn run(global: &GlobalArgs, args: &EvalArgs) -> Result<()> {
    match &args.measure {
        Measure::Recon(args) => recon::run(global, args),
        Measure::Attributes(args) => attributes::run(global, args),
        Measure::Disentanglement(args) => attributes::run_disentanglement(global, args),
        Measure::Edits(args) => edits::run(global, args),
        Measure::Lpips(args) => perceptual::run(global, args),
        Measure::Ppl(args) => ppl::run(global, args),
        Measure::FewShot(args) => few_shot::run(global, args),
        Measure::All(args) => all::run(global, args),
        Measure::Fid(args) => fid::run(global, args),
        Measure::Compare(args) => compare::run(args),
        Measure::ZUsage(args) => z_usage::run(global, args),
    }
}
