//! Conversion between picture files and f32 tensors in `[-1, 1]`.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use fast_image_resize as fir;
use image::{DynamicImage, RgbImage};

use crate::error::{Error, Result, computing};
use crate::format::PictureFormat;
use crate::geometry::Geometry;
use crate::picture_file::{MAX_DECODED_BYTES, decode};
use crate::raster::{Raster, is_raster};
use crate::resample::{self, BoxedError};

/// Reads a picture file as the reference model sees it: upright, on white where it is transparent, its shorter side
/// resized to `image_size` with an antialiased bilinear filter, then cropped to the center.
///
/// Of an animation the first frame is read. 16-bit pictures keep their precision; floats, which TIFFs may hold, are kept to
/// 16 bits.
///
/// Pictures of other channel counts, volumes, and numbers that a window maps, are those of array files (`.npy`, `.npz`), TIFFs of
/// several pages, `NIfTI` and DICOM files, which are resized by the same rule. The slices of a volume become as many as the format
/// asks for by the same filter, without cropping.
///
/// # Shapes
/// - result: `[C, H, W]` or `[C, D, H, W]` as the format says, f32 in `[-1, 1]`, on the CPU; C is 1 (gray) or 3 (RGB) for formats
///   for the eye.
/// # Errors
/// [`Error::Io`]; [`Error::UnreadPicture`], [`Error::DamagedPicture`] or [`Error::Image`] if the file is no picture of that format,
/// is not whole, or holds what would be lost.
pub fn read_image(path: &Path, format: impl Into<PictureFormat>) -> Result<Tensor> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    picture_from_bytes(&bytes, path, format, None)
}

/// Reads a picture file at its own size: upright, on white where it is transparent, the first frame of an animation.
///
/// # Errors
/// As [`read_image`].
pub fn read_rgb(path: &Path) -> Result<RgbImage> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    rgb_from_bytes(&bytes, path)
}

/// Decodes an encoded picture in memory as [`read_rgb`] does, with `path` as its name in messages.
///
/// # Errors
/// As [`read_image`].
pub fn rgb_from_bytes(bytes: &[u8], path: &Path) -> Result<RgbImage> {
    Ok(on_white(decode(bytes, path)?).into_rgb8())
}

/// A part of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

/// Decodes an encoded picture in memory as [`read_image`] does, with `path` as its name in messages; only a part of it,
/// if `crop` is set.
///
/// # Shapes
/// - result: `[C, H, W]` or `[C, D, H, W]` as the format says, f32 in `[-1, 1]`, on the CPU.
/// # Errors
/// As [`read_image`]; [`Error::UnreadPicture`], too, if the part reaches over the edge.
pub fn picture_from_bytes(
    bytes: &[u8],
    path: &Path,
    format: impl Into<PictureFormat>,
    crop: Option<CropBox>,
) -> Result<Tensor> {
    picture_with_geometry(bytes, path, format, crop).map(|(picture, _)| picture)
}

/// Decodes a picture as [`picture_from_bytes`], and returns also the place in space of the voxels that it has then, where the file
/// tells it.
///
/// # Errors
/// As [`picture_from_bytes`].
pub fn picture_with_geometry(
    bytes: &[u8],
    path: &Path,
    format: impl Into<PictureFormat>,
    crop: Option<CropBox>,
) -> Result<(Tensor, Option<Geometry>)> {
    let format = format.into();
    match format.shape.size.square() {
        Some(size) if format.is_plain() && !is_raster(bytes, path) => {
            let picture = cut_out(decode(bytes, path)?, path, crop)?;
            Ok((tensor_of(on_white(picture), path, (format.shape.channels, size))?, None))
        }
        _ => Raster::decode(bytes, path, format)?.into_tensor(path, format, crop),
    }
}

/// Fails if an encoded picture in memory cannot be read. Numbers of arrays, volumes and pages of a TIFF are to be decoded; whether
/// they are those of a picture, a model decides.
///
/// # Errors
/// As [`rgb_from_bytes`].
pub(crate) fn check_picture(bytes: &[u8], path: &Path) -> Result<()> {
    if is_raster(bytes, path) {
        return Raster::check_file(bytes, path).unwrap_or(Ok(()));
    }
    match rgb_from_bytes(bytes, path) {
        Err(error) => Raster::check_file(bytes, path).filter(Result::is_ok).unwrap_or(Err(error)),
        Ok(_) => Ok(()),
    }
}

/// A filter for downsizing pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeFilter {
    /// The antialiased bilinear filter, for reading pictures.
    Bilinear,
    /// The Lanczos filter with three lobes, for preparing data sets.
    Lanczos,
}

/// Decodes an encoded picture to a square of 8-bit colors, as [`picture_from_bytes`] with a choice of filter and
/// without a tensor.
///
/// # Errors
/// As [`picture_from_bytes`].
pub fn square_from_bytes(
    bytes: &[u8],
    path: &Path,
    image_size: usize,
    crop: Option<CropBox>,
    filter: ResizeFilter,
) -> Result<RgbImage> {
    let picture = on_white(cut_out(decode(bytes, path)?, path, crop)?);
    let resized = Pixels::new(DynamicImage::ImageRgb8(picture.into_rgb8()), 3)?
        .resized_and_cropped(image_size, filter)
        .map_err(|source| Error::Resize { path: path.to_owned(), source })?;
    let side = resized.image.width();
    RgbImage::from_raw(side, side, resized.image.into_vec()).ok_or_else(|| Error::OutOfRange {
        what: "the size of a picture",
        got: format!("{side}x{side}"),
        expected: "sides below 2^32",
    })
}

/// Cuts out a part of a picture.
fn cut_out(picture: DynamicImage, path: &Path, crop: Option<CropBox>) -> Result<DynamicImage> {
    let Some(CropBox { left, top, width, height }) = crop else { return Ok(picture) };
    let fits = left.saturating_add(width) <= picture.width() && top.saturating_add(height) <= picture.height();
    if !fits {
        let (got, need) =
            ((picture.width(), picture.height()), (left.saturating_add(width), top.saturating_add(height)));
        let problem = format!("it has {} by {} pixels, the crop needs {} by {}", got.0, got.1, need.0, need.1);
        return Err(Error::UnreadPicture { path: path.to_owned(), problem });
    }
    Ok(picture.crop_imm(left, top, width, height))
}

/// Resizes and crops an opaque picture.
fn tensor_of(picture: DynamicImage, path: &Path, (channels, image_size): (usize, usize)) -> Result<Tensor> {
    let resized = Pixels::new(picture, channels)?
        .resized_and_cropped(image_size, ResizeFilter::Bilinear)
        .map_err(|source| Error::Resize { path: path.to_owned(), source })?;
    planes_of(resized.values(), image_size, channels)
}

/// Arranges interleaved values of pixels in planes.
fn planes_of(values: Vec<f32>, image_size: usize, channels: usize) -> Result<Tensor> {
    let tensor = Tensor::from_vec(values, (image_size, image_size, channels), &Device::Cpu)
        .and_then(|pixels| pixels.permute((2, 0, 1))?.contiguous()); // [C, H, W]
    computing("making a tensor of a picture", tensor)
}

/// Brings a byte to `[-1, 1]`.
fn unit_range(sample: u8) -> f32 {
    f32::from(sample) / 127.5 - 1.
}

/// Converts a picture in memory to the tensor that [`read_image`] would read from its file.
///
/// # Shapes
/// - result: `[C, H, W]` as the format says, f32 in `[-1, 1]`, on the CPU; C is 1 (gray) or 3 (RGB).
/// # Errors
/// [`Error::UnreadPicture`] if the format has other channels or is one of volumes; [`Error::Resize`] if the picture is empty.
pub fn tensor_from_rgb(picture: &RgbImage, format: impl Into<PictureFormat>) -> Result<Tensor> {
    let (format, path) = (format.into(), Path::new("a picture in memory"));
    let picture = DynamicImage::ImageRgb8(picture.clone());
    match format.shape.size.square() {
        Some(size) if format.is_plain() => tensor_of(picture, path, (format.shape.channels, size)),
        _ => Ok(Raster::of_picture(picture, format.shape.channels).into_tensor(path, format, None)?.0),
    }
}

/// Converts the pixels of a picture to the tensor that [`tensor_from_rgb`] would make of it; pixels of a color picture at
/// that size are read where they are.
///
/// # Shapes
/// - `pixels`: `[height, width, 3]`, a byte per channel; result: `[C, H, W]` as the format says, f32 in `[-1, 1]`, on the CPU.
/// # Errors
/// As [`tensor_from_rgb`]; [`Error::OutOfRange`] unless there are as many pixels.
pub fn tensor_from_pixels(
    pixels: &[u8],
    [height, width]: [usize; 2],
    format: impl Into<PictureFormat>,
) -> Result<Tensor> {
    let format = format.into();
    if pixels.len() != height * width * 3 {
        let got = format!("{} bytes for {height} by {width} pixels", pixels.len());
        return Err(Error::OutOfRange { what: "the size of a picture", got, expected: "three bytes for each pixel" });
    }
    if format.is_plain() && [3, height, width] == format.shape.dims()[..] {
        return planes_of(pixels.iter().map(|&sample| unit_range(sample)).collect(), height, 3);
    }
    let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let picture = RgbImage::from_raw(side(width), side(height), pixels.to_vec()).ok_or_else(|| Error::OutOfRange {
        what: "the size of a picture",
        got: format!("{width}x{height}"),
        expected: "sides below 2^32",
    })?;
    tensor_from_rgb(&picture, format)
}

/// Encodes a PNG with text entries, such as the command that generated it.
///
/// # Errors
/// [`Error::Encode`] with `path` if it cannot be encoded.
pub fn png_bytes(picture: &RgbImage, text: &[(String, String)], path: &Path) -> Result<Vec<u8>> {
    let encode = || -> std::result::Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, value) in text {
            encoder.add_itxt_chunk(key.clone(), value.clone())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(picture.as_raw())?;
        writer.finish()?;
        Ok(bytes)
    };
    encode().map_err(|source| Error::Encode { path: path.to_owned(), source: source.into() })
}

/// Composites a picture with transparency on white.
pub(crate) fn on_white(picture: DynamicImage) -> DynamicImage {
    if !picture.color().has_alpha() {
        return picture;
    }
    let mut pixels = picture.into_rgba16();
    for pixel in pixels.pixels_mut() {
        let alpha = u32::from(pixel[3]);
        for channel in &mut pixel.0[..3] {
            let blended = u32::from(*channel) * alpha + 0xFFFF * (0xFFFF - alpha);
            *channel = u16::try_from(blended.div_ceil(0xFFFF)).unwrap_or(u16::MAX);
        }
        pixel[3] = u16::MAX;
    }
    DynamicImage::ImageRgba16(pixels)
}

/// Interleaved pixels of one channel count and depth.
struct Pixels {
    image: fir::images::Image<'static>,
    channels: usize,
}

impl Pixels {
    fn new(picture: DynamicImage, channels: usize) -> Result<Self> {
        let (width, height) = (picture.width(), picture.height());
        let color = picture.color();
        let deep = color.bytes_per_pixel() > color.channel_count();
        let wide = |samples: Vec<u16>| samples.iter().flat_map(|sample| sample.to_ne_bytes()).collect();
        let (bytes, pixel_type): (Vec<u8>, _) = match (channels, deep) {
            (1, false) => (picture.into_luma8().into_raw(), fir::PixelType::U8),
            (1, true) => (wide(picture.into_luma16().into_raw()), fir::PixelType::U16),
            (3, false) => (picture.into_rgb8().into_raw(), fir::PixelType::U8x3),
            (3, true) => (wide(picture.into_rgb16().into_raw()), fir::PixelType::U16x3),
            _ => return Err(Error::Channels { channels, action: "read from image files" }),
        };
        match fir::images::Image::from_vec_u8(width, height, bytes, pixel_type) {
            Ok(image) => Ok(Self { image, channels }),
            Err(source) => Err(Error::Resize { path: "a picture".into(), source: source.into() }),
        }
    }

    fn resized_and_cropped(self, side: usize, filter: ResizeFilter) -> std::result::Result<Self, BoxedError> {
        let side = u32::try_from(side)?;
        let (width, height) = (self.image.width(), self.image.height());
        let shorter = width.min(height);
        // As in the reference: the longer side is rounded down.
        let scaled = |length: u32| -> std::result::Result<u32, BoxedError> {
            let scaled = u64::from(length) * u64::from(side);
            Ok(u32::try_from(scaled.checked_div(u64::from(shorter)).ok_or("the picture is empty")?)?)
        };
        let (new_width, new_height) = (scaled(width)?, scaled(height)?);
        let bytes = u64::from(new_width) * u64::from(new_height) * self.image.pixel_type().size() as u64;
        if bytes > MAX_DECODED_BYTES {
            return Err(format!("{width}x{height} pixels are too narrow to be resized to {side}").into());
        }
        let mut resized = fir::images::Image::new(new_width, new_height, self.image.pixel_type());
        let filter = match filter {
            ResizeFilter::Bilinear => fir::FilterType::Bilinear,
            ResizeFilter::Lanczos => fir::FilterType::Lanczos3,
        };
        resample::resize(&self.image, &mut resized, filter)?;

        let (left, top) = (half_to_even(new_width - side), half_to_even(new_height - side));
        let pixel_bytes = resized.pixel_type().size();
        let row_bytes = new_width as usize * pixel_bytes;
        let kept = left as usize * pixel_bytes..(left + side) as usize * pixel_bytes;
        let rows = resized.buffer().chunks(row_bytes).skip(top as usize).take(side as usize);
        let cropped = rows.flat_map(|row| row[kept.clone()].to_vec()).collect();
        let image = fir::images::Image::from_vec_u8(side, side, cropped, resized.pixel_type())?;
        Ok(Self { image, channels: self.channels })
    }

    /// Returns samples in `[-1, 1]`, interleaved: `p / 127.5 - 1` for bytes.
    fn values(&self) -> Vec<f32> {
        let buffer = self.image.buffer();
        let is_deep = self.image.pixel_type().size() > self.channels;
        if is_deep {
            let samples = buffer.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
            samples.map(|sample| f32::from(sample) / 32767.5 - 1.).collect()
        } else {
            buffer.iter().map(|&sample| unit_range(sample)).collect()
        }
    }
}

/// Computes `round(n / 2)`, ties to even: the origin of the reference's center crop.
fn half_to_even(n: u32) -> u32 {
    let half = n >> 1;
    if n % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::rgb_from_tensor;
    use image::{ImageBuffer, ImageFormat, Luma, Rgb, Rgba};
    use std::io::Cursor;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn rgb(image_size: usize) -> PictureFormat {
        PictureFormat::new(3, image_size)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn pictures_that_would_fill_the_memory_are_refused() {
        // A screen of 65535 by 65535 pixels, and nothing on it.
        let gif = [&b"GIF89a"[..], &[0xff; 4], &[0, 0, 0, 0x3b]].concat();
        assert!(picture_from_bytes(&gif, Path::new("a.gif"), rgb(64), None).is_err());
        let narrow = RgbImage::new(1, 20_000);
        let error = tensor_from_rgb(&narrow, rgb(256)).unwrap_err();
        assert!(format!("{error:?}").contains("too narrow"), "{error:?}");
        assert!(tensor_from_rgb(&narrow, rgb(4)).is_ok());
    }

    #[test]
    fn pixels_in_place_are_the_picture_of_them() {
        for (width, height, channels, size) in [(8, 8, 3, 8), (8, 8, 1, 8), (12, 9, 3, 8), (5, 5, 3, 8)] {
            let picture = RgbImage::from_fn(width, height, |x, y| {
                let [x, y] = [x, y].map(|place| u8::try_from(place * 17).unwrap());
                Rgb([x, y, x ^ y])
            });
            let sides = [height as usize, width as usize];
            let in_place = tensor_from_pixels(picture.as_raw(), sides, PictureFormat::new(channels, size)).unwrap();
            assert_eq!(
                values(&in_place),
                values(&tensor_from_rgb(&picture, PictureFormat::new(channels, size)).unwrap())
            );
        }
        assert!(matches!(tensor_from_pixels(&[0; 11], [2, 2], rgb(2)), Err(Error::OutOfRange { .. })));
        assert!(matches!(tensor_from_pixels(&[], [0, 0], rgb(2)), Err(Error::Resize { .. })));
    }

    #[test]
    fn bytes_survive_the_round_trip() {
        let folder = folder();
        let picture = RgbImage::from_fn(16, 16, |x, y| Rgb([u8::try_from(x * 16 + y).unwrap(), 255, 0]));
        let path = folder.path().join("a.png");
        picture.save(&path).unwrap();
        let tensor = read_image(&path, rgb(16)).unwrap();
        assert_eq!(rgb_from_tensor(&tensor).unwrap(), picture);
    }

    #[test]
    fn sixteen_bits_are_kept() {
        let folder = folder();
        let picture: ImageBuffer<Luma<u16>, _> = ImageBuffer::from_pixel(4, 4, Luma([1000]));
        let path = folder.path().join("a.png");
        picture.save(&path).unwrap();
        let expected = 1000. / 32767.5 - 1.;
        assert!(
            values(&read_image(&path, PictureFormat::new(1, 4)).unwrap()).iter().all(|v| (v - expected).abs() < 1e-6)
        );
        assert!(values(&read_image(&path, rgb(4)).unwrap()).iter().all(|v| (v - expected).abs() < 1e-6));
    }

    #[test]
    fn transparency_shows_white() {
        let folder = folder();
        let picture: ImageBuffer<Rgba<u8>, _> = ImageBuffer::from_pixel(4, 4, Rgba([10, 20, 30, 0]));
        let path = folder.path().join("a.png");
        picture.save(&path).unwrap();
        assert!(values(&read_image(&path, rgb(4)).unwrap()).iter().all(|&v| (v - 1.).abs() < 1e-6));
    }

    #[test]
    fn the_center_of_the_longer_side_is_kept() {
        let folder = folder();
        let picture = RgbImage::from_fn(32, 8, |x, _| Rgb([if (12..20).contains(&x) { 255 } else { 0 }; 3]));
        let path = folder.path().join("a.bmp");
        picture.save(&path).unwrap();
        assert!(values(&read_image(&path, rgb(8)).unwrap()).iter().all(|&v| (v - 1.).abs() < 1e-6));
    }

    #[test]
    fn a_square_is_what_is_read_and_lanczos_sharpens() {
        let picture = RgbImage::from_fn(60, 40, |x, _| Rgb([if x < 29 { 50 } else { 200 }, 90, 10]));
        let mut bytes = Cursor::new(vec![]);
        picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
        let (bytes, path) = (bytes.into_inner(), Path::new("a.png"));
        let square = |filter| square_from_bytes(&bytes, path, 16, None, filter).unwrap();
        let bilinear = square(ResizeFilter::Bilinear);
        assert_eq!(bilinear, rgb_from_tensor(&picture_from_bytes(&bytes, path, rgb(16), None).unwrap()).unwrap());
        let red = |picture: &RgbImage| picture.pixels().map(|pixel| pixel[0]).collect::<Vec<_>>();
        assert!(red(&bilinear).iter().all(|red| (50..=200).contains(red)));
        assert!(red(&square(ResizeFilter::Lanczos)).iter().any(|red| !(45..=205).contains(red)));
    }

    #[test]
    fn one_pixel_is_a_picture() {
        let folder = folder();
        let path = folder.path().join("a.png");
        RgbImage::from_pixel(1, 1, Rgb([255, 0, 0])).save(&path).unwrap();
        assert_eq!(read_image(&path, rgb(8)).unwrap().dims(), [3, 8, 8]);
    }

    #[test]
    fn text_that_calls_itself_a_picture_is_rejected() {
        let folder = folder();
        let path = folder.path().join("a.png");
        fs::write(&path, "hello").unwrap();
        assert!(matches!(read_image(&path, rgb(8)), Err(Error::UnreadPicture { .. })));
    }

    #[test]
    fn nan_is_no_picture() {
        let tensor = Tensor::full(f32::NAN, (3, 2, 2), &Device::Cpu).unwrap();
        assert!(matches!(rgb_from_tensor(&tensor), Err(Error::NotFinite { .. })));
    }

    #[test]
    fn center_crops_round_half_to_even() {
        assert_eq!([0, 1, 2, 3, 5, 7].map(half_to_even), [0, 0, 1, 2, 2, 4]);
    }
}
