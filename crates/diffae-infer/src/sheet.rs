//! Contact sheets: labeled rows of pictures on one page.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::text::TextLine;

/// White space around each picture and label, in pixels.
const GAP: u32 = 4;
/// White space between blocks of rows placed side by side, in pixels.
const BLOCK_GAP: u32 = 24;
/// Minimum side of a shown picture; smaller ones are enlarged by whole factors.
const MIN_SIDE: u32 = 96;
/// Maximum side of a shown picture; larger ones are reduced.
const MAX_SIDE: u32 = 256;
/// Approximate number of pixels of a page; many pictures are reduced to fit, but not below [`MIN_SIDE`].
const PAGE_PIXELS: u32 = 3_000_000;
/// Maximum width of a page.
const MAX_WIDTH: u32 = 2400;
/// Maximum width of a label; longer ones are shortened.
const MAX_LABEL_WIDTH: u32 = 180;
/// Shape of a page: width over height.
const ASPECT: f64 = 4. / 3.;
/// Maximum number of pictures on a sheet.
const MAX_PICTURES: usize = 400;
/// Maximum number of rows on a sheet.
const MAX_ROWS: usize = 100;

/// A page of pictures: rows with a label each, columns with a title each.
///
/// Rows that would make a strip are continued beside each other, columns that do not fit below each other. A sheet holds at
/// most 100 rows and 400 pictures; what is pushed after that is counted, and a line at the bottom says so.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    title: String,
    columns: Vec<String>,
    rows: Vec<Row>,
    num_left_out: usize,
    max_width: Option<u32>,
    size: CellSize,
}

#[derive(Debug, Clone)]
struct Row {
    label: String,
    pictures: Vec<RgbImage>,
}

/// The size in which pictures are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum CellSize {
    /// Reduced or enlarged so that the whole page can be viewed.
    #[default]
    Fitted,
    /// Full size: every pixel at least once.
    Full,
}

/// Positions of all parts, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    cell: Extent,
    /// Width of the column of labels, with its gaps; 0 without labels.
    label_width: u32,
    /// Height of the line of column titles; 0 without them.
    header_height: u32,
    /// Number of columns side by side.
    num_columns: usize,
    /// Number of blocks of rows side by side.
    num_blocks: usize,
    /// Number of rows of a block.
    num_rows: usize,
    /// Number of parts below each other, each with some of the columns.
    num_parts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    width: u32,
    height: u32,
}

impl Sheet {
    /// Creates an empty sheet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Arranges numbered pictures in rows that make the page about square.
    #[must_use]
    pub fn grid(pictures: &[RgbImage]) -> Self {
        let mut sheet = Self::new();
        let columns = square_side(pictures.len().min(MAX_PICTURES));
        let mut first = 0;
        for row in pictures.chunks(columns) {
            let last = first + row.len() - 1;
            let label = if last == first { first.to_string() } else { format!("{first}–{last}") };
            sheet.push(label, row.to_vec());
            first += row.len();
        }
        sheet
    }

    /// Adds a line at the top.
    #[must_use]
    pub fn with_title(self, title: impl Into<String>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// Adds a title above each column.
    #[must_use]
    pub fn with_columns<T: Into<String>>(self, titles: impl IntoIterator<Item = T>) -> Self {
        Self { columns: titles.into_iter().map(Into::into).collect(), ..self }
    }

    /// Limits the width of the page, 2400 pixels by default.
    #[must_use]
    pub fn with_max_width(self, pixels: u32) -> Self {
        Self { max_width: Some(pixels), ..self }
    }

    /// Adds a row. On a full sheet, the row is only counted.
    pub fn push(&mut self, label: impl Into<String>, pictures: Vec<RgbImage>) {
        if self.is_full() {
            self.num_left_out += 1;
        } else {
            self.rows.push(Row { label: label.into(), pictures });
        }
    }

    /// Returns whether no row was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns whether further rows would not be shown, so that their pictures need not be kept.
    #[must_use]
    pub fn is_full(&self) -> bool {
        if self.size == CellSize::Full || self.rows.is_empty() {
            return false;
        }
        let count = |row: &Row| row.pictures.len();
        let next = self.rows.first().map_or(0, count);
        self.rows.len() >= MAX_ROWS || self.rows.iter().map(count).sum::<usize>() + next > MAX_PICTURES
    }

    /// Counts rows that are not shown.
    pub fn leave_out(&mut self, num_rows: usize) {
        self.num_left_out += num_rows;
    }

    /// Draws the page on white.
    #[must_use]
    pub fn draw(&self) -> RgbImage {
        let layout = self.layout();
        let line = TextLine::new("").height();
        let title_height = if self.title.is_empty() { 0 } else { line };
        let footer = self.footer();
        let footer_height = if footer.is_empty() { 0 } else { line };
        let body = layout.extent();
        let least = [&self.title, &footer].map(|text| match text.as_str() {
            "" => 0,
            text => TextLine::new(text).width() + 2 * GAP,
        });
        let width = least.into_iter().fold(body.width, u32::max);
        let mut page = RgbImage::from_pixel(width, title_height + body.height + footer_height, Rgb([255; 3]));
        TextLine::new(&self.title).draw(&mut page, GAP.into(), 0);
        TextLine::new(&footer).draw(&mut page, GAP.into(), (title_height + body.height).into());
        for part in 0..layout.num_parts {
            for block in 0..layout.num_blocks {
                let left = count(block) * (layout.block_width() + BLOCK_GAP);
                let top = title_height + count(part) * layout.part_height();
                self.draw_block(&mut page, &layout, Block { part, number: block, left, top });
            }
        }
        page
    }

    fn draw_block(&self, page: &mut RgbImage, layout: &Layout, at: Block) {
        let first = at.part * layout.num_columns;
        let Extent { width, height } = layout.cell;
        let left_of = |column: usize| at.left + GAP + layout.label_width + count(column) * (width + GAP);
        let titles = self.columns.iter().skip(first).take(layout.num_columns);
        for (column, title) in titles.enumerate() {
            let title = TextLine::new(title).fitted(width);
            let line = TextLine::new(&title);
            let left = left_of(column) + (width.saturating_sub(line.width()) >> 1);
            line.draw(page, left.into(), (at.top + GAP).into());
        }
        let rows = self.rows.iter().skip(at.number * layout.num_rows).take(layout.num_rows);
        for (row_idx, row) in rows.enumerate() {
            let top = at.top + layout.header_height + GAP + count(row_idx) * (height + GAP);
            let label = TextLine::new(&row.label).fitted(MAX_LABEL_WIDTH);
            let line = TextLine::new(&label);
            line.draw(page, (at.left + GAP).into(), (top + (height.saturating_sub(line.height()) >> 1)).into());
            for (column, picture) in row.pictures.iter().skip(first).take(layout.num_columns).enumerate() {
                let shown = self.shown(picture, layout.cell);
                let (x, y) = (width.saturating_sub(shown.width()) >> 1, height.saturating_sub(shown.height()) >> 1);
                imageops::replace(page, &shown, (left_of(column) + x).into(), (top + y).into());
            }
        }
    }

    /// Scales a picture to its size on the sheet; pixels are repeated or mixed.
    fn shown(&self, picture: &RgbImage, cell: Extent) -> RgbImage {
        let natural = self.natural();
        let scale = f64::from(cell.width) / f64::from(natural.width.max(1));
        let side = |side: u32| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sides of pictures")]
            let side = (f64::from(side) * scale).round() as u32;
            side.max(1)
        };
        let (width, height) = (side(picture.width()), side(picture.height()));
        if (width, height) == picture.dimensions() {
            return picture.clone();
        }
        imageops::resize(picture, width, height, FilterType::CatmullRom)
    }

    /// Returns the width and height of the largest picture.
    fn natural(&self) -> Extent {
        let all = || self.rows.iter().flat_map(|row| &row.pictures);
        let largest = |side: fn(&RgbImage) -> u32| all().map(side).max().unwrap_or(1);
        Extent { width: largest(RgbImage::width), height: largest(RgbImage::height) }
    }

    fn cell(&self) -> Extent {
        let Extent { width, height } = self.natural();
        let largest = width.max(height).max(1);
        let enlarged = largest * MIN_SIDE.div_ceil(largest);
        let num_pictures = self.rows.iter().map(|row| row.pictures.len()).sum::<usize>().max(1);
        let share = (PAGE_PIXELS.checked_div(count(num_pictures)).unwrap_or(0)).isqrt();
        let side = match self.size {
            CellSize::Full => enlarged,
            CellSize::Fitted => enlarged.min(MAX_SIDE).min(share.max(MIN_SIDE)),
        };
        let scaled = |length: u32| (length * side).div_ceil(largest).max(1);
        Extent { width: scaled(width), height: scaled(height) }
    }

    fn layout(&self) -> Layout {
        let cell = self.cell();
        let max_width = self.max_width.unwrap_or(MAX_WIDTH);
        let label = self.rows.iter().map(|row| TextLine::new(&row.label).width().min(MAX_LABEL_WIDTH)).max();
        let label_width = label.filter(|width| *width > 0).map_or(0, |width| width + 2 * GAP);
        let header_height = if self.columns.is_empty() { 0 } else { TextLine::new("").height() };
        let num_columns = self.rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0).max(self.columns.len());
        let room = max_width.saturating_sub(label_width + GAP);
        let fitting = (room.checked_div(cell.width + GAP).unwrap_or(0) as usize).max(1);
        let num_parts = num_columns.div_ceil(fitting).max(1);
        // Parts of about equal width.
        let num_columns = num_columns.div_ceil(num_parts);
        let of_blocks = |num_blocks: usize| Layout {
            cell,
            label_width,
            header_height,
            num_columns,
            num_blocks,
            num_rows: self.rows.len().div_ceil(num_blocks),
            num_parts,
        };
        let mut best = of_blocks(1);
        if num_parts > 1 {
            return best;
        }
        for num_blocks in 2..=self.rows.len() {
            let layout = of_blocks(num_blocks);
            if layout.extent().width > max_width || layout.misshape() >= best.misshape() {
                break;
            }
            best = layout;
        }
        best
    }

    /// Describes the rows and pictures that are not shown.
    fn footer(&self) -> String {
        match self.num_left_out {
            0 => String::new(),
            left_out => format!("the first {} of {} rows are shown", self.rows.len(), self.rows.len() + left_out),
        }
    }
}

/// A part of some rows, with its position on the page.
#[derive(Debug, Clone, Copy)]
struct Block {
    part: usize,
    number: usize,
    left: u32,
    top: u32,
}

impl Layout {
    fn block_width(&self) -> u32 {
        GAP + self.label_width + count(self.num_columns) * (self.cell.width + GAP)
    }

    fn part_height(&self) -> u32 {
        self.header_height + GAP + count(self.num_rows) * (self.cell.height + GAP)
    }

    fn extent(&self) -> Extent {
        let blocks = count(self.num_blocks);
        let width = blocks * self.block_width() + blocks.saturating_sub(1) * BLOCK_GAP;
        Extent { width, height: count(self.num_parts) * self.part_height() }
    }

    /// Returns the deviation from the ideal shape of a page.
    fn misshape(&self) -> f64 {
        let Extent { width, height } = self.extent();
        (f64::from(width) / f64::from(height.max(1)) / ASPECT).ln().abs()
    }
}

/// Lays rows of pictures out on white, left to right and top to bottom, in the given order, without labels. Rows that are too
/// long for a page are continued below.
///
/// Small pictures are enlarged, all by the same whole factor; none is made smaller.
#[must_use]
pub fn sheet(rows: &[Vec<RgbImage>]) -> RgbImage {
    let rows: Vec<Row> = rows.iter().map(|pictures| Row { label: String::new(), pictures: pictures.clone() }).collect();
    // Rows stay below each other.
    let widest = rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0);
    let plain = Sheet { rows, size: CellSize::Full, ..Sheet::default() };
    let width = GAP + count(widest) * (plain.cell().width + GAP);
    plain.with_max_width(width.min(MAX_WIDTH)).draw()
}

/// Splits pictures into rows that make the sheet about square.
#[must_use]
pub fn square_rows(pictures: &[RgbImage]) -> Vec<Vec<RgbImage>> {
    pictures.chunks(square_side(pictures.len())).map(<[RgbImage]>::to_vec).collect()
}

/// Returns the least number whose square is at least `count`.
fn square_side(count: usize) -> usize {
    (1..=count).find(|side| side * side >= count).unwrap_or(1)
}

/// Enlarges small pictures by a whole factor so that the longer side has about 512 pixels, as viewers of animations
/// show each pixel as it is.
#[must_use]
pub fn enlarged_frames(frames: &[RgbImage]) -> Vec<RgbImage> {
    const SIDE: u32 = 512;
    let side = frames.iter().map(|frame| frame.width().max(frame.height())).max().unwrap_or(SIDE).max(1);
    let factor = SIDE.checked_div(side).unwrap_or(1).max(1);
    let enlarged = |frame: &RgbImage| match factor {
        1 => frame.clone(),
        _ => imageops::resize(frame, frame.width() * factor, frame.height() * factor, FilterType::CatmullRom),
    };
    frames.iter().map(enlarged).collect()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn color(value: u8, side: u32) -> RgbImage {
        RgbImage::from_pixel(side, side, Rgb([value; 3]))
    }

    fn has_ink(page: &RgbImage, columns: std::ops::Range<u32>, rows: std::ops::Range<u32>) -> bool {
        rows.flat_map(|y| columns.clone().map(move |x| (x, y))).any(|(x, y)| page.get_pixel(x, y).0[0] < 100)
    }

    #[test]
    fn small_pictures_are_enlarged_and_kept_in_order() {
        let sheet = sheet(&[vec![color(1, 32), color(2, 32)], vec![color(3, 32)]]);
        assert_eq!(sheet.dimensions(), (2 * 100 + 4, 2 * 100 + 4));
        assert_eq!(sheet.get_pixel(50, 50).0, [1; 3]);
        assert_eq!(sheet.get_pixel(150, 50).0, [2; 3]);
        assert_eq!(sheet.get_pixel(50, 150).0, [3; 3]);
        assert_eq!(sheet.get_pixel(150, 150).0, [255; 3]);
    }

    #[test]
    fn frames_that_are_too_many_for_a_row_go_on_below_in_full_size() {
        let frames: Vec<RgbImage> = (0..20).map(|frame| color(frame * 10, 300)).collect();
        let strip = sheet(&[frames]);
        // Three rows of seven, the last one not full.
        assert_eq!(strip.dimensions(), (4 + 7 * 304, 3 * (4 + 304)));
        assert_eq!(strip.get_pixel(150, 150).0, [0; 3]);
        assert_eq!(strip.get_pixel(150, 150 + 308).0, [70; 3]);
        assert_eq!(strip.get_pixel(strip.width() - 50, strip.height() - 50).0, [255; 3]);
    }

    #[test]
    fn rows_and_columns_are_labeled_beside_the_pictures() {
        let mut sheet = Sheet::new().with_columns(["original", "inverted x_T"]).with_title("after 5 images");
        sheet.push("me", vec![color(200, 16), color(220, 16)]);
        let page = sheet.draw();
        let line = TextLine::new("").height();
        let label = TextLine::new("me").width() + 2 * GAP;
        assert_eq!(page.dimensions(), (GAP + label + 2 * 100, 2 * line + GAP + 100));
        // Title, column titles, row label; pictures without ink on them.
        assert!(has_ink(&page, 0..100, 0..line));
        assert!(has_ink(&page, label..label + 100, line..2 * line));
        assert!(has_ink(&page, label + 100..page.width(), line..2 * line));
        assert!(has_ink(&page, 0..label, 2 * line..page.height()));
        assert!(!has_ink(&page, label + GAP..page.width(), 2 * line + GAP..page.height()));
        assert_eq!(page.get_pixel(label + 2 * GAP, 2 * line + 2 * GAP).0, [200; 3]);
        assert_eq!(page.get_pixel(page.width() - 2 * GAP, 2 * line + 2 * GAP).0, [220; 3]);
    }

    #[test]
    fn many_pictures_make_a_page_and_no_strip() {
        for (rows, columns, side) in [(26, 2, 64), (100, 2, 64), (1000, 2, 256), (40, 9, 128), (3, 2, 512), (1, 60, 64)]
        {
            let mut sheet = Sheet::new().with_columns((0..columns).map(|column| column.to_string()));
            for row in 0..rows {
                sheet.push(format!("picture {row}"), vec![color(100, side); columns]);
            }
            let Extent { width, height } = sheet.layout().extent();
            let aspect = f64::from(width) / f64::from(height);
            assert!((0.45..=3.5).contains(&aspect), "{rows} rows of {columns}: {width} x {height}");
            assert!(width <= MAX_WIDTH && height <= 2700, "{rows} rows of {columns}: {width} x {height}");
        }
    }

    #[test]
    fn what_is_left_out_is_said() {
        let mut sheet = Sheet::new();
        for row in 0..150 {
            sheet.push(row.to_string(), vec![color(250, 8)]);
        }
        assert!(sheet.is_full());
        assert_eq!(sheet.footer(), "the first 100 of 150 rows are shown");
        let page = sheet.draw();
        let line = TextLine::new("").height();
        assert!(has_ink(&page, 0..200, page.height() - line..page.height()));
        sheet.leave_out(850);
        assert_eq!(sheet.footer(), "the first 100 of 1000 rows are shown");
    }

    #[test]
    fn grids_are_numbered() {
        let pictures: Vec<RgbImage> = (0..10).map(|number| color(number, 8)).collect();
        let grid = Sheet::grid(&pictures);
        let labels: Vec<&str> = grid.rows.iter().map(|row| row.label.as_str()).collect();
        assert_eq!(labels, ["0–3", "4–7", "8–9"]);
        assert_eq!(Sheet::grid(&[]).draw().width(), GAP);
    }

    #[test]
    fn pictures_of_other_sizes_are_centered_in_their_cells() {
        let mut sheet = Sheet::new();
        sheet.push("", vec![color(10, 100), RgbImage::from_pixel(50, 100, Rgb([20; 3]))]);
        let page = sheet.draw();
        assert_eq!(page.get_pixel(GAP + 104 + 50, 50).0, [20; 3]);
        assert_eq!(page.get_pixel(GAP + 104 + 10, 50).0, [255; 3]);
    }

    #[test]
    fn frames_become_large_enough_for_a_viewer() {
        assert_eq!(enlarged_frames(&[color(7, 64)])[0].dimensions(), (512, 512));
        assert_eq!(enlarged_frames(&[color(7, 96)])[0].dimensions(), (480, 480));
        assert_eq!(enlarged_frames(&[color(7, 300)])[0].dimensions(), (300, 300));
        assert_eq!(enlarged_frames(&[color(7, 64)])[0].get_pixel(9, 500).0, [7; 3]);
        assert!(enlarged_frames(&[]).is_empty());
    }
}
