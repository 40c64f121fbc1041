//! 3x3 convolutions by Winograd's algorithm: transform tiles, multiply position by position, transform back.

use super::{Convolution, PRODUCT_STRIDE, pieces};
use crate::cpu::pack::{num_panels, panel_width, row_channels};
use crate::cpu::parallel::{for_each, num_threads};
use crate::cpu::planes::{Place, PlanesOut};
use crate::cpu::product::{Accumulate, PANEL, Product};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{LANES, Simd, Task, run};
use crate::cpu::tiles::{ChannelTiles, TileGrid, Transformed, transform_inputs};
use crate::cpu::winograd::{Tiles, both_ways};

/// Number of tiles that a task takes through all steps at once.
pub(super) const WINOGRAD_TILES: usize = 48;

/// Number of tiles that the parallel steps take at once, where a task does not take its own.
const PHASED_TILES: usize = 512;

/// A convolution by Winograd's algorithm `W`, with output tiles of M x M from input tiles of T x T.
pub(super) struct Winograd<'a, W, const T: usize, const M: usize> {
    pub(super) conv: &'a Convolution<'a>,
    output: PlanesOut<'a>,
    pub(super) grid: TileGrid<M>,
    channels: usize,
    tiles: std::marker::PhantomData<W>,
}

impl<W, const T: usize, const M: usize> Clone for Winograd<'_, W, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W, const T: usize, const M: usize> Copy for Winograd<'_, W, T, M> {}

impl<'a, W: Tiles<T, M>, const T: usize, const M: usize> Winograd<'a, W, T, M> {
    pub(super) const POSITIONS: usize = T * T;

    pub(super) fn new(conv: &'a Convolution<'a>, output: PlanesOut<'a>) -> Self {
        let grid = TileGrid::new(conv.input.height(), conv.input.width());
        let channels = row_channels(conv.weight.inputs());
        Self { conv, output, grid, channels, tiles: std::marker::PhantomData }
    }

    /// Distance of a tile's channels from those of the next: an odd number of cache lines.
    fn input_stride(&self) -> usize {
        self.channels + if (self.channels / LANES).is_multiple_of(2) { LANES } else { 0 }
    }

    /// Computes the convolution, of which no axis is empty.
    pub(super) fn run(self) {
        if self.conv.input.taps() > 1 {
            return self.run_volumes();
        }
        let tile_rows = self.conv.input.images() * self.grid.down;
        let tiles = tile_rows * self.grid.across;
        if tiles >= 2 * WINOGRAD_TILES * num_threads() {
            let (count, size) = pieces(tile_rows, WINOGRAD_TILES.div_ceil(self.grid.across));
            for_each(count, |i| self.run_band(i * size..tile_rows.min((i + 1) * size)));
        } else {
            let (count, size) = pieces(tile_rows, PHASED_TILES.div_ceil(self.grid.across));
            for i in 0..count {
                self.run_phased(i * size..tile_rows.min((i + 1) * size));
            }
        }
    }

    /// Takes some rows of tiles through all steps, on this thread.
    fn run_band(self, rows: std::ops::Range<usize>) {
        let tiles = rows.len() * self.grid.across;
        let outputs = self.conv.weight.outputs();
        let (inputs_len, products_len) = (self.inputs_len(tiles), Self::products_len(tiles));
        let halo_len = self.grid.halo_len(rows.len());
        let (mut inputs, mut products) = (Scratch::take(inputs_len), Scratch::take(products_len));
        let mut halo = Scratch::take(halo_len);
        let inputs = self.inputs(inputs.share().part(0, inputs_len), tiles);
        let products = Self::products(products.share().part(0, products_len), tiles);
        let halo = halo.share().part(0, halo_len);
        let task = |step| WinogradTask { conv: self, rows: rows.clone(), inputs, products, step };
        // SAFETY: the scratch is this band's own, and so are the pixels.
        unsafe {
            run(task(WinogradStep::Transform { groups: 0..self.channels.div_ceil(LANES), halo }));
            for panel in 0..num_panels(outputs) {
                run(task(WinogradStep::Multiply { panel, positions: 0..Self::POSITIONS }));
                let columns = 0..panel_width(outputs, panel) / LANES;
                run(task(WinogradStep::Store { panel, columns, pixels: halo }));
            }
        }
    }

    /// Takes some rows of tiles through one step after the other, each on all threads.
    fn run_phased(self, rows: std::ops::Range<usize>) {
        let tiles = rows.len() * self.grid.across;
        let outputs = self.conv.weight.outputs();
        let panels = num_panels(outputs);
        let (inputs_len, panel_len) = (self.inputs_len(tiles), Self::products_len(tiles));
        let (mut inputs, mut products) = (Scratch::take(inputs_len), Scratch::take(panels * panel_len));
        let (inputs, products) = (inputs.share(), products.share());
        let task = |panel: usize, step| WinogradTask {
            conv: self,
            rows: rows.clone(),
            inputs: self.inputs(inputs.part(0, inputs_len), tiles),
            products: Self::products(products.part(panel * panel_len, panel_len), tiles),
            step,
        };
        let halo_len = self.grid.halo_len(rows.len());
        for_each(self.channels.div_ceil(LANES), |group| {
            let mut halo = Scratch::take(halo_len);
            let halo = halo.share().part(0, halo_len);
            let step = WinogradStep::Transform { groups: group..group + 1, halo };
            // SAFETY: each task writes its own channels.
            unsafe { run(task(0, step)) };
        });
        // A few positions a task: enough tasks for all threads, and not many more.
        let chunk = Self::POSITIONS.div_ceil((4 * num_threads()).div_ceil(panels)).max(1);
        let chunks = Self::POSITIONS.div_ceil(chunk);
        for_each(panels * chunks, |i| {
            let (panel, start) = (i.checked_div(chunks).unwrap_or(0), (i % chunks) * chunk);
            let step = WinogradStep::Multiply { panel, positions: start..Self::POSITIONS.min(start + chunk) };
            // SAFETY: each task writes its own positions of its panel.
            unsafe { run(task(panel, step)) };
        });
        for_each(outputs.div_ceil(LANES), |group| {
            let mut pixels = Scratch::take(halo_len);
            let pixels = pixels.share().part(0, halo_len);
            let (panel, column) = (group / (PANEL / LANES), group % (PANEL / LANES));
            let step = WinogradStep::Store { panel, columns: column..column + 1, pixels };
            // SAFETY: each task writes its own output channels.
            unsafe { run(task(panel, step)) };
        });
    }

    /// Number of floats of the transformed inputs of some tiles.
    fn inputs_len(&self, tiles: usize) -> usize {
        Self::POSITIONS * tiles * self.input_stride()
    }

    /// Number of floats of the products of some tiles with one panel.
    fn products_len(tiles: usize) -> usize {
        Self::POSITIONS * tiles * PRODUCT_STRIDE
    }

    /// Layout of transformed inputs; `base` has [`Self::inputs_len`] floats.
    fn inputs(&self, base: *mut f32, tiles: usize) -> Transformed {
        let tile_stride = self.input_stride();
        Transformed { base, position_stride: tiles * tile_stride, tile_stride }
    }

    /// Layout of products; `base` has [`Self::products_len`] floats.
    fn products(base: *mut f32, tiles: usize) -> Transformed {
        Transformed { base, position_stride: tiles * PRODUCT_STRIDE, tile_stride: PRODUCT_STRIDE }
    }

    /// Transforms products to pixels and stores them, for one vector of output channels.
    ///
    /// # Safety
    /// `products` holds the tiles of `rows`, sixteen values each from its base on; `pixels` has room for one row of
    /// tiles, `M * across * M` pixels of sixteen values. Nobody else writes `pixels` or these pixels of the output. The
    /// instruction set is available.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(
        &self,
        rows: std::ops::Range<usize>,
        channel: usize,
        products: Transformed,
        pixels: *mut f32,
    ) {
        let grid = self.grid;
        let row_len = grid.across * M * LANES;
        for (image, first, count, before) in grid.runs(rows) {
            for row in 0..count {
                // SAFETY: tile `before + row * across + column` is one of `rows`; pixel (i, column * M + j) of the row of
                // tiles lies inside `pixels`, and those that are stored inside the image.
                unsafe {
                    for column in 0..grid.across {
                        let from = products.base.add((before + row * grid.across + column) * products.tile_stride);
                        let mut m = [[S::splat(0.); T]; T];
                        for i in 0..T {
                            for j in 0..T {
                                m[i][j] = S::load(from.add((i * T + j) * products.position_stride));
                            }
                        }
                        let y = both_ways::<S, W::Output, T, M>(&m);
                        for i in 0..M {
                            for j in 0..M {
                                S::store(pixels.add(i * row_len + (column * M + j) * LANES), y[i][j]);
                            }
                        }
                    }
                    let top = (first + row) * M;
                    let height = M.min(grid.height - top);
                    let output = &self.output;
                    if grid.across * M == grid.width {
                        let place = Place { image, channel, pixel: top * grid.width };
                        output.store::<S>(place, height * grid.width, pixels, LANES);
                    } else {
                        for i in 0..height {
                            let place = Place { image, channel, pixel: (top + i) * grid.width };
                            output.store::<S>(place, grid.width, pixels.add(i * row_len), LANES);
                        }
                    }
                }
            }
        }
    }
}

/// A part of the work on some rows of tiles.
enum WinogradStep {
    /// Transforms input tiles of these groups of sixteen channels.
    Transform { groups: std::ops::Range<usize>, halo: *mut f32 },
    /// Multiplies these positions with one panel of weights.
    Multiply { panel: usize, positions: std::ops::Range<usize> },
    /// Transforms products of these vectors of a panel back, and stores them.
    Store { panel: usize, columns: std::ops::Range<usize>, pixels: *mut f32 },
}

/// One step of some rows of tiles.
struct WinogradTask<'a, W, const T: usize, const M: usize> {
    conv: Winograd<'a, W, T, M>,
    rows: std::ops::Range<usize>,
    inputs: Transformed,
    products: Transformed,
    step: WinogradStep,
}

impl<W: Tiles<T, M>, const T: usize, const M: usize> Task for WinogradTask<'_, W, T, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { conv, rows, inputs, products, step } = self;
        let weight = conv.conv.weight;
        // SAFETY: `inputs`, `products`, `halo` and `pixels` are of the sizes that `run_band` and `run_phased` have
        // checked them to have for these rows; the weights of a position are `channels` rows of `width` columns.
        unsafe {
            match step {
                WinogradStep::Transform { groups, halo } => {
                    for group in groups {
                        let out = Transformed { base: inputs.base.add(group * LANES), ..inputs };
                        let tiles = ChannelTiles { channel: group * LANES, rows: rows.clone() };
                        transform_inputs::<S, W, T, M>(&conv.conv.input, conv.grid, tiles, halo, out);
                    }
                }
                WinogradStep::Multiply { panel, positions } => {
                    let width = panel_width(weight.outputs(), panel);
                    let len = conv.channels * width;
                    for position in positions {
                        let weights = &weight.panel(panel)[position * len..(position + 1) * len];
                        let product = Product {
                            a: inputs.base.add(position * inputs.position_stride),
                            a_row: inputs.tile_stride,
                            a_col: 1,
                            b: weights.as_ptr(),
                            b_row: width,
                            c: products.base.add(position * products.position_stride),
                            c_row: products.tile_stride,
                            rows: rows.len() * conv.grid.across,
                            vectors: width / LANES,
                            depth: conv.channels,
                            accumulate: Accumulate::Overwrite,
                        };
                        product.run::<S>();
                    }
                }
                WinogradStep::Store { panel, columns, pixels } => {
                    for column in columns {
                        let from = Transformed { base: products.base.add(column * LANES), ..products };
                        let channel = panel * PANEL + column * LANES;
                        conv.store::<S>(rows.clone(), channel, from, pixels);
                    }
                }
            }
        }
    }
}
