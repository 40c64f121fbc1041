//! Configs that come with the program.

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// A preset.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub summary: &'static str,
    text: &'static str,
}

/// All presets: small ones first, then those of the paper.
pub const PRESETS: [Preset; 12] = [
    preset("smoke", "16 pixels: for tests, and for a look at what a run makes", include_str!("../presets/smoke.toml")),
    preset(
        "small32",
        "32 pixels, without a GPU: a first model of your own pictures",
        include_str!("../presets/small32.toml"),
    ),
    preset("small64", "64 pixels, without a GPU: a model worth keeping", include_str!("../presets/small64.toml")),
    preset("toonheads64", "the built-in model: cartoon faces", include_str!("../presets/toonheads64.toml")),
    preset("compact64", "64 pixels, decodes in one shot, without a GPU", include_str!("../presets/compact64.toml")),
    preset("ffhq64_autoenc", "the paper's FFHQ at 64 pixels", include_str!("../presets/ffhq64_autoenc.toml")),
    preset("celeba64_autoenc", "the paper's CelebA at 64 pixels", include_str!("../presets/celeba64_autoenc.toml")),
    preset("ffhq128_autoenc", "the paper's FFHQ at 128 pixels", include_str!("../presets/ffhq128_autoenc.toml")),
    preset("horse128_autoenc", "the paper's LSUN Horse", include_str!("../presets/horse128_autoenc.toml")),
    preset("bedroom128_autoenc", "the paper's LSUN Bedroom", include_str!("../presets/bedroom128_autoenc.toml")),
    preset("ffhq256_autoenc", "the paper's FFHQ at 256 pixels", include_str!("../presets/ffhq256_autoenc.toml")),
    preset("ffhq128_ddpm", "the paper's plain DDPM at 128 pixels", include_str!("../presets/ffhq128_ddpm.toml")),
];

const fn preset(name: &'static str, summary: &'static str, text: &'static str) -> Preset {
    Preset { name, summary, text }
}

/// The TOML of a preset.
///
/// # Errors
/// [`Error::UnknownPreset`].
pub fn text(name: &str) -> Result<&'static str> {
    let found = PRESETS.iter().find(|preset| preset.name == name);
    found.map(|preset| preset.text).ok_or_else(|| {
        let known = PRESETS.map(|preset| preset.name).join(", ");
        Error::UnknownPreset { name: name.to_owned(), known }
    })
}

/// A preset with settings changed; see [`TrainConfig::from_toml_with`].
///
/// # Errors
/// [`Error::UnknownPreset`], and as [`TrainConfig::from_toml_with`].
pub fn config(name: &str, assignments: &[String]) -> Result<TrainConfig> {
    TrainConfig::from_toml_with(text(name)?, assignments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for preset in PRESETS {
            config(preset.name, &[]).unwrap_or_else(|error| panic!("{}: {error:?}", preset.name));
        }
        assert!(config("ffhq32", &[]).unwrap_err().to_string().contains("smoke"));
    }
}
