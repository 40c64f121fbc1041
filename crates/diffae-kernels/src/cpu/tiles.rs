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
