//! Tiles of images for Winograd's algorithm, and their transform from planes into the Winograd domain.

use super::planes::{Planes, Rows};
use super::simd::{LANES, Simd};
use super::winograd::{Tiles, both_ways};

/// Grid of the M x M output tiles of a batch of images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileGrid<const M: usize> {
    /// Number of tiles in a row.
    pub(crate) across: usize,
    /// Number of rows of tiles in an image.
    pub(crate) down: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl<const M: usize> TileGrid<M> {
    /// Grid of images of one size.
    pub(crate) fn new(height: usize, width: usize) -> Self {
        Self { across: width.div_ceil(M), down: height.div_ceil(M), height, width }
    }

    /// Splits rows of tiles into runs of one image each: `(image, first tile row in it, number of tile rows, tiles before)`.
    pub(crate) fn runs(self, rows: std::ops::Range<usize>) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let mut at = rows.start;
        std::iter::from_fn(move || {
            if at >= rows.end {
                return None;
            }
            let (image, row) = (at.checked_div(self.down)?, at % self.down);
            let count = (self.down - row).min(rows.end - at);
            let before = (at - rows.start) * self.across;
            at += count;
            Some((image, row, count, before))
        })
    }

    /// Number of floats of the scratch for one group of channels and `tile_rows` rows of tiles.
    pub(crate) fn halo_len(self, tile_rows: usize) -> usize {
        (tile_rows * M + 2) * (self.across * M + 2) * LANES
    }
}

/// Slices of a volume in a ring of a few places, in which a kernel goes through a volume: what it has made of a slice stays until
/// the neighbors have used it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SliceRing {
    /// Number of places.
    pub(crate) places: usize,
}

/// Slices one after the other that lie so in a [`SliceRing`], too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceRun {
    /// First of the slices.
    pub(crate) slice: usize,
    /// Place of the first.
    pub(crate) place: usize,
    pub(crate) count: usize,
}

impl SliceRing {
    /// Place of a slice.
    pub(crate) fn place(self, slice: usize) -> usize {
        slice.checked_rem(self.places).unwrap_or(0)
    }

    /// Splits slices, of which the ring holds all at once, into runs.
    pub(crate) fn runs(self, slices: std::ops::Range<usize>) -> impl Iterator<Item = SliceRun> {
        let mut slice = slices.start;
        std::iter::from_fn(move || {
            let place = self.place(slice);
            let count = (self.places - place).min(slices.end.saturating_sub(slice));
            let run = SliceRun { slice, place, count };
            slice += count;
            (count > 0).then_some(run)
        })
    }
}

/// Slices of a result and the neighbors that they read: of `slices`, those with a neighbor `tap - taps / 2` further within
/// `0..depth`; also returns that neighbor of the first.
pub(crate) fn with_neighbor(
    slices: std::ops::Range<usize>,
    (tap, taps): (usize, usize),
    depth: usize,
) -> (std::ops::Range<usize>, usize) {
    let before = taps >> 1;
    let start = slices.start.max(before.saturating_sub(tap));
    let end = slices.end.min((depth + before).saturating_sub(tap));
    (start..end.max(start), (start + tap).saturating_sub(before))
}

/// Layout of transformed tiles: position p of tile t at `p * position_stride + t * tile_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transformed {
    pub(crate) base: *mut f32,
    pub(crate) position_stride: usize,
    pub(crate) tile_stride: usize,
}

/// Tiles of sixteen channels in some rows of tiles of a batch.
#[derive(Debug, Clone)]
pub(crate) struct ChannelTiles {
    /// First of the channels.
    pub(crate) channel: usize,
    /// Rows of tiles of all images, one after the other.
    pub(crate) rows: std::ops::Range<usize>,
}

/// Transforms the input tiles of sixteen channels. `halo`: scratch of [`TileGrid::halo_len`] for the longest run.
///
/// # Safety
/// `out` has room for sixteen values of each position of each tile of `rows`, and nobody else reads or writes those or
/// the scratch. The images and the channel exist. The instruction set is available.
#[inline(always)]
pub(crate) unsafe fn transform_inputs<S: Simd, W: Tiles<T, M>, const T: usize, const M: usize>(
    planes: &Planes<'_>,
    grid: TileGrid<M>,
    ChannelTiles { channel, rows }: ChannelTiles,
    halo: *mut f32,
    out: Transformed,
) {
    let padded = (grid.across * M + 2) * LANES;
    for (image, first, count, before) in grid.runs(rows) {
        let start = (first * M).cast_signed() - 1;
        let range = start..start + (count * M + 2).cast_signed();
        let after = grid.across * M + 1 - grid.width;
        let to = Rows { to: halo, row_stride: padded, pixel_stride: LANES, stored: LANES, before: 1, after };
        // SAFETY: a run of `count <= rows.len()` rows of tiles fills `count * M + 2` rows of `across * M + 2` pixels of the
        // scratch, of which a tile reads T = M + 2 each way; `tile` is one of those that `out` has room for.
        unsafe {
            planes.write_rows::<S>(image, channel, range, to);
            for row in 0..count {
                for column in 0..grid.across {
                    let corner = halo.add(row * M * padded + column * M * LANES);
                    let mut d = [[S::splat(0.); T]; T];
                    for i in 0..T {
                        for j in 0..T {
                            d[i][j] = S::load(corner.add(i * padded + j * LANES));
                        }
                    }
                    let v = both_ways::<S, W::Input, T, T>(&d);
                    let tile = before + row * grid.across + column;
                    let to = out.base.add(tile * out.tile_stride);
                    for i in 0..T {
                        for j in 0..T {
                            S::store(to.add((i * T + j) * out.position_stride), v[i][j]);
                        }
                    }
                }
            }
        }
    }
}
