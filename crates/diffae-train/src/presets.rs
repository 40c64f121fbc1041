//! Configs that come with the program: a complete one, and others that extend it by differences.

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// A config that comes with the program.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// Name of the preset.
    pub name: &'static str,
    /// Purpose of the preset, in a phrase.
    pub summary: &'static str,
    /// Settings that differ from the preset named by `extends`, or all of them.
    text: &'static str,
}

/// All presets: small ones first, then those of the paper.
pub static PRESETS: [Preset; 17] = [
    preset("smoke", "16 pixels: for tests, and for a look at what a run makes", include_str!("../presets/smoke.toml")),
    preset(
        "small32",
        "32 pixels, without a GPU: a first model of your own pictures",
        include_str!("../presets/small32.toml"),
    ),
    preset("small64", "64 pixels, without a GPU: a model worth keeping", include_str!("../presets/small64.toml")),
    preset("toonheads64", "the built-in model: cartoon faces", include_str!("../presets/toonheads64.toml")),
    preset("smoke_latent", "16 pixels, on latents of 8: for tests", include_str!("../presets/smoke_latent.toml")),
    preset("latent256", "256 pixels, without a GPU, on latents of 64", include_str!("../presets/latent256.toml")),
    preset("latent512", "512 pixels, on latents of 64", include_str!("../presets/latent512.toml")),
    preset("toonheads256", "cartoon faces of 256 pixels, on latents", include_str!("../presets/toonheads256.toml")),
    preset("volumes32", "volumes of 32 voxels a side, without a GPU", include_str!("../presets/volumes32.toml")),
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

/// Writes a preset as TOML with every key, below a comment that names it.
///
/// # Errors
/// [`Error::UnknownPreset`].
pub fn text(name: &str) -> Result<String> {
    let summary = find(name)?.summary;
    Ok(format!("# {name}: {summary}\n{}", config(name, &[])?.to_toml()))
}

/// Reads a preset and changes settings; see [`TrainConfig::from_toml_with`].
///
/// # Errors
/// [`Error::UnknownPreset`], and as [`TrainConfig::from_toml_with`].
pub fn config(name: &str, assignments: &[String]) -> Result<TrainConfig> {
    TrainConfig::from_table_with(resolved(name)?, assignments)
}

fn find(name: &str) -> Result<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let known = PRESETS.each_ref().map(|preset| preset.name).join(", ");
        Error::UnknownPreset { name: name.to_owned(), known }
    })
}

/// The settings of a preset on top of those of the presets that it extends.
fn resolved(name: &str) -> Result<toml::Table> {
    let (own, base) = parsed(name)?;
    let Some(base) = base else { return Ok(own) };
    let mut table = resolved(&base)?;
    overlay(&mut table, own);
    Ok(table)
}

/// The settings in the file of a preset, and the name after `extends`.
fn parsed(name: &str) -> Result<(toml::Table, Option<String>)> {
    let mut own: toml::Table = toml::from_str(find(name)?.text).map_err(|source| Error::Config(Box::new(source)))?;
    let base = own.remove("extends").map(toml::Value::try_into::<String>).transpose();
    Ok((own, base.map_err(|source| Error::Config(Box::new(source)))?))
}

/// Replaces values of a table, and of the tables in it, by those of another.
fn overlay(table: &mut toml::Table, with: toml::Table) {
    for (key, value) in with {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(with)) => overlay(inner, with),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values by their dotted keys.
    fn flat(prefix: &str, table: &toml::Table) -> Vec<(String, toml::Value)> {
        let entry = |(key, value): (&String, &toml::Value)| match value {
            toml::Value::Table(inner) => flat(&format!("{prefix}{key}."), inner),
            value => vec![(format!("{prefix}{key}"), value.clone())],
        };
        table.iter().flat_map(entry).collect()
    }

    #[test]
    fn every_preset_is_valid_and_printed_with_every_key() {
        for preset in PRESETS {
            let config = config(preset.name, &[]).unwrap_or_else(|error| panic!("{}: {error:?}", preset.name));
            let text = text(preset.name).unwrap();
            assert_eq!(TrainConfig::from_toml(&text).unwrap(), config, "{}", preset.name);
            assert!(text.contains("pixel_weight") && !text.contains("extends"), "{text}");
        }
        assert!(config("ffhq32", &[]).unwrap_err().to_string().contains("smoke"));
    }

    #[test]
    fn a_preset_states_what_differs_from_its_base_and_nothing_else() {
        for preset in PRESETS {
            let (own, base) = parsed(preset.name).unwrap();
            let Some(base) = base else {
                let complete: toml::Table = toml::from_str(&text(preset.name).unwrap()).unwrap();
                let keys = |table| flat("", table).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
                assert_eq!((preset.name, keys(&own)), ("ffhq128_autoenc", keys(&complete)));
                continue;
            };
            let base = flat("", &resolved(&base).unwrap());
            for (key, value) in flat("", &own) {
                // Networks that the base has not bring their own settings.
                let of_base = base.iter().find(|(of_base, _)| *of_base == key);
                assert_ne!(of_base.map(|(_, value)| value), Some(&value), "{key} of {}", preset.name);
            }
            let complete = flat("", &resolved(preset.name).unwrap());
            let changed: Vec<_> = complete.into_iter().filter(|here| !base.contains(here)).collect();
            assert_eq!(changed, flat("", &own), "{}", preset.name);
        }
    }

    #[test]
    fn differences_add_up_over_several_bases() {
        let config = config("bedroom128_autoenc", &[]).unwrap();
        assert_eq!(config.autoencoder.images, 120_000_000); // its own
        assert_eq!((config.latent.batch_size, config.latent_net.num_layers), (2048, 20)); // of Horse
        assert_eq!((config.autoencoder.batch_size, config.model.image_size), (128, 128.into())); // of FFHQ
    }
}
