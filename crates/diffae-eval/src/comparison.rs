//! Reports side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use diffae_data::{Overwrite, png_bytes, read_rgb, write_atomically};
use image::{Rgb, RgbImage, imageops};
use serde::{Deserialize, Serialize};

use crate::caption::caption;
use crate::error::{Error, Result, cannot, unsuitable};
use crate::plot::{Curve, Plot};
use crate::report::{ALL_REPORTS_FILE, Figure, REPORT_FORMAT_VERSION, Report, aligned, number};

/// Horizontal axis of the curves.
const STEPS: &str = "steps";

/// Content of a file: the report of one measure, or all reports of `diffae eval all`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Reports {
    One(Report),
    All(Vec<Report>),
}

/// The figures of several reports, side by side.
#[derive(Debug)]
pub struct Comparison {
    paths: Vec<PathBuf>,
    rows: Vec<ComparisonRow>,
}

/// One figure in all reports.
#[derive(Debug, Clone, Serialize)]
pub struct ComparisonRow {
    /// Name of the measure.
    pub measure: String,
    /// Qualifiers of the figure.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub of: BTreeMap<String, String>,
    /// Name of the figure.
    pub name: String,
    /// The figure in each report; `None` where a report lacks it.
    pub figures: Vec<Option<Figure>>,
}

impl Comparison {
    /// Reads reports: of one measure, or all reports of an evaluation in one file.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Report`] if it is not a report; [`Error::Unsuitable`] if it is of
    /// another format version.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut rows: Vec<ComparisonRow> = vec![];
        for (column, path) in paths.iter().enumerate() {
            let text = fs::read_to_string(path).map_err(cannot("read", path))?;
            let not_a_report = |source| Error::Report { path: path.clone(), source };
            let reports = match serde_json::from_str(&text).map_err(not_a_report)? {
                Reports::One(report) => vec![report],
                Reports::All(reports) => reports,
            };
            for report in reports {
                if report.format_version != REPORT_FORMAT_VERSION {
                    let (got, path) = (report.format_version, path.display());
                    let problem = format!("{path} has format {got}, this program reads {REPORT_FORMAT_VERSION}");
                    return Err(unsuitable(problem));
                }
                for figure in report.figures {
                    let same = |row: &ComparisonRow| {
                        row.measure == report.measure && row.name == figure.name && row.of == figure.of
                    };
                    let place = rows.iter().position(same).unwrap_or_else(|| {
                        let (measure, of, name) = (report.measure.clone(), figure.of.clone(), figure.name.clone());
                        rows.push(ComparisonRow { measure, of, name, figures: vec![None; paths.len()] });
                        rows.len() - 1
                    });
                    rows[place].figures[column] = Some(figure);
                }
            }
        }
        Ok(Self { paths: paths.to_vec(), rows })
    }

    /// Returns the figures, in the order of the first report that has each.
    #[must_use]
    pub fn rows(&self) -> &[ComparisonRow] {
        &self.rows
    }

    /// Writes `compare.json`, `compare.txt`, curves over the steps, and the sheets of the reports below each other.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read or written; [`Error::Data`] if a sheet cannot be read.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(cannot("write", folder))?;
        let put = |name: &str, bytes: &[u8]| write_atomically(&folder.join(name), bytes, Overwrite::Replace);
        put("compare.json", format!("{}\n", serde_json::to_string_pretty(&self.rows)?).as_bytes())?;
        put("compare.txt", format!("{}\n", self.table()).as_bytes())?;
        let picture = |name: &str, picture: &RgbImage| -> Result<()> {
            Ok(put(name, &png_bytes(picture, &[], &folder.join(name))?)?)
        };
        let names: BTreeSet<&str> = self.rows.iter().map(|row| row.name.as_str()).collect();
        for name in names {
            let curves = self.curves(name);
            if curves.iter().any(|curve| curve.points.len() > 1) {
                let plot = Plot { title: "", x_label: STEPS, y_label: name, curves: &curves };
                picture(&format!("compare.{name}.png"), &plot.draw())?;
            }
        }
        let measures: BTreeSet<&str> = self.rows.iter().map(|row| row.measure.as_str()).collect();
        for measure in measures {
            let mut sheets = vec![];
            for path in &self.paths {
                let name = format!("{measure}.png");
                let is_of_measure = path.file_stem().is_some_and(|stem| stem == measure);
                let is_of_all = path.file_name().is_some_and(|name| name == ALL_REPORTS_FILE);
                let sheet = if is_of_all { path.with_file_name(measure).join(name) } else { path.with_file_name(name) };
                if (is_of_measure || is_of_all) && sheet.is_file() {
                    sheets.push(caption(&path.display().to_string(), &read_rgb(&sheet)?));
                }
            }
            if sheets.len() > 1 {
                picture(&format!("compare.{measure}.png"), &below_each_other(&sheets))?;
            }
        }
        Ok(())
    }

    /// Returns the curves of a figure over the steps: one for each report and each other combination of qualifiers.
    fn curves(&self, name: &str) -> Vec<Curve> {
        let mut curves: Vec<Curve> = vec![];
        for row in self.rows.iter().filter(|row| row.name == name) {
            let others: Vec<&str> =
                row.of.iter().filter(|(key, _)| *key != STEPS).map(|(_, value)| value.as_str()).collect();
            for (path, figure) in self.paths.iter().zip(&row.figures) {
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

    /// Formats the comparison as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let header = ["measure", "of", "figure"].map(str::to_owned);
        let names = self.paths.iter().map(|path| path.display().to_string());
        let mut cells = vec![header.into_iter().chain(names).collect::<Vec<String>>()];
        for row in &self.rows {
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
