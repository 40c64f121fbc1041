//! A picture with its reconstruction and an edit of it by the walks of `diffae reconstruct` and `diffae edit`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use diffae_data::{Overwrite, write_atomically};
use diffae_infer::{
    LoadOptions, ModelSource, Pipeline, PipelineSettings, built_in_pictures, no_observer, rounded_full_strength,
};
use diffae_nets::weights::safetensors_bytes;

/// Attribute of the edit.
const ATTRIBUTE: &str = "Smiling";

/// Writes the pictures of the built-in model, `[H, W, 3]`, u8; the text of the file names the attribute.
pub(super) fn write(source: &ModelSource, path: &Path) -> Result<()> {
    let pipeline = Pipeline::new(source.build(&LoadOptions::cpu())?);
    let model = pipeline.model();
    let settings = PipelineSettings::of_model(model.config());
    let strength = rounded_full_strength(model.classifier()?, model.attribute_idx(ATTRIBUTE)?)?;
    let strength = strength.context("the model does not know how far to go")?;
    let (_, original) = built_in_pictures()?.into_iter().next().context("there are no pictures")?;
    let original = [original];
    let codes = pipeline.encode(&original, &settings, &mut no_observer)?;
    let reconstructed = pipeline.decode(&codes, &settings, &mut no_observer)?;
    let edited = pipeline.edit_pictures(&original, &[(ATTRIBUTE, strength)], &settings, &mut no_observer)?;
    let named = [("original", &original[..]), ("reconstructed", &reconstructed), ("edited", &edited)];
    let tensors = named.into_iter().map(|(name, pictures)| {
        let picture = &pictures[0];
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Ok((name.to_owned(), Tensor::from_vec(picture.as_raw().clone(), (height, width, 3), &Device::Cpu)?))
    });
    let text = BTreeMap::from([("attribute".to_owned(), ATTRIBUTE.to_owned())]);
    let bytes = safetensors_bytes(&tensors.collect::<Result<_>>()?, &text)?;
    Ok(write_atomically(path, &bytes, Overwrite::Replace)?)
}
