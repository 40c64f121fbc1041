//! Multiply-adds of the networks, computed from their configs, for estimates of time.

use crate::config::{RawEncoderConfig, RawLatentNetConfig, RawUnetConfig};
use crate::plan::{ResPlan, Trunk};

/// Number of taps of a 3x3 convolution, or of one of 3x3x3 voxels.
fn taps(axes: usize) -> u64 {
    if axes == 3 { 27 } else { 9 }
}

impl RawUnetConfig {
    /// Returns the multiply-adds of the convolutions and of attention in one call for one picture, counted as plain
    /// sums of products. The projections of timesteps and of `z_sem`, which a chain computes once, are left out.
    #[must_use]
    pub fn num_multiply_adds(&self) -> u64 {
        let trunk = self.trunk();
        let input = trunk.input_plan();
        let [first, inputs, outputs] =
            [input.first_channels, self.in_channels, self.out_channels].map(|channels| channels as u64);
        let ends = taps(self.image_size.axes()) * area(trunk, 0) * first * (inputs + outputs);
        let descending = input.stages.iter().map(|stage| {
            let area = area(trunk, stage.level);
            conditioned(stage.res, area) + if stage.attention { attention(stage.res, area) } else { 0 }
        });
        let ascending = self.output_plan().into_iter().map(|stage| {
            let up = stage.up.map_or(0, |up| conditioned(up, area(trunk, stage.level.saturating_sub(1))));
            let area = area(trunk, stage.level);
            conditioned(stage.res, area) + if stage.attention { attention(stage.res, area) } else { 0 } + up
        });
        let (middle, smallest) = (middle_block(trunk), area(trunk, trunk.last_level()));
        let middle = 2 * conditioned(middle, smallest) + attention(middle, smallest);
        ends + descending.sum::<u64>() + middle + ascending.sum::<u64>()
    }
}

impl RawEncoderConfig {
    /// Returns the multiply-adds of one call for one picture, counted as plain sums of products.
    #[must_use]
    pub fn num_multiply_adds(&self) -> u64 {
        let trunk = self.trunk();
        let input = trunk.input_plan();
        let first = taps(self.image_size.axes()) * area(trunk, 0) * (self.in_channels * input.first_channels) as u64;
        let stages = input.stages.iter().map(|stage| {
            let area = area(trunk, stage.level);
            plain(stage.res, area) + if stage.attention { attention(stage.res, area) } else { 0 }
        });
        let (middle, smallest) = (middle_block(trunk), area(trunk, trunk.last_level()));
        let heads: usize = if self.z_levels.is_empty() {
            middle.out_channels * self.out_channels
        } else {
            self.z_levels.occupied().map(|(level, width)| trunk.width(level) * width).sum()
        };
        let middle = 2 * plain(middle, smallest) + attention(middle, smallest);
        first + stages.sum::<u64>() + middle + heads as u64
    }
}

impl RawLatentNetConfig {
    /// Returns the multiply-adds of one call for one code, the embedding of the timestep included.
    #[must_use]
    pub fn num_multiply_adds(&self) -> u64 {
        let last = self.num_layers.saturating_sub(1);
        let hidden = (0..last).map(|layer| (self.layer_width(layer) + self.z_channels) * self.hidden_channels);
        let embedding = (self.time_embed_channels + self.z_channels) * self.z_channels;
        (hidden.sum::<usize>() + self.layer_width(last) * self.z_channels + embedding) as u64
    }
}

/// Pixels or voxels of a level.
fn area(trunk: Trunk<'_>, level: usize) -> u64 {
    trunk.image_size.sides().into_iter().map(|side| (side >> level) as u64).product()
}

fn middle_block(trunk: Trunk<'_>) -> ResPlan {
    let channels = trunk.width(trunk.last_level());
    trunk.keeping(channels, channels)
}

/// Counts a block of the encoder: a 3x3 convolution, and a 1x1 one where the channels change. `area`: pixels of
/// the result.
fn plain(res: ResPlan, area: u64) -> u64 {
    let channels = (res.in_channels * res.out_channels) as u64;
    let shortcut = if res.in_channels == res.out_channels { 0 } else { channels };
    area * (taps(res.axes) * channels + shortcut)
}

/// Counts a block of the `UNet`: one 3x3 convolution more than in the encoder.
fn conditioned(res: ResPlan, area: u64) -> u64 {
    plain(res, area) + taps(res.axes) * area * (res.out_channels as u64).pow(2)
}

/// Counts attention after a block: two 1x1 convolutions, of 3C and C channels, and two products over all pixel pairs.
fn attention(res: ResPlan, area: u64) -> u64 {
    let channels = res.out_channels as u64;
    4 * channels * channels * area + 2 * channels * area * area
}
