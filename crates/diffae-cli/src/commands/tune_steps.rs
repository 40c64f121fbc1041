//! `diffae tune-steps --model MODEL --data DIR --steps N --out DIR`: the timesteps that suit a model.

use anyhow::{Context, Result, bail};
use diffae_infer::{CONFIG_FILE, ModelSource, TunedChain, TunedSteps, Tuning, TuningOptions, WEIGHTS_FILE};
use diffae_schedule::Spacing;
use serde_json::json;

use crate::args::{BatchArgs, GlobalArgs, TuneStepsArgs};
use crate::output::{OutputDir, say, say_json};
use crate::pictures::{Listed, list_readable};
use crate::progress::{Noun, Progress};
use crate::session::{Session, architecture_hints};

/// Searches for the timesteps, and writes the model with them. Networks and number type stay the same.
pub(crate) fn run(global: &GlobalArgs, args: &TuneStepsArgs) -> Result<()> {
    let (out, overwrite) = (&args.out.out, args.out.force.overwrite());
    // That it can be written is known now; what is prepared there goes again.
    drop(OutputDir::new(out, &[CONFIG_FILE, WEIGHTS_FILE].map(str::to_owned), overwrite)?);
    let Listed { inputs, .. } = list_readable(&args.pictures.input, &args.pictures.reading, None)?;
    let session = Session::open(global, &args.model, &BatchArgs { batch_size: None })?;
    if session.is_one_shot() {
        bail!("{} decodes in one shot, so there are no steps to tune", args.model.model.display())
    }
    let usual = TuningOptions::default();
    let sampler = args.sampler.unwrap_or(usual.sampler);
    let options = TuningOptions { steps: args.steps, sampler, seed: args.random.seed, ..usual };
    session.pipeline.check_steps(Spacing::LogSnr, options.steps).context("--steps")?;
    // Names often sort by kind, so the pictures are spread over all.
    let count = inputs.len().min(args.limit);
    let spread = (0..count).map(|i| (i * inputs.len()).div_euclid(count.max(1)));
    let chosen: Vec<_> = spread.map(|idx| inputs[idx].clone()).collect();
    let x_0 = session.read(&chosen)?;
    // The work is counted in steps of single pictures.
    let progress = Progress::start_counting("tune", Noun::Steps, options.max_calls(count), 1);
    let tuning = Tuning::new(session.model(), &x_0, options, &mut progress.observer())?;
    let TunedSteps { timesteps, psnr: [before, after] } = tuning.run(&mut progress.observer())?;
    progress.finish();
    let mut source = ModelSource::open(&args.model.model, &architecture_hints(&args.model.hints))?;
    let mut chains = source.config().chains().cloned().unwrap_or_default();
    chains.set_tuned(TunedChain { timesteps: timesteps.clone(), sampler });
    source.set_chains(chains)?;
    source.write(out, source.number_type()?, overwrite)?;
    if args.json.json {
        let psnr = json!({ "log-snr": before, "tuned": after });
        return say_json(&json!({
            "command": "tune-steps", "out": out, "steps": args.steps, "sampler": sampler.to_string(),
            "timesteps": timesteps, "psnr_to_solution": psnr,
        }));
    }
    let listed = timesteps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    say(&format!("timesteps {listed}"))?;
    say(&format!(
        "held-out images, mean PSNR to the exact solution: {after:.1} dB, with --spacing log-snr {before:.1} dB"
    ))?;
    say(&format!("the model is in {}; use them by --spacing tuned --steps {}", out.display(), args.steps))
}
