//! The networks of the first stage, and what each kind of them is trained on.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use diffae_infer::ModelConfig;
use diffae_kernels::{checkpoint, differentiable, no_gradients};
use diffae_nets::{
    BatchMoments, CompactCode, CompactConfig, CompactDecoder, CompactEncoder, SemanticEncoder, TrainingMode, Unet,
};
use diffae_schedule::{NoiseSchedule, PredictionTarget, Timestep};

use crate::config::ObjectiveSettings;
use crate::error::{Error, Result};
use crate::objective::{Draw, Drawing, Noised, pictures_of, prediction_loss};
use crate::random::{below, normal, stream};

/// The networks.
#[derive(Debug)]
pub(crate) enum Networks {
    /// A `UNet` that predicts noise, with or without an encoder.
    Diffusion {
        encoder: Option<Box<SemanticEncoder>>,
        unet: Box<Unet>,
        schedule: NoiseSchedule,
        prediction: PredictionTarget,
    },
    /// An autoencoder without steps.
    OneShot { config: CompactConfig, encoder: CompactEncoder, decoder: CompactDecoder },
}

/// What the decoder gets besides `z_sem`.
#[derive(Debug)]
pub(crate) enum Given {
    /// Pictures with noise.
    Noised(Noised),
    /// `[N, 1]` and `[N, noise_channels]`: how much is left to chance, and the chance.
    Details { level: Tensor, noise: Tensor },
}

impl Given {
    /// That of some of the pictures.
    pub(crate) fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        let narrow = |tensor: &Tensor| tensor.narrow(0, start, len)?.contiguous();
        Ok(match self {
            Self::Noised(noised) => Self::Noised(Noised {
                x_t: narrow(&noised.x_t)?,
                target: narrow(&noised.target)?,
                timesteps: noised.timesteps[start..start + len].to_vec(),
            }),
            Self::Details { level, noise } => Self::Details { level: narrow(level)?, noise: narrow(noise)? },
        })
    }
}

impl Networks {
    pub(crate) fn new(model: &ModelConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        if let Some(config) = &model.compact {
            let encoder = CompactEncoder::new(config, &vb.pp("encoder"))?;
            return Ok(Self::OneShot {
                config: config.clone(),
                encoder,
                decoder: CompactDecoder::new(config, &vb.pp("decoder"))?,
            });
        }
        let (Some(unet), Some(diffusion)) = (&model.unet, &model.diffusion) else {
            return Err(Error::Nets(diffae_nets::Error::NotOneModel));
        };
        let encoder = model.encoder.as_ref().map(|encoder| SemanticEncoder::new(encoder, &vb.pp("encoder")));
        Ok(Self::Diffusion {
            encoder: encoder.transpose()?.map(Box::new),
            unet: Box::new(Unet::new(unet, &vb.pp("unet"))?),
            schedule: diffusion.noise_schedule()?,
            prediction: diffusion.prediction,
        })
    }

    /// Draws what the decoder gets; it depends on the pictures' places in the sequence alone.
    pub(crate) fn draw(&self, x_0: &Tensor, how: Drawing) -> Result<Given> {
        match self {
            Self::Diffusion { schedule, .. } => {
                let Draw { noise, timesteps } = Draw::new(schedule, x_0, how)?;
                self.noised(x_0, &noise, &timesteps)
            }
            Self::OneShot { config, .. } => {
                let count = x_0.dim(0)?;
                let (mut levels, mut noise) = (vec![], vec![]);
                for idx in how.first..how.first + count {
                    let mut stream = stream(how.seed, how.purpose, idx as u64);
                    let level = below(&mut stream, config.noise_levels) as f32;
                    levels.push(level / config.noise_levels.saturating_sub(1).max(1) as f32);
                    noise.extend(normal(&mut stream, config.noise_channels));
                }
                let level = Tensor::from_vec(levels, (count, 1), &Device::Cpu)?;
                Ok(Given::Details {
                    level,
                    noise: Tensor::from_vec(noise, (count, config.noise_channels), &Device::Cpu)?,
                })
            }
        }
    }

    /// Pictures with given noise.
    pub(crate) fn noised(&self, x_0: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<Given> {
        let Self::Diffusion { schedule, prediction, .. } = self else { return Err(mixed()) };
        Ok(Given::Noised(Noised::new((schedule, *prediction), x_0, noise, timesteps)?))
    }

    /// `z_sem`, without gradients.
    pub(crate) fn encode(&self, x_0: &Tensor) -> Result<Option<Tensor>> {
        no_gradients(|| {
            Ok(match self {
                Self::Diffusion { encoder, .. } => encoder.as_ref().map(|encoder| encoder.forward(x_0)).transpose()?,
                Self::OneShot { encoder, .. } => Some(encoder.forward(x_0)?),
            })
        })
    }

    /// What the decoder says, without gradients.
    pub(crate) fn decode(&self, z_sem: Option<&Tensor>, given: &Given) -> Result<Tensor> {
        no_gradients(|| match (self, given, z_sem) {
            (Self::Diffusion { unet, .. }, Given::Noised(noised), z_sem) => {
                Ok(unet.forward_training(&noised.x_t, &noised.numbers(), z_sem, TrainingMode::default())?)
            }
            (Self::OneShot { decoder, .. }, Given::Details { level, noise }, Some(z_sem)) => {
                Ok(decoder.forward(CompactCode { z_sem, level, noise })?)
            }
            _ => Err(mixed()),
        })
    }

    /// Encodes and decodes as training does. Statistics of batch norms are added to `moments`.
    pub(crate) fn forward_training(
        &self,
        x_0: &Tensor,
        given: &Given,
        mode: TrainingMode,
        moments: &mut Vec<BatchMoments>,
    ) -> Result<Tensor> {
        match (self, given) {
            (Self::Diffusion { encoder, unet, .. }, Given::Noised(noised)) => {
                // Of the whole encoder nothing but the picture is kept: its turn on the way back comes when all else is gone.
                let z_sem = match encoder {
                    Some(encoder) if mode.checkpoint_blocks => {
                        let encoder = encoder.clone();
                        Some(checkpoint([x_0], move |[x_0]| encoder.forward(x_0))?)
                    }
                    Some(encoder) => Some(encoder.forward(x_0)?),
                    None => None,
                };
                Ok(unet.forward_training(&noised.x_t, &noised.numbers(), z_sem.as_ref(), mode)?)
            }
            (Self::OneShot { encoder, decoder, .. }, Given::Details { level, noise }) => {
                let z_sem = encoder.forward_training(x_0, moments)?;
                Ok(decoder.forward_training(CompactCode { z_sem: &z_sem, level, noise }, moments)?)
            }
            _ => Err(mixed()),
        }
    }

    /// The loss of what the decoder said, without the adversarial term: a scalar.
    pub(crate) fn loss(
        &self,
        x_0: &Tensor,
        given: &Given,
        made: &Tensor,
        objective: &ObjectiveSettings,
    ) -> Result<Tensor> {
        match (self, given) {
            (Self::Diffusion { schedule, prediction, .. }, Given::Noised(noised)) => {
                prediction_loss((schedule, *prediction), noised, made, objective)
            }
            (Self::OneShot { .. }, Given::Details { .. }) => {
                Ok(differentiable([made], |[made]| (x_0 - made)?.abs()?.mean_all()? * objective.pixel_weight)?)
            }
            _ => Err(mixed()),
        }
    }

    /// What a discriminator sees: real pictures, and those that the decoder's words amount to; of a diffusion only where
    /// the timestep is below `timesteps`.
    pub(crate) fn shown(
        &self,
        x_0: &Tensor,
        given: &Given,
        made: &Tensor,
        timesteps: usize,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let (Self::Diffusion { schedule, prediction, .. }, Given::Noised(noised)) = (self, given) else {
            return Ok(Some((x_0.clone(), made.clone())));
        };
        let seen = |&(_, t): &(u32, &Timestep)| t.get() < timesteps;
        let rows: Vec<u32> = (0..).zip(&noised.timesteps).filter(seen).map(|(row, _)| row).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::new(rows, &Device::Cpu)?;
        let pictures = pictures_of((schedule, *prediction), noised, made)?;
        let pictures = differentiable([&pictures], |[pictures]| pictures.index_select(&rows, 0))?;
        Ok(Some((x_0.index_select(&rows, 0)?, pictures)))
    }
}

fn mixed() -> Error {
    Error::Tensor(candle_core::Error::Msg("a diffusion and a one-shot autoencoder are mixed up".to_owned()))
}
