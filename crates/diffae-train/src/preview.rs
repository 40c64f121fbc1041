//! Preview sheets of a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_data::{Overwrite, png_bytes, rgb_from_tensor, write_atomically};
use diffae_infer::{
    CodeChain, CodesBatch, CodesNeed, Encoded, LoadOptions, Model, ModelConfig, ModelSource, Pipeline,
    PipelineSettings, Sheet, XTerminalSource, no_observer,
};
use diffae_nets::SpatialAutoencoder;

use crate::config::TrainConfig;
use crate::error::{Result, at};
use crate::run::Stage;

/// Maximum number of pictures in a row of a sheet.
pub(crate) const MAX_SHOWN: usize = 8;
/// Number of rows in a sheet of samples.
pub(crate) const NUM_SAMPLE_ROWS: usize = 3;

/// Draws sheets: a row each of real pictures and of reconstructions with their own noise maps, two with random ones,
/// which show how much of a picture `z_sem` determines. A sheet of a plain DDPM has samples only.
pub(crate) struct Preview {
    run: PathBuf,
    config: TrainConfig,
    stage: Stage,
    x_0: Tensor,
    device: Device,
}

impl Preview {
    pub(crate) fn new(
        (run, device): (&Path, &Device),
        (config, stage): (&TrainConfig, Stage),
        watched: &Tensor,
    ) -> Result<Self> {
        let count = watched.dim(0)?;
        let shown = count.min(MAX_SHOWN);
        let each = (0..shown).map(|i| watched.get((i * count).checked_div(shown).unwrap_or(0)));
        let x_0 = Tensor::stack(&each.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let (run, config, device) = (run.to_owned(), config.clone(), device.clone());
        Ok(Self { run, config, stage, x_0: x_0.to_device(&device)?, device })
    }

    /// Draws the sheet of a model after a number of images.
    pub(crate) fn write(&self, averages: BTreeMap<String, Tensor>, images: usize) -> Result<()> {
        if self.stage == Stage::Spatial {
            return self.write_spatial(averages, images);
        }
        let model_config = self.config.model_config()?;
        let with_z = model_config.z_channels().is_some();
        let settings = settings(&self.config, &model_config);
        let source = ModelSource::from_networks(model_config, averages);
        let pipeline = Pipeline::new(source.build(&LoadOptions::on(&self.device))?);
        let count = self.x_0.dim(0)?;
        let need = if with_z { CodesNeed::Both } else { CodesNeed::ZSem };
        let Encoded { z_sem, x_terminal, chain, .. } =
            pipeline.encode_batch(&self.x_0, need, &settings, &mut no_observer)?;
        let decode = |x_terminal: &Tensor, chain: Option<&CodeChain>| {
            let codes = CodesBatch { x_terminal, chain, z_sem: z_sem.as_ref(), numbers: &[] };
            pipeline.decode_batch(codes, &settings, &mut no_observer)
        };
        let random = |which: usize| {
            let numbers: Vec<u64> = ((which * count) as u64..((which + 1) * count) as u64).collect();
            decode(&pipeline.random_x_terminal_batch(&numbers, &settings)?, None)
        };
        let mut rows = vec![];
        if let Some(x_terminal) = &x_terminal {
            let name = if pipeline.is_one_shot() { "no x_T" } else { "inverted x_T" };
            rows.extend([("original", self.x_0.clone()), (name, decode(x_terminal, chain.as_ref())?)]);
        }
        let [first, second] = if with_z { ["random x_T", "another x_T"] } else { ["samples", ""] };
        rows.push((first, random(0)?));
        rows.push(match (settings.x_terminal, &z_sem) {
            (XTerminalSource::Endpoint, Some(z_sem)) => {
                ("endpoint x_T", decode(&pipeline.model().endpoint(z_sem)?, None)?)
            }
            _ => (second, random(1)?),
        });
        let sheet = Sheet::new().with_title(format!("autoencoder after {images} images"));
        write_sheet(&self.run.join("previews"), &format!("images-{images:09}.png"), sheet, &rows)
    }
}

impl Preview {
    /// Draws the sheet of a spatial autoencoder: pictures, and their latents decoded, with the mean of their peak signal-to-noise
    /// ratios, which no later stage exceeds.
    fn write_spatial(&self, averages: BTreeMap<String, Tensor>, images: usize) -> Result<()> {
        let Some(config) = self.config.spatial_config()? else { return Ok(()) };
        let on_device = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_device(&self.device)?));
        let tensors = averages.into_iter().map(on_device).collect::<Result<_>>()?;
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &self.device);
        let net = SpatialAutoencoder::new(&config, &vb.pp("spatial"))?;
        let decoded = net.pictures(&net.latents(&self.x_0)?)?;
        let ratio = mean_ratio(&self.x_0, &decoded)?;
        let sheet = Sheet::new().with_title(format!("spatial autoencoder after {images} images: {ratio:.1} dB"));
        let rows = [("original", self.x_0.clone()), ("from latents", decoded)];
        write_sheet(&self.run.join("previews"), &format!("spatial-{images:09}.png"), sheet, &rows)
    }
}

/// Computes the mean over pictures of `10 log10(4 / mean((x - y)^2))`, y being clipped to the range of x, `[-1, 1]`; in dB.
fn mean_ratio(x: &Tensor, y: &Tensor) -> Result<f64> {
    let squares = (x - y.clamp(-1f32, 1f32)?)?.sqr()?.flatten_from(1)?.mean(1)?;
    let squares: Vec<f32> = squares.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1()?;
    let ratios = squares.iter().map(|&square| 10. * (4. / f64::from(square).max(f64::MIN_POSITIVE)).log10());
    Ok(ratios.sum::<f64>() / squares.len().max(1) as f64)
}

/// Builds the settings of previews: few steps, or those of a distilled or polished decoder, and noise by the seed of the run.
fn settings(config: &TrainConfig, model: &ModelConfig) -> PipelineSettings {
    let (steps, seed, batch_size) = (config.run.preview_steps, config.seed, Some(MAX_SHOWN));
    if config.is_of_decoder() {
        return PipelineSettings { seed, batch_size, ..PipelineSettings::of_model(model) };
    }
    PipelineSettings {
        num_steps: steps,
        num_invert_steps: steps,
        num_latent_steps: steps,
        seed,
        batch_size,
        ..PipelineSettings::REFERENCE
    }
}

/// Writes a sheet of samples of a model with a latent net, after a number of codes.
pub(crate) fn write_samples(run: &Path, config: &TrainConfig, model: Model, images: usize) -> Result<()> {
    if !matches!(config.model.image_channels, 1 | 3) {
        return Ok(());
    }
    let settings = settings(config, model.config());
    let pipeline = Pipeline::new(model);
    let mut rows = vec![];
    for row in 0..NUM_SAMPLE_ROWS {
        let numbers: Vec<u64> = ((row * MAX_SHOWN) as u64..((row + 1) * MAX_SHOWN) as u64).collect();
        let codes = pipeline.sample_codes(&numbers, &settings, &mut no_observer)?;
        let name = if row == 0 { "samples" } else { "" };
        rows.push((name, pipeline.decode_tensor(&codes, &settings, &mut no_observer)?));
    }
    let sheet = Sheet::new().with_title(format!("latent diffusion after {images} codes"));
    write_sheet(&run.join("previews"), &format!("latent-{images:09}.png"), sheet, &rows)
}

/// Writes labeled rows of pictures, each `[N, C, H, W]`.
fn write_sheet(folder: &Path, name: &str, mut sheet: Sheet, rows: &[(&str, Tensor)]) -> Result<()> {
    for (label, row) in rows {
        let row = row.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let row = (0..row.dim(0)?).map(|idx| Ok(rgb_from_tensor(&row.get(idx)?)?)).collect::<Result<Vec<_>>>()?;
        sheet.push(*label, row);
    }
    fs::create_dir_all(folder).map_err(at(folder))?;
    let path = folder.join(name);
    let bytes = png_bytes(&sheet.draw(), &[], &path)?;
    Ok(write_atomically(&path, &bytes, Overwrite::Replace)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_means_over_pictures_of_what_is_shown() {
        let x = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let moved = |item, by: f64| (x.narrow(0, item, 1).unwrap() + by).unwrap();
        let y = Tensor::cat(&[moved(0, 0.2), moved(1, 0.02)], 0);
        // 20 dB and 40 dB.
        assert!((mean_ratio(&x, &y.unwrap()).unwrap() - 30.).abs() < 1e-3);
        let (white, beyond) = ((&x + 1.).unwrap(), (&x + 3.).unwrap());
        assert!(mean_ratio(&white, &beyond).unwrap() > 300., "pictures are clipped");
    }
}
