//! The convolution: planes in, packed weights, planes out.
//!
//! Where there are enough pixels, a task takes a band of the picture through all steps, and what lies between the
//! steps stays in its core's second-level cache. On small pictures the steps are parallel one after the other.

use super::pack::{Packed, num_panels, panel_width, row_channels};
use super::parallel::{Shared, for_each, num_threads};
use super::planes::{Planes, PlanesOut, Rows};
use super::product::{Accumulate, PANEL, Product};
use super::scratch::{Scratch, filled};
use super::simd::{LANES, Simd, Task, run};
use super::tiles::{TileGrid, Transformed, transform_inputs};
use super::winograd::{F2, F4, Tiles, both_ways};
use crate::conv2d::Algorithm;

/// Distance of the products of one pixel or tile from those of the next: an odd number of cache lines, so that a
/// column of them does not fall on one cache set.
const PRODUCT_STRIDE: usize = PANEL + LANES;

/// Pixels or tiles that a task takes at once.
const DIRECT_PIXELS: usize = 256;
const WINOGRAD_TILES: usize = 48;

/// Tiles that the parallel steps take at once, where a task does not take its own.
const PHASED_TILES: usize = 512;

/// One convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Convolution<'a> {
    pub(crate) images: usize,
    pub(crate) input: Planes,
    pub(crate) weight: &'a Packed,
    pub(crate) output: PlanesOut,
}

impl Convolution<'_> {
    /// Computes it.
    ///
    /// # Safety
    /// Input, bias and residual are valid, and the output, which overlaps none of them; channels are those of the
    /// weight.
    pub(crate) unsafe fn run(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.weight.algorithm {
                Algorithm::Direct1 | Algorithm::Direct3 => Direct::new(self).run(),
                Algorithm::Winograd2 => Winograd::<F2, 4, 2>::new(self, F2).run(),
                Algorithm::Winograd4 => Winograd::<F4, 6, 4>::new(self, F4).run(),
            }
        }
    }
}

/// Computes a convolution into a vector of its own; where it goes to need not be set.
pub(crate) fn to_vec(mut conv: Convolution<'_>) -> Vec<f32> {
    let len = conv.images * conv.weight.outputs * conv.input.area();
    // SAFETY: the planes live as long as the call, and every pixel of the output is written.
    unsafe {
        filled(len, |to| {
            conv.output.to = to;
            conv.run();
        })
    }
}

/// How many equal pieces to cut `len` into so that none is larger than `most`, and the size of one.
pub(crate) fn pieces(len: usize, most: usize) -> (usize, usize) {
    let count = len.div_ceil(most.max(1)).max(1);
    let size = len.div_ceil(count).max(1);
    (len.div_ceil(size), size)
}

// ---------------------------------------------------------------------------------------------------- direct

#[derive(Clone, Copy)]
struct Direct<'a> {
    conv: &'a Convolution<'a>,
    /// Pixels around the picture: 0 or 1.
    halo: usize,
    /// Distance of rows and pixels in the scratch.
    row_stride: usize,
    channels: usize,
    /// Rows of the picture that are taken at once, and how many such bands a picture has.
    band: usize,
    num_bands: usize,
}

impl<'a> Direct<'a> {
    fn new(conv: &'a Convolution<'a>) -> Self {
        let Planes { height, width, .. } = conv.input;
        let halo = usize::from(conv.weight.algorithm == Algorithm::Direct3);
        let channels = row_channels(conv.weight.inputs);
        let row_stride = (width + 2 * halo) * channels;
        let (num_bands, band) = pieces(height, DIRECT_PIXELS.checked_div(width).unwrap_or(1).max(1));
        Self { conv, halo, row_stride, channels, band, num_bands }
    }

    unsafe fn run(self) {
        let bands = self.conv.images * self.num_bands;
        let panels = num_panels(self.conv.weight.outputs);
        let groups = self.conv.weight.inputs.div_ceil(LANES);
        let len = (self.band + 2 * self.halo) * self.row_stride;
        if bands >= 2 * num_threads() || panels == 1 {
            for_each(bands, |band| {
                let mut rows = Scratch::take(len);
                let rows = rows.as_mut_ptr();
                // SAFETY: a task writes its own scratch and its own band.
                unsafe {
                    run(DirectTask { direct: self, band, rows, step: Step::Gather(0..groups) });
                    run(DirectTask { direct: self, band, rows, step: Step::Multiply(0..panels) });
                }
            });
            return;
        }
        let mut rows = Scratch::take(len * bands);
        let rows = Shared(rows.as_mut_ptr());
        let rows_of = |band: usize| rows.get().wrapping_add(band * len);
        for_each(bands * groups, |i| {
            let (band, group) = (i.checked_div(groups).unwrap_or(0), i % groups);
            let step = Step::Gather(group..group + 1);
            // SAFETY: each task writes its own channels of its band's scratch.
            unsafe { run(DirectTask { direct: self, band, rows: rows_of(band), step }) };
        });
        for_each(bands * panels, |i| {
            let (band, panel) = (i.checked_div(panels).unwrap_or(0), i % panels);
            let step = Step::Multiply(panel..panel + 1);
            // SAFETY: each task writes its own output channels of its band.
            unsafe { run(DirectTask { direct: self, band, rows: rows_of(band), step }) };
        });
    }
}

enum Step {
    /// Planes to rows, of these groups of sixteen channels.
    Gather(std::ops::Range<usize>),
    /// Rows to planes, of these panels.
    Multiply(std::ops::Range<usize>),
}

struct DirectTask<'a> {
    direct: Direct<'a>,
    band: usize,
    rows: *mut f32,
    step: Step,
}

impl Task for DirectTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { direct, band, rows, step } = self;
        let Direct { conv, halo, row_stride, channels, num_bands, .. } = direct;
        let (image, start) = (band.checked_div(num_bands).unwrap_or(0), (band % num_bands) * direct.band);
        let end = conv.input.height.min(start + direct.band);
        // SAFETY: the scratch has `end - start` rows and the halo.
        unsafe {
            match step {
                Step::Gather(groups) => {
                    let margin = halo.cast_signed();
                    let range = start.cast_signed() - margin..end.cast_signed() + margin;
                    for group in groups {
                        let channel = group * LANES;
                        let out = Rows {
                            to: rows.add(channel),
                            row_stride,
                            pixel_stride: channels,
                            stored: LANES.min(channels - channel),
                            before: halo,
                            after: halo,
                        };
                        conv.input.write_rows::<S>(image, channel, range.clone(), out);
                    }
                }
                Step::Multiply(panels) => {
                    let pixels = (end - start) * conv.input.width;
                    let mut products = Scratch::take(pixels * PRODUCT_STRIDE);
                    let products = products.as_mut_ptr();
                    for panel in panels {
                        direct.multiply::<S>(panel, rows, end - start, products);
                        let first = panel * PANEL;
                        for column in (0..panel_width(conv.weight.outputs, panel)).step_by(LANES) {
                            let place = (image, first + column, start * conv.input.width);
                            conv.output.store::<S>(place, pixels, products.add(column), PRODUCT_STRIDE);
                        }
                    }
                }
            }
        }
    }
}

impl Direct<'_> {
    /// The three taps of a kernel row are neighbors in the rows of channels, so each kernel row is one product of
    /// three times the depth.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, panel: usize, rows: *const f32, num_rows: usize, products: *mut f32) {
        const K_BLOCK: usize = 128;
        let width = panel_width(self.conv.weight.outputs, panel);
        let weights = self.conv.weight.panel(panel);
        let side = 1 + 2 * self.halo;
        let depth = side * self.channels;
        // A 1x1 kernel knows no rows: all pixels are one.
        let (lines, pixels) =
            if self.halo == 0 { (1, num_rows * self.conv.input.width) } else { (num_rows, self.conv.input.width) };
        for kernel_row in 0..side {
            let mut start = 0;
            while start < depth {
                let some = K_BLOCK.min(depth - start);
                let accumulate = if kernel_row == 0 && start == 0 { Accumulate::Overwrite } else { Accumulate::Add };
                for line in 0..lines {
                    let product = Product {
                        a: rows.wrapping_add((line + kernel_row) * self.row_stride + start),
                        a_row: self.channels,
                        a_col: 1,
                        b: weights.wrapping_add((kernel_row * depth + start) * width),
                        b_row: width,
                        c: products.wrapping_add(line * pixels * PRODUCT_STRIDE),
                        c_row: PRODUCT_STRIDE,
                        rows: pixels,
                        vectors: width / LANES,
                        depth: some,
                        accumulate,
                    };
                    // SAFETY: rows, weights and products are of these sizes.
                    unsafe { product.run::<S>() };
                }
                start += some;
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------- Winograd

struct Winograd<'a, W, const T: usize, const M: usize> {
    conv: &'a Convolution<'a>,
    grid: TileGrid<M>,
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
    const POSITIONS: usize = T * T;

    fn new(conv: &'a Convolution<'a>, _: W) -> Self {
        let grid = TileGrid::new(conv.input.height, conv.input.width);
        Self { conv, grid, channels: row_channels(conv.weight.inputs), tiles: std::marker::PhantomData }
    }

    /// Distance of a tile's channels from those of the next: an odd number of cache lines.
    fn input_stride(&self) -> usize {
        self.channels + if (self.channels / LANES).is_multiple_of(2) { LANES } else { 0 }
    }

    unsafe fn run(self) {
        let tile_rows = self.conv.images * self.grid.down;
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

    /// All steps for some rows of tiles, on this thread.
    fn run_band(self, rows: std::ops::Range<usize>) {
        let tiles = rows.len() * self.grid.across;
        let mut inputs = Scratch::take(Self::POSITIONS * tiles * self.input_stride());
        let mut products = Scratch::take(Self::POSITIONS * tiles * PRODUCT_STRIDE);
        let mut halo = Scratch::take(self.grid.halo_len(rows.len()));
        let (inputs, products) =
            (self.inputs(inputs.as_mut_ptr(), tiles), Self::products(products.as_mut_ptr(), tiles));
        let task = |step| WinogradTask { conv: self, rows: rows.clone(), inputs, products, step };
        // SAFETY: the scratch is this band's own, and so are the pixels.
        unsafe {
            run(task(WinogradStep::Transform { groups: 0..self.channels / LANES, halo: halo.as_mut_ptr() }));
            for panel in 0..num_panels(self.conv.weight.outputs) {
                run(task(WinogradStep::Multiply { panel, positions: 0..Self::POSITIONS }));
                let columns = 0..panel_width(self.conv.weight.outputs, panel) / LANES;
                run(task(WinogradStep::Store { panel, columns, pixels: halo.as_mut_ptr() }));
            }
        }
    }

    /// All steps for some rows of tiles, each on all threads.
    fn run_phased(self, rows: std::ops::Range<usize>) {
        let tiles = rows.len() * self.grid.across;
        let outputs = self.conv.weight.outputs;
        let panels = num_panels(outputs);
        let mut inputs = Scratch::take(Self::POSITIONS * tiles * self.input_stride());
        let panel_len = Self::POSITIONS * tiles * PRODUCT_STRIDE;
        let mut products = Scratch::take(panels * panel_len);
        let (inputs, products) = (Shared(inputs.as_mut_ptr()), Shared(products.as_mut_ptr()));
        let task = |panel: usize, step| WinogradTask {
            conv: self,
            rows: rows.clone(),
            inputs: self.inputs(inputs.get(), tiles),
            products: Self::products(products.get().wrapping_add(panel * panel_len), tiles),
            step,
        };
        let halo_len = self.grid.halo_len(rows.len());
        for_each(self.channels / LANES, |group| {
            let mut halo = Scratch::take(halo_len);
            let step = WinogradStep::Transform { groups: group..group + 1, halo: halo.as_mut_ptr() };
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
            let (panel, column) = (group / (PANEL / LANES), group % (PANEL / LANES));
            let step = WinogradStep::Store { panel, columns: column..column + 1, pixels: pixels.as_mut_ptr() };
            // SAFETY: each task writes its own output channels.
            unsafe { run(task(panel, step)) };
        });
    }

    fn inputs(&self, base: *mut f32, tiles: usize) -> Transformed {
        let tile_stride = self.input_stride();
        Transformed { base, position_stride: tiles * tile_stride, tile_stride }
    }

    fn products(base: *mut f32, tiles: usize) -> Transformed {
        Transformed { base, position_stride: tiles * PRODUCT_STRIDE, tile_stride: PRODUCT_STRIDE }
    }

    /// Products to pixels, for one vector of output channels. `pixels`: room for one row of tiles.
    #[inline(always)]
    unsafe fn store<S: Simd>(
        &self,
        rows: std::ops::Range<usize>,
        (channel, products): (usize, Transformed),
        pixels: *mut f32,
    ) {
        let grid = self.grid;
        let row_len = grid.across * M * LANES;
        for (image, first, count, before) in grid.runs(rows) {
            for row in 0..count {
                // SAFETY: the tiles of this row, and the pixels that lie inside the picture.
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
                    let output = &self.conv.output;
                    if grid.across * M == grid.width {
                        let place = (image, channel, top * grid.width);
                        output.store::<S>(place, height * grid.width, pixels, LANES);
                    } else {
                        for i in 0..height {
                            let place = (image, channel, (top + i) * grid.width);
                            output.store::<S>(place, grid.width, pixels.add(i * row_len), LANES);
                        }
                    }
                }
            }
        }
    }
}

enum WinogradStep {
    Transform { groups: std::ops::Range<usize>, halo: *mut f32 },
    Multiply { panel: usize, positions: std::ops::Range<usize> },
    Store { panel: usize, columns: std::ops::Range<usize>, pixels: *mut f32 },
}

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
        // SAFETY: the scratch has room for these rows.
        unsafe {
            match step {
                WinogradStep::Transform { groups, halo } => {
                    for group in groups {
                        let out = Transformed { base: inputs.base.add(group * LANES), ..inputs };
                        let part = (group * LANES, rows.clone());
                        transform_inputs::<S, W, T, M>(&conv.conv.input, conv.grid, part, halo, out);
                    }
                }
                WinogradStep::Multiply { panel, positions } => {
                    let width = panel_width(weight.outputs, panel);
                    for position in positions {
                        let product = Product {
                            a: inputs.base.add(position * inputs.position_stride),
                            a_row: inputs.tile_stride,
                            a_col: 1,
                            b: weight.panel(panel).add(position * conv.channels * width),
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
                        conv.store::<S>(rows.clone(), (channel, from), pixels);
                    }
                }
            }
        }
    }
}
