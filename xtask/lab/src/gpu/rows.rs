//! Lines of a report.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A line of a report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) quantity: String,
    pub(super) value: Option<f64>,
    /// Largest value that is right; `None` for what is only measured.
    pub(super) limit: Option<f64>,
    pub(super) passed: bool,
}

/// Lines of one part, as they are found.
#[derive(Debug)]
pub(super) struct Rows {
    rows: Vec<Row>,
    is_printing: bool,
}

impl Row {
    /// Describes a part that came to no end.
    pub(super) fn failure(problem: &str) -> Self {
        Self { quantity: problem.to_owned(), value: None, limit: None, passed: false }
    }

    fn cells(&self) -> [String; 4] {
        let number = |value: Option<f64>, digits: usize| match value {
            None => String::new(),
            Some(value) if self.limit.is_some() => format!("{value:.digits$e}"),
            Some(value) if value.abs() < 0.1 => format!("{value:.2e}"),
            Some(value) if value.abs() < 10. => format!("{value:.4}"),
            Some(value) => format!("{value:.2}"),
        };
        let verdict = match (self.passed, self.limit) {
            (false, _) => "**FAIL**",
            (true, Some(_)) => "ok",
            (true, None) => "",
        };
        [self.quantity.clone(), number(self.value, 1), number(self.limit, 0), verdict.to_owned()]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cells().join("  ").trim_end())
    }
}

impl Rows {
    /// Prints each row as a line of JSON.
    pub(super) fn printing() -> Self {
        Self { rows: vec![], is_printing: true }
    }

    #[cfg(test)]
    pub(super) fn silent() -> Self {
        Self { rows: vec![], is_printing: false }
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> &[Row] {
        &self.rows
    }

    /// Adds a value that must not be above a limit, nor NaN.
    pub(super) fn compare(&mut self, quantity: &str, value: f64, limit: f64) {
        self.add(Row { quantity: quantity.to_owned(), value: Some(value), limit: Some(limit), passed: value <= limit });
    }

    /// Adds a value that is only measured.
    pub(super) fn measure(&mut self, quantity: &str, value: f64) {
        self.add(Row { quantity: quantity.to_owned(), value: Some(value), limit: None, passed: true });
    }

    fn add(&mut self, row: Row) {
        if self.is_printing
            && let Ok(line) = serde_json::to_string(&row)
        {
            println!("{line}");
        }
        self.rows.push(row);
    }
}

/// Writes rows as a table in Markdown.
pub(super) fn table(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| format!("| {} |\n", row.cells().join(" | ")));
    format!("| | | at most | |\n|---|---|---|---|\n{}", lines.collect::<String>())
}
