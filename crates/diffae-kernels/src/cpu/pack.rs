//! Packing of weights into the order in which matrix products read them.
//!
//! Direct: `[panel][tap][channel][column]`. Winograd: `[panel][position][channel][column]`. A panel is up to 64 output
//! channels; the last one is as wide as it must be, in vectors. Output channels and, from sixteen on, input channels are
//! filled up to whole vectors with zeros.

use super::algorithm::Algorithm;
use super::length::{LengthResult, check_length};
use super::parallel::for_each;
use super::product::PANEL;
use super::scratch::Scratch;
use super::simd::{LANES, Simd, Task, run};
use super::winograd::{F2, F4, Tiles, both_ways};

/// Direction in which weights are applied: it decides which of their two channel axes is the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Forward pass: `y = conv(x, w)`.
    Forward,
    /// Backward pass to the input: `dx = conv(dy, w^T flipped)`.
    InputGradient,
}

/// Packed weights of one convolution.
#[derive(Debug)]
pub(crate) struct Packed {
    algorithm: Algorithm,
    inputs: usize,
    outputs: usize,
    data: Scratch,
}

/// Number of channels of a row: whole vectors, but for images of a few channels.
pub(crate) fn row_channels(channels: usize) -> usize {
    if channels < LANES { channels } else { channels.next_multiple_of(LANES) }
}

/// Number of columns of a panel, in whole vectors.
pub(crate) fn panel_width(outputs: usize, panel: usize) -> usize {
    (outputs - panel * PANEL).min(PANEL).next_multiple_of(LANES)
}

/// Number of panels of so many output channels.
pub(crate) fn num_panels(outputs: usize) -> usize {
    outputs.div_ceil(PANEL)
}

impl Packed {
    /// Packs `weight`, `[O, C, K, K]`, in memory that lives as long as a model. `channels`: O and C.
    ///
    /// # Errors
    /// If the weight has another length.
    pub(crate) fn lasting(
        algorithm: Algorithm,
        direction: Direction,
        weight: &[f32],
        channels: [usize; 2],
    ) -> LengthResult<Self> {
        Self::into(algorithm, direction, weight, channels, Scratch::exact)
    }

    /// Packs `weight`, `[O, C, K, K]`, for one use, in memory of the pool. `channels`: O and C.
    ///
    /// # Errors
    /// If the weight has another length.
    pub(crate) fn passing(
        algorithm: Algorithm,
        direction: Direction,
        weight: &[f32],
        channels: [usize; 2],
    ) -> LengthResult<Self> {
        Self::into(algorithm, direction, weight, channels, Scratch::take)
    }

    fn into(
        algorithm: Algorithm,
        direction: Direction,
        weight: &[f32],
        [out_channels, in_channels]: [usize; 2],
        memory: impl FnOnce(usize) -> Scratch,
    ) -> LengthResult<Self> {
        let taps = algorithm.taps();
        check_length("the weight of a convolution", weight.len(), &[out_channels, in_channels, taps])?;
        let (inputs, outputs) = match direction {
            Direction::Forward => (in_channels, out_channels),
            Direction::InputGradient => (out_channels, in_channels),
        };
        let len = outputs.next_multiple_of(LANES) * algorithm.positions() * row_channels(inputs);
        let mut data = memory(len);
        let source =
            Source { weight, direction, inputs, outputs, out_stride: in_channels * taps, in_stride: taps, taps };
        let to = data.share();
        let groups = inputs.div_ceil(LANES);
        for_each(num_panels(outputs) * groups, |i| {
            let (panel, group) = (i.checked_div(groups).unwrap_or(0), i % groups);
            let (start, len) = panel_range(algorithm, [inputs, outputs], panel);
            let task = PackTask { source, algorithm, panel, group, to: to.part(start, len) };
            // SAFETY: `to` has room for the panel, of which each task writes its own sixteen input channels.
            unsafe { run(task) };
        });
        Ok(Self { algorithm, inputs, outputs, data })
    }

    /// Algorithm that the weights are packed for.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Number of channels that go in.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of channels that come out.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Size in bytes.
    pub(crate) fn num_bytes(&self) -> usize {
        self.data.num_bytes()
    }

    /// Weights of one panel, `[tap or position][channel][column]`.
    pub(crate) fn panel(&self, panel: usize) -> &[f32] {
        let (start, len) = panel_range(self.algorithm, [self.inputs, self.outputs], panel);
        &self.data.as_slice()[start..start + len]
    }
}

/// Start and length of a panel in packed weights.
fn panel_range(algorithm: Algorithm, [inputs, outputs]: [usize; 2], panel: usize) -> (usize, usize) {
    let column = algorithm.positions() * row_channels(inputs);
    (panel * PANEL * column, panel_width(outputs, panel) * column)
}

/// Weights as they are stored, `[O, C, K, K]`, read in one direction.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    weight: &'a [f32],
    direction: Direction,
    inputs: usize,
    outputs: usize,
    out_stride: usize,
    in_stride: usize,
    taps: usize,
}

/// Weights of sixteen inputs for sixteen outputs: `[input][tap][output]`.
type Block = [[f32; LANES]; LANES * 9];

impl Source<'_> {
    /// Reads a block of weights from `input` and `output` on, with zeros for channels that do not exist.
    ///
    /// # Safety
    /// The input exists. The instruction set is available.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, input: usize, output: usize, to: &mut Block) {
        let num_inputs = LANES.min(self.inputs - input);
        let num_outputs = LANES.min(self.outputs - output);
        let taps = self.taps;
        let weight = self.weight.as_ptr();
        // SAFETY: `weight` has `out_stride` values for each of its output channels and `in_stride = taps` for each
        // input channel of those; only channels that exist are read, and their taps. `to` has sixteen times nine rows.
        unsafe {
            match self.direction {
                Direction::Forward => {
                    // A row of an output: its inputs, taps inside.
                    let row = weight.add(output * self.out_stride + input * self.in_stride);
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
                        let row = weight.add((input + i) * self.out_stride + output * self.in_stride);
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

/// Packs sixteen input channels of one panel.
struct PackTask<'a> {
    source: Source<'a>,
    algorithm: Algorithm,
    panel: usize,
    group: usize,
    /// The panel in the packed weights.
    to: *mut f32,
}

impl Task for PackTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { source, algorithm, panel, group, to } = self;
        let width = panel_width(source.outputs, panel);
        let channels = row_channels(source.inputs);
        // Whole groups: the channels that fill the last one up have zero weights.
        let num_inputs = LANES.min(channels - group * LANES);
        let mut block: Block = [[0.; LANES]; LANES * 9];
        for column in (0..width).step_by(LANES) {
            // SAFETY: the panel has `positions * channels * width` values; position p of an input lies
            // `p * channels * width` from its first, and `column + LANES <= width`.
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
///
/// # Safety
/// `to` has room for sixteen values at each of `T * T` positions. The instruction set is available.
#[inline(always)]
unsafe fn winograd<S: Simd, W: Tiles<T, M>, const T: usize, const M: usize>(
    taps: &[[f32; LANES]],
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller vouches for the room at each position; a tap is sixteen values.
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
