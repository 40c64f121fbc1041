//! Inference of the architecture from tensor shapes alone, for checkpoints without hyper-parameters.

use crate::config::{
    AutoencoderConfig, Conditioning, EncoderConfig, LatentNetConfig, RawEncoderConfig, RawLatentNetConfig,
    RawUnetConfig, UnetConfig,
};
use crate::error::{Error, Result};
use crate::weights::architecture::{Architecture, ArchitectureHints, LatentArchitecture, Parts};
use crate::weights::source::TensorSource;
use crate::z_levels::ZLevels;

/// Maximum number of blocks or layers: far more than any network has, so that a hostile file cannot loop long.
const MAX_BLOCKS: usize = 1 << 12;

/// Infers the architecture. `held_image_size` is that of the `x_T` that training checkpoints hold; an image size among
/// the hints takes precedence.
pub(super) fn architecture_from_shapes(
    source: &dyn TensorSource,
    held_image_size: Option<usize>,
    hints: &ArchitectureHints,
) -> Result<Architecture> {
    let shapes = Shapes { source };
    let hints = &ArchitectureHints { image_size: hints.image_size.or(held_image_size), ..hints.clone() };
    let parts = Parts::of(source);
    let unet = shapes.unet(hints.known_image_size()?, hints.num_heads.unwrap_or(1))?;
    let encoder = parts.encoder.then(|| shapes.encoder(&unet, hints.encoder_res_blocks)).transpose()?;
    if let Some(encoder) = &encoder {
        AutoencoderConfig::new(encoder.clone(), unet.clone())?;
    }
    let net = parts.latent_net.then(|| shapes.latent_net()).transpose()?;
    Ok(Architecture {
        unet,
        encoder,
        diffusion: hints.diffusion(),
        latent: net.map(|net| LatentArchitecture { net, diffusion: hints.latent_diffusion() }),
    })
}

/// Blocks of a descending half, in order: channels of the result, and whether attention follows.
type Blocks = Vec<(usize, bool)>;

struct Shapes<'a> {
    source: &'a dyn TensorSource,
}

impl Shapes<'_> {
    fn axis(&self, name: &str, axis: usize) -> Result<usize> {
        let shape = self.source.shape(name).ok_or_else(|| Error::TensorMissing { name: name.to_owned() })?;
        shape.get(axis).copied().ok_or_else(|| cannot(&format!("tensor {name} has shape {shape:?}")))
    }

    fn has(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }

    fn unet(&self, image_size: usize, num_heads: usize) -> Result<UnetConfig> {
        let embed_channels = self.axis("unet.time_embed.0.weight", 0)?;
        let model_channels = self.axis("unet.time_embed.0.weight", 1)?;
        let blocks = self.input_blocks("unet")?;
        let outputs =
            (0..MAX_BLOCKS).take_while(|k| self.has(&format!("unet.output_blocks.{k}.0.in_layers.0.weight"))).count();
        // The first up block ends the lowest level, which has R + 1 output blocks.
        let ends_level =
            |k: &usize| (1..=2).any(|i| self.has(&format!("unet.output_blocks.{k}.{i}.in_layers.0.weight")));
        let blocks_up = (0..outputs).find(ends_level).map_or(outputs, |k| k + 1);
        let num_levels = outputs.checked_div(blocks_up).filter(|levels| levels * blocks_up == outputs);
        let num_levels = num_levels.ok_or_else(|| cannot("its output blocks do not form levels of one length"))?;
        let per_level = split_evenly(blocks.len(), num_levels)
            .ok_or_else(|| cannot("its input blocks do not form levels of one length"))?;
        let levels = levels(&blocks, num_levels, per_level, model_channels)
            .ok_or_else(|| cannot("the channels of its input blocks do not form levels"))?;
        let conditioned = self.has("unet.middle_block.0.cond_emb_layers.1.weight");
        let num_res_blocks = blocks_up.saturating_sub(1);
        UnetConfig::new(RawUnetConfig {
            image_size: image_size.into(),
            in_channels: self.axis("unet.input_blocks.0.0.weight", 1)?,
            out_channels: self.axis("unet.out.2.weight", 0)?,
            model_channels,
            attention_resolutions: levels.attention(image_size),
            channel_mult: levels.channel_mult,
            num_res_blocks,
            num_input_res_blocks: (per_level != num_res_blocks).then_some(per_level),
            embed_channels,
            num_heads,
            dropout: 0.,
            conditioning: if conditioned { Conditioning::TimeAndZSem } else { Conditioning::Time },
            z_levels: ZLevels::NONE,
        })
    }

    fn encoder(&self, unet: &UnetConfig, res_blocks: Option<usize>) -> Result<EncoderConfig> {
        let blocks = self.input_blocks("encoder")?;
        let fits = |num_levels: usize| {
            let per_level = split_evenly(blocks.len(), num_levels)?;
            let wanted = res_blocks.is_none_or(|wanted| wanted == per_level);
            let levels = levels(&blocks, num_levels, per_level, unet.model_channels)?;
            wanted.then_some((per_level, levels))
        };
        // The encoders of the paper have one level more than their unet.
        let usual = fits(unet.channel_mult.len() + 1);
        let mut others: Vec<_> = (1..=blocks.len().min(16)).filter_map(fits).collect();
        let (num_res_blocks, levels) = match (usual, others.len()) {
            (Some(usual), _) => usual,
            (None, 1) => others.remove(0),
            _ => {
                return Err(cannot(
                    "its encoder fits several layouts, so its blocks a level must be given: --encoder-res-blocks",
                ));
            }
        };
        EncoderConfig::new(RawEncoderConfig {
            image_size: unet.image_size,
            in_channels: self.axis("encoder.input_blocks.0.0.weight", 1)?,
            out_channels: self.axis("encoder.out.3.weight", 0)?,
            model_channels: unet.model_channels,
            attention_resolutions: levels.attention(unet.image_size.width()),
            channel_mult: levels.channel_mult,
            num_res_blocks,
            num_heads: unet.num_heads,
            z_levels: ZLevels::NONE,
        })
    }

    fn input_blocks(&self, part: &str) -> Result<Blocks> {
        let mut blocks = Vec::new();
        for k in 1..MAX_BLOCKS {
            let conv = format!("{part}.input_blocks.{k}.0.in_layers.2.weight");
            if !self.has(&conv) {
                break;
            }
            blocks.push((self.axis(&conv, 0)?, self.has(&format!("{part}.input_blocks.{k}.1.qkv.weight"))));
        }
        Ok(blocks)
    }

    fn latent_net(&self) -> Result<LatentNetConfig> {
        let linear = |k: usize| format!("latent_net.layers.{k}.linear.weight");
        let num_layers = (0..MAX_BLOCKS).take_while(|&k| self.has(&linear(k))).count();
        let (hidden_channels, z_channels) = (self.axis(&linear(0), 0)?, self.axis(&linear(0), 1)?);
        let mut skip_layers = Vec::new();
        for k in 1..num_layers {
            if self.axis(&linear(k), 1)? == hidden_channels + z_channels {
                skip_layers.push(k);
            }
        }
        LatentNetConfig::new(RawLatentNetConfig {
            z_channels,
            hidden_channels,
            num_layers,
            skip_layers,
            time_embed_channels: self.axis("latent_net.time_embed.0.weight", 1)?,
        })
    }
}

/// Channels and attention of each level.
struct Levels {
    channel_mult: Vec<usize>,
    attends: Vec<bool>,
}

impl Levels {
    fn attention(&self, image_size: usize) -> Vec<usize> {
        let attending = self.attends.iter().enumerate().filter(|&(_, &attends)| attends);
        let size_at = |level: usize| u32::try_from(level).ok().and_then(|level| image_size.checked_shr(level));
        attending.map(|(level, _)| size_at(level).unwrap_or(0)).collect()
    }
}

/// Returns the blocks per level if `num_blocks` is `num_levels * per_level` and one down block between levels.
fn split_evenly(num_blocks: usize, num_levels: usize) -> Option<usize> {
    let per_level = (num_blocks + 1).checked_div(num_levels)?.checked_sub(1)?;
    (per_level > 0 && num_levels * (per_level + 1) == num_blocks + 1).then_some(per_level)
}

/// Reads the levels off the blocks, unless the channels or the attention do not have that form.
fn levels(blocks: &Blocks, num_levels: usize, per_level: usize, model_channels: usize) -> Option<Levels> {
    let mut levels = Levels { channel_mult: Vec::new(), attends: Vec::new() };
    for (i, level) in blocks.chunks(per_level + 1).enumerate() {
        let (channels, attends) = *level.first()?;
        let mult = channels.checked_div(model_channels).filter(|mult| mult * model_channels == channels)?;
        let own = &level[..per_level.min(level.len())];
        let ends_in_down_block = level.get(per_level).is_none_or(|&down| down == (channels, false));
        if own.iter().any(|&block| block != (channels, attends)) || !ends_in_down_block || i >= num_levels {
            return None;
        }
        levels.channel_mult.push(mult);
        levels.attends.push(attends);
    }
    Some(levels)
}

fn cannot(problem: &str) -> Error {
    Error::CannotInfer { problem: problem.to_owned() }
}
