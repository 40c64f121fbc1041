//! Lines of text in pictures, in a font that is part of the crate.

use std::sync::OnceLock;

use ab_glyph::{Font, FontRef, Glyph, ScaleFont, point};
use image::{Rgb, RgbImage};

/// Font size of labels, in pixels per em.
const LABEL_SIZE: f32 = 15.;
/// Line height, as a multiple of the font size.
const LEADING: f32 = 1.45;
/// Replacement for the part cut out of a text that is too long.
const ELLIPSIS: &str = "…";

/// One line of text. Letters are placed by the fractional widths and the kerning of the font, not by whole pixels.
///
/// ```
/// use diffae_infer::TextLine;
///
/// let mut picture = image::RgbImage::from_pixel(200, 40, image::Rgb([255; 3]));
/// let line = TextLine::new("random x_T");
/// line.draw(&mut picture, 4, 4);
/// assert!(line.width() < 100 && picture.pixels().any(|pixel| pixel.0[0] < 100));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TextLine<'a> {
    text: &'a str,
    size: f32,
    color: Rgb<u8>,
}

impl<'a> TextLine<'a> {
    /// Creates a label of 15 pixels per em, almost black.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self { text, size: LABEL_SIZE, color: Rgb([24; 3]) }
    }

    /// Sets the font size, in pixels per em.
    #[must_use]
    pub fn with_size(self, size: f32) -> Self {
        Self { size, ..self }
    }

    /// Sets the color.
    #[must_use]
    pub fn with_color(self, color: Rgb<u8>) -> Self {
        Self { color, ..self }
    }

    /// Returns the width of the text in pixels, rounded up.
    #[must_use]
    pub fn width(&self) -> u32 {
        whole(self.layout().1)
    }

    /// Returns the height of the line in pixels, with its leading.
    #[must_use]
    pub fn height(&self) -> u32 {
        whole(self.size * LEADING)
    }

    /// Returns the text if it is at most `max_width` pixels wide; else its beginning and its end around an ellipsis,
    /// since names of files often differ at their ends.
    #[must_use]
    pub fn fitted(&self, max_width: u32) -> String {
        let fits = |text: &str| TextLine { text, size: self.size, color: self.color }.width() <= max_width;
        if fits(self.text) {
            return self.text.to_owned();
        }
        let letters: Vec<char> = self.text.chars().collect();
        let shortened = |kept: usize| {
            let start: String = letters.iter().take(kept.div_ceil(2)).collect();
            let end: String = letters.iter().skip(letters.len() - (kept >> 1)).collect();
            format!("{start}{ELLIPSIS}{end}")
        };
        (0..letters.len()).rev().map(shortened).find(|text| fits(text)).unwrap_or_default()
    }

    /// Draws the line with its upper left corner at the given place. Parts outside of the picture are left out.
    pub fn draw(&self, picture: &mut RgbImage, left: i64, top: i64) {
        let Some(font) = font() else { return };
        let scaled = font.as_scaled(scale(font, self.size));
        // A whole number, so that letters stand on a row of pixels.
        let leading = self.size * LEADING - (scaled.ascent() - scaled.descent());
        let baseline = (leading / 2. + scaled.ascent()).round();
        for mut glyph in self.layout().0 {
            glyph.position = point(glyph.position.x, baseline);
            let Some(outlined) = scaled.outline_glyph(glyph) else { continue };
            let bounds = outlined.px_bounds();
            #[expect(clippy::cast_possible_truncation, reason = "places within a picture")]
            let (x_0, y_0) = (left + bounds.min.x.floor() as i64, top + bounds.min.y.floor() as i64);
            outlined.draw(|x, y, coverage| {
                let place = (u32::try_from(x_0 + i64::from(x)), u32::try_from(y_0 + i64::from(y)));
                if let (Ok(x), Ok(y)) = place
                    && let Some(pixel) = picture.get_pixel_mut_checked(x, y)
                {
                    *pixel = mix(*pixel, self.color, coverage);
                }
            });
        }
    }

    /// Lays out the letters at fractional places from 0, and returns them with the total width.
    fn layout(&self) -> (Vec<Glyph>, f32) {
        let Some(font) = font() else { return (vec![], 0.) };
        let scale = scale(font, self.size);
        let scaled = font.as_scaled(scale);
        let (mut glyphs, mut at, mut previous) = (vec![], 0., None);
        for letter in self.text.chars().filter(|letter| !letter.is_control()) {
            let id = scaled.glyph_id(letter);
            at += previous.map_or(0., |previous| scaled.kern(previous, id));
            glyphs.push(id.with_scale_and_position(scale, point(at, 0.)));
            at += scaled.h_advance(id);
            previous = Some(id);
        }
        (glyphs, at)
    }
}

/// Mixes two colors, by the share of the second one.
fn mix(below: Rgb<u8>, above: Rgb<u8>, share: f32) -> Rgb<u8> {
    let share = share.clamp(0., 1.);
    let mut mixed = below;
    for (channel, above) in mixed.0.iter_mut().zip(above.0) {
        let value = f32::from(*channel) + (f32::from(above) - f32::from(*channel)) * share;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two bytes")]
        let value = value.round() as u8;
        *channel = value;
    }
    mixed
}

/// Returns the scale that gives an em of `size` pixels.
fn scale(font: &FontRef<'_>, size: f32) -> f32 {
    size * font.height_unscaled() / font.units_per_em().unwrap_or(1000.)
}

fn font() -> Option<&'static FontRef<'static>> {
    static FONT: OnceLock<Option<FontRef<'static>>> = OnceLock::new();
    FONT.get_or_init(|| FontRef::try_from_slice(epaint_default_fonts::UBUNTU_LIGHT).ok()).as_ref()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a width in pixels")]
fn whole(length: f32) -> u32 {
    length.ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns for each column of a line whether it holds ink.
    fn inked(text: &str) -> Vec<bool> {
        let line = TextLine::new(text);
        let mut picture = RgbImage::from_pixel(line.width() + 2, line.height(), Rgb([255; 3]));
        line.draw(&mut picture, 1, 0);
        let has_ink = |x| (0..picture.height()).any(|y| picture.get_pixel(x, y).0[0] < 200);
        (0..picture.width()).map(has_ink).collect()
    }

    /// Returns the widths of the gaps between letters.
    fn gaps(text: &str) -> Vec<usize> {
        let columns = inked(text);
        let runs: Vec<&[bool]> = columns.chunk_by(|a, b| a == b).collect();
        let inner = runs.get(1..runs.len().saturating_sub(1)).unwrap_or_default();
        inner.iter().filter(|run| !run[0]).map(|run| run.len()).collect()
    }

    #[test]
    fn letters_stand_evenly() {
        // With letters at whole pixels these words fell apart: "ran dom", "Win king", "D ark".
        for word in ["random", "Winking", "Dark", "inverted", "Mustache", "Smiling"] {
            let gaps = gaps(word);
            assert!(gaps.iter().all(|&gap| gap <= 3), "{word}: {gaps:?}");
            let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
            assert!(most - least <= 2, "{word}: {gaps:?}");
        }
        // A space is wider than any gap within a word.
        assert!(gaps("random x").iter().any(|&gap| gap >= 4), "{:?}", gaps("random x"));
    }

    #[test]
    fn widths_grow_with_the_text_and_the_size() {
        let width = |text: &str, size: f32| TextLine::new(text).with_size(size).width();
        assert_eq!(width("", 15.), 0);
        assert!(width("ab", 15.) > width("a", 15.) && width("ab", 30.) > width("ab", 15.));
        assert!(width("iiii", 15.) < width("mmmm", 15.));
    }

    #[test]
    fn long_texts_keep_their_ends() {
        let line = TextLine::new("IMG_2024_05_17_123456_0001");
        let short = line.fitted(100);
        assert!(short.starts_with("IMG") && short.ends_with('1') && short.contains('…'), "{short}");
        assert!(TextLine::new(&short).width() <= 100);
        assert_eq!(line.fitted(1000), "IMG_2024_05_17_123456_0001");
        assert_eq!(line.fitted(0), "");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut picture = RgbImage::from_pixel(10, 10, Rgb([255; 3]));
        TextLine::new("wide").draw(&mut picture, -5, -5);
        TextLine::new("wide").draw(&mut picture, 100, 100);
        assert_eq!(picture.dimensions(), (10, 10));
    }
}
