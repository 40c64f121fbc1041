//! `diffae presets`

use anyhow::Result;
use diffae_train::presets;

use crate::args::PresetsArgs;
use crate::output::say;

/// Lists the presets, or prints one.
pub(crate) fn run(args: &PresetsArgs) -> Result<()> {
    if let Some(name) = &args.name {
        return say(presets::text(name)?.trim_end());
    }
    let width = presets::PRESETS.iter().map(|preset| preset.name.len()).max().unwrap_or(0);
    for preset in presets::PRESETS {
        let steps = presets::config(preset.name, &[])?.autoencoder.num_steps();
        say(&format!("{:width$}  {}; {steps} steps", preset.name, preset.summary))?;
    }
    say("\nhow long one takes on this machine: diffae train --preset NAME --data DIR --dry-run")
}
