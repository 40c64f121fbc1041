//! Sheets that show how far a run is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffae_infer::{
    DecodeOptions, LoadOptions, ModelSource, NoisePurpose, NoiseSource, Overwrite, png_bytes, rgb_from_tensor, sheet,
    write_atomically,
};
use diffae_schedule::{no_callback, no_noise};

use crate::config::TrainConfig;
use crate::error::{Result, at};

/// Pictures on a sheet.
const MOST_SHOWN: usize = 8;

/// Makes sheets: a row each of real pictures, of reconstructions with their own noise maps, and of reconstructions with
/// random ones, which show what `z_sem` holds. A plain DDPM shows inventions.
pub(crate) struct Preview {
    folder: PathBuf,
    config: TrainConfig,
    x_0: Tensor,
}

impl Preview {
    pub(crate) fn new(run: &Path, config: &TrainConfig, watched: &Tensor) -> Result<Self> {
        let count = watched.dim(0)?;
        let shown = count.min(MOST_SHOWN);
        let each = (0..shown).map(|i| watched.get((i * count).checked_div(shown).unwrap_or(0)));
        let x_0 = Tensor::stack(&each.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        Ok(Self { folder: run.join("previews"), config: config.clone(), x_0 })
    }

    /// Makes the sheet of a model after so many pictures. Pictures of other than one or three channels are not shown.
    pub(crate) fn write(&self, averages: BTreeMap<String, Tensor>, images: usize) -> Result<()> {
        if !matches!(self.config.model.image_channels, 1 | 3) {
            return Ok(());
        }
        let model_config = self.config.model_config()?;
        let with_z = model_config.encoder.is_some();
        let model = ModelSource::from_networks(model_config, averages).build(&LoadOptions::cpu())?;
        let options = DecodeOptions::ddim(self.config.run.preview_steps);
        let count = self.x_0.dim(0)? as u64;
        let shape = model.image_shape();
        let noise =
            NoiseSource::new(self.config.seed).batch(NoisePurpose::XTerminal, 0..count, &shape, &Device::Cpu)?;
        let z_sem = if with_z { Some(model.encode_semantic(&self.x_0)?) } else { None };
        let decode =
            |x_terminal: &Tensor| model.decode(x_terminal, z_sem.as_ref(), &options, &mut no_noise, &mut no_callback);
        let mut rows = vec![];
        if with_z {
            let inverted = model.invert(&self.x_0, z_sem.as_ref(), options.num_steps, &mut no_callback)?;
            rows.extend([self.x_0.clone(), decode(&inverted)?]);
        }
        rows.push(decode(&noise)?);
        let mut pictures = vec![];
        for row in &rows {
            let row = row.to_dtype(DType::F32)?;
            let row = (0..row.dim(0)?).map(|idx| Ok(rgb_from_tensor(&row.get(idx)?)?)).collect::<Result<Vec<_>>>()?;
            pictures.push(row);
        }
        fs::create_dir_all(&self.folder).map_err(at(&self.folder))?;
        let path = self.folder.join(format!("images-{images:09}.png"));
        let bytes = png_bytes(&sheet(&pictures), &[], &path)?;
        Ok(write_atomically(&path, &bytes, Overwrite::Replace)?)
    }
}
