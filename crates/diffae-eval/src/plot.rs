//! Plots: curves with intervals over one axis, their legend beside them.

use diffae_infer::TextLine;
use image::{Rgb, RgbImage};

/// The colors of Okabe and Ito, which all common kinds of color vision tell apart; black and yellow are left out.
const COLORS: [Rgb<u8>; 6] = [
    Rgb([0, 114, 178]),
    Rgb([213, 94, 0]),
    Rgb([0, 158, 115]),
    Rgb([204, 121, 167]),
    Rgb([230, 159, 0]),
    Rgb([86, 180, 233]),
];
const MARKERS: [Marker; 5] = [Marker::Disk, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::Cross];
const INK: Rgb<u8> = Rgb([40; 3]);
const GRID: Rgb<u8> = Rgb([226; 3]);
/// Width and height of the area that the curves are drawn in, in pixels.
const AREA: (i64, i64) = (560, 360);
/// Room above the area, for the title and the name of the vertical axis.
const TOP: i64 = 62;
/// Room below the area, for ticks and the name of the horizontal axis.
const BOTTOM: i64 = 56;
/// Room between parts.
const GAP: i64 = 12;
/// Width in pixels above which names of curves are shortened.
const MAX_NAME_WIDTH: u32 = 360;
/// Length of the line before a name in the legend.
const SAMPLE: f64 = 34.;
const LINE_WIDTH: f64 = 2.2;
/// Half the size of a marker.
const MARKER_RADIUS: f64 = 5.;
/// Distance in pixels by which curves are moved apart sideways where one would hide another.
const SHIFT: f64 = 7.;
/// Half the length of the bars at the ends of an interval.
const WHISKER: f64 = 4.;

/// Curves over one axis.
#[derive(Debug)]
pub struct Plot<'a> {
    /// Title, above the area.
    pub title: &'a str,
    /// Name of the horizontal axis.
    pub x_label: &'a str,
    /// Name of the vertical axis.
    pub y_label: &'a str,
    /// The curves.
    pub curves: &'a [Curve],
}

/// A curve: its name and its points, from left to right.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Points, from left to right.
    pub points: Vec<Point>,
}

/// A point of a curve, with its interval if that is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Place on the horizontal axis.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Ends of the interval, if it is known.
    pub interval: Option<[f64; 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Disk,
    Square,
    Triangle,
    Diamond,
    Cross,
}

/// Range and ticks of one side of the area.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    decimals: usize,
}

/// A position in pixels.
#[derive(Debug, Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
}

/// The picture, with the position of the area of the curves.
struct Canvas {
    picture: RgbImage,
    left: i64,
    x: Axis,
    y: Axis,
}

impl Plot<'_> {
    /// Draws the plot.
    #[must_use]
    pub fn draw(&self) -> RgbImage {
        let all = || self.curves.iter().flat_map(|curve| &curve.points);
        let x = Axis::horizontal(all().map(|point| point.x).collect());
        let bounds = |point: &Point| {
            let interval = point.interval.unwrap_or([point.y; 2]);
            [interval[0], point.y, interval[1]]
        };
        let y = Axis::new(all().flat_map(bounds).collect(), 0.06);
        let widest = y.ticks.iter().map(|&tick| TextLine::new(&y.text(tick)).width()).max().unwrap_or(0);
        let left = i64::from(widest) + 2 * GAP;
        let names: Vec<String> = self.curves.iter().map(|c| TextLine::new(&c.name).fitted(MAX_NAME_WIDTH)).collect();
        let name_width = names.iter().map(|name| TextLine::new(name).width()).max().unwrap_or(0);
        #[expect(clippy::cast_possible_truncation, reason = "a few pixels")]
        let legend = 2 * GAP + SAMPLE as i64 + GAP + i64::from(name_width) + GAP;
        let size = [left + AREA.0 + legend, TOP + AREA.1 + BOTTOM].map(|side| u32::try_from(side).unwrap_or(1));
        let picture = RgbImage::from_pixel(size[0], size[1], Rgb([255; 3]));
        let mut canvas = Canvas { picture, left, x, y };
        canvas.axes(self);
        let spread = if canvas.hides(self.curves) { SHIFT } else { 0. };
        for (idx, curve) in self.curves.iter().enumerate() {
            let middle = self.curves.len().saturating_sub(1) as f64 / 2.;
            canvas.curve(idx, curve, spread * (idx as f64 - middle));
        }
        for (idx, name) in names.iter().enumerate() {
            canvas.legend(idx, name);
        }
        canvas.picture
    }
}

impl Axis {
    /// Builds an axis of some values with a margin, a share of their range, at both ends; its ticks are round numbers.
    fn new(values: Vec<f64>, margin: f64) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let [low, high] = if low.is_finite() && high.is_finite() { [low, high] } else { [0., 1.] };
        let room = if high > low { (high - low) * margin } else { low.abs().max(1.) * 0.1 };
        let (low, high) = (low - room, high + room);
        let step = round_step((high - low) / 6.);
        let first = (low / step).ceil();
        let ticks = (0..20).map(|idx| (first + f64::from(idx)) * step).take_while(|tick| *tick <= high).collect();
        Self { low, high, ticks, decimals: decimals_of(step) }
    }

    /// Builds an axis of settings: whole numbers stay whole, and few of them get ticks at their own values.
    fn horizontal(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        values.dedup();
        let are_whole = values.iter().all(|value| value.fract() == 0.);
        let mut axis = Self::new(values.clone(), 0.04);
        if are_whole && !values.is_empty() {
            axis.decimals = 0;
            axis.ticks.retain(|tick| tick.fract() == 0.);
            if values.len() <= 8 && axis.have_room(&values) {
                axis.ticks = values;
            }
        }
        axis
    }

    /// Returns whether ticks at these values, in rising order, can be read.
    fn have_room(&self, ticks: &[f64]) -> bool {
        let place = |value: f64| (value - self.low) / (self.high - self.low) * AREA.0 as f64;
        ticks.windows(2).all(|pair| {
            let [one, other] = [pair[0], pair[1]];
            let widths = [one, other].map(|value| f64::from(TextLine::new(&self.text(value)).width()));
            place(other) - place(one) > f64::midpoint(widths[0], widths[1]) + 6.
        })
    }

    fn text(&self, value: f64) -> String {
        // Rounding must not show as "-0".
        let value = if value == 0. { 0. } else { value };
        format!("{value:.*}", self.decimals)
    }
}

/// Returns the smallest of 1, 2, 5, 10, .. that is not below the wanted step.
fn round_step(wanted: f64) -> f64 {
    let power = 10_f64.powf(wanted.log10().floor());
    [1., 2., 5., 10.].into_iter().map(|factor| factor * power).find(|step| *step >= wanted * 0.999).unwrap_or(power)
}

/// Returns the number of decimals that tell multiples of a step apart.
fn decimals_of(step: f64) -> usize {
    let is_whole = |decimals: &i32| {
        let scaled = step * 10_f64.powi(*decimals);
        (scaled - scaled.round()).abs() < 1e-6
    };
    (0..12).find(is_whole).map_or(12, i32::unsigned_abs) as usize
}

impl Canvas {
    /// Returns the position of a point of the curves.
    fn place(&self, x: f64, y: f64) -> Place {
        let share = |axis: &Axis, value: f64| (value - axis.low) / (axis.high - axis.low);
        Place {
            x: self.left as f64 + share(&self.x, x) * AREA.0 as f64,
            y: TOP as f64 + (1. - share(&self.y, y)) * AREA.1 as f64,
        }
    }

    fn axes(&mut self, plot: &Plot<'_>) {
        let (left, right, bottom) = (self.left, self.left + AREA.0, TOP + AREA.1);
        for tick in self.x.ticks.clone() {
            let Place { x, .. } = self.place(tick, self.y.low);
            self.line(Place { x, y: TOP as f64 }, Place { x, y: bottom as f64 }, 1., GRID);
            let text = self.x.text(tick);
            #[expect(clippy::cast_possible_truncation, reason = "places within a picture")]
            self.centered(&text, x.round() as i64, bottom + 4);
        }
        for tick in self.y.ticks.clone() {
            let Place { y, .. } = self.place(self.x.low, tick);
            self.line(Place { x: left as f64, y }, Place { x: right as f64, y }, 1., GRID);
            let text = self.y.text(tick);
            let line = TextLine::new(&text);
            #[expect(clippy::cast_possible_truncation, reason = "places within a picture")]
            let top = y.round() as i64 - i64::from(line.height() >> 1);
            line.draw(&mut self.picture, left - 6 - i64::from(line.width()), top);
        }
        let corner = Place { x: left as f64, y: bottom as f64 };
        self.line(Place { x: left as f64, y: TOP as f64 }, corner, 1.4, INK);
        self.line(corner, Place { x: right as f64, y: bottom as f64 }, 1.4, INK);
        TextLine::new(plot.title).with_size(18.).draw(&mut self.picture, GAP, 6);
        TextLine::new(plot.y_label).draw(&mut self.picture, GAP, TOP - 28);
        self.centered(plot.x_label, left + (AREA.0 >> 1), bottom + 28);
    }

    fn centered(&mut self, text: &str, x: i64, top: i64) {
        let line = TextLine::new(text);
        line.draw(&mut self.picture, x - i64::from(line.width() >> 1), top);
    }

    /// Returns whether a marker of one curve would cover one of another.
    fn hides(&self, curves: &[Curve]) -> bool {
        let places =
            |curve: &Curve| -> Vec<Place> { curve.points.iter().map(|point| self.place(point.x, point.y)).collect() };
        let places: Vec<Vec<Place>> = curves.iter().map(places).collect();
        let covers = |a: &Place, b: &Place| (a.x - b.x).hypot(a.y - b.y) < 2. * MARKER_RADIUS;
        let meet = |one: &[Place], other: &[Place]| one.iter().any(|a| other.iter().any(|b| covers(a, b)));
        places.iter().enumerate().any(|(idx, one)| places[idx + 1..].iter().any(|other| meet(one, other)))
    }

    /// Draws a curve, `shift` pixels to the right of its place.
    fn curve(&mut self, idx: usize, curve: &Curve, shift: f64) {
        let color = color(idx);
        let shifted = |at: Place| Place { x: at.x + shift, ..at };
        let places: Vec<Place> = curve.points.iter().map(|point| shifted(self.place(point.x, point.y))).collect();
        for pair in places.windows(2) {
            self.line(pair[0], pair[1], LINE_WIDTH, color);
        }
        for (point, place) in curve.points.iter().zip(&places) {
            if let Some([low, high]) = point.interval {
                let ends = [low, high].map(|bound| shifted(self.place(point.x, bound)));
                self.line(ends[0], ends[1], 1.6, color);
                for Place { x, y } in ends {
                    self.line(Place { x: x - WHISKER, y }, Place { x: x + WHISKER, y }, 1.6, color);
                }
            }
            self.marker(idx, *place);
        }
    }

    /// Draws a piece of a curve and its name.
    fn legend(&mut self, idx: usize, name: &str) {
        let line = TextLine::new(name);
        let top = TOP + i64::try_from(idx).unwrap_or(0) * i64::from(line.height() + 4);
        let (left, y) = ((self.left + AREA.0 + 2 * GAP) as f64, top as f64 + f64::from(line.height()) / 2.);
        self.line(Place { x: left, y }, Place { x: left + SAMPLE, y }, LINE_WIDTH, color(idx));
        self.marker(idx, Place { x: left + SAMPLE / 2., y });
        #[expect(clippy::cast_possible_truncation, reason = "a few pixels")]
        line.draw(&mut self.picture, left as i64 + SAMPLE as i64 + GAP, top);
    }

    fn marker(&mut self, idx: usize, at: Place) {
        let marker = MARKERS[idx.checked_rem(MARKERS.len()).unwrap_or(0)];
        self.fill(at, MARKER_RADIUS + 1., color(idx), |x, y| marker.covers(x - at.x, y - at.y));
    }

    fn line(&mut self, from: Place, to: Place, width: f64, color: Rgb<u8>) {
        let (x, y) = (to.x - from.x, to.y - from.y);
        let length = x.hypot(y);
        let middle = Place { x: f64::midpoint(from.x, to.x), y: f64::midpoint(from.y, to.y) };
        self.fill(middle, length / 2. + width, color, |at_x, at_y| {
            let (dx, dy) = (at_x - from.x, at_y - from.y);
            let along = if length > 0. { ((dx * x + dy * y) / length).clamp(0., length) } else { 0. };
            let nearest = if length > 0. { (along * x / length, along * y / length) } else { (0., 0.) };
            (dx - nearest.0).hypot(dy - nearest.1) <= width / 2.
        });
    }

    /// Colors the part of the pixels around a place that a shape covers, in sixteenths of pixels.
    fn fill(&mut self, middle: Place, radius: f64, color: Rgb<u8>, covers: impl Fn(f64, f64) -> bool) {
        let range = |middle: f64, side: u32| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the picture")]
            let [low, high] = [middle - radius, middle + radius].map(|at| at.clamp(0., f64::from(side)) as u32);
            low..(high + 1).min(side)
        };
        let (width, height) = self.picture.dimensions();
        for y in range(middle.y, height) {
            for x in range(middle.x, width) {
                let samples = (0..16).filter(|sample| {
                    let (column, row) = (sample & 3, sample >> 2);
                    let at = |pixel: u32, part: i32| f64::from(pixel) + (f64::from(part) + 0.5) / 4.;
                    covers(at(x, column), at(y, row))
                });
                let share = samples.count() as f64 / 16.;
                if share > 0. {
                    let pixel = self.picture.get_pixel_mut(x, y);
                    for (channel, above) in pixel.0.iter_mut().zip(color.0) {
                        let value = f64::from(*channel) + (f64::from(above) - f64::from(*channel)) * share;
                        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between bytes")]
                        let value = value.round() as u8;
                        *channel = value;
                    }
                }
            }
        }
    }
}

impl Marker {
    /// Returns whether the marker around the origin covers a place.
    fn covers(self, x: f64, y: f64) -> bool {
        let r = MARKER_RADIUS;
        match self {
            Self::Disk => x.hypot(y) <= r,
            Self::Square => x.abs().max(y.abs()) <= r * 0.88,
            Self::Triangle => y <= r * 0.8 && x.abs() <= (y + r * 1.1) * 0.6,
            Self::Diamond => x.abs() + y.abs() <= r * 1.25,
            Self::Cross => (x.abs() - y.abs()).abs() <= r * 0.38 && x.abs().max(y.abs()) <= r,
        }
    }
}

fn color(idx: usize) -> Rgb<u8> {
    COLORS[idx.checked_rem(COLORS.len()).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, points: &[(f64, f64)]) -> Curve {
        let point = |&(x, y): &(f64, f64)| Point { x, y, interval: Some([y - 1., y + 1.]) };
        Curve { name: name.to_owned(), points: points.iter().map(point).collect() }
    }

    /// Places of pixels that have exactly this color.
    fn places_of(picture: &RgbImage, color: Rgb<u8>) -> Vec<(u32, u32)> {
        picture.enumerate_pixels().filter(|(_, _, pixel)| **pixel == color).map(|(x, y, _)| (x, y)).collect()
    }

    fn draw(curves: &[Curve]) -> RgbImage {
        Plot { title: "Reconstructions", x_label: "steps", y_label: "PSNR, dB", curves }.draw()
    }

    #[test]
    fn curves_of_the_same_values_are_both_seen() {
        let points = [(1., 1.), (2., 3.)];
        let picture = draw(&[curve("one", &points), curve("other", &points)]);
        let [one, other] = [0, 1].map(|idx| places_of(&picture, color(idx)).len());
        // Nearly as many pixels of the one that is drawn first.
        assert!(other > 200 && one * 10 > other * 8, "{one}, {other}");
    }

    #[test]
    fn the_legend_stands_beside_the_curves() {
        let curves = [curve("inverted x_T", &[(10., 20.), (20., 25.)]), curve("random x_T", &[(10., 12.), (20., 13.)])];
        let picture = draw(&curves);
        let end_of_area =
            picture.width() - i64_to_u32(2 * GAP + 34 + GAP + GAP) - TextLine::new("inverted x_T").width();
        for idx in 0..2 {
            let places = places_of(&picture, color(idx));
            let (inside, beside): (Vec<(u32, u32)>, Vec<_>) =
                places.into_iter().partition(|(x, _)| *x <= end_of_area + 4);
            assert!(inside.len() > 200 && beside.len() > 50, "{idx}: {} {}", inside.len(), beside.len());
        }
        // Nothing but the white ground between the area and the legend.
        let gap = end_of_area + 5..end_of_area + 20;
        assert!(gap.into_iter().all(|x| (0..picture.height()).all(|y| picture.get_pixel(x, y).0 == [255; 3])));
    }

    fn i64_to_u32(number: i64) -> u32 {
        u32::try_from(number).unwrap()
    }

    #[test]
    fn intervals_are_drawn_to_their_ends() {
        let with = curve("a", &[(1., 5.), (2., 6.)]);
        let mut without = with.clone();
        without.points[0].interval = None;
        without.points[1].interval = None;
        let height = |curve: &Curve| {
            let picture = draw(std::slice::from_ref(curve));
            let area = places_of(&picture, color(0)).into_iter().filter(|(x, _)| *x < 120).map(|(_, y)| y);
            let rows: Vec<u32> = area.collect();
            rows.iter().max().unwrap() - rows.iter().min().unwrap()
        };
        // The interval is two of the three units that the axis shows.
        assert!(height(&with) > 150 && height(&without) < 60, "{} {}", height(&with), height(&without));
    }

    #[test]
    fn whole_numbers_stay_whole() {
        let axis = Axis::horizontal(vec![10., 20., 50., 10.]);
        assert_eq!(axis.ticks.iter().map(|&tick| axis.text(tick)).collect::<Vec<_>>(), ["10", "20", "50"]);
        let many = Axis::horizontal((1..=40).map(f64::from).collect());
        assert!(many.ticks.iter().all(|tick| tick.fract() == 0.) && many.ticks.len() < 10, "{many:?}");
        let crowded = Axis::horizontal(vec![1., 2., 1000.]);
        assert!(crowded.have_room(&crowded.ticks) && crowded.decimals == 0, "{crowded:?}");
        let one = Axis::horizontal(vec![20.]);
        assert_eq!(one.ticks, [20.]);
    }

    #[test]
    fn ticks_are_round_and_told_apart() {
        let texts = |values: &[f64]| {
            let axis = Axis::new(values.to_vec(), 0.05);
            axis.ticks.iter().map(|&tick| axis.text(tick)).collect::<Vec<_>>()
        };
        assert_eq!(texts(&[0., 1.]), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(&[0.9012, 0.9031]), ["0.9015", "0.9020", "0.9025", "0.9030"]);
        assert_eq!(texts(&[-100., 300.]), ["-100", "0", "100", "200", "300"]);
        assert!(!texts(&[]).is_empty() && !texts(&[5., 5.]).is_empty());
    }

    #[test]
    fn curves_differ_in_color_and_in_marker() {
        let curves: Vec<Curve> = (0..6).map(|i| curve(&i.to_string(), &[(1., f64::from(i) * 9.)])).collect();
        let picture = draw(&curves);
        assert!((0..6).all(|idx| places_of(&picture, color(idx)).len() > 40));
        let covered = |marker: Marker| {
            let at = |i: i32| f64::from(i) / 4.;
            (-24..24)
                .flat_map(|y| (-24..24).map(move |x| (x, y)))
                .map(|(x, y)| marker.covers(at(x), at(y)))
                .collect::<Vec<_>>()
        };
        for (idx, one) in MARKERS.into_iter().enumerate() {
            assert!(MARKERS[..idx].iter().all(|other| covered(*other) != covered(one)));
        }
    }
}
