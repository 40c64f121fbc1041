//! Many pictures as one.

use image::{Rgb, RgbImage, imageops};

/// White space around each picture of a sheet, in pixels.
const GAP: u32 = 2;
/// Pictures smaller than this are enlarged by whole factors, so that a sheet can be looked at.
const SMALLEST_SIDE: u32 = 96;

/// Lays rows of pictures out on white, left to right and top to bottom, in the given order.
///
/// Small pictures are enlarged by repeating pixels, all by the same factor.
#[must_use]
pub fn sheet(rows: &[Vec<RgbImage>]) -> RgbImage {
    let all = || rows.iter().flatten();
    let width = all().map(RgbImage::width).max().unwrap_or(1);
    let height = all().map(RgbImage::height).max().unwrap_or(1);
    let factor = SMALLEST_SIDE.div_ceil(width.max(height).max(1)).max(1);
    let (cell_width, cell_height) = (width * factor + GAP, height * factor + GAP);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let size = (count(columns) * cell_width + GAP, count(rows.len()) * cell_height + GAP);
    let mut sheet = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
    for (row, pictures) in (0..).zip(rows) {
        for (column, picture) in (0..).zip(pictures) {
            let (width, height) = (picture.width() * factor, picture.height() * factor);
            let enlarged = imageops::resize(picture, width, height, imageops::FilterType::Nearest);
            let (left, top) = (GAP + column * cell_width, GAP + row * cell_height);
            imageops::replace(&mut sheet, &enlarged, left.into(), top.into());
        }
    }
    sheet
}

/// Splits pictures into rows that make the sheet about square.
#[must_use]
pub fn square_rows(pictures: &[RgbImage]) -> Vec<Vec<RgbImage>> {
    let columns = (1..pictures.len()).find(|columns| columns * columns >= pictures.len()).unwrap_or(1);
    pictures.chunks(columns).map(<[RgbImage]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pictures_are_enlarged_and_kept_in_order() {
        let color = |value| RgbImage::from_pixel(32, 32, Rgb([value; 3]));
        let sheet = sheet(&[vec![color(1), color(2)], vec![color(3)]]);
        assert_eq!(sheet.dimensions(), (2 * 98 + 2, 2 * 98 + 2));
        assert_eq!(sheet.get_pixel(50, 50).0, [1; 3]);
        assert_eq!(sheet.get_pixel(150, 50).0, [2; 3]);
        assert_eq!(sheet.get_pixel(50, 150).0, [3; 3]);
        assert_eq!(sheet.get_pixel(150, 150).0, [255; 3]);
    }
}
