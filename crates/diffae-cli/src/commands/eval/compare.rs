//! `diffae eval compare A.json B.json ..`

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::report::{FORMAT_VERSION, Figure, Report, aligned, number};
use crate::args::CompareArgs;
use crate::output::{say, say_json};

/// One figure in all reports.
#[derive(Debug, Serialize)]
struct Row {
    measure: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    of: BTreeMap<String, String>,
    name: String,
    /// By report, in the order of the command line; nothing where a report lacks it.
    figures: Vec<Option<Figure>>,
}

/// Lays the figures of reports side by side.
pub(super) fn run(args: &CompareArgs) -> Result<()> {
    let mut rows: Vec<Row> = vec![];
    for (column, path) in args.reports.iter().enumerate() {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("{} is no report of diffae eval", path.display()))?;
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
    if args.json { say_json(&rows) } else { say(&table(&rows, args)) }
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
