//! Reports of evaluations.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diffae_data::{Overwrite, Shard, write_atomically};
use diffae_infer::Settings;
use serde::{Deserialize, Serialize};

use crate::bootstrap::{Interval, bootstrap, bootstrap_all, bootstrap_mean};
use crate::error::{Error, Result};
use crate::evaluation::{Evaluation, Stage};
use crate::journal::{SOFTWARE, of_another};
use crate::plot::Point;

/// Version of the format; changes when a reader of older reports would be misled.
pub const REPORT_FORMAT_VERSION: u32 = 1;
/// Name of the file with the reports of several measures.
pub const ALL_REPORTS_FILE: &str = "all.json";
/// Number of resamples of a bootstrap.
const NUM_RESAMPLES: usize = 1000;

/// The figures of one measure on one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Name of the measure.
    pub measure: String,
    /// Name and version of the software.
    pub software: String,
    /// Settings that determine the figures.
    pub settings: Settings,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// A figure, with its 95% interval if it has one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// Name of the figure.
    pub name: String,
    /// Qualifiers: steps, attribute, ..
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub of: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
    /// Lower end of the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Upper end of the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Number of items that the figure is computed from.
    pub count: usize,
}

impl Figure {
    fn new(name: &str, of: &[(&str, &str)], Interval { value, bounds }: Interval, count: usize) -> Self {
        let [low, high] = bounds.map_or([None; 2], |bounds| bounds.map(Some));
        Self { low, high, ..Self::single(name, of, value, count) }
    }

    /// Computes costly figures of items, with intervals if there are to be resamples.
    pub(crate) fn of_resamples<const N: usize>(
        (names, of): ([&str; N], &[(&str, &str)]),
        count: usize,
        (num_resamples, evaluation): (usize, &Evaluation<'_>),
        mut figures: impl FnMut(&[usize]) -> Result<[f64; N]>,
    ) -> Result<Vec<Self>> {
        let stage: Stage<'_> = evaluation.stage("resample", num_resamples + 1, 1);
        // All items together must have figures; a resample may lack them, and an interruption ends all.
        let (mut first, mut failure) = (true, None);
        let found = bootstrap_all(count, num_resamples, evaluation.seed(), |items| {
            if failure.is_some() {
                return None;
            }
            let made = figures(items);
            let (is_first, stopped) = (std::mem::take(&mut first), stage.check(1));
            match (made, stopped) {
                (_, Err(cancelled)) => failure = Some(cancelled),
                (Ok(made), _) => return Some(made),
                (Err(error), _) if !is_first && lacks_some(&error) => {}
                (Err(error), _) => failure = Some(error),
            }
            None
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        stage.finish();
        Ok(names.into_iter().zip(found?).map(|(name, interval)| Self::new(name, of, interval, count)).collect())
    }

    /// Builds a figure without an interval.
    pub(crate) fn single(name: &str, of: &[(&str, &str)], value: f64, count: usize) -> Self {
        let of = of.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Self { name: name.to_owned(), of, value, low: None, high: None, count }
    }

    /// Returns the figure as a point over one of its qualifiers; `None` if that is not a number.
    pub(crate) fn point(&self, over: &str) -> Option<Point> {
        let x = self.of.get(over)?.parse().ok()?;
        Some(Point { x, y: self.value, interval: self.low.zip(self.high).map(|(low, high)| [low, high]) })
    }

    /// Formats the interval as `low .. high`; empty if it is not known.
    pub(crate) fn interval(&self) -> String {
        let bounds = self.low.zip(self.high);
        bounds.map(|(low, high)| format!("{} .. {}", number(low), number(high))).unwrap_or_default()
    }

    /// Computes the mean of values; `None` without finite values.
    pub(crate) fn mean(name: &str, of: &[(&str, &str)], values: &[f64], seed: u64) -> Option<Self> {
        let interval = bootstrap_mean(values, NUM_RESAMPLES, seed).ok()?;
        Some(Self::new(name, of, interval, values.len()))
    }

    /// Computes another figure of items; `None` if none of them has one.
    pub(crate) fn of_items(
        name: &str,
        of: &[(&str, &str)],
        count: usize,
        seed: u64,
        figure: impl FnMut(&[usize]) -> Option<f64>,
    ) -> Option<Self> {
        let interval = bootstrap(count, NUM_RESAMPLES, seed, figure).ok()?;
        Some(Self::new(name, of, interval, count))
    }
}

impl Report {
    pub(crate) fn new(measure: &str, settings: Settings, figures: Vec<Figure>) -> Self {
        Self {
            format_version: REPORT_FORMAT_VERSION,
            measure: measure.to_owned(),
            software: SOFTWARE.to_owned(),
            settings,
            figures,
        }
    }

    /// The report of a shard, whose values are in the folder: without figures, and not written.
    pub(crate) fn of_shard(measure: &str, mut settings: Settings, shard: Shard) -> Self {
        settings.insert("shard".to_owned(), shard.to_string().into());
        Self::new(measure, settings, vec![])
    }

    /// Writes the report into the folder.
    pub(crate) fn written(self, evaluation: &Evaluation<'_>) -> Result<Self> {
        let folder = evaluation.out();
        evaluation.make_folder()?;
        let text = format!("{}\n", serde_json::to_string_pretty(&self)?);
        write_atomically(&Self::path(folder, &self.measure), text.as_bytes(), Overwrite::Replace)?;
        write_atomically(&folder.join(format!("{}.csv", self.measure)), &self.csv()?, Overwrite::Replace)?;
        Ok(self)
    }

    /// Writes the reports of several measures into one file, [`ALL_REPORTS_FILE`], of a folder.
    ///
    /// # Errors
    /// [`Error::Data`] if the file cannot be written.
    pub fn write_all(reports: &[Self], folder: &Path) -> Result<()> {
        let text = format!("{}\n", serde_json::to_string_pretty(reports)?);
        Ok(write_atomically(&folder.join(ALL_REPORTS_FILE), text.as_bytes(), Overwrite::Replace)?)
    }

    /// Refuses a folder with the report of another evaluation.
    pub(crate) fn check_folder(evaluation: &Evaluation<'_>, measure: &str, settings: &Settings) -> Result<()> {
        let path = Self::path(evaluation.out(), measure);
        let there = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        match there {
            Some(there) if there.settings != *settings && evaluation.overwrite() == Overwrite::Refuse => {
                Err(of_another(&path, &there.settings, settings))
            }
            _ => Ok(()),
        }
    }

    fn path(folder: &Path, measure: &str) -> PathBuf {
        folder.join(format!("{measure}.json"))
    }

    /// Returns the keys of all figures, in order.
    fn keys(&self) -> Vec<&str> {
        let keys: std::collections::BTreeSet<&str> =
            self.figures.iter().flat_map(|figure| figure.of.keys().map(String::as_str)).collect();
        keys.into_iter().collect()
    }

    /// Formats the report as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let keys = self.keys();
        let mut rows = vec![keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>()];
        rows[0].extend(["figure", "value", "95% interval", "n"].map(str::to_owned));
        for figure in &self.figures {
            let mut row: Vec<String> =
                keys.iter().map(|&key| figure.of.get(key).cloned().unwrap_or_default()).collect();
            row.extend([figure.name.clone(), number(figure.value), figure.interval(), figure.count.to_string()]);
            rows.push(row);
        }
        aligned(&rows)
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let keys = self.keys();
        let mut writer = csv::Writer::from_writer(vec![]);
        writer.write_record([&keys[..], &["figure", "value", "low", "high", "count"]].concat())?;
        for figure in &self.figures {
            let mut cells: Vec<String> =
                keys.iter().map(|&key| figure.of.get(key).cloned().unwrap_or_default()).collect();
            cells.extend([figure.name.clone(), figure.value.to_string()]);
            cells.extend([figure.low, figure.high].map(|bound| bound.map_or(String::new(), |bound| bound.to_string())));
            cells.push(figure.count.to_string());
            writer.write_record(cells)?;
        }
        writer.into_inner().map_err(|error| Error::Encoding(Box::new(error.into_error())))
    }
}

/// Returns whether a resample has no figures because it lacks items of some kind.
fn lacks_some(error: &Error) -> bool {
    matches!(error, Error::OneClass | Error::TooFew { .. })
}

/// Aligns rows of cells in columns; every row has as many cells as the first.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let width_of = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).filter_map(width_of).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Formats a figure with about four significant digits.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size == 0. => "0".to_owned(),
        _ if size >= 100. => format!("{value:.1}"),
        _ if size >= 10. => format!("{value:.2}"),
        _ if size >= 0.1 => format!("{value:.4}"),
        _ if size >= 0.001 => format!("{value:.5}"),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_csv_is_quoted() {
        let interval = Interval { value: 31.25, bounds: Some([30., 32.5]) };
        let figures = vec![
            Figure::new("psnr", &[("steps", "10"), ("x_T", "random, seeded")], interval, 8),
            Figure::new("ssim", &[("steps", "100")], Interval { value: 0.5, bounds: Some([0.25, 0.75]) }, 8),
        ];
        let report = Report::new("recon", Settings::new(), figures);
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0].find("figure"), lines[1].find("psnr"));
        assert_eq!(lines[1].find("psnr"), lines[2].find("ssim"));
        assert!(lines[1].ends_with("30.00 .. 32.50    8"), "{table}");
        let csv = String::from_utf8(report.csv().unwrap()).unwrap();
        assert!(csv.contains("10,\"random, seeded\",psnr,31.25,30,32.5,8\n"));
    }
}
