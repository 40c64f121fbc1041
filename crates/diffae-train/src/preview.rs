//! Sheets that show how far a run is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffae_infer::{
    DecodeOptions, LoadOptions, Model, ModelSource, NoisePurpose, NoiseSource, Overwrite, Sheet, png_bytes,
    rgb_from_tensor, write_atomically,
};
use diffae_schedule::{no_callback, no_noise};

use crate::config::TrainConfig;
use crate::error::{Result, at};

/// Pictures in a row of a sheet.
const MOST_SHOWN: usize = 8;
/// Rows of inventions.
const INVENTED_ROWS: u64 = 3;

/// Makes sheets: a row each of real pictures, of reconstructions with their own noise maps, and two with random ones,
/// which show what `z_sem` holds and what it leaves open. A plain DDPM shows inventions.
pub(crate) struct Preview {
    run: PathBuf,
    config: TrainConfig,
    x_0: Tensor,
}

impl Preview {
    pub(crate) fn new(run: &Path, config: &TrainConfig, watched: &Tensor) -> Result<Self> {
        let count = watched.dim(0)?;
        let shown = count.min(MOST_SHOWN);
        let each = (0..shown).map(|i| watched.get((i * count).checked_div(shown).unwrap_or(0)));
        let x_0 = Tensor::stack(&each.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        Ok(Self { run: run.to_owned(), config: config.clone(), x_0 })
    }

    /// Makes the sheet of a model after so many pictures. Pictures of other than one or three channels are not shown.
    pub(crate) fn write(&self, averages: BTreeMap<String, Tensor>, images: usize) -> Result<()> {
        if !matches!(self.config.model.image_channels, 1 | 3) {
            return Ok(());
        }
        let model_config = self.config.model_config()?;
        let (with_z, one_shot) = (model_config.z_channels().is_some(), model_config.compact.is_some());
        let model = ModelSource::from_networks(model_config, averages).build(&LoadOptions::cpu())?;
        let options = DecodeOptions::ddim(self.config.run.preview_steps);
        let count = self.x_0.dim(0)?;
        let noise = |which: u64| {
            let places = which * count as u64..(which + 1) * count as u64;
            model.random_x_terminal(NoiseSource::new(self.config.seed), places)
        };
        let z_sem = if with_z { Some(model.encode_semantic(&self.x_0)?) } else { None };
        let decode =
            |x_terminal: &Tensor| model.decode(x_terminal, z_sem.as_ref(), &options, &mut no_noise, &mut no_callback);
        let mut rows = vec![];
        if with_z {
            let inverted = if one_shot {
                model.zero_x_terminal(count)?
            } else {
                model.invert(&self.x_0, z_sem.as_ref(), options.num_steps, &mut no_callback)?
            };
            let name = if one_shot { "no x_T" } else { "inverted x_T" };
            rows.extend([("original", self.x_0.clone()), (name, decode(&inverted)?)]);
        }
        let [first, second] = if with_z { ["random x_T", "another x_T"] } else { ["samples", ""] };
        rows.extend([(first, decode(&noise(0)?)?), (second, decode(&noise(1)?)?)]);
        let sheet = Sheet::new().with_title(format!("autoencoder after {images} images"));
        write_sheet(&self.run.join("previews"), &format!("images-{images:09}.png"), sheet, &rows)
    }
}

/// A sheet of pictures that a model with a latent net invents, after so many codes.
pub(crate) fn invented(run: &Path, config: &TrainConfig, model: &Model, images: usize) -> Result<()> {
    if !matches!(config.model.image_channels, 1 | 3) {
        return Ok(());
    }
    let steps = config.run.preview_steps;
    let mut rows = vec![];
    for row in 0..INVENTED_ROWS {
        let places = row * MOST_SHOWN as u64..(row + 1) * MOST_SHOWN as u64;
        let width = [config.model.z_channels];
        let z_terminal =
            NoiseSource::new(config.seed).batch(NoisePurpose::ZTerminal, places.clone(), &width, &Device::Cpu)?;
        let z_sem = model.sample_z_sem(&z_terminal, steps, &mut no_callback)?;
        let x_terminal = model.random_x_terminal(NoiseSource::new(config.seed), places)?;
        let options = DecodeOptions::ddim(steps);
        let name = if row == 0 { "samples" } else { "" };
        rows.push((name, model.decode(&x_terminal, Some(&z_sem), &options, &mut no_noise, &mut no_callback)?));
    }
    let sheet = Sheet::new().with_title(format!("latent diffusion after {images} codes"));
    write_sheet(&run.join("previews"), &format!("latent-{images:09}.png"), sheet, &rows)
}

/// Writes labelled rows of pictures, each `[N, C, H, W]`.
fn write_sheet(folder: &Path, name: &str, mut sheet: Sheet, rows: &[(&str, Tensor)]) -> Result<()> {
    for (label, row) in rows {
        let row = row.to_dtype(DType::F32)?;
        let row = (0..row.dim(0)?).map(|idx| Ok(rgb_from_tensor(&row.get(idx)?)?)).collect::<Result<Vec<_>>>()?;
        sheet.push(*label, row);
    }
    fs::create_dir_all(folder).map_err(at(folder))?;
    let path = folder.join(name);
    let bytes = png_bytes(&sheet.draw(), &[], &path)?;
    Ok(write_atomically(&path, &bytes, Overwrite::Replace)?)
}
