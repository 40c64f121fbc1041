//! Generated pictures: of a folder, sampled, or decoded.

use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use diffae_data::{PictureSet, rgb_from_bytes};
use diffae_infer::{LatentMethod, PipelineSettings, Settings};

use super::FidOptions;
use crate::error::Result;
use crate::evaluated_model::{EvaluatedModel, to_unit};
use crate::evaluation::Stage;

/// Source of the evaluated pictures, decided.
#[derive(Clone, Copy)]
pub(super) enum Generator<'a> {
    Folder(&'a PictureSet),
    /// A model that samples.
    Sampled(&'a EvaluatedModel),
    /// A model that decodes the `z_sem` of real pictures from random `x_T`.
    Decoded(&'a EvaluatedModel, &'a PictureSet),
}

impl<'a> Generator<'a> {
    pub(super) fn model(self) -> Option<&'a EvaluatedModel> {
        match self {
            Self::Folder(_) => None,
            Self::Sampled(model) | Self::Decoded(model, _) => Some(model),
        }
    }

    /// Returns the number of network calls per picture.
    pub(super) fn calls_of_picture(self, options: &FidOptions) -> usize {
        match self {
            Self::Folder(_) => 0,
            Self::Sampled(model) if model.has_z_sem() => options.steps + options.latent_steps,
            Self::Sampled(_) | Self::Decoded(..) => options.steps,
        }
    }

    fn pipeline_settings(model: &EvaluatedModel, options: &FidOptions, seed: u64) -> Result<PipelineSettings> {
        let decoding = PipelineSettings {
            num_steps: options.steps,
            num_latent_steps: options.latent_steps,
            sampler: options.sampler,
            seed,
            ..PipelineSettings::REFERENCE
        };
        match options.spacing {
            Some(spacing) => {
                let x_terminal = PipelineSettings::of_model(model.model().config()).x_terminal;
                Ok(PipelineSettings { spacing, x_terminal, ..decoding })
            }
            None => model.along_own_chain(decoding),
        }
    }

    pub(super) fn settings(self, options: &FidOptions, seed: u64) -> Result<Settings> {
        let model = match self {
            Self::Folder(pictures) => {
                return Ok(Settings::from([("pictures".to_owned(), pictures.fingerprint()?.into())]));
            }
            Self::Sampled(model) | Self::Decoded(model, _) => model,
        };
        let mut settings = model.settings();
        settings.extend([("steps".to_owned(), options.steps.into()), ("seed".to_owned(), seed.into())]);
        let decoding = Self::pipeline_settings(model, options, seed)?;
        settings.extend(decoding.sampler_settings());
        settings.extend(model.endpoint_settings(&decoding)?);
        if let Self::Decoded(_, real) = self {
            settings.insert("source".to_owned(), "decoded".into());
            settings.insert("data".to_owned(), real.fingerprint()?.into());
        } else {
            settings.insert("source".to_owned(), "sampled".into());
            settings.insert("latent_steps".to_owned(), options.latent_steps.into());
            settings.insert("latent".to_owned(), model.latent_fingerprint()?.into());
            if let Some(LatentMethod { sampler, spacing }) = latent_method(model, options) {
                settings.insert("latent_sampler".to_owned(), sampler.to_string().into());
                settings.insert("latent_spacing".to_owned(), spacing.to_string().into());
            }
        }
        Ok(settings)
    }

    /// Generates pictures in `[0, 1]` by their indices.
    pub(super) fn pictures(
        self,
        options: &FidOptions,
        range: Range<usize>,
        (seed, stage): (u64, &Stage<'_>),
    ) -> Result<Vec<Tensor>> {
        let (first, count) = (range.start, range.len());
        let model = match self {
            Self::Folder(pictures) => return as_they_are(pictures, range),
            Self::Sampled(model) | Self::Decoded(model, _) => model,
        };
        let settings = Self::pipeline_settings(model, options, seed)?;
        let z_sem = if let Self::Decoded(_, real) = self {
            let encoded = range.map(|idx| idx.checked_rem(real.len()).unwrap_or(0));
            Some(model.model().encode_semantic(&model.read(real, encoded)?)?)
        } else {
            let numbers: Vec<u64> = (range.start as u64..range.end as u64).collect();
            let of_latent = PipelineSettings { latent_method: latent_method(model, options), ..settings };
            model.pipeline().sample_z_sem_batch(&numbers, &of_latent, &mut stage.observer())?
        };
        let x_terminal = model.x_terminal(z_sem.as_ref(), (first, count), &settings)?;
        let x_0 = model.decode((&x_terminal, z_sem.as_ref()), first, &settings, stage)?;
        Ok(vec![eight_bits(&x_0)?])
    }
}

/// Returns the method of the latent diffusion, `None` for that of decoding.
fn latent_method(model: &EvaluatedModel, options: &FidOptions) -> Option<LatentMethod> {
    options.latent_method.or(PipelineSettings::DEFAULT.latent_method.filter(|_| model.distilled().is_some()))
}

/// Reads pictures of a folder in their own sizes.
pub(super) fn as_they_are(pictures: &PictureSet, range: Range<usize>) -> Result<Vec<Tensor>> {
    let read = |idx: usize| -> Result<Tensor> {
        let picture = rgb_from_bytes(&pictures.all().bytes(idx)?, Path::new(&pictures.name(idx)))?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let x = Tensor::from_vec(picture.into_raw(), (1, height, width, 3), &Device::Cpu)?;
        Ok((x.permute((0, 3, 1, 2))?.to_dtype(candle_core::DType::F32)? / 255.)?.contiguous()?)
    };
    // Pictures of one size that follow each other go through the network together.
    let mut groups: Vec<Vec<Tensor>> = vec![];
    for idx in range {
        let x = read(idx)?;
        match groups.last_mut() {
            Some(group) if group.first().is_some_and(|first| first.dims() == x.dims()) => group.push(x),
            _ => groups.push(vec![x]),
        }
    }
    groups.iter().map(|group| Ok(Tensor::cat(group, 0)?)).collect()
}

/// Maps `[-1, 1]` to `[0, 1]` in steps of 1/255, as a PNG holds pictures.
pub(super) fn eight_bits(x: &Tensor) -> Result<Tensor> {
    Ok(((to_unit(x)? * 255.)?.round()? / 255.)?)
}
