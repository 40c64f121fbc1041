//! Direct weight gradients, of 1x1 and 3x3 kernels: one and nine matrix products.

use super::WeightGradient;
use crate::cpu::algorithm::Algorithm;
use crate::cpu::convolve::pieces;
use crate::cpu::pack::{num_panels, panel_width, row_channels};
use crate::cpu::parallel::{Shared, for_each};
use crate::cpu::planes::{Planes, Rows};
use crate::cpu::product::{Accumulate, PANEL, Product, ProductTask};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{LANES, Simd, Task, run};

/// Number of pixels whose rows of channels are in memory at once.
const BLOCK_PIXELS: usize = 4096;

impl WeightGradient<'_> {
    /// Sums up the products of pixels, band by band of rows.
    ///
    /// The gradient is laid out with as many empty columns as the input has around it, so that all pixels of a band
    /// are one sum.
    pub(super) fn direct(self, sums: Shared<'_, f32>) {
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
