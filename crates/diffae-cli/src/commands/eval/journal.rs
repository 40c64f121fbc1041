//! Values of single pictures, kept as they come, so that interrupted work goes on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use diffae_infer::Overwrite;
use serde::{Deserialize, Serialize};

/// What was measured on one picture, by the name of the measure.
pub(super) type Values = BTreeMap<String, f64>;

/// What decides the values: model, pictures, steps, seed.
pub(super) type Settings = BTreeMap<String, serde_json::Value>;

/// A file of JSON lines: the settings, then one line an item.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    items: BTreeMap<String, Values>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    settings: Settings,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    item: String,
    values: Values,
}

impl Journal {
    /// Opens the journal of a measure in a folder, which is made if it is missing.
    ///
    /// A last line that was not written whole is dropped. A journal of other settings is an error, or begun anew.
    pub(super) fn open(folder: &Path, measure: &str, settings: &Settings, overwrite: Overwrite) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot write {}", folder.display()))?;
        let path = folder.join(format!("{measure}.items.jsonl"));
        let kept = match fs::read_to_string(&path) {
            Ok(text) => read(&text, settings, &path, overwrite)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let cannot_write = || format!("cannot write {}", path.display());
        let (length, items) = if let Some(kept) = kept {
            kept
        } else {
            let header = serde_json::to_string(&Header { settings: settings.clone() })?;
            fs::write(&path, format!("{header}\n")).with_context(cannot_write)?;
            (header.len() + 1, BTreeMap::new())
        };
        let file = OpenOptions::new().append(true).open(&path).with_context(cannot_write)?;
        file.set_len(length as u64).with_context(cannot_write)?;
        Ok(Self { path, file, items })
    }

    /// What is known of an item.
    pub(super) fn get(&self, item: &str) -> Option<&Values> {
        self.items.get(item)
    }

    /// Adds an item.
    pub(super) fn add(&mut self, item: String, values: Values) -> Result<()> {
        let line = Line { item, values };
        // One call for the whole line: an interruption leaves all of it or a part that has no end.
        let text = format!("{}\n", serde_json::to_string(&line)?);
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.items.insert(line.item, line.values);
        Ok(())
    }
}

/// The items of a journal and the length of its whole lines; none if it is to begin anew.
fn read(
    text: &str,
    settings: &Settings,
    path: &Path,
    overwrite: Overwrite,
) -> Result<Option<(usize, BTreeMap<String, Values>)>> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut lines = text[..whole].lines();
    let Some(header) = lines.next() else { return Ok(None) };
    let header: Option<Header> = serde_json::from_str(header).ok();
    if header.as_ref().is_none_or(|header| header.settings != *settings) {
        // A journal without items, of a command that failed at once, holds nothing to lose.
        if overwrite == Overwrite::Replace || (header.is_some() && lines.next().is_none()) {
            return Ok(None);
        }
        let difference = header.map_or("it is damaged".to_owned(), |header| difference(&header.settings, settings));
        bail!(
            "{} is of another evaluation ({difference}); name another --out, or begin anew with --force",
            path.display()
        )
    }
    let mut items = BTreeMap::new();
    for (number, line) in (2..).zip(lines) {
        let damaged = || format!("line {number} of {} is damaged; begin anew with --force", path.display());
        let line: Line = serde_json::from_str(line).with_context(damaged)?;
        items.insert(line.item, line.values);
    }
    Ok(Some((whole, items)))
}

/// The first setting that differs, in words.
fn difference(theirs: &Settings, ours: &Settings) -> String {
    let shown = |settings: &Settings, key: &str| settings.get(key).map_or("none".to_owned(), ToString::to_string);
    let differing = theirs.keys().chain(ours.keys()).find(|key| theirs.get(*key) != ours.get(*key));
    differing.map_or(String::new(), |key| format!("{key} is {}, not {}", shown(theirs, key), shown(ours, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(steps: usize) -> Settings {
        Settings::from([("steps".to_owned(), steps.into())])
    }

    fn values(value: f64) -> Values {
        Values::from([("psnr".to_owned(), value)])
    }

    #[test]
    fn what_was_added_is_there_again_but_for_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let open = |steps, overwrite| Journal::open(folder.path(), "recon", &settings(steps), overwrite);
        let mut journal = open(10, Overwrite::Refuse).unwrap();
        journal.add("a".to_owned(), values(1.5)).unwrap();
        journal.add("b".to_owned(), values(2.5)).unwrap();
        drop(journal);
        let path = folder.path().join("recon.items.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        let mut journal = open(10, Overwrite::Refuse).unwrap();
        assert_eq!(journal.get("a"), Some(&values(1.5)));
        assert_eq!(journal.get("b"), None);
        journal.add("b".to_owned(), values(2.5)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn other_settings_need_force() {
        let folder = tempfile::tempdir().unwrap();
        let open = |steps, overwrite| Journal::open(folder.path(), "recon", &settings(steps), overwrite);
        open(10, Overwrite::Refuse).unwrap().add("a".to_owned(), values(1.)).unwrap();
        let error = open(20, Overwrite::Refuse).unwrap_err().to_string();
        assert!(error.contains("steps is 10, not 20"), "{error}");
        assert_eq!(open(20, Overwrite::Replace).unwrap().get("a"), None);
        // Now it is empty, and nothing is in the way.
        assert!(open(30, Overwrite::Refuse).is_ok());
    }
}
