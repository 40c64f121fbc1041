//! Labels and options of each face, as text files.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::style::Style;

type Options = Map<String, Value>;

/// Lines of a picture in each file.
#[derive(Debug)]
pub(super) struct Lines {
    celeba: String,
    csv: String,
    options: String,
}

/// Returns the options that are written down: the variant of each part, and the colors.
pub(super) fn choices(options: &Options) -> BTreeSet<String> {
    options.keys().filter(|key| key.ends_with("Variant") || key.ends_with("Color")).cloned().collect()
}

impl Lines {
    /// Formats the lines of a face with the given options; `choices` are those of all faces.
    pub(super) fn new(style: &Style, name: &str, options: &Options, choices: &BTreeSet<String>) -> Result<Self> {
        let attributes = |words: [&str; 2]| {
            let mut line = name.to_owned();
            line.extend(style.attributes.iter().map(|attribute| words[usize::from(attribute.is_of(options))]));
            line + "\n"
        };
        let mut of_options = name.to_owned();
        for key in choices {
            of_options.push(',');
            let value = options.get(key).map(|value| value.get(0).unwrap_or(value));
            of_options.push_str(value.map_or(Ok(""), |value| value.as_str().context("an option is no text"))?);
        }
        Ok(Self { celeba: attributes([" -1", " 1"]), csv: attributes([",0", ",1"]), options: of_options + "\n" })
    }
}

/// Formats labels as `CelebA` does: the count, the attribute names, and 1 or -1 for each picture.
pub(super) fn celeba(style: &Style, rows: &[Lines]) -> String {
    let head = format!("{}\n{}\n", rows.len(), names(style).join(" "));
    rows.iter().fold(head, |text, row| text + &row.celeba)
}

/// Formats labels as CSV, with 1 and 0.
pub(super) fn csv(style: &Style, rows: &[Lines]) -> String {
    rows.iter().fold(format!("file,{}\n", names(style).join(",")), |text, row| text + &row.csv)
}

/// Formats all options of the style in its own words, as CSV: the variant of each part, empty if it is not drawn, and
/// the colors.
pub(super) fn options(choices: &BTreeSet<String>, rows: &[Lines]) -> String {
    let head = choices.iter().fold("file".to_owned(), |text, key| text + "," + key) + "\n";
    rows.iter().fold(head, |text, row| text + &row.options)
}

fn names(style: &Style) -> Vec<&'static str> {
    style.attributes.iter().map(|attribute| attribute.name).collect()
}
