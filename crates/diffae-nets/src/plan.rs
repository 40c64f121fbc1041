//! Plans of the networks' blocks: the channel counts and resolutions that follow from a config.
//!
//! Configs are checked against the plan, and networks are built from it, so the two cannot disagree.

use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::norm::num_groups;

/// Resampling of height and width, and of the depth of volumes, in a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Keeps the size.
    Keep,
    /// Doubles every side, nearest neighbor.
    Up,
    /// Halves every side, mean of 2x2 pixels or 2x2x2 voxels.
    Down,
}

/// Channels and resampling of one residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResPlan {
    /// Channels of the input, with those of a skip connection.
    pub in_channels: usize,
    /// Channels of the result.
    pub out_channels: usize,
    /// Resampling, before the first convolution.
    pub resample: Resample,
    /// Number of axes that convolutions move along: 2, or 3 in volumes.
    pub axes: usize,
}

/// Plan of `input_blocks.k`, k >= 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputStage {
    /// Level that the result belongs to.
    pub level: usize,
    /// The residual block.
    pub res: ResPlan,
    /// True if attention follows the residual block.
    pub attention: bool,
}

/// Plan of `output_blocks.k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputStage {
    /// Level of `res`; `up` leads to the one below it.
    pub level: usize,
    /// Level of the skip connection that is concatenated to the input, where one is left.
    pub skip: Option<usize>,
    /// The residual block.
    pub res: ResPlan,
    /// True if attention follows the residual block.
    pub attention: bool,
    /// Residual block that doubles the resolution at the end of a level.
    pub up: Option<ResPlan>,
}

/// Plan of the descending half of a `UNet` or an encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputPlan {
    /// Number of channels after the first convolution.
    pub first_channels: usize,
    /// The blocks after it, in order: `input_blocks.1` and so on.
    pub stages: Vec<InputStage>,
}

/// Sizes from which the descending half is planned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trunk<'a> {
    /// Name for messages, `"unet"` or `"encoder"`.
    pub(crate) network: &'static str,
    pub(crate) image_size: ImageSize,
    pub(crate) model_channels: usize,
    pub(crate) channel_mult: &'a [usize],
    pub(crate) num_res_blocks: usize,
    pub(crate) attention_resolutions: &'a [usize],
    pub(crate) num_heads: usize,
}

impl Trunk<'_> {
    /// Returns the resolution at `level`: the width, and the height of pictures.
    pub(crate) fn resolution(&self, level: usize) -> usize {
        self.image_size.width() >> level
    }

    /// Returns the plan of a block that keeps the size.
    pub(crate) fn keeping(&self, in_channels: usize, out_channels: usize) -> ResPlan {
        ResPlan { in_channels, out_channels, resample: Resample::Keep, axes: self.image_size.axes() }
    }

    pub(crate) fn attends(&self, level: usize) -> bool {
        self.attention_resolutions.contains(&self.resolution(level))
    }

    pub(crate) fn width(&self, level: usize) -> usize {
        self.channel_mult[level] * self.model_channels
    }

    pub(crate) fn last_level(&self) -> usize {
        self.channel_mult.len().saturating_sub(1)
    }

    /// Plans the descending half.
    pub(crate) fn input_plan(&self) -> InputPlan {
        let mut stages = Vec::new();
        let mut channels = self.width(0);
        for level in 0..self.channel_mult.len() {
            for _ in 0..self.num_res_blocks {
                let res = self.keeping(channels, self.width(level));
                stages.push(InputStage { level, res, attention: self.attends(level) });
                channels = res.out_channels;
            }
            if level < self.last_level() {
                let res = ResPlan { resample: Resample::Down, ..self.keeping(channels, channels) };
                stages.push(InputStage { level: level + 1, res, attention: false });
            }
        }
        InputPlan { first_channels: self.width(0), stages }
    }

    /// Plans the ascending half, with `num_res_blocks + 1` blocks per level.
    pub(crate) fn output_plan(&self, input: &InputPlan, num_res_blocks: usize) -> Vec<OutputStage> {
        let mut skips = vec![Vec::new(); self.channel_mult.len()];
        if let Some(level_0) = skips.first_mut() {
            level_0.push(input.first_channels);
        }
        for stage in &input.stages {
            skips[stage.level].push(stage.res.out_channels);
        }
        let mut stages = Vec::new();
        let mut channels = self.width(self.last_level());
        for level in (0..self.channel_mult.len()).rev() {
            for block in 0..=num_res_blocks {
                let skip = skips[level].pop();
                let in_channels = channels + skip.unwrap_or(0);
                let res = self.keeping(in_channels, self.width(level));
                channels = res.out_channels;
                let ends_level = block == num_res_blocks && level > 0;
                let up = ResPlan { resample: Resample::Up, ..self.keeping(channels, channels) };
                stages.push(OutputStage {
                    level,
                    skip: skip.map(|_| level),
                    res,
                    attention: self.attends(level),
                    up: ends_level.then_some(up),
                });
            }
        }
        stages
    }

    /// Checks everything that does not need the blocks.
    pub(crate) fn check(&self) -> Result<()> {
        let network = self.network;
        for (field, value) in [
            ("image_size", self.image_size.shortest()),
            ("model_channels", self.model_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("num_heads", self.num_heads),
            ("number of channel_mult entries", self.channel_mult.len()),
            ("smallest channel_mult entry", self.channel_mult.iter().copied().min().unwrap_or(0)),
        ] {
            positive(network, field, value)?;
        }
        for (field, value, most) in [
            ("image_size", self.image_size.longest(), 1 << 14),
            ("model_channels", self.model_channels, 1 << 14),
            ("num_res_blocks", self.num_res_blocks, 1 << 8),
            ("number of channel_mult entries", self.channel_mult.len(), 16),
            ("largest channel_mult entry", self.channel_mult.iter().copied().max().unwrap_or(0), 1 << 10),
        ] {
            at_most(network, field, value, most)?;
        }
        let factor = 1 << self.last_level();
        if !self.image_size.is_multiple_of(factor) {
            return Err(Error::ImageNotDivisible { network, image_size: self.image_size, factor });
        }
        let occurring: Vec<usize> = (0..self.channel_mult.len()).map(|level| self.resolution(level)).collect();
        match self.attention_resolutions.iter().find(|r| !occurring.contains(r)) {
            Some(&resolution) => Err(Error::AttentionNeverOccurs { network, resolution, occurring }),
            None => Ok(()),
        }
    }

    /// Checks that norms and heads divide the channels of the blocks.
    pub(crate) fn check_blocks(&self, blocks: impl IntoIterator<Item = (String, ResPlan, bool)>) -> Result<()> {
        let middle = self.width(self.last_level());
        self.check_heads("middle_block.1", middle)?;
        for (name, res, attention) in blocks {
            for channels in [res.in_channels, res.out_channels] {
                check_groups(self.network, &name, channels)?;
            }
            if attention {
                self.check_heads(&name, res.out_channels)?;
            }
        }
        check_groups(self.network, "middle_block", middle)
    }

    fn check_heads(&self, block: &str, channels: usize) -> Result<()> {
        if channels.is_multiple_of(self.num_heads) {
            return Ok(());
        }
        let (network, block) = (self.network, block.to_owned());
        Err(Error::HeadsDoNotDivide { network, block, channels, num_heads: self.num_heads })
    }
}

impl InputPlan {
    /// Returns the number of channels of the middle blocks.
    #[must_use]
    pub fn last_channels(&self) -> usize {
        self.stages.last().map_or(self.first_channels, |stage| stage.res.out_channels)
    }

    /// Returns name, plan and attention of each block, for [`Trunk::check_blocks`].
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (String, ResPlan, bool)> + '_ {
        self.stages.iter().enumerate().map(|(i, stage)| (numbered("input_blocks", i + 1), stage.res, stage.attention))
    }
}

/// Returns name, plan and attention of each block of the ascending half.
pub(crate) fn output_blocks(stages: &[OutputStage]) -> impl Iterator<Item = (String, ResPlan, bool)> + '_ {
    stages.iter().enumerate().map(|(i, stage)| (numbered("output_blocks", i), stage.res, stage.attention))
}

fn numbered(list: &str, idx: usize) -> String {
    format!("{list}.{idx}")
}

/// Checks that `value` is not zero.
pub(crate) fn positive(network: &'static str, field: &'static str, value: usize) -> Result<()> {
    if value == 0 { Err(Error::ZeroField { network, field }) } else { Ok(()) }
}

/// Checks that `value` is not larger than any model needs, so that sizes can be added and multiplied.
pub(crate) fn at_most(network: &'static str, field: &'static str, value: usize, most: usize) -> Result<()> {
    if value > most { Err(Error::FieldTooLarge { network, field, got: value, most }) } else { Ok(()) }
}

pub(crate) fn check_groups(network: &'static str, block: &str, channels: usize) -> Result<()> {
    let groups = num_groups(channels);
    if channels.is_multiple_of(groups) {
        return Ok(());
    }
    Err(Error::GroupsDoNotDivide { network, block: block.to_owned(), channels, groups })
}
