//! Conversion between planes of pixels, `[N, C, H, W]`, and rows of channels, `[pixel][channel]`.

use super::length::{LengthResult, check_length};
use super::math::silu;
use super::parallel::Shared;
use super::simd::{LANES, Simd};

/// Activation that follows the affine map of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// No activation: `u`.
    Identity,
    /// SiLU: `u * sigmoid(u)`.
    Silu,
}

/// Affine map and activation of values as they are read from planes: `f(x * scale + shift)`, by image and channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    /// Factor, `[N, C]`.
    pub(crate) scale: &'a [f32],
    /// Summand, `[N, C]`.
    pub(crate) shift: &'a [f32],
    pub(crate) activation: Activation,
}

/// A tensor `[N, C, H, W]`, or two that stand for their concatenation along the channels.
///
/// A volume `[N, C, D, H, W]` may be viewed as N D images, its slices, that have the channels of their neighbors, too: channel
/// `k C + c` is channel c of slice `d + k - (K - 1) / 2`, and zero beyond the volume, K being the number of taps. So a convolution
/// in three dimensions is one in two with K times the channels.
///
/// The slices have the lengths that the sizes ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes<'a> {
    first: &'a [f32],
    first_channels: usize,
    /// Values of the channels from `first_channels` on.
    second: Option<&'a [f32]>,
    /// Number of images or volumes.
    items: usize,
    /// Number of channels of an item.
    item_channels: usize,
    /// Number of slices of an item, D; 1 for an image.
    slices: usize,
    /// Number of slices whose channels an image has, K.
    taps: usize,
    height: usize,
    width: usize,
    affine: Option<Affine<'a>>,
}

/// Sixteen channels of one image.
struct Lanes<'a> {
    /// Plane of each channel, empty where there is none.
    planes: [&'a [f32]; LANES],
    /// Scale and shift of each channel, zeros without an affine map.
    scale: [f32; LANES],
    shift: [f32; LANES],
    /// True if there are planes of all channels.
    all: bool,
}

/// First pixel of sixteen channels of one image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) image: usize,
    pub(crate) channel: usize,
    pub(crate) pixel: usize,
}

/// Layout of rows of channels: the pixel (row, column) lies at `to + row * row_stride + column * pixel_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) to: *mut f32,
    pub(crate) row_stride: usize,
    pub(crate) pixel_stride: usize,
    /// Number of channels stored for each pixel, at most sixteen; those that the planes do not have are zeros.
    pub(crate) stored: usize,
    /// Number of zero pixels before the first column.
    pub(crate) before: usize,
    /// Number of zero pixels after the last column.
    pub(crate) after: usize,
}

impl<'a> Planes<'a> {
    /// Views `x` as `[N, C, H, W]`.
    ///
    /// # Errors
    /// If the length of `x` is another.
    pub(crate) fn new(x: &'a [f32], shape: [usize; 4]) -> LengthResult<Self> {
        Self::joined(x, None, shape)
    }

    /// Views `first`, `[N, A, H, W]`, and `second`, `[N, C - A, H, W]`, as their concatenation `[N, C, H, W]`; A follows
    /// from the lengths.
    ///
    /// # Errors
    /// If there is no such A.
    pub(crate) fn joined(first: &'a [f32], second: Option<&'a [f32]>, shape: [usize; 4]) -> LengthResult<Self> {
        let [images, channels, height, width] = shape;
        let len = first.len() + second.map_or(0, <[f32]>::len);
        check_length("a tensor of planes", len, &shape)?;
        let values = images * height * width;
        let first_channels = match second {
            Some(_) => first.len().checked_div(values).unwrap_or(0),
            None => channels,
        };
        check_length("the first tensor of planes", first.len(), &[images, first_channels, height, width])?;
        let [items, item_channels] = [images, channels];
        Ok(Self {
            first,
            first_channels,
            second,
            items,
            item_channels,
            slices: 1,
            taps: 1,
            height,
            width,
            affine: None,
        })
    }

    /// Views images whose height is cut into slices as volumes: N D images with the channels of `taps` slices, an odd number.
    ///
    /// # Errors
    /// If the height cannot be cut so.
    pub(crate) fn in_slices(self, slices: usize, taps: usize) -> LengthResult<Self> {
        let height = self.height.checked_div(slices).unwrap_or(0);
        check_length("the rows of a volume", self.height, &[slices, height])?;
        Ok(Self { slices: self.slices * slices, taps, height, ..self })
    }

    /// Applies an affine map and an activation wherever the planes are read.
    ///
    /// # Errors
    /// If scale or shift is not `[N, C]`.
    pub(crate) fn with_affine(self, affine: Affine<'a>) -> LengthResult<Self> {
        check_length("the scale of planes", affine.scale.len(), &[self.items, self.item_channels])?;
        check_length("the shift of planes", affine.shift.len(), &[self.items, self.item_channels])?;
        Ok(Self { affine: Some(affine), ..self })
    }

    /// Number of images, N, or of slices of all volumes.
    pub(crate) fn images(&self) -> usize {
        self.items * self.slices
    }

    /// Number of channels of both tensors, C, or of all taps.
    pub(crate) fn channels(&self) -> usize {
        self.item_channels * self.taps
    }

    /// Number of slices whose channels an image has, K; 1 for images.
    pub(crate) fn taps(&self) -> usize {
        self.taps
    }

    /// Views slices with their own channels alone.
    pub(crate) fn without_neighbors(self) -> Self {
        Self { taps: 1, ..self }
    }

    /// Number of slices of an item, D; 1 for an image.
    pub(crate) fn slices(&self) -> usize {
        self.slices
    }

    /// Height of an image, H.
    pub(crate) fn height(&self) -> usize {
        self.height
    }

    /// Width of an image, W.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Number of pixels of a plane, `H * W`.
    pub(crate) fn area(&self) -> usize {
        self.height * self.width
    }

    /// Affine map that is applied wherever the planes are read.
    pub(crate) fn affine(&self) -> Option<Affine<'a>> {
        self.affine
    }

    /// Values of one channel of one image as they are stored, `[H * W]`.
    ///
    /// # Panics
    /// If there is no such image or channel: a fault of a kernel, as an index out of range is.
    #[inline(always)]
    pub(crate) fn plane(&self, image: usize, channel: usize) -> &'a [f32] {
        self.slice(image, 0, channel)
    }

    /// Values of one channel of one slice of an item.
    #[inline(always)]
    fn slice(&self, item: usize, slice: usize, channel: usize) -> &'a [f32] {
        let (base, channels, channel) = match self.second {
            Some(second) if channel >= self.first_channels => {
                (second, self.item_channels - self.first_channels, channel - self.first_channels)
            }
            _ => (self.first, self.first_channels, channel),
        };
        let area = self.area();
        &base[((item * channels + channel) * self.slices + slice) * area..][..area]
    }

    /// Splits the number of an image into those of the item and of its slice.
    #[inline(always)]
    fn item_of(&self, image: usize) -> (usize, usize) {
        if self.slices == 1 { (image, 0) } else { (image / self.slices, image % self.slices) }
    }

    /// Finds sixteen channels of an image, of which there are `present`: their planes, and scale and shift of each. Those of slices
    /// beyond the volume have no plane, and zeros, which any activation leaves as they are.
    #[inline(always)]
    fn lanes(&self, image: usize, channel: usize, present: usize) -> Lanes<'a> {
        let (item, slice) = self.item_of(image);
        let mut lanes = Lanes { planes: [&[]; LANES], scale: [0.; LANES], shift: [0.; LANES], all: present == LANES };
        if self.taps == 1 {
            for i in 0..present {
                lanes.planes[i] = self.slice(item, slice, channel + i);
            }
            if let Some(Affine { scale, shift, .. }) = self.affine {
                let at = item * self.item_channels + channel;
                lanes.scale[..present].copy_from_slice(&scale[at..][..present]);
                lanes.shift[..present].copy_from_slice(&shift[at..][..present]);
            }
            return lanes;
        }
        for i in 0..present {
            let (tap, channel) = ((channel + i) / self.item_channels, (channel + i) % self.item_channels);
            let neighbor = (slice + tap).checked_sub(self.taps >> 1).filter(|&slice| slice < self.slices);
            let Some(slice) = neighbor else {
                lanes.all = false;
                continue;
            };
            lanes.planes[i] = self.slice(item, slice, channel);
            if let Some(Affine { scale, shift, .. }) = self.affine {
                let at = item * self.item_channels + channel;
                (lanes.scale[i], lanes.shift[i]) = (scale[at], shift[at]);
            }
        }
        lanes
    }

    /// Writes rows `rows` of sixteen channels from `channel` on as rows of channels; rows beyond the edges of the image
    /// are zeros.
    ///
    /// # Safety
    /// `out` has room for `rows.len()` rows of `before + W + after` pixels of `stored` channels each, and nobody else
    /// reads or writes those. The image and the channel exist. The instruction set is available.
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
        // SAFETY: only rows from 0 to `rows.len()` and columns from 0 to `before + W + after` of `out` are touched.
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
                self.copy_inside::<S>(image, channel, inside, Rows { to, ..out });
            }
        }
    }

    /// Writes rows inside the image, sixteen pixels at a time (several short rows at once).
    ///
    /// # Safety
    /// That of [`Self::write_rows`], and `rows` lies in `0..H`.
    #[inline(always)]
    unsafe fn copy_inside<S: Simd>(&self, image: usize, channel: usize, rows: std::ops::Range<usize>, out: Rows) {
        let present = LANES.min(self.channels() - channel);
        let Lanes { planes, scale, shift, all } = self.lanes(image, channel, present);
        let (mut pixel, end) = (rows.start * self.width, rows.end * self.width);
        let (mut column, mut to) = (0, out.to);
        // SAFETY: `pixel + count <= end <= H * W`, the length of each plane, and only planes that were found are read; scales and
        // shifts have sixteen values. Every pixel goes to its own place in `out`.
        unsafe {
            let affine =
                self.affine.map(|affine| (S::load(scale.as_ptr()), S::load(shift.as_ptr()), affine.activation));
            while pixel < end {
                let count = LANES.min(end - pixel);
                let mut lanes = [S::splat(0.); LANES];
                if count == LANES && all {
                    for i in 0..LANES {
                        lanes[i] = S::load(planes[i].as_ptr().add(pixel));
                    }
                } else {
                    for i in 0..present {
                        if !planes[i].is_empty() {
                            lanes[i] = S::load_first(planes[i].as_ptr().add(pixel), count);
                        }
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

/// Writes `count` pixels of zeros.
///
/// # Safety
/// From `to` on, `out` has room for that many pixels. The instruction set is available.
#[inline(always)]
unsafe fn zero_pixels<S: Simd>(to: *mut f32, count: usize, out: &Rows) {
    for i in 0..count {
        // SAFETY: the caller vouches for `count` pixels.
        unsafe { S::store_first(to.add(i * out.pixel_stride), out.stored, S::splat(0.)) };
    }
}

/// Planes that are written: `y = products + bias + residual`, `[N, C, D, area]`, of which an image is a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanesOut<'a> {
    to: Shared<'a, f32>,
    channels: usize,
    slices: usize,
    area: usize,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
}

impl<'a> PlanesOut<'a> {
    /// Views `to` as `[N, C, D, area]`, D being 1 for images. `bias`: `[C]`; `residual`: as `to`.
    pub(crate) fn new(
        to: Shared<'a, f32>,
        [channels, slices, area]: [usize; 3],
        bias: Option<&'a [f32]>,
        residual: Option<&'a [f32]>,
    ) -> Self {
        Self { to, channels, slices, area, bias, residual }
    }

    /// Writes `count` pixels of sixteen channels from a place on, from rows of channels.
    ///
    /// # Safety
    /// `from` holds `count` pixels `pixel_stride` apart, sixteen channels each. The channel exists, and nobody else
    /// writes these pixels. The instruction set is available.
    /// # Panics
    /// If the pixels lie outside the planes, bias or residual.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(
        &self,
        Place { image, channel, pixel }: Place,
        count: usize,
        from: *const f32,
        pixel_stride: usize,
    ) {
        let present = LANES.min(self.channels - channel);
        let (item, slice) = if self.slices == 1 { (image, 0) } else { (image / self.slices, image % self.slices) };
        let start = ((item * self.channels + channel) * self.slices + slice) * self.area + pixel;
        let stride = self.slices * self.area;
        let len = (present - 1) * stride + count;
        let to = self.to.part(start, len);
        let residual = self.residual.map(|residual| &residual[start..start + len]);
        // SAFETY: the caller vouches for `from`. Channel `i < present`, pixel `done + some <= count` lies at
        // `i * stride + done < len` of `to` and of `residual`, which have `len` elements.
        unsafe {
            let bias = match self.bias {
                Some(bias) => S::load_first(bias[channel..channel + present].as_ptr(), present),
                None => S::splat(0.),
            };
            let mut done = 0;
            while done < count {
                let some = LANES.min(count - done);
                let mut lanes = [S::splat(0.); LANES];
                for i in 0..some {
                    lanes[i] = S::add(S::load(from.add((done + i) * pixel_stride)), bias);
                }
                S::transpose(&mut lanes);
                for i in 0..present {
                    let at = i * stride + done;
                    let mut value = lanes[i];
                    if some == LANES {
                        if let Some(residual) = residual {
                            value = S::add(value, S::load(residual.as_ptr().add(at)));
                        }
                        S::store(to.add(at), value);
                    } else {
                        if let Some(residual) = residual {
                            value = S::add(value, S::load_first(residual.as_ptr().add(at), some));
                        }
                        S::store_first(to.add(at), some, value);
                    }
                }
                done += some;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_have_the_values_of_their_shape() {
        let values = [0.; 24];
        assert!(Planes::new(&values, [1, 2, 3, 4]).is_ok());
        assert!(Planes::new(&values[1..], [1, 2, 3, 4]).is_err());
        assert!(Planes::new(&values, [1, 2, 3, 3]).is_err());
        assert!(Planes::new(&[], [1, 0, 1 << 40, 1 << 20]).is_err());
    }

    #[test]
    fn joined_planes_split_between_whole_channels_of_all_images() {
        let values: Vec<f32> = (0..24u8).map(f32::from).collect();
        let (a, b) = values.split_at(8);
        let planes = Planes::joined(a, Some(b), [2, 3, 2, 2]).unwrap();
        assert_eq!(planes.plane(1, 0), &values[4..8]);
        assert_eq!(planes.plane(1, 1), &values[16..20]);
        let (a, b) = values.split_at(12);
        assert!(Planes::joined(a, Some(b), [2, 3, 2, 2]).is_err());
        assert!(Planes::joined(a, Some(&b[1..]), [2, 3, 2, 2]).is_err());
        assert!(Planes::joined(a, None, [2, 3, 2, 2]).is_err());
    }

    #[test]
    fn affine_maps_have_a_value_for_each_image_and_channel() {
        let (values, six) = ([0.; 24], [0.; 6]);
        let planes = Planes::new(&values, [2, 3, 2, 2]).unwrap();
        let activation = Activation::Silu;
        assert!(planes.with_affine(Affine { scale: &six, shift: &six, activation }).is_ok());
        assert!(planes.with_affine(Affine { scale: &six[1..], shift: &six, activation }).is_err());
        assert!(planes.with_affine(Affine { scale: &six, shift: &six[..3], activation }).is_err());
    }
}
