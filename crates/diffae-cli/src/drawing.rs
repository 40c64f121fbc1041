//! Plots and captions.

use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use image::{Rgb, RgbImage, imageops};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

const FONT: &str = "sans-serif";
/// Height of letters below which they are hard to read, in pixels.
const LETTER_HEIGHT: u32 = 17;
/// Room for one line of text.
const LINE_HEIGHT: u32 = 24;
/// White space around pictures and captions.
const GAP: u32 = 4;
/// Pictures smaller than this are enlarged by whole factors.
const SMALLEST_SIDE: u32 = 96;

/// A curve of a plot: its name, and points.
pub(crate) type Curve = (String, Vec<(f64, f64)>);

/// Draws curves over one axis, each with its points.
pub(crate) fn plot(title: &str, [x_label, y_label]: [&str; 2], curves: &[Curve]) -> Result<RgbImage> {
    const SIZE: (u32, u32) = (640, 400);
    load_font()?;
    let points = || curves.iter().flat_map(|(_, points)| points);
    let range = |axis: fn(&(f64, f64)) -> f64, room: f64| {
        let low = points().map(axis).fold(f64::INFINITY, f64::min);
        let high = points().map(axis).fold(f64::NEG_INFINITY, f64::max);
        let margin = if high > low { (high - low) * room } else { low.abs().max(1.) * 0.1 };
        (low - margin)..(high + margin)
    };
    let mut pixels = vec![255; (3 * SIZE.0 * SIZE.1) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(range(|point| point.0, 0.03), range(|point| point.1, 0.08))
            .map_err(drawing)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(x_label).y_desc(y_label).label_style((FONT, 15)).axis_desc_style((FONT, 16));
        mesh.draw().map_err(drawing)?;
        for (idx, (name, points)) in curves.iter().enumerate() {
            let color = Palette99::pick(idx).to_rgba();
            let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(4);
            let legend = move |(x, y)| Rectangle::new([(x, y - 2), (x + 16, y + 2)], color.filled());
            chart.draw_series(line).map_err(drawing)?.label(name).legend(legend);
        }
        let mut labels = chart.configure_series_labels();
        labels.label_font((FONT, 15)).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
        labels.position(SeriesLabelPosition::LowerRight).draw().map_err(drawing)?;
        root.present().map_err(drawing)?;
    }
    RgbImage::from_raw(SIZE.0, SIZE.1, pixels).context("a plot has the wrong size")
}

/// A row of a captioned sheet: what is written at its left, and pictures.
pub(crate) struct SheetRow {
    pub(crate) label: String,
    pub(crate) pictures: Vec<RgbImage>,
}

/// Lays rows of pictures out under the names of their columns, each row behind its label. Small pictures are enlarged, all
/// by the same factor.
pub(crate) fn captioned_sheet(columns: &[String], rows: &[SheetRow]) -> Result<RgbImage> {
    load_font()?;
    let all = || rows.iter().flat_map(|row| &row.pictures);
    let width = all().map(RgbImage::width).max().unwrap_or(1);
    let height = all().map(RgbImage::height).max().unwrap_or(1);
    let factor = SMALLEST_SIDE.div_ceil(width.max(height).max(1));
    let (cell_width, cell_height) = (width * factor + GAP, height * factor + GAP);
    let num_columns = rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0).max(columns.len());
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let label_width = match rows.iter().map(|row| text_width(&row.label)).max() {
        Some(width) if width > 0 => width + 3 * GAP,
        _ => 0,
    };
    let header = if columns.is_empty() { 0 } else { LINE_HEIGHT };
    let size = (label_width + count(num_columns) * cell_width + GAP, header + count(rows.len()) * cell_height + GAP);
    let mut sheet = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
    for (column, name) in (0..).zip(columns) {
        let width = text_width(name);
        let left = label_width + GAP + column * cell_width + cell_width.saturating_sub(GAP + width).div_euclid(2);
        write_text(&mut sheet, name, (left, GAP))?;
    }
    for (idx, row) in (0..).zip(rows) {
        let top = header + GAP + idx * cell_height;
        write_text(&mut sheet, &row.label, (GAP, top + cell_height.saturating_sub(LINE_HEIGHT).div_euclid(2)))?;
        for (column, picture) in (0..).zip(&row.pictures) {
            let (width, height) = (picture.width() * factor, picture.height() * factor);
            let enlarged = imageops::resize(picture, width, height, imageops::FilterType::CatmullRom);
            let left = label_width + GAP + column * cell_width;
            imageops::replace(&mut sheet, &enlarged, left.into(), top.into());
        }
    }
    Ok(sheet)
}

/// A picture below a line of text.
pub(crate) fn caption(text: &str, picture: &RgbImage) -> Result<RgbImage> {
    load_font()?;
    let width = picture.width().max(text_width(text) + 2 * GAP);
    let mut captioned = RgbImage::from_pixel(width, picture.height() + LINE_HEIGHT + GAP, Rgb([255; 3]));
    write_text(&mut captioned, text, (GAP, GAP))?;
    imageops::replace(&mut captioned, picture, 0, (LINE_HEIGHT + GAP).into());
    Ok(captioned)
}

/// Writes one line in black; what does not fit is cut off.
fn write_text(picture: &mut RgbImage, text: &str, (left, top): (u32, u32)) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let size = picture.dimensions();
    let style = (FONT, LETTER_HEIGHT).into_text_style(&size).color(&BLACK);
    let place = (i32::try_from(left)?, i32::try_from(top)?);
    let root = BitMapBackend::with_buffer(picture.as_mut(), size).into_drawing_area();
    root.draw(&Text::new(text, place, style)).map_err(drawing)?;
    root.present().map_err(drawing)
}

/// Of a line, in pixels.
fn text_width(text: &str) -> u32 {
    let style = (FONT, LETTER_HEIGHT).into_font();
    style.box_size(text).map_or(0, |(width, _)| width)
}

/// Makes the font known, which is part of the program.
fn load_font() -> Result<()> {
    static LOADED: Once = Once::new();
    let mut loaded = Ok(());
    LOADED.call_once(|| loaded = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT));
    loaded.map_err(|_invalid| anyhow!("the font cannot be read"))
}

#[expect(clippy::needless_pass_by_value, reason = "passed to map_err")]
fn drawing<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dark_pixels(picture: &RgbImage, columns: std::ops::Range<u32>, rows: std::ops::Range<u32>) -> usize {
        let places = rows.flat_map(|y| columns.clone().map(move |x| (x, y)));
        places.filter(|&(x, y)| picture.get_pixel(x, y).0.iter().all(|&value| value < 128)).count()
    }

    #[test]
    fn captions_are_written_beside_the_pictures() {
        let gray = RgbImage::from_pixel(16, 16, Rgb([200; 3]));
        let rows = [SheetRow { label: "Smiling".to_owned(), pictures: vec![gray.clone(), gray] }];
        let columns = ["real".to_owned(), "edited".to_owned()];
        let sheet = captioned_sheet(&columns, &rows).unwrap();
        let label_width = text_width("Smiling") + 3 * GAP;
        assert_eq!(sheet.dimensions(), (label_width + 2 * 100 + GAP, LINE_HEIGHT + 100 + GAP));
        assert!(dark_pixels(&sheet, 0..label_width, LINE_HEIGHT..sheet.height()) > 20);
        assert!(dark_pixels(&sheet, label_width..sheet.width(), 0..LINE_HEIGHT) > 20);
        assert_eq!(dark_pixels(&sheet, label_width..sheet.width(), LINE_HEIGHT..sheet.height()), 0);
        assert_eq!(sheet.get_pixel(label_width + GAP, LINE_HEIGHT + GAP).0, [200; 3]);
        let bare = captioned_sheet(&[], &[SheetRow { label: String::new(), pictures: vec![] }]).unwrap();
        assert_eq!(dark_pixels(&bare, 0..bare.width(), 0..bare.height()), 0);
    }

    #[test]
    fn a_plot_of_one_point_can_be_drawn() {
        let curves = [("random".to_owned(), vec![(10., 20.)]), ("none".to_owned(), vec![])];
        let picture = plot("PSNR", ["steps", "dB"], &curves).unwrap();
        assert!(dark_pixels(&picture, 0..640, 0..400) > 100);
    }
}
