//! What is known of each face, as text files.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::style::{Attribute, Choice, Style};

type Options = Map<String, Value>;

/// `CelebA`'s form: the count, the attribute names, and 1 or -1 for each picture.
pub(super) fn celeba(style: &Style, rows: &[(String, Options)]) -> String {
    format!("{}\n{}\n{}", rows.len(), names(style).join(" "), lines(style, rows, [" -1", " 1"]))
}

/// The same with 1 and 0, as CSV.
pub(super) fn csv(style: &Style, rows: &[(String, Options)]) -> String {
    format!("file,{}\n{}", names(style).join(","), lines(style, rows, [",0", ",1"]))
}

/// A line a picture: its name, and the second word for each attribute that is there, the first for the others.
fn lines(style: &Style, rows: &[(String, Options)], words: [&str; 2]) -> String {
    let mut text = String::new();
    for (name, options) in rows {
        text.push_str(name);
        text.extend(style.attributes.iter().map(|attribute| words[usize::from(has(attribute, options))]));
        text.push('\n');
    }
    text
}

/// All options of the style in its own words, as CSV: which variant of each part, nothing if it is not drawn, and
/// the colors.
pub(super) fn options(rows: &[(String, Options)]) -> Result<String> {
    let is_choice = |key: &&String| key.ends_with("Variant") || key.ends_with("Color");
    let keys: BTreeSet<&String> = rows.iter().flat_map(|(_, options)| options.keys().filter(is_choice)).collect();
    let mut text = "file".to_owned();
    for key in &keys {
        text.extend([",", key]);
    }
    for (name, options) in rows {
        text.extend(["\n", name]);
        for key in &keys {
            text.push(',');
            let value = options.get(*key).map(|value| value.get(0).unwrap_or(value));
            text.push_str(value.map_or(Ok(""), |value| value.as_str().context("an option is no text"))?);
        }
    }
    Ok(text + "\n")
}

fn names(style: &Style) -> Vec<&'static str> {
    style.attributes.iter().map(|attribute| attribute.name).collect()
}

fn has(attribute: &Attribute, options: &Options) -> bool {
    let choice: Choice = attribute.option;
    choice.of(options).is_some_and(|value| attribute.present.contains(&value))
}
