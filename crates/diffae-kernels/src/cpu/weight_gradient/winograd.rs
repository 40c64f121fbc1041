//! Weight gradients of 3x3 kernels by the adjoint of Winograd's algorithm.

use super::WeightGradient;
use crate::cpu::convolve::pieces;
use crate::cpu::pack::{num_panels, panel_width, row_channels};
use crate::cpu::parallel::{Shared, for_each, num_threads};
use crate::cpu::planes::{Planes, Rows};
use crate::cpu::product::{Accumulate, PANEL, Product, ProductTask};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{LANES, Simd, Task, run};
use crate::cpu::tiles::{ChannelTiles, TileGrid, Transformed, transform_inputs};
use crate::cpu::winograd::{Tiles, both_ways};

/// Number of tiles whose transforms are in memory at once.
pub(super) const BLOCK_TILES: usize = 384;

impl WeightGradient<'_> {
    /// Sums up the products of transformed tiles, block by block of tiles.
    pub(super) fn winograd<W: Tiles<T, M>, const T: usize, const M: usize>(self, sums: Shared<'_, f32>) {
        let grid = TileGrid::<M>::new(self.input.height(), self.input.width());
        let tile_rows = self.input.images() * grid.down;
        let (blocks, size) = pieces(tile_rows, BLOCK_TILES.div_ceil(grid.across));
        let stride = |channels: usize| (channels.div_ceil(LANES) | 1) * LANES;
        let (x_stride, y_stride) = (stride(self.input.channels()), stride(self.output.channels()));
        let max_tiles = size * grid.across;
        let mut x = Scratch::take(T * T * max_tiles * x_stride);
        let mut y = Scratch::take(T * T * max_tiles * y_stride);
        let (x, y) = (x.share(), y.share());
        let panels = num_panels(self.output.channels());
        let (x_groups, y_groups) = (self.input.channels().div_ceil(LANES), self.output.channels().div_ceil(LANES));
        for block in 0..blocks {
            let rows = block * size..tile_rows.min((block + 1) * size);
            let tiles = rows.len() * grid.across;
            let layout = |of: Shared<'_, f32>, tile_stride: usize| {
                let position_stride = tiles * tile_stride;
                Transformed { base: of.part(0, T * T * position_stride), position_stride, tile_stride }
            };
            for_each(x_groups + y_groups, |i| {
                let halo_len = grid.halo_len(rows.len());
                let mut halo = Scratch::take(halo_len);
                let (side, group, tiles) = if i < x_groups {
                    (Side::Input(self.input), i, layout(x, x_stride))
                } else {
                    (Side::Output(self.output), i - x_groups, layout(y, y_stride))
                };
                let task = TransformTask::<W, T, M> {
                    grid,
                    rows: rows.clone(),
                    group,
                    halo: halo.share().part(0, halo_len),
                    tiles,
                    side,
                    algorithm: std::marker::PhantomData,
                };
                // SAFETY: `tiles` has room for all positions and channels; each task writes its own channels.
                unsafe { run(task) };
            });
            let chunk = (T * T).div_ceil((4 * num_threads()).div_ceil(panels)).max(1);
            let chunks = (T * T).div_ceil(chunk);
            for_each(panels * chunks, |i| {
                let (panel, start) = (i.checked_div(chunks).unwrap_or(0), (i % chunks) * chunk);
                let channels = row_channels(self.input.channels());
                let width = panel_width(self.output.channels(), panel);
                let (sums_start, _) = self.sums_range(panel);
                for position in start..(T * T).min(start + chunk) {
                    let (x_len, y_len) = (tiles * x_stride, tiles * y_stride);
                    let product = Product {
                        a: x.part(position * x_len, x_len),
                        a_row: 1,
                        a_col: x_stride,
                        b: y.part(position * y_len, y_len).wrapping_add(panel * PANEL),
                        b_row: y_stride,
                        c: sums.part(sums_start + position * width * channels, width * channels),
                        c_row: width,
                        rows: channels,
                        vectors: width / LANES,
                        depth: tiles,
                        accumulate: if block == 0 { Accumulate::Overwrite } else { Accumulate::Add },
                    };
                    // SAFETY: of each tile, `channels <= x_stride` inputs and `panel * PANEL + width <= y_stride` outputs
                    // are read; each task writes its own positions of its panel.
                    unsafe { run(ProductTask(product)) };
                }
            });
        }
    }
}

/// Side of a weight gradient: the input, or the gradient w.r.t. the output.
#[derive(Clone, Copy)]
pub(super) enum Side<'a> {
    Input(Planes<'a>),
    Output(Planes<'a>),
}

/// Transform of the tiles of sixteen channels.
pub(super) struct TransformTask<'a, W, const T: usize, const M: usize> {
    pub(super) side: Side<'a>,
    pub(super) grid: TileGrid<M>,
    /// Rows of tiles of all images, one after the other.
    pub(super) rows: std::ops::Range<usize>,
    /// Number of the group of channels.
    pub(super) group: usize,
    /// Scratch of [`TileGrid::halo_len`].
    pub(super) halo: *mut f32,
    /// Transformed tiles of `rows`, of all channels.
    pub(super) tiles: Transformed,
    pub(super) algorithm: std::marker::PhantomData<W>,
}

impl<W: Tiles<T, M>, const T: usize, const M: usize> Task for TransformTask<'_, W, T, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { side, grid, rows, group, halo, tiles, .. } = self;
        let channel = group * LANES;
        let out = Transformed { base: tiles.base.wrapping_add(channel), ..tiles };
        // SAFETY: `tiles` has room for sixteen channels from `channel` on of each position of each tile of `rows`, `halo`
        // for the pixels of a run of them.
        unsafe {
            let output = match side {
                Side::Input(input) => {
                    let tiles = ChannelTiles { channel, rows };
                    transform_inputs::<S, W, T, M>(&input, grid, tiles, halo, out);
                    return;
                }
                Side::Output(output) => output,
            };
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
                output.write_rows::<S>(image, channel, start..start + (count * M).cast_signed(), to);
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
