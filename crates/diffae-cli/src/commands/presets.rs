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
    presets::PRESETS.iter().try_for_each(|preset| say(&format!("{:width$}  {}", preset.name, preset.summary)))
}
