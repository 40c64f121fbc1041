//! Direct convolutions: 1x1 and 3x3 kernels as one and nine matrix products.

use super::{Convolution, PRODUCT_STRIDE, pieces};
use crate::cpu::algorithm::Algorithm;
use crate::cpu::pack::{num_panels, panel_width, row_channels};
use crate::cpu::parallel::{for_each, num_threads};
use crate::cpu::planes::{Place, PlanesOut, Rows};
use crate::cpu::product::{Accumulate, PANEL, Product};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{LANES, Simd, Task, run};

/// Number of pixels that a task takes at once.
const DIRECT_PIXELS: usize = 256;

/// A direct convolution, band by band of rows.
#[derive(Clone, Copy)]
pub(super) struct Direct<'a> {
    conv: &'a Convolution<'a>,
    output: PlanesOut<'a>,
    /// Number of zero pixels around the image: 0 or 1.
    halo: usize,
    /// Distance of rows in the scratch.
    row_stride: usize,
    /// Distance of pixels in the scratch.
    channels: usize,
    /// Number of rows of the image that are taken at once.
    band: usize,
    /// Number of such bands of an image.
    num_bands: usize,
}

impl<'a> Direct<'a> {
    pub(super) fn new(conv: &'a Convolution<'a>, output: PlanesOut<'a>) -> Self {
        let (height, width) = (conv.input.height(), conv.input.width());
        let halo = usize::from(conv.weight.algorithm() == Algorithm::Direct3);
        let channels = row_channels(conv.weight.inputs());
        let row_stride = (width + 2 * halo) * channels;
        let (num_bands, band) = pieces(height, DIRECT_PIXELS.checked_div(width).unwrap_or(1).max(1));
        Self { conv, output, halo, row_stride, channels, band, num_bands }
    }

    /// Computes the convolution.
    pub(super) fn run(self) {
        let bands = self.conv.input.images() * self.num_bands;
        let panels = num_panels(self.conv.weight.outputs());
        let groups = self.conv.weight.inputs().div_ceil(LANES);
        let len = (self.band + 2 * self.halo) * self.row_stride;
        if bands >= 2 * num_threads() || panels == 1 {
            for_each(bands, |band| {
                let mut rows = Scratch::take(len);
                let rows = rows.share().part(0, len);
                // SAFETY: a task has a band's scratch of its own, and writes its own band of the output.
                unsafe {
                    run(DirectTask { direct: self, band, rows, step: Step::Gather(0..groups) });
                    run(DirectTask { direct: self, band, rows, step: Step::Multiply(0..panels) });
                }
            });
            return;
        }
        let mut rows = Scratch::take(len * bands);
        let rows = rows.share();
        for_each(bands * groups, |i| {
            let (band, group) = (i.checked_div(groups).unwrap_or(0), i % groups);
            let (rows, step) = (rows.part(band * len, len), Step::Gather(group..group + 1));
            // SAFETY: each task writes its own channels of its band's scratch.
            unsafe { run(DirectTask { direct: self, band, rows, step }) };
        });
        for_each(bands * panels, |i| {
            let (band, panel) = (i.checked_div(panels).unwrap_or(0), i % panels);
            let (rows, step) = (rows.part(band * len, len), Step::Multiply(panel..panel + 1));
            // SAFETY: each task writes its own output channels of its band, and the scratch is only read.
            unsafe { run(DirectTask { direct: self, band, rows, step }) };
        });
    }
}

/// A part of the work on one band.
enum Step {
    /// Converts planes to rows, of these groups of sixteen channels.
    Gather(std::ops::Range<usize>),
    /// Multiplies rows with weights and stores planes, of these panels of output channels.
    Multiply(std::ops::Range<usize>),
}

/// One step of one band.
struct DirectTask<'a> {
    direct: Direct<'a>,
    band: usize,
    /// Scratch of the band: `band + 2 halo` rows, `row_stride` apart.
    rows: *mut f32,
    step: Step,
}

impl Task for DirectTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { direct, band, rows, step } = self;
        let Direct { conv, output, halo, row_stride, channels, num_bands, .. } = direct;
        let (image, start) = (band.checked_div(num_bands).unwrap_or(0), (band % num_bands) * direct.band);
        let end = conv.input.height().min(start + direct.band);
        // SAFETY: `rows` has `band + 2 halo >= end - start + 2 halo` rows of `W + 2 halo` pixels, and the channels from
        // `channel` on that are stored lie inside a pixel. The products are those that `multiply` asks for.
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
                    let pixels = (end - start) * conv.input.width();
                    let mut products = Scratch::take(pixels * PRODUCT_STRIDE);
                    let products = products.share().part(0, pixels * PRODUCT_STRIDE);
                    for panel in panels {
                        direct.multiply::<S>(panel, rows, end - start, products);
                        for column in (0..panel_width(conv.weight.outputs(), panel)).step_by(LANES) {
                            let (channel, pixel) = (panel * PANEL + column, start * conv.input.width());
                            let place = Place { image, channel, pixel };
                            output.store::<S>(place, pixels, products.add(column), PRODUCT_STRIDE);
                        }
                    }
                }
            }
        }
    }
}

impl Direct<'_> {
    /// Multiplies the rows of a band with one panel of weights.
    ///
    /// The three taps of a kernel row are neighbors in the rows of channels, so each kernel row is one product of
    /// three times the depth.
    ///
    /// # Safety
    /// `rows` holds `num_rows` rows and the halo, `products` has room for `PRODUCT_STRIDE` values for each of the
    /// `num_rows * W` pixels, and nobody else reads or writes those. The instruction set is available.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, panel: usize, rows: *const f32, num_rows: usize, products: *mut f32) {
        const K_BLOCK: usize = 128;
        let width = panel_width(self.conv.weight.outputs(), panel);
        let weights = self.conv.weight.panel(panel);
        let side = 1 + 2 * self.halo;
        let depth = side * self.channels;
        // For a 1x1 kernel all rows are one line of pixels.
        let (lines, pixels) =
            if self.halo == 0 { (1, num_rows * self.conv.input.width()) } else { (num_rows, self.conv.input.width()) };
        for kernel_row in 0..side {
            let mut start = 0;
            while start < depth {
                let some = K_BLOCK.min(depth - start);
                let accumulate = if kernel_row == 0 && start == 0 { Accumulate::Overwrite } else { Accumulate::Add };
                let at = (kernel_row * depth + start) * width;
                let weights = &weights[at..at + some * width];
                for line in 0..lines {
                    let product = Product {
                        a: rows.wrapping_add((line + kernel_row) * self.row_stride + start),
                        a_row: self.channels,
                        a_col: 1,
                        b: weights.as_ptr(),
                        b_row: width,
                        c: products.wrapping_add(line * pixels * PRODUCT_STRIDE),
                        c_row: PRODUCT_STRIDE,
                        rows: pixels,
                        vectors: width / LANES,
                        depth: some,
                        accumulate,
                    };
                    // SAFETY: pixel `i < W` of line `j < num_rows` reads `depth` values of row `j + kernel_row`, which
                    // end with pixel `i + 2 halo`; the panel has `side * depth` rows of `width <= PANEL` columns.
                    unsafe { product.run::<S>() };
                }
                start += some;
            }
        }
    }
}
