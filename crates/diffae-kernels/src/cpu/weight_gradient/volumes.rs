//! Weight gradients of convolutions of volumes by the adjoint of Winograd's algorithm, slice by slice.
//!
//! As in the convolution, the tiles of a slice are transformed once, and used with the slices of the other side that are its
//! neighbors.

use std::marker::PhantomData;
use std::ops::Range;

use super::WeightGradient;
use super::winograd::{BLOCK_TILES, Side, TransformTask};
use crate::cpu::convolve::pieces;
use crate::cpu::pack::{num_panels, panel_width, row_channels};
use crate::cpu::parallel::{Shared, for_each, num_threads};
use crate::cpu::product::{Accumulate, PANEL, Product, ProductTask};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{LANES, run};
use crate::cpu::tiles::{SliceRing, TileGrid, Transformed, with_neighbor};
use crate::cpu::winograd::Tiles;

/// Transformed tiles of one side: places for slices, one after the other at each position.
#[derive(Clone, Copy)]
struct Sides<'a> {
    values: Shared<'a, f32>,
    /// Number of slices that there is room for.
    places: usize,
    tile_stride: usize,
}

impl Sides<'_> {
    /// Distance of a position from the next, with that many tiles a slice.
    fn position_stride(&self, tiles: usize) -> usize {
        self.places * tiles * self.tile_stride
    }

    /// Layout of the tiles of the slice at a place.
    fn at(&self, place: usize, positions: usize, tiles: usize) -> Transformed {
        let position_stride = self.position_stride(tiles);
        let base = self.values.part(0, positions * position_stride).wrapping_add(place * tiles * self.tile_stride);
        Transformed { base, position_stride, tile_stride: self.tile_stride }
    }
}

/// Some rows of tiles of some slices of a volume.
#[derive(Debug, Clone)]
struct Block {
    volume: usize,
    /// Rows of tiles of each slice.
    rows: Range<usize>,
    /// Slices of the output.
    slices: Range<usize>,
    /// Slices of the input that are not in the ring yet.
    missing: Range<usize>,
}

impl WeightGradient<'_> {
    /// Sums up the products of transformed tiles, block by block of slices.
    pub(super) fn volumes<W: Tiles<T, M>, const T: usize, const M: usize>(self, sums: Shared<'_, f32>) {
        let grid = TileGrid::<M>::new(self.input.height(), self.input.width());
        let depth = self.input.slices();
        let volumes = self.output.images().checked_div(depth).unwrap_or(0);
        let (num_bands, band) = pieces(grid.down, BLOCK_TILES.div_ceil(grid.across));
        let max_tiles = band * grid.across;
        let at_once = BLOCK_TILES.checked_div(max_tiles).unwrap_or(1).clamp(1, depth);
        let stride = |channels: usize| (channels.div_ceil(LANES) | 1) * LANES;
        let inputs = self.input.without_neighbors().channels();
        let (x_places, x_stride, y_stride) = (at_once + 2, stride(inputs), stride(self.output.channels()));
        let mut x = Scratch::take(T * T * x_places * max_tiles * x_stride);
        let mut y = Scratch::take(T * T * at_once * max_tiles * y_stride);
        let x = Sides { values: x.share(), places: x_places, tile_stride: x_stride };
        let y = Sides { values: y.share(), places: at_once, tile_stride: y_stride };
        for panel in 0..num_panels(self.output.channels()) {
            let (start, len) = self.sums_range(panel);
            // SAFETY: the sums are this gradient's own. Taps without a neighbor add nothing to them.
            unsafe { std::ptr::write_bytes(sums.part(start, len), 0, len) };
        }
        for (volume, band_idx) in (0..volumes).flat_map(|volume| (0..num_bands).map(move |band| (volume, band))) {
            let rows = band_idx * band..grid.down.min((band_idx + 1) * band);
            let mut missing = 0;
            for first in (0..depth).step_by(at_once) {
                let slices = first..depth.min(first + at_once);
                let needed = depth.min(slices.end + 1);
                let block = Block { volume, rows: rows.clone(), slices, missing: missing..needed };
                self.transform::<W, T, M>(grid, &block, (x, y));
                self.multiply(&block, (x, y), (T * T, rows.len() * grid.across), sums);
                missing = needed;
            }
        }
    }

    /// Transforms the slices of a block that are not there yet.
    fn transform<W: Tiles<T, M>, const T: usize, const M: usize>(
        self,
        grid: TileGrid<M>,
        block: &Block,
        (x, y): (Sides<'_>, Sides<'_>),
    ) {
        let (own, depth) = (self.input.without_neighbors(), self.input.slices());
        let (x_groups, y_groups) = (own.channels().div_ceil(LANES), self.output.channels().div_ceil(LANES));
        let tiles = block.rows.len() * grid.across;
        let of_inputs = x_groups * block.missing.len();
        for_each(of_inputs + y_groups * block.slices.len(), |i| {
            let ring = SliceRing { places: x.places };
            let (side, slice, group, tiles) = if i < of_inputs {
                let (slice, group) = (block.missing.start + i.checked_div(x_groups).unwrap_or(0), i % x_groups);
                (Side::Input(own), slice, group, x.at(ring.place(slice), T * T, tiles))
            } else {
                let i = i - of_inputs;
                let (place, group) = (i.checked_div(y_groups).unwrap_or(0), i % y_groups);
                (Side::Output(self.output), block.slices.start + place, group, y.at(place, T * T, tiles))
            };
            let start = (block.volume * depth + slice) * grid.down;
            let rows = start + block.rows.start..start + block.rows.end;
            let halo_len = grid.halo_len(rows.len());
            let mut halo = Scratch::take(halo_len);
            let halo = halo.share().part(0, halo_len);
            let task = TransformTask::<W, T, M> { side, grid, rows, group, halo, tiles, algorithm: PhantomData };
            // SAFETY: each place has room for all positions and channels; each task writes its own slice and channels.
            unsafe { run(task) };
        });
    }

    /// Adds the products of the slices of a block and their neighbors to the sums.
    fn multiply(
        self,
        block: &Block,
        (x, y): (Sides<'_>, Sides<'_>),
        (positions, tiles): (usize, usize),
        sums: Shared<'_, f32>,
    ) {
        let (depth, taps) = (self.input.slices(), self.input.taps());
        let inputs = self.input.without_neighbors().channels();
        let channels = row_channels(self.input.channels());
        let panels = num_panels(self.output.channels());
        let chunk = positions.div_ceil((4 * num_threads()).div_ceil(panels)).max(1);
        let chunks = positions.div_ceil(chunk);
        for_each(panels * chunks, |i| {
            let (panel, start) = (i.checked_div(chunks).unwrap_or(0), (i % chunks) * chunk);
            let width = panel_width(self.output.channels(), panel);
            let (sums_start, _) = self.sums_range(panel);
            for position in start..positions.min(start + chunk) {
                for tap in 0..taps {
                    let (computed, neighbor) = with_neighbor(block.slices.clone(), (tap, taps), depth);
                    for run_of_slices in (SliceRing { places: x.places }).runs(neighbor..neighbor + computed.len()) {
                        let slice = computed.start + (run_of_slices.slice - neighbor);
                        let count = run_of_slices.count * tiles;
                        let x_start = position * x.position_stride(tiles) + run_of_slices.place * tiles * x.tile_stride;
                        let y_start =
                            position * y.position_stride(tiles) + (slice - block.slices.start) * tiles * y.tile_stride;
                        let product = Product {
                            a: x.values.part(x_start, count * x.tile_stride),
                            a_row: 1,
                            a_col: x.tile_stride,
                            b: y.values.part(y_start, count * y.tile_stride).wrapping_add(panel * PANEL),
                            b_row: y.tile_stride,
                            c: sums.part(sums_start + (position * channels + tap * inputs) * width, inputs * width),
                            c_row: width,
                            rows: inputs,
                            vectors: width / LANES,
                            depth: count,
                            accumulate: Accumulate::Add,
                        };
                        // SAFETY: of each tile, `inputs` inputs and `panel * PANEL + width` outputs are read, as many as its
                        // strides have room for; each task writes its own positions of its panel.
                        unsafe { run(ProductTask(product)) };
                    }
                }
            }
        });
    }
}
