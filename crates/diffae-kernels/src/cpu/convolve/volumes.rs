//! Convolutions of volumes by Winograd's algorithm along rows and columns.
//!
//! A slice is read by three slices of the result. Its tiles are transformed once: a task goes through the slices of a volume, and
//! keeps what it has made of those that the next slices of the result read, too.

use super::winograd::{WINOGRAD_TILES, Winograd};
use super::{PRODUCT_STRIDE, pieces};
use crate::cpu::pack::{num_panels, panel_width, row_channels};
use crate::cpu::parallel::{for_each, num_threads};
use crate::cpu::planes::Planes;
use crate::cpu::product::{Accumulate, PANEL, Product};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{LANES, Simd, Task, run};
use crate::cpu::tiles::{ChannelTiles, SliceRing, Transformed, transform_inputs, with_neighbor};
use crate::cpu::winograd::Tiles;

/// Some rows of tiles of some slices of a volume.
#[derive(Debug, Clone)]
struct Part {
    volume: usize,
    slices: std::ops::Range<usize>,
    /// Rows of tiles of each slice.
    rows: std::ops::Range<usize>,
}

impl<W: Tiles<T, M>, const T: usize, const M: usize> Winograd<'_, W, T, M> {
    /// Computes a convolution of volumes, of which no axis is empty.
    pub(super) fn run_volumes(self) {
        let depth = self.conv.input.slices();
        let volumes = self.conv.input.images().checked_div(depth).unwrap_or(0);
        let (num_bands, band) = pieces(self.grid.down, WINOGRAD_TILES.div_ceil(self.grid.across));
        let at_once = WINOGRAD_TILES.checked_div(band * self.grid.across).unwrap_or(1).clamp(1, depth);
        // A part transforms one slice more at each end, so that volumes are cut only where there are too few for all threads.
        let wanted = (2 * num_threads()).div_ceil(volumes * num_bands);
        let (num_parts, slices) = pieces(depth, depth.div_ceil(wanted).max(at_once));
        for_each(volumes * num_bands * num_parts, |i| {
            let (i, part) = (i.checked_div(num_parts).unwrap_or(0), i % num_parts);
            let (volume, band_idx) = (i.checked_div(num_bands).unwrap_or(0), i % num_bands);
            let part = Part {
                volume,
                slices: part * slices..depth.min((part + 1) * slices),
                rows: band_idx * band..self.grid.down.min((band_idx + 1) * band),
            };
            self.run_part(&part, at_once);
        });
    }

    /// Takes a part of a volume through all steps on this thread, `at_once` slices at a time.
    fn run_part(self, part: &Part, at_once: usize) {
        let own = self.conv.input.without_neighbors();
        let depth = own.slices();
        let ring = SliceRing { places: at_once + 2 };
        let tiles = part.rows.len() * self.grid.across;
        // An odd number of cache lines, as in convolutions of images.
        let tile_stride = (own.channels().div_ceil(LANES) | 1) * LANES;
        let inputs_len = Self::POSITIONS * ring.places * tiles * tile_stride;
        let products_len = Self::POSITIONS * at_once * tiles * PRODUCT_STRIDE;
        let halo_len = self.grid.halo_len(part.rows.len());
        let (mut inputs, mut products) = (Scratch::take(inputs_len), Scratch::take(products_len));
        let mut halo = Scratch::take(halo_len);
        let halo = halo.share().part(0, halo_len);
        let inputs = Transformed {
            base: inputs.share().part(0, inputs_len),
            position_stride: ring.places * tiles * tile_stride,
            tile_stride,
        };
        let products = Transformed {
            base: products.share().part(0, products_len),
            position_stride: at_once * tiles * PRODUCT_STRIDE,
            tile_stride: PRODUCT_STRIDE,
        };
        let task = |step| VolumeTask { conv: self, own, part, tiles, ring, inputs, products, halo, step };
        let mut missing = part.slices.start.saturating_sub(1);
        for first in part.slices.clone().step_by(at_once) {
            let slices = first..part.slices.end.min(first + at_once);
            let needed = depth.min(slices.end + 1);
            // SAFETY: the scratch is this part's own, and so are the pixels.
            unsafe {
                run(task(VolumeStep::Transform(missing..needed)));
                for panel in 0..num_panels(self.conv.weight.outputs()) {
                    run(task(VolumeStep::Multiply { panel, slices: slices.clone() }));
                    run(task(VolumeStep::Store { panel, slices: slices.clone() }));
                }
            }
            missing = needed;
        }
    }

    /// Row of tiles `row` of a slice of a volume, counted over all slices.
    fn tile_rows(&self, part: &Part, slice: usize) -> std::ops::Range<usize> {
        let start = (part.volume * self.conv.input.slices() + slice) * self.grid.down;
        start + part.rows.start..start + part.rows.end
    }
}

/// A part of the work on some slices of a part.
enum VolumeStep {
    /// Transforms the tiles of these slices.
    Transform(std::ops::Range<usize>),
    /// Multiplies the neighbors of these slices with one panel of weights.
    Multiply { panel: usize, slices: std::ops::Range<usize> },
    /// Transforms the products of these slices back, and stores them.
    Store { panel: usize, slices: std::ops::Range<usize> },
}

/// One step of a part of a volume.
struct VolumeTask<'a, 'p, W, const T: usize, const M: usize> {
    conv: Winograd<'a, W, T, M>,
    /// Slices with their own channels.
    own: Planes<'a>,
    part: &'p Part,
    /// Number of tiles of a slice.
    tiles: usize,
    ring: SliceRing,
    /// Transformed tiles of the slices in the ring.
    inputs: Transformed,
    /// Products of the slices that are computed at once.
    products: Transformed,
    halo: *mut f32,
    step: VolumeStep,
}

impl<W: Tiles<T, M>, const T: usize, const M: usize> Task for VolumeTask<'_, '_, W, T, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { conv, own, part, tiles, ring, inputs, products, halo, ref step } = self;
        // SAFETY: `inputs`, `products` and `halo` are of the sizes that `run_part` has checked them to have: places of the ring for
        // all slices that are read, and products for all that are computed.
        unsafe {
            match step {
                VolumeStep::Transform(slices) => {
                    for slice in slices.clone() {
                        let place = inputs.base.add(ring.place(slice) * tiles * inputs.tile_stride);
                        for channel in (0..own.channels()).step_by(LANES) {
                            let out = Transformed { base: place.add(channel), ..inputs };
                            let tiles = ChannelTiles { channel, rows: conv.tile_rows(part, slice) };
                            transform_inputs::<S, W, T, M>(&own, conv.grid, tiles, halo, out);
                        }
                    }
                }
                VolumeStep::Multiply { panel, slices } => self.multiply::<S>(*panel, slices),
                VolumeStep::Store { panel, slices } => {
                    let width = panel_width(conv.conv.weight.outputs(), *panel);
                    for slice in slices.clone() {
                        let of_slice = products.base.add((slice - slices.start) * tiles * PRODUCT_STRIDE);
                        for column in (0..width).step_by(LANES) {
                            let from = Transformed { base: of_slice.add(column), ..products };
                            conv.store::<S>(conv.tile_rows(part, slice), panel * PANEL + column, from, halo);
                        }
                    }
                }
            }
        }
    }
}

impl<W: Tiles<T, M>, const T: usize, const M: usize> VolumeTask<'_, '_, W, T, M> {
    /// Multiplies slices and their neighbors with one panel of weights, position by position. The middle tap, of which all slices
    /// have a neighbor, comes first.
    ///
    /// # Safety
    /// The ring holds the transformed tiles of `slices` and of their neighbors, `products` has room for `slices`, and nobody else
    /// reads or writes those. The instruction set is available.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, panel: usize, slices: &std::ops::Range<usize>) {
        let Self { conv, own, tiles, ring, inputs, products, .. } = *self;
        let weight = conv.conv.weight;
        let (channels, taps, depth) = (own.channels(), conv.conv.input.taps(), own.slices());
        let width = panel_width(weight.outputs(), panel);
        let len = row_channels(weight.inputs()) * width;
        let middle = taps >> 1;
        for position in 0..Winograd::<W, T, M>::POSITIONS {
            let weights = &weight.panel(panel)[position * len..(position + 1) * len];
            let others = (0..taps).filter(|&tap| tap != middle);
            for tap in std::iter::once(middle).chain(others) {
                let (computed, neighbor) = with_neighbor(slices.clone(), (tap, taps), depth);
                for run in ring.runs(neighbor..neighbor + computed.len()) {
                    let slice = computed.start + (run.slice - neighbor);
                    let from = position * inputs.position_stride + run.place * tiles * inputs.tile_stride;
                    let to =
                        position * products.position_stride + (slice - slices.start) * tiles * products.tile_stride;
                    let product = Product {
                        a: inputs.base.wrapping_add(from),
                        a_row: inputs.tile_stride,
                        a_col: 1,
                        b: weights[tap * channels * width..].as_ptr(),
                        b_row: width,
                        c: products.base.wrapping_add(to),
                        c_row: products.tile_stride,
                        rows: run.count * tiles,
                        vectors: width / LANES,
                        depth: channels,
                        accumulate: if tap == middle { Accumulate::Overwrite } else { Accumulate::Add },
                    };
                    // SAFETY: the run lies in the ring, its results among the products; the weights of a tap are `channels` rows
                    // of `width` columns.
                    unsafe { product.run::<S>() };
                }
            }
        }
    }
}
