//! Captions over pictures.

use diffae_infer::TextLine;
use image::{Rgb, RgbImage, imageops};

/// White space around pictures and captions, in pixels.
const GAP: u32 = 4;

/// Draws a line of text above a picture.
pub(crate) fn caption(text: &str, picture: &RgbImage) -> RgbImage {
    let line = TextLine::new(text);
    let width = picture.width().max(line.width() + 2 * GAP);
    let top = line.height() + GAP;
    let mut captioned = RgbImage::from_pixel(width, picture.height() + top, Rgb([255; 3]));
    line.draw(&mut captioned, GAP.into(), 0);
    imageops::replace(&mut captioned, picture, 0, top.into());
    captioned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_written_above_the_picture() {
        let gray = RgbImage::from_pixel(16, 16, Rgb([200; 3]));
        let captioned = caption("mine/recon.json", &gray);
        assert!(captioned.width() > 80, "the whole text is there");
        let top = captioned.height() - 16;
        assert!(captioned.enumerate_pixels().any(|(_, y, pixel)| y < top && pixel.0[0] < 100));
        assert_eq!(captioned.get_pixel(0, top).0, [200; 3]);
    }
}
