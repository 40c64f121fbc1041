//! Between planes of pixels, `[N, C, H, W]`, and rows of channels, `[pixel][channel]`.

use super::math::silu;
use super::simd::{LANES, Simd};

/// What becomes of a value on its way from the planes: `f(x * scale + shift)`, scale and shift by image and channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    /// `[N, C]` each.
    pub(crate) scale: *const f32,
    pub(crate) shift: *const f32,
    pub(crate) activation: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Identity,
    Silu,
}

/// One tensor, or two that stand for their concatenation along the channels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes {
    pub(crate) first: *const f32,
    pub(crate) first_channels: usize,
    /// Holds the channels from `first_channels` on.
    pub(crate) second: *const f32,
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) affine: Option<Affine>,
}

// SAFETY: only addresses; see `Shared`.
unsafe impl Send for Planes {}
// SAFETY: as above.
unsafe impl Sync for Planes {}

/// Where rows of channels go: the pixel (row, column) at `to + row * row_stride + column * pixel_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) to: *mut f32,
    pub(crate) row_stride: usize,
    pub(crate) pixel_stride: usize,
    /// Channels stored for each pixel, at most sixteen; those that the planes do not have are zeros.
    pub(crate) stored: usize,
    /// Zero pixels before the first and after the last column.
    pub(crate) before: usize,
    pub(crate) after: usize,
}

impl Planes {
    /// One tensor as it is.
    pub(crate) fn plain(x: *const f32, channels: usize, height: usize, width: usize) -> Self {
        Self { first: x, first_channels: channels, second: std::ptr::null(), channels, height, width, affine: None }
    }

    pub(crate) fn area(&self) -> usize {
        self.height * self.width
    }

    /// The plane of a channel of an image.
    pub(crate) fn plane(&self, image: usize, channel: usize) -> *const f32 {
        let (base, channels, channel) = if channel < self.first_channels {
            (self.first, self.first_channels, channel)
        } else {
            (self.second, self.channels - self.first_channels, channel - self.first_channels)
        };
        base.wrapping_add((image * channels + channel) * self.area())
    }

    /// Writes rows `rows` (which may reach over the edges of the picture; there they are zero) of sixteen channels from
    /// `channel` on.
    ///
    /// # Safety
    /// The planes are valid, and the place they go to.
    #[inline(always)]
    pub(crate) unsafe fn write_rows<S: Simd>(
        &self,
        image: usize,
        channel: usize,
        rows: std::ops::Range<isize>,
        out: Rows,
    ) {
        let height = self.height.cast_signed();
        let inside = rows.start.clamp(0, height)..rows.end.clamp(0, height);
        // SAFETY: rows and columns are those that the caller names.
        unsafe {
            for row in rows.clone() {
                let to = out.to.offset((row - rows.start) * out.row_stride.cast_signed());
                if inside.contains(&row) {
                    zero_pixels::<S>(to, out.before, &out);
                    zero_pixels::<S>(to.add((out.before + self.width) * out.pixel_stride), out.after, &out);
                } else {
                    zero_pixels::<S>(to, out.before + self.width + out.after, &out);
                }
            }
            if !inside.is_empty() {
                let to = out.to.offset((inside.start - rows.start) * out.row_stride.cast_signed());
                let to = to.add(out.before * out.pixel_stride);
                let inside = inside.start.cast_unsigned()..inside.end.cast_unsigned();
                self.copy_inside::<S>((image, channel), inside, Rows { to, ..out });
            }
        }
    }

    /// The part inside the picture, sixteen pixels at a time (several short rows at once).
    #[inline(always)]
    unsafe fn copy_inside<S: Simd>(&self, (image, channel): (usize, usize), rows: std::ops::Range<usize>, out: Rows) {
        let present = LANES.min(self.channels - channel);
        let mut planes = [std::ptr::null(); LANES];
        for (i, plane) in planes.iter_mut().enumerate().take(present) {
            *plane = self.plane(image, channel + i);
        }
        let (mut pixel, end) = (rows.start * self.width, rows.end * self.width);
        let (mut column, mut to) = (0, out.to);
        // SAFETY: pixels from row rows.start to rows.end of planes that exist; each goes to its own place.
        unsafe {
            let mut affine = None;
            if let Some(Affine { scale, shift, activation }) = self.affine {
                let at = image * self.channels + channel;
                affine =
                    Some((S::load_first(scale.add(at), present), S::load_first(shift.add(at), present), activation));
            }
            while pixel < end {
                let count = LANES.min(end - pixel);
                let mut lanes = [S::splat(0.); LANES];
                if count == LANES && present == LANES {
                    for i in 0..LANES {
                        lanes[i] = S::load(planes[i].add(pixel));
                    }
                } else {
                    for i in 0..present {
                        lanes[i] = S::load_first(planes[i].add(pixel), count);
                    }
                }
                S::transpose(&mut lanes);
                if let Some((scale, shift, activation)) = affine {
                    for lane in &mut lanes {
                        *lane = S::fma(*lane, scale, shift);
                    }
                    if activation == Activation::Silu {
                        for lane in &mut lanes {
                            *lane = silu::<S>(*lane);
                        }
                    }
                }
                for i in 0..count {
                    if out.stored == LANES {
                        S::store(to.add(column * out.pixel_stride), lanes[i]);
                    } else {
                        S::store_first(to.add(column * out.pixel_stride), out.stored, lanes[i]);
                    }
                    column += 1;
                    if column == self.width {
                        column = 0;
                        to = to.wrapping_add(out.row_stride);
                    }
                }
                pixel += count;
            }
        }
    }
}

#[inline(always)]
unsafe fn zero_pixels<S: Simd>(to: *mut f32, count: usize, out: &Rows) {
    for i in 0..count {
        // SAFETY: the caller vouches for `count` pixels.
        unsafe { S::store_first(to.add(i * out.pixel_stride), out.stored, S::splat(0.)) };
    }
}

/// Where planes are written: `y = products + bias + residual`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanesOut {
    pub(crate) to: *mut f32,
    pub(crate) channels: usize,
    pub(crate) area: usize,
    /// `[C]`, or null.
    pub(crate) bias: *const f32,
    /// As `to`, or null.
    pub(crate) residual: *const f32,
}

// SAFETY: only addresses; see `Shared`.
unsafe impl Send for PlanesOut {}
// SAFETY: as above.
unsafe impl Sync for PlanesOut {}

impl PlanesOut {
    /// Writes `count` pixels from `pixel` on, of sixteen channels from `channel` on, from rows of channels.
    ///
    /// # Safety
    /// `from` holds the pixels `pixel_stride` apart, sixteen channels each; the planes are valid.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(
        &self,
        (image, channel, pixel): (usize, usize, usize),
        count: usize,
        from: *const f32,
        pixel_stride: usize,
    ) {
        let present = LANES.min(self.channels - channel);
        // SAFETY: the caller vouches for the pixels; channels beyond the last are not touched.
        unsafe {
            let bias = if self.bias.is_null() { S::splat(0.) } else { S::load_first(self.bias.add(channel), present) };
            let mut done = 0;
            while done < count {
                let some = LANES.min(count - done);
                let mut lanes = [S::splat(0.); LANES];
                for i in 0..some {
                    lanes[i] = S::add(S::load(from.add((done + i) * pixel_stride)), bias);
                }
                S::transpose(&mut lanes);
                for i in 0..present {
                    let at = (image * self.channels + channel + i) * self.area + pixel + done;
                    let mut value = lanes[i];
                    if some == LANES {
                        if !self.residual.is_null() {
                            value = S::add(value, S::load(self.residual.add(at)));
                        }
                        S::store(self.to.add(at), value);
                    } else {
                        if !self.residual.is_null() {
                            value = S::add(value, S::load_first(self.residual.add(at), some));
                        }
                        S::store_first(self.to.add(at), some, value);
                    }
                }
                done += some;
            }
        }
    }
}
