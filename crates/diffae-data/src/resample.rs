//! Antialiased resizing of the pixel layouts of decoded pictures.

use fast_image_resize as fir;
use fir::PixelTrait;
use fir::pixels::{F32, U8, U8x3, U16, U16x3};

/// An error of `fast_image_resize`, which has one type per cause.
pub(crate) type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Resizes `from` to the size of `to`, which has the same layout: gray or RGB, of bytes or of 16-bit samples.
///
/// Only these four layouts are compiled: `Resizer::resize` would instantiate all eighteen, for two thirds of what a
/// build of this crate takes.
///
/// # Errors
///
/// The layouts differ, or are none of the four.
pub(crate) fn resize(
    from: &fir::images::Image<'_>,
    to: &mut fir::images::Image<'_>,
    filter: fir::FilterType,
) -> Result<(), BoxedError> {
    match from.pixel_type() {
        fir::PixelType::U8 => resize_typed::<U8>(from.typed_image(), to, filter),
        fir::PixelType::U8x3 => resize_typed::<U8x3>(from.typed_image(), to, filter),
        fir::PixelType::U16 => resize_typed::<U16>(from.typed_image(), to, filter),
        fir::PixelType::U16x3 => resize_typed::<U16x3>(from.typed_image(), to, filter),
        other => Err(format!("pixels of the layout {other:?} are not resized").into()),
    }
}

/// Resizes the bytes of an RGB picture to the size of `to`.
///
/// # Errors
///
/// `to` has another layout, or there are fewer bytes than pixels.
pub(crate) fn resize_rgb8(
    from: &image::RgbImage,
    to: &mut fir::images::Image<'_>,
    filter: fir::FilterType,
) -> Result<(), BoxedError> {
    let view = fir::images::TypedImageRef::from_buffer(from.width(), from.height(), from.as_raw())?;
    resize_typed::<U8x3>(Some(view), to, filter)
}

/// Resizes a plane of numbers with the bilinear filter. Sides are height and width.
///
/// # Errors
///
/// There are fewer numbers than pixels, or no pixels.
pub(crate) fn resize_f32(
    from: &[f32],
    [height, width]: [usize; 2],
    [new_height, new_width]: [usize; 2],
) -> Result<Vec<f32>, BoxedError> {
    let pixels: Vec<F32> = from.iter().map(|&value| F32::new(value)).collect();
    let from = fir::images::TypedImageRef::new(width.try_into()?, height.try_into()?, &pixels)?;
    let mut to = fir::images::TypedImage::<F32>::new(new_width.try_into()?, new_height.try_into()?);
    let algorithm = fir::ResizeAlg::Convolution(fir::FilterType::Bilinear);
    let options = fir::ResizeOptions::new().resize_alg(algorithm).use_alpha(false);
    fir::Resizer::new().resize_typed(&from, &mut to, &options)?;
    Ok(to.pixels().iter().map(|pixel| pixel.0).collect())
}

fn resize_typed<P: PixelTrait>(
    from: Option<fir::images::TypedImageRef<'_, P>>,
    to: &mut fir::images::Image<'_>,
    filter: fir::FilterType,
) -> Result<(), BoxedError> {
    let from = from.ok_or(fir::ResizeError::PixelTypesAreDifferent)?;
    let mut to = to.typed_image_mut::<P>().ok_or(fir::ResizeError::PixelTypesAreDifferent)?;
    let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter)).use_alpha(false);
    Ok(fir::Resizer::new().resize_typed(&from, &mut to, &options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_keeps_even_colors_and_pictures_of_the_right_size() {
        for layout in [fir::PixelType::U8, fir::PixelType::U8x3, fir::PixelType::U16, fir::PixelType::U16x3] {
            let even = fir::images::Image::from_vec_u8(12, 10, vec![77; 120 * layout.size()], layout).unwrap();
            let mut smaller = fir::images::Image::new(5, 4, layout);
            resize(&even, &mut smaller, fir::FilterType::Lanczos3).unwrap();
            assert_eq!(smaller.buffer(), vec![77; 20 * layout.size()], "{layout:?}");

            let bytes = (0..120 * layout.size()).map(|i| u8::try_from(i * 37 % 251).unwrap()).collect();
            let from = fir::images::Image::from_vec_u8(12, 10, bytes, layout).unwrap();
            let mut same = fir::images::Image::new(12, 10, layout);
            resize(&from, &mut same, fir::FilterType::Bilinear).unwrap();
            assert_eq!(same.buffer(), from.buffer(), "{layout:?}");
        }
    }

    #[test]
    fn other_layouts_are_refused() {
        let from = fir::images::Image::new(4, 4, fir::PixelType::U8x2);
        let mut to = fir::images::Image::new(2, 2, fir::PixelType::U8x2);
        assert!(resize(&from, &mut to, fir::FilterType::Bilinear).unwrap_err().to_string().contains("U8x2"));
        let from = fir::images::Image::new(4, 4, fir::PixelType::U8);
        let mut to = fir::images::Image::new(2, 2, fir::PixelType::U16);
        assert!(resize(&from, &mut to, fir::FilterType::Bilinear).is_err());
    }
}
