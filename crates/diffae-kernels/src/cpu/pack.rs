//! Weights in the order in which the products read them.
//!
//! Direct: `[panel][tap][channel][column]`. Winograd: `[panel][position][channel][column]`. A panel is up to 64 output
//! channels; the last one is as wide as it must be, in vectors. Output channels and, from sixteen on, input channels are
//! filled up to whole vectors with zeros.

use super::parallel::{Shared, for_each};
use super::product::PANEL;
use super::scratch::Scratch;
use super::simd::{LANES, Simd, Task, run};
use super::winograd::{F2, F4, Tiles, both_ways};
use crate::conv2d::Algorithm;

/// Which of the two channel axes of a weight is the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// `y = conv(x, w)`.
    Forward,
    /// `dx = conv(dy, w^T flipped)`.
    InputGradient,
}

/// Packed weights of one convolution.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) algorithm: Algorithm,
    /// Channels that go in and come out.
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) data: Scratch,
}

/// Channels of a row: whole vectors, but for pictures of a few channels.
pub(crate) fn row_channels(channels: usize) -> usize {
    if channels < LANES { channels } else { channels.next_multiple_of(LANES) }
}

/// Columns of a panel.
pub(crate) fn panel_width(outputs: usize, panel: usize) -> usize {
    (outputs - panel * PANEL).min(PANEL).next_multiple_of(LANES)
}

/// Number of panels.
pub(crate) fn num_panels(outputs: usize) -> usize {
    outputs.div_ceil(PANEL)
}

impl Packed {
    /// Floats of a packed weight.
    pub(crate) fn len(algorithm: Algorithm, inputs: usize, outputs: usize) -> usize {
        outputs.next_multiple_of(LANES) * algorithm.positions() * row_channels(inputs)
    }

    /// Packs `weight`, `[O, C, K, K]`, for as long as a model lives.
    pub(crate) fn lasting(
        algorithm: Algorithm,
        direction: Direction,
        weight: &[f32],
        channels: (usize, usize),
    ) -> Self {
        Self::into(algorithm, direction, weight, channels, Scratch::exact)
    }

    /// The same for one use, in memory of the pool.
    pub(crate) fn passing(
        algorithm: Algorithm,
        direction: Direction,
        weight: &[f32],
        channels: (usize, usize),
    ) -> Self {
        Self::into(algorithm, direction, weight, channels, Scratch::take)
    }

    fn into(
        algorithm: Algorithm,
        direction: Direction,
        weight: &[f32],
        (out_channels, in_channels): (usize, usize),
        memory: impl FnOnce(usize) -> Scratch,
    ) -> Self {
        let taps = algorithm.taps();
        debug_assert_eq!(weight.len(), out_channels * in_channels * taps);
        let (inputs, outputs) = match direction {
            Direction::Forward => (in_channels, out_channels),
            Direction::InputGradient => (out_channels, in_channels),
        };
        let mut data = memory(Self::len(algorithm, inputs, outputs));
        let weight = weight.as_ptr();
        let source =
            Source { weight, direction, inputs, outputs, out_stride: in_channels * taps, in_stride: taps, taps };
        let to = Shared(data.as_mut_ptr());
        let groups = inputs.div_ceil(LANES);
        for_each(num_panels(outputs) * groups, |i| {
            let (panel, group) = (i.checked_div(groups).unwrap_or(0), i % groups);
            let task = PackTask { source, algorithm, panel, group, to: to.get() };
            // SAFETY: each task writes the sixteen input channels of its panel.
            unsafe { run(task) };
        });
        Self { algorithm, inputs, outputs, data }
    }

    /// Where a panel begins.
    pub(crate) fn panel(&self, panel: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(panel * PANEL * self.algorithm.positions() * row_channels(self.inputs))
    }
}

#[derive(Debug, Clone, Copy)]
struct Source {
    weight: *const f32,
    direction: Direction,
    inputs: usize,
    outputs: usize,
    out_stride: usize,
    in_stride: usize,
    taps: usize,
}

// SAFETY: only addresses; see `Shared`.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

/// Weights of sixteen inputs for sixteen outputs: `[input][tap][output]`.
type Block = [[f32; LANES]; LANES * 9];

impl Source {
    /// Reads a block. Where there is no channel, it is zero.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, input: usize, output: usize, to: &mut Block) {
        let num_inputs = LANES.min(self.inputs - input);
        let num_outputs = LANES.min(self.outputs - output);
        let taps = self.taps;
        // SAFETY: only channels that exist are read, and their taps.
        unsafe {
            match self.direction {
                Direction::Forward => {
                    // A row of an output: its inputs, taps inside.
                    let row = self.weight.add(output * self.out_stride + input * self.in_stride);
                    let len = num_inputs * taps;
                    for start in (0..len).step_by(LANES) {
                        let mut lanes = [S::splat(0.); LANES];
                        let some = LANES.min(len - start);
                        for i in 0..num_outputs {
                            lanes[i] = S::load_first(row.add(i * self.out_stride + start), some);
                        }
                        S::transpose(&mut lanes);
                        for i in 0..some {
                            S::store(to[start + i].as_mut_ptr(), lanes[i]);
                        }
                    }
                }
                Direction::InputGradient => {
                    for i in 0..num_inputs {
                        let row = self.weight.add((input + i) * self.out_stride + output * self.in_stride);
                        let mut lanes = [S::splat(0.); LANES];
                        for j in 0..num_outputs {
                            lanes[j] = S::load_first(row.add(j * self.in_stride), taps);
                        }
                        S::transpose(&mut lanes);
                        for tap in 0..taps {
                            S::store(to[i * taps + taps - 1 - tap].as_mut_ptr(), lanes[tap]);
                        }
                    }
                }
            }
        }
    }
}

struct PackTask {
    source: Source,
    algorithm: Algorithm,
    panel: usize,
    group: usize,
    to: *mut f32,
}

impl Task for PackTask {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { source, algorithm, panel, group, to } = self;
        let width = panel_width(source.outputs, panel);
        let channels = row_channels(source.inputs);
        let to = to.wrapping_add(panel * PANEL * algorithm.positions() * channels);
        // Whole groups: the channels that fill the last one up have zero weights.
        let num_inputs = LANES.min(channels - group * LANES);
        let mut block: Block = [[0.; LANES]; LANES * 9];
        for column in (0..width).step_by(LANES) {
            // SAFETY: the block is of this panel and these inputs; positions lie `channels * width` apart.
            unsafe {
                source.block::<S>(group * LANES, panel * PANEL + column, &mut block);
                for i in 0..num_inputs {
                    let to = to.add((group * LANES + i) * width + column);
                    let taps = &block[i * source.taps..(i + 1) * source.taps];
                    match algorithm {
                        Algorithm::Direct1 | Algorithm::Direct3 => {
                            for (tap, values) in taps.iter().enumerate() {
                                S::store(to.add(tap * channels * width), S::load(values.as_ptr()));
                            }
                        }
                        Algorithm::Winograd2 => winograd::<S, F2, 4, 2>(taps, to, channels * width),
                        Algorithm::Winograd4 => winograd::<S, F4, 6, 4>(taps, to, channels * width),
                    }
                }
            }
        }
    }
}

/// Transforms nine taps and writes the positions `stride` apart.
#[inline(always)]
unsafe fn winograd<S: Simd, W: Tiles<T, M>, const T: usize, const M: usize>(
    taps: &[[f32; LANES]],
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller vouches for the place of each position.
    unsafe {
        let mut g = [[S::splat(0.); 3]; 3];
        for (i, tap) in taps.iter().enumerate().take(9) {
            g[i / 3][i % 3] = S::load(tap.as_ptr());
        }
        let u = both_ways::<S, W::Weight, 3, T>(&g);
        for i in 0..T {
            for j in 0..T {
                S::store(to.add((i * T + j) * stride), u[i][j]);
            }
        }
    }
}
