//! Commands, one per file.

mod align;
mod codes;
mod completions;
pub(crate) mod dataset;
mod decode;
mod decoder_run;
mod demo;
mod distill;
mod edit;
mod encode;
mod eval;
mod export;
mod fit_attributes;
mod fit_edits;
mod import;
mod info;
mod interpolate;
mod man;
mod polish;
mod presets;
mod reconstruct;
mod sample;
mod serve;
mod train;
mod tune_steps;
mod variations;

use anyhow::Result;

use crate::args::{Cli, Command, JsonArgs};
use crate::interrupt::Interruption;
use crate::output::{say, say_json};

/// Runs the command that was asked for.
pub(crate) fn run(cli: Cli) -> Result<()> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => demo::run(global, &args),
        Command::Serve(args) => serve::run(global, &args),
        Command::Info(args) => info::run(global, &args),
        Command::Import(args) => import::run(global, &args),
        Command::Export(args) => export::run(global, &args),
        Command::Align(args) => align::run(&args),
        Command::Dataset(args) => dataset::run(&args),
        Command::Encode(args) => encode::run(global, &args),
        Command::Decode(args) => decode::run(global, &args),
        Command::Codes(args) => codes::run(&args),
        Command::Reconstruct(args) => reconstruct::run(global, &args),
        Command::Interpolate(args) => interpolate::run(global, &args),
        Command::Edit(args) => edit::run(global, &args),
        Command::Sample(args) => sample::run(global, &args),
        Command::Variations(args) => variations::run(global, &args),
        Command::Train(args) => train::run(global, &args),
        Command::Distill(args) => distill::run(global, &args),
        Command::Polish(args) => polish::run(global, &args),
        Command::TuneSteps(args) => tune_steps::run(global, &args),
        Command::FitAttributes(args) => fit_attributes::run(global, &args),
        Command::FitEdits(args) => fit_edits::run(global, &args),
        Command::Eval(args) => eval::run(global, &args).map_err(tell_eval_kept),
        Command::Presets(args) => presets::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Adds to an error that measures keep their values, and resume by themselves.
fn tell_eval_kept(error: anyhow::Error) -> anyhow::Error {
    if crate::is_interrupt(&error) {
        return error.context(Interruption::new("what was measured is kept; the same command goes on".to_owned()));
    }
    error
}

/// Prints a report as JSON if that is wanted, and else a sentence.
fn say_either(json: &JsonArgs, report: &impl serde::Serialize, sentence: &str) -> Result<()> {
    if json.json { say_json(report) } else { say(sentence) }
}
