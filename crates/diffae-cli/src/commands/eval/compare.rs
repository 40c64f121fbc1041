//! `diffae eval compare A.json B.json ..`

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use diffae_data::{Overwrite, png_bytes, write_atomically};
use image::{Rgb, RgbImage, imageops};
use serde::{Deserialize, Serialize};

use super::all::FILE;
use super::report::{FORMAT_VERSION, Figure, Report, aligned, number};
use crate::args::CompareArgs;
use crate::drawing::caption;
use crate::output::{say, say_json};
use crate::plot::{Curve, Plot};

/// Horizontal axis of the curves.
const STEPS: &str = "steps";

/// Content of a file: the report of one measure, or all reports of `diffae eval all`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Reports {
    One(Report),
    All(Vec<Report>),
}

/// One figure in all reports.
#[derive(Debug, Serialize)]
struct Row {
    measure: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    of: BTreeMap<String, String>,
    name: String,
    /// Figures by report, in the order of the command line; `None` where a report lacks it.
    figures: Vec<Option<Figure>>,
}

/// Lays the figures of reports side by side.
pub(super) fn run(args: &CompareArgs) -> Result<()> {
    let mut rows: Vec<Row> = vec![];
    for (column, path) in args.reports.iter().enumerate() {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let read: Reports = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a report of diffae eval", path.display()))?;
        let reports = match read {
            Reports::One(report) => vec![report],
            Reports::All(reports) => reports,
        };
        for report in reports {
            if report.format_version != FORMAT_VERSION {
                bail!("{} has format {}, this program reads {FORMAT_VERSION}", path.display(), report.format_version)
            }
            for figure in report.figures {
                let same = |row: &Row| row.measure == report.measure && row.name == figure.name && row.of == figure.of;
                let place = rows.iter().position(same).unwrap_or_else(|| {
                    let (measure, of, name) = (report.measure.clone(), figure.of.clone(), figure.name.clone());
                    rows.push(Row { measure, of, name, figures: vec![None; args.reports.len()] });
                    rows.len() - 1
                });
                rows[place].figures[column] = Some(figure);
            }
        }
    }
    if let Some(folder) = &args.out {
        write(folder, &rows, args)?;
    }
    if args.json { say_json(&rows) } else { say(&table(&rows, args)) }
}

/// Writes the comparison as files.
fn write(folder: &Path, rows: &[Row], args: &CompareArgs) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot write {}", folder.display()))?;
    let put = |name: &str, bytes: &[u8]| write_atomically(&folder.join(name), bytes, Overwrite::Replace);
    put("compare.json", format!("{}\n", serde_json::to_string_pretty(rows)?).as_bytes())?;
    put("compare.txt", format!("{}\n", table(rows, args)).as_bytes())?;
    let picture = |name: &str, picture: &RgbImage| -> Result<()> {
        Ok(put(name, &png_bytes(picture, &[], &folder.join(name))?)?)
    };
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    for name in names {
        let curves = curves(rows, name, args);
        if curves.iter().any(|curve| curve.points.len() > 1) {
            let plot = Plot { title: "", x_label: STEPS, y_label: name, curves: &curves };
            picture(&format!("compare.{name}.png"), &plot.draw())?;
        }
    }
    let measures: BTreeSet<&str> = rows.iter().map(|row| row.measure.as_str()).collect();
    for measure in measures {
        let mut sheets = vec![];
        for path in &args.reports {
            let name = format!("{measure}.png");
            let is_of_measure = path.file_stem().is_some_and(|stem| stem == measure);
            let is_of_all = path.file_name().is_some_and(|name| name == FILE);
            let sheet = if is_of_all { path.with_file_name(measure).join(name) } else { path.with_file_name(name) };
            if (is_of_measure || is_of_all) && sheet.is_file() {
                let bytes = fs::read(&sheet).with_context(|| format!("cannot read {}", sheet.display()))?;
                let decoded =
                    image::load_from_memory(&bytes).with_context(|| format!("{} is not an image", sheet.display()))?;
                sheets.push(caption(&path.display().to_string(), &decoded.into_rgb8()));
            }
        }
        if sheets.len() > 1 {
            picture(&format!("compare.{measure}.png"), &below_each_other(&sheets))?;
        }
    }
    Ok(())
}

/// Returns the curves of a figure over the steps: one for each report and each other combination of qualifiers.
fn curves(rows: &[Row], name: &str, args: &CompareArgs) -> Vec<Curve> {
    let mut curves: Vec<Curve> = vec![];
    for row in rows.iter().filter(|row| row.name == name) {
        let others: Vec<&str> =
            row.of.iter().filter(|(key, _)| *key != STEPS).map(|(_, value)| value.as_str()).collect();
        for (path, figure) in args.reports.iter().zip(&row.figures) {
            let Some(point) = figure.as_ref().and_then(|figure| figure.point(STEPS)) else { continue };
            let label = format!("{} {}", path.display(), others.join(" "));
            match curves.iter_mut().find(|curve| curve.name == label) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve { name: label, points: vec![point] }),
            }
        }
    }
    for curve in &mut curves {
        curve.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    curves
}

/// Stacks pictures on white, one below the other.
fn below_each_other(pictures: &[RgbImage]) -> RgbImage {
    let width = pictures.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = pictures.iter().map(RgbImage::height).sum::<u32>();
    let mut all = RgbImage::from_pixel(width, height.max(1), Rgb([255; 3]));
    let mut top = 0;
    for picture in pictures {
        imageops::replace(&mut all, picture, 0, top);
        top += i64::from(picture.height());
    }
    all
}

fn table(rows: &[Row], args: &CompareArgs) -> String {
    let header = ["measure", "of", "figure"].map(str::to_owned);
    let names = args.reports.iter().map(|path| path.display().to_string());
    let mut cells = vec![header.into_iter().chain(names).collect::<Vec<String>>()];
    for row in rows {
        let of: Vec<String> = row.of.iter().map(|(key, value)| format!("{key} {value}")).collect();
        let mut line = vec![row.measure.clone(), of.join(", "), row.name.clone()];
        line.extend(row.figures.iter().map(|figure| match figure {
            Some(figure) if figure.low.is_some() => format!("{} [{}]", number(figure.value), figure.interval()),
            Some(figure) => number(figure.value),
            None => "-".to_owned(),
        }));
        cells.push(line);
    }
    aligned(&cells)
}
