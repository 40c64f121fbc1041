//! Gradient of a convolution with respect to its weight.
//!
//! Direct: `dW[o][c][tap] = sum over pixels of dy[o][pixel] x[c][pixel + tap]`. Winograd: the adjoint of the forward
//! algorithm, `dW = G^T [sum over tiles of (B^T x B) (A dy A^T)] G`, with as many fewer products as forward.
//!
//! Tasks own output and input channels, never a part of the sum, so the result does not depend on timing.

use super::algorithm::Algorithm;
use super::convolve::pieces;
use super::length::{LengthResult, check_length};
use super::pack::{num_panels, panel_width, row_channels};
use super::parallel::{Shared, for_each, num_threads};
use super::planes::{Planes, Rows};
use super::product::{Accumulate, PANEL, Product};
use super::scratch::{Scratch, filled};
use super::simd::{LANES, Simd, Task, run};
use super::tiles::{ChannelTiles, TileGrid, Transformed, transform_inputs};
use super::winograd::{F2, F4, Tiles, both_ways};

/// Number of tiles whose transforms are in memory at once.
const BLOCK_TILES: usize = 384;
/// Number of pixels whose rows of channels are in memory at once.
const BLOCK_PIXELS: usize = 4096;

/// One gradient of a convolution with respect to its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightGradient<'a> {
    input: Planes<'a>,
    /// Gradient with respect to the output.
    output: Planes<'a>,
    algorithm: Algorithm,
}

impl<'a> WeightGradient<'a> {
    /// Makes a weight gradient of `input`, `[N, C, H, W]`, and `output`, the gradient with respect to the output, `[N, O, H, W]`.
    ///
    /// # Errors
    /// If N, H or W differ, or a weight `[O, C, K, K]` is too large.
    pub(crate) fn new(input: Planes<'a>, output: Planes<'a>, algorithm: Algorithm) -> LengthResult<Self> {
        check_length("the images of a weight gradient", output.images(), &[input.images()])?;
        check_length("the rows of a weight gradient", output.height(), &[input.height()])?;
        check_length("the columns of a weight gradient", output.width(), &[input.width()])?;
        let gradient = Self { input, output, algorithm };
        let shape = [output.channels(), input.channels(), algorithm.taps()];
        check_length("a weight gradient", gradient.len(), &shape)?;
        Ok(gradient)
    }

    /// Number of values of the result.
    fn len(&self) -> usize {
        self.output.channels().wrapping_mul(self.input.channels()).wrapping_mul(self.algorithm.taps())
    }

    /// Computes the gradient, `[O, C, K, K]`.
    pub(crate) fn to_vec(self) -> Vec<f32> {
        let len = self.len();
        if len == 0 || self.input.images() * self.input.area() == 0 {
            return vec![0.; len];
        }
        // SAFETY: every panel of output channels and group of input channels is written by one `Finish`.
        unsafe { filled(len, |to| self.run(to)) }
    }

    /// Writes the gradient to `to`. There is at least one pixel.
    fn run(self, to: Shared<'_, f32>) {
        let algorithm = self.algorithm;
        let (inputs, outputs) = (self.input.channels(), self.output.channels());
        let channels = row_channels(inputs);
        let mut sums = Scratch::take(outputs.next_multiple_of(LANES) * algorithm.positions() * channels);
        let sums = sums.share();
        match algorithm {
            Algorithm::Direct1 | Algorithm::Direct3 => self.direct(sums),
            Algorithm::Winograd2 => self.winograd::<F2, 4, 2>(sums),
            Algorithm::Winograd4 => self.winograd::<F4, 6, 4>(sums),
        }
        let groups = inputs.div_ceil(LANES);
        for_each(num_panels(outputs) * groups, |i| {
            let (panel, group) = (i.checked_div(groups).unwrap_or(0), i % groups);
            let (start, len) = self.sums_range(panel);
            // SAFETY: the sums are only read; each task writes its own pairs of channels.
            unsafe { run(Finish { gradient: self, sums: sums.part(start, len), to, panel, group }) };
        });
    }

    /// Start and length of the sums of one panel, `[position or tap][input channel][output channel]`.
    fn sums_range(&self, panel: usize) -> (usize, usize) {
        let column = self.algorithm.positions() * row_channels(self.input.channels());
        (panel * PANEL * column, panel_width(self.output.channels(), panel) * column)
    }

    /// Sums up the products of transformed tiles, block by block of tiles.
    fn winograd<W: Tiles<T, M>, const T: usize, const M: usize>(self, sums: Shared<'_, f32>) {
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
                    (Side::Input, i, layout(x, x_stride))
                } else {
                    (Side::Output, i - x_groups, layout(y, y_stride))
                };
                let task = TransformTask::<W, T, M> {
                    gradient: self,
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

    /// Sums up the products of pixels, band by band of rows.
    ///
    /// The gradient is laid out with as many empty columns as the input has around it, so that all pixels of a band
    /// are one sum.
    fn direct(self, sums: Shared<'_, f32>) {
        let (height, width) = (self.input.height(), self.input.width());
        let halo = usize::from(self.algorithm == Algorithm::Direct3);
        let side = 1 + 2 * halo;
        let padded = width + 2 * halo;
        let channels = row_channels(self.input.channels());
        let y_stride = self.output.channels().next_multiple_of(LANES);
        let (num_bands, band) = pieces(height, BLOCK_PIXELS.checked_div(width).unwrap_or(1).max(1));
        let (x_len, y_len) = ((band + 2 * halo) * padded * channels, band * padded * y_stride);
        let (mut x, mut y) = (Scratch::take(x_len), Scratch::take(y_len));
        let (x, y) = (x.share(), y.share());
        let (x_groups, y_groups) = (self.input.channels().div_ceil(LANES), self.output.channels().div_ceil(LANES));
        let panels = num_panels(self.output.channels());
        for block in 0..self.input.images() * num_bands {
            let (image, start) = (block.checked_div(num_bands).unwrap_or(0), (block % num_bands) * band);
            let end = height.min(start + band);
            for_each(x_groups + y_groups, |i| {
                let task = if i < x_groups {
                    let margin = halo.cast_signed();
                    GatherTask {
                        planes: self.input,
                        image,
                        channel: i * LANES,
                        rows: start.cast_signed() - margin..end.cast_signed() + margin,
                        out: Rows {
                            to: x.part(i * LANES, x_len - i * LANES),
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
                        image,
                        channel: group * LANES,
                        rows: start.cast_signed()..end.cast_signed(),
                        out: Rows {
                            to: y.part(group * LANES, y_len - group * LANES),
                            row_stride: padded * y_stride,
                            pixel_stride: y_stride,
                            stored: LANES,
                            before: 0,
                            after: 2 * halo,
                        },
                    }
                };
                // SAFETY: both scratches have room for the rows, the halo and the channels of a band; each task writes its
                // own channels.
                unsafe { run(task) };
            });
            let taps = side * side;
            for_each(panels * taps, |i| {
                let (panel, tap) = (i.checked_div(taps).unwrap_or(0), i % taps);
                let width = panel_width(self.output.channels(), panel);
                let (down, across) = (tap.checked_div(side).unwrap_or(0), tap % side);
                let x_start = (down * padded + across) * channels;
                let (sums_start, _) = self.sums_range(panel);
                let product = Product {
                    a: x.part(x_start, x_len - x_start),
                    a_row: 1,
                    a_col: channels,
                    b: y.part(panel * PANEL, y_len - panel * PANEL),
                    b_row: y_stride,
                    c: sums.part(sums_start + tap * width * channels, width * channels),
                    c_row: width,
                    rows: channels,
                    vectors: width / LANES,
                    depth: (end - start) * padded - 2 * halo,
                    accumulate: if block == 0 { Accumulate::Overwrite } else { Accumulate::Add },
                };
                // SAFETY: `depth` pixels from `x_start` on end with the last of row `end - start + down`, and those of the
                // gradient before its last empty columns; each task writes its own tap of its panel.
                unsafe { run(ProductTask(product)) };
            });
        }
    }
}

/// One product.
struct ProductTask(Product);

impl Task for ProductTask {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise is that of `Product::run`.
        unsafe { self.0.run::<S>() };
    }
}

/// Conversion of sixteen channels of one image to rows of channels.
struct GatherTask<'a> {
    planes: Planes<'a>,
    image: usize,
    /// First of the channels.
    channel: usize,
    rows: std::ops::Range<isize>,
    out: Rows,
}

impl Task for GatherTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise is that of `write_rows`.
        unsafe { self.planes.write_rows::<S>(self.image, self.channel, self.rows, self.out) };
    }
}

/// Side of a weight gradient: the input, or the gradient w.r.t. the output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

/// Transform of the tiles of sixteen channels.
struct TransformTask<'a, W, const T: usize, const M: usize> {
    gradient: WeightGradient<'a>,
    grid: TileGrid<M>,
    rows: std::ops::Range<usize>,
    group: usize,
    halo: *mut f32,
    tiles: Transformed,
    side: Side,
    algorithm: std::marker::PhantomData<W>,
}

impl<W: Tiles<T, M>, const T: usize, const M: usize> Task for TransformTask<'_, W, T, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { gradient, grid, rows, group, halo, tiles, side, .. } = self;
        let channel = group * LANES;
        let out = Transformed { base: tiles.base.wrapping_add(channel), ..tiles };
        // SAFETY: `tiles` has room for sixteen channels from `channel` on of each position of each tile of `rows`, `halo`
        // for the pixels of a run of them.
        unsafe {
            if side == Side::Input {
                let tiles = ChannelTiles { channel, rows };
                transform_inputs::<S, W, T, M>(&gradient.input, grid, tiles, halo, out);
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

/// Conversion of sums to `[O, C, K, K]`, for one panel and sixteen input channels.
struct Finish<'a> {
    gradient: WeightGradient<'a>,
    /// Sums of the panel.
    sums: *const f32,
    /// Whole result, `[O, C, K, K]`.
    to: Shared<'a, f32>,
    panel: usize,
    group: usize,
}

impl Task for Finish<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { gradient, sums, to: result, panel, group } = self;
        let algorithm = gradient.algorithm;
        let (inputs, outputs) = (gradient.input.channels(), gradient.output.channels());
        let (channels, width, taps) = (row_channels(inputs), panel_width(outputs, panel), algorithm.taps());
        let num_inputs = LANES.min(inputs - group * LANES);
        let mut block = [[0f32; LANES]; LANES * 9];
        for column in (0..width).step_by(LANES) {
            let output = panel * PANEL + column;
            let num_outputs = LANES.min(outputs.saturating_sub(output));
            // SAFETY: positions lie `channels * width` apart in the sums of the panel, and `column + LANES <= width`;
            // `part` has checked the place of what is written, which belongs to channels that exist.
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
                        S::store_first(result.part(to, some), some, lanes[i]);
                    }
                }
            }
        }
    }
}

/// Transforms positions `stride` apart to nine taps.
///
/// # Safety
/// `from` holds sixteen values at each of `T * T` positions. The instruction set is available.
#[inline(always)]
unsafe fn weights<S: Simd, W: Tiles<T, M>, const T: usize, const M: usize>(
    from: *const f32,
    stride: usize,
    to: &mut [[f32; LANES]],
) {
    // SAFETY: the caller vouches for the positions; a tap is sixteen values.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_other_sizes_are_refused() {
        let values = [1.; 24];
        let planes = |shape| Planes::new(&values, shape).unwrap();
        let input = planes([2, 3, 2, 2]);
        assert!(WeightGradient::new(input, planes([2, 3, 2, 2]), Algorithm::Direct1).is_ok());
        for shape in [[1, 6, 2, 2], [2, 6, 1, 2], [2, 6, 2, 1], [3, 2, 2, 2]] {
            assert!(WeightGradient::new(input, planes(shape), Algorithm::Direct1).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn no_images_have_a_gradient_of_zeros() {
        for algorithm in [Algorithm::Direct1, Algorithm::Direct3, Algorithm::Winograd2, Algorithm::Winograd4] {
            let (x, dy) = (Planes::new(&[], [0, 3, 9, 9]).unwrap(), Planes::new(&[], [0, 2, 9, 9]).unwrap());
            let gradient = WeightGradient::new(x, dy, algorithm).unwrap().to_vec();
            assert_eq!(gradient, vec![0.; 6 * algorithm.taps()]);
        }
    }
}
