//! The gradient of a convolution with respect to its weights.
//!
//! Direct: `dW[o][c][tap] = sum over pixels of dy[o][pixel] x[c][pixel + tap]`. Winograd: the adjoint of the forward
//! algorithm, `dW = G^T [sum over tiles of (B^T x B) (A dy A^T)] G`, with as many fewer products as forward.
//!
//! Tasks own output and input channels, never a part of the sum, so the result does not depend on timing.

use super::convolve::pieces;
use super::pack::{num_panels, panel_width, row_channels};
use super::parallel::{Shared, for_each, num_threads};
use super::planes::{Planes, Rows};
use super::product::{Accumulate, PANEL, Product};
use super::scratch::{Scratch, filled};
use super::simd::{LANES, Simd, Task, run};
use super::tiles::{TileGrid, Transformed, transform_inputs};
use super::winograd::{F2, F4, Tiles, both_ways};
use crate::conv2d::Algorithm;

/// Tiles or pixels whose transforms are in memory at once.
const BLOCK_TILES: usize = 384;
const BLOCK_PIXELS: usize = 4096;

/// One weight gradient.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightGradient {
    pub(crate) images: usize,
    pub(crate) input: Planes,
    /// The gradient of the output.
    pub(crate) output: Planes,
    pub(crate) algorithm: Algorithm,
    /// `[O, C, K, K]`.
    pub(crate) to: Shared<f32>,
}

/// Computes a gradient of `len` elements into a vector of its own.
pub(crate) fn to_vec(len: usize, gradient: impl FnOnce(Shared<f32>) -> WeightGradient) -> Vec<f32> {
    // SAFETY: the planes live as long as the call, and every element is written.
    unsafe { filled(len, |to| gradient(Shared(to)).run()) }
}

impl WeightGradient {
    /// Computes it.
    ///
    /// # Safety
    /// Both sets of planes are valid, and all of the result, which is overwritten.
    pub(crate) unsafe fn run(self) {
        let algorithm = self.algorithm;
        let (inputs, outputs) = (self.input.channels, self.output.channels);
        let channels = row_channels(inputs);
        let mut sums = Scratch::take(outputs.next_multiple_of(LANES) * algorithm.positions() * channels);
        let sums = Shared(sums.as_mut_ptr());
        // SAFETY: the caller's promise; the sums have room for all positions.
        unsafe {
            match algorithm {
                Algorithm::Direct1 | Algorithm::Direct3 => self.direct(sums),
                Algorithm::Winograd2 => self.winograd::<F2, 4, 2>(sums),
                Algorithm::Winograd4 => self.winograd::<F4, 6, 4>(sums),
            }
        }
        let groups = inputs.div_ceil(LANES);
        for_each(num_panels(outputs) * groups, |i| {
            let (panel, group) = (i.checked_div(groups).unwrap_or(0), i % groups);
            // SAFETY: each task writes its own pairs of channels.
            unsafe { run(Finish { gradient: self, sums, panel, group }) };
        });
    }

    unsafe fn winograd<W: Tiles<T, M>, const T: usize, const M: usize>(self, sums: Shared<f32>) {
        let grid = TileGrid::<M>::new(self.input.height, self.input.width);
        let tile_rows = self.images * grid.down;
        let (blocks, size) = pieces(tile_rows, BLOCK_TILES.div_ceil(grid.across));
        let stride = |channels: usize| (channels.div_ceil(LANES) | 1) * LANES;
        let (x_stride, y_stride) = (stride(self.input.channels), stride(self.output.channels));
        let most = size * grid.across;
        let mut x = Scratch::take(T * T * most * x_stride);
        let mut y = Scratch::take(T * T * most * y_stride);
        let (x, y) = (Shared(x.as_mut_ptr()), Shared(y.as_mut_ptr()));
        let panels = num_panels(self.output.channels);
        let (x_groups, y_groups) = (self.input.channels.div_ceil(LANES), self.output.channels.div_ceil(LANES));
        for block in 0..blocks {
            let rows = block * size..tile_rows.min((block + 1) * size);
            let tiles = rows.len() * grid.across;
            let x_tiles = Transformed { base: x.get(), position_stride: tiles * x_stride, tile_stride: x_stride };
            let y_tiles = Transformed { base: y.get(), position_stride: tiles * y_stride, tile_stride: y_stride };
            let (x_base, y_base) = (Shared(x_tiles.base), Shared(y_tiles.base));
            for_each(x_groups + y_groups, |i| {
                let mut halo = Scratch::take(grid.halo_len(rows.len()));
                let halo = halo.as_mut_ptr();
                let (side, group, tiles) = if i < x_groups {
                    (Side::Input, i, Transformed { base: x_base.get(), ..shape(tiles, x_stride) })
                } else {
                    (Side::Output, i - x_groups, Transformed { base: y_base.get(), ..shape(tiles, y_stride) })
                };
                let task = TransformTask::<W, T, M> {
                    gradient: self,
                    grid,
                    rows: rows.clone(),
                    group,
                    halo,
                    tiles,
                    side,
                    algorithm: std::marker::PhantomData,
                };
                // SAFETY: each task writes its own channels.
                unsafe { run(task) };
            });
            let chunk = (T * T).div_ceil((4 * num_threads()).div_ceil(panels)).max(1);
            let chunks = (T * T).div_ceil(chunk);
            for_each(panels * chunks, |i| {
                let (panel, start) = (i.checked_div(chunks).unwrap_or(0), (i % chunks) * chunk);
                let channels = row_channels(self.input.channels);
                let width = panel_width(self.output.channels, panel);
                for position in start..(T * T).min(start + chunk) {
                    let product = Product {
                        a: x_base.get().wrapping_add(position * tiles * x_stride),
                        a_row: 1,
                        a_col: x_stride,
                        b: y_base.get().wrapping_add(position * tiles * y_stride + panel * PANEL),
                        b_row: y_stride,
                        c: sums.get().wrapping_add((panel * PANEL * T * T + position * width) * channels),
                        c_row: width,
                        rows: channels,
                        vectors: width / LANES,
                        depth: tiles,
                        accumulate: if block == 0 { Accumulate::Overwrite } else { Accumulate::Add },
                    };
                    // SAFETY: each task writes its own positions of its panel.
                    unsafe { run(ProductTask(product)) };
                }
            });
        }
    }

    /// The gradient is laid out with as many empty columns as the input has around it, so that all pixels of a band
    /// are one sum.
    unsafe fn direct(self, sums: Shared<f32>) {
        let Planes { height, width, .. } = self.input;
        let halo = usize::from(self.algorithm == Algorithm::Direct3);
        let side = 1 + 2 * halo;
        let padded = width + 2 * halo;
        let channels = row_channels(self.input.channels);
        let y_stride = self.output.channels.next_multiple_of(LANES);
        let (num_bands, band) = pieces(height, BLOCK_PIXELS.checked_div(width).unwrap_or(1).max(1));
        let mut x = Scratch::take((band + 2 * halo) * padded * channels);
        let mut y = Scratch::take(band * padded * y_stride);
        let (x, y) = (Shared(x.as_mut_ptr()), Shared(y.as_mut_ptr()));
        let (x_groups, y_groups) = (self.input.channels.div_ceil(LANES), self.output.channels.div_ceil(LANES));
        let panels = num_panels(self.output.channels);
        for block in 0..self.images * num_bands {
            let (image, start) = (block.checked_div(num_bands).unwrap_or(0), (block % num_bands) * band);
            let end = height.min(start + band);
            for_each(x_groups + y_groups, |i| {
                let task = if i < x_groups {
                    let margin = halo.cast_signed();
                    GatherTask {
                        planes: self.input,
                        place: (image, i * LANES),
                        rows: start.cast_signed() - margin..end.cast_signed() + margin,
                        out: Rows {
                            to: x.get().wrapping_add(i * LANES),
                            row_stride: padded * channels,
                            pixel_stride: channels,
                            stored: LANES.min(channels - i * LANES),
                            before: halo,
                            after: halo,
                        },
                    }
                } else {
                    let group = i - x_groups;
                    GatherTask {
                        planes: self.output,
                        place: (image, group * LANES),
                        rows: start.cast_signed()..end.cast_signed(),
                        out: Rows {
                            to: y.get().wrapping_add(group * LANES),
                            row_stride: padded * y_stride,
                            pixel_stride: y_stride,
                            stored: LANES,
                            before: 0,
                            after: 2 * halo,
                        },
                    }
                };
                // SAFETY: each task writes its own channels.
                unsafe { run(task) };
            });
            let taps = side * side;
            for_each(panels * taps, |i| {
                let (panel, tap) = (i.checked_div(taps).unwrap_or(0), i % taps);
                let width = panel_width(self.output.channels, panel);
                let (down, across) = (tap.checked_div(side).unwrap_or(0), tap % side);
                let product = Product {
                    a: x.get().wrapping_add((down * padded + across) * channels),
                    a_row: 1,
                    a_col: channels,
                    b: y.get().wrapping_add(panel * PANEL),
                    b_row: y_stride,
                    c: sums.get().wrapping_add((panel * PANEL * taps + tap * width) * channels),
                    c_row: width,
                    rows: channels,
                    vectors: width / LANES,
                    depth: (end - start) * padded - 2 * halo,
                    accumulate: if block == 0 { Accumulate::Overwrite } else { Accumulate::Add },
                };
                // SAFETY: each task writes its own tap of its panel.
                unsafe { run(ProductTask(product)) };
            });
        }
    }
}

fn shape(tiles: usize, stride: usize) -> Transformed {
    Transformed { base: std::ptr::null_mut(), position_stride: tiles * stride, tile_stride: stride }
}

struct ProductTask(Product);

impl Task for ProductTask {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.run::<S>() };
    }
}

struct GatherTask {
    planes: Planes,
    place: (usize, usize),
    rows: std::ops::Range<isize>,
    out: Rows,
}

impl Task for GatherTask {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.planes.write_rows::<S>(self.place.0, self.place.1, self.rows, self.out) };
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

struct TransformTask<W, const T: usize, const M: usize> {
    gradient: WeightGradient,
    grid: TileGrid<M>,
    rows: std::ops::Range<usize>,
    group: usize,
    halo: *mut f32,
    tiles: Transformed,
    side: Side,
    algorithm: std::marker::PhantomData<W>,
}

impl<W: Tiles<T, M>, const T: usize, const M: usize> Task for TransformTask<W, T, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { gradient, grid, rows, group, halo, tiles, side, .. } = self;
        let channel = group * LANES;
        let out = Transformed { base: tiles.base.wrapping_add(channel), ..tiles };
        // SAFETY: the caller's promise.
        unsafe {
            if side == Side::Input {
                transform_inputs::<S, W, T, M>(&gradient.input, grid, (channel, rows), halo, out);
                return;
            }
            let padded = grid.across * M * LANES;
            for (image, first, count, before) in grid.runs(rows) {
                let start = (first * M).cast_signed();
                let to = Rows {
                    to: halo,
                    row_stride: padded,
                    pixel_stride: LANES,
                    stored: LANES,
                    before: 0,
                    after: grid.across * M - grid.width,
                };
                gradient.output.write_rows::<S>(image, channel, start..start + (count * M).cast_signed(), to);
                for row in 0..count {
                    for column in 0..grid.across {
                        let corner = halo.add(row * M * padded + column * M * LANES);
                        let mut y = [[S::splat(0.); M]; M];
                        for i in 0..M {
                            for j in 0..M {
                                y[i][j] = S::load(corner.add(i * padded + j * LANES));
                            }
                        }
                        let m = both_ways::<S, W::OutputAdjoint, M, T>(&y);
                        let to = out.base.add((before + row * grid.across + column) * out.tile_stride);
                        for i in 0..T {
                            for j in 0..T {
                                S::store(to.add((i * T + j) * out.position_stride), m[i][j]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Sums to `[O, C, K, K]`, for a panel and sixteen input channels.
struct Finish {
    gradient: WeightGradient,
    sums: Shared<f32>,
    panel: usize,
    group: usize,
}

impl Task for Finish {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { gradient, sums, panel, group } = self;
        let algorithm = gradient.algorithm;
        let (inputs, outputs) = (gradient.input.channels, gradient.output.channels);
        let (channels, width, taps) = (row_channels(inputs), panel_width(outputs, panel), algorithm.taps());
        let num_inputs = LANES.min(inputs - group * LANES);
        let sums = sums.get().wrapping_add(panel * PANEL * algorithm.positions() * channels);
        let mut block = [[0f32; LANES]; LANES * 9];
        for column in (0..width).step_by(LANES) {
            let output = panel * PANEL + column;
            let num_outputs = LANES.min(outputs.saturating_sub(output));
            // SAFETY: positions lie `channels * width` apart; only channels that exist are written.
            unsafe {
                for i in 0..num_inputs {
                    let from = sums.add((group * LANES + i) * width + column);
                    let to = &mut block[i * taps..(i + 1) * taps];
                    match algorithm {
                        Algorithm::Direct1 | Algorithm::Direct3 => {
                            for (tap, to) in to.iter_mut().enumerate() {
                                S::store(to.as_mut_ptr(), S::load(from.add(tap * channels * width)));
                            }
                        }
                        Algorithm::Winograd2 => weights::<S, F2, 4, 2>(from, channels * width, to),
                        Algorithm::Winograd4 => weights::<S, F4, 6, 4>(from, channels * width, to),
                    }
                }
                let len = num_inputs * taps;
                for start in (0..len).step_by(LANES) {
                    let mut lanes = [S::splat(0.); LANES];
                    let some = LANES.min(len - start);
                    for i in 0..some {
                        lanes[i] = S::load(block[start + i].as_ptr());
                    }
                    S::transpose(&mut lanes);
                    for i in 0..num_outputs {
                        let to = ((output + i) * inputs + group * LANES) * taps + start;
                        S::store_first(gradient.to.get().add(to), some, lanes[i]);
                    }
                }
            }
        }
    }
}

/// Positions `stride` apart to nine taps.
#[inline(always)]
unsafe fn weights<S: Simd, W: Tiles<T, M>, const T: usize, const M: usize>(
    from: *const f32,
    stride: usize,
    to: &mut [[f32; LANES]],
) {
    // SAFETY: the caller vouches for the positions.
    unsafe {
        let mut u = [[S::splat(0.); T]; T];
        for i in 0..T {
            for j in 0..T {
                u[i][j] = S::load(from.add((i * T + j) * stride));
            }
        }
        let g = both_ways::<S, W::WeightAdjoint, T, 3>(&u);
        for (tap, to) in to.iter_mut().enumerate().take(9) {
            S::store(to.as_mut_ptr(), g[tap / 3][tap % 3]);
        }
    }
}
