//! `diffae import CKPT --out DIR`

use anyhow::{Context, Result, ensure};
use diffae_infer::{Error, LoadOptions, ModelSource, names_from_text};
use diffae_nets::weights::{ClassifierCheckpoint, read_latent_moments};
use serde_json::json;

use super::say_either;
use crate::args::{GlobalArgs, ImportArgs, NumberType};
use crate::device::dtype;
use crate::session::architecture_hints;

/// Joins released files, checks that they fit together, and writes a model directory.
pub(crate) fn run(global: &GlobalArgs, args: &ImportArgs) -> Result<()> {
    ensure!(global.dtype != NumberType::Tf32, "tf32 is no number type of files; --dtype is f32, bf16 or f16 here");
    let hints = architecture_hints(&args.hints);
    let mut source = ModelSource::open(&args.checkpoint, &hints)?;
    let unusable = |path: &std::path::Path| {
        let path = path.to_owned();
        move |source| Error::Weights { path, source }
    };
    if let Some(path) = &args.latent {
        source.set_latent_moments(read_latent_moments(path).map_err(unusable(path))?)?;
    }
    if let Some(path) = &args.classifier {
        let names = args.attributes.as_deref().map(read_names).transpose()?;
        let classifier = ClassifierCheckpoint::open_set(path, hints.parameters).map_err(unusable(path))?;
        source.set_classifier(classifier, names)?;
    }
    source.build(&LoadOptions::cpu())?;
    source.write(&args.out.out, dtype(global.dtype), args.out.force.overwrite())?;
    let out = &args.out.out;
    let report = json!({
        "command": "import", "out": out, "kind": source.config().kind(), "fingerprint": source.fingerprint()?,
    });
    say_either(&args.json, &report, &format!("wrote {}", out.display()))
}

fn read_names(path: &std::path::Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(names_from_text(&text))
}
