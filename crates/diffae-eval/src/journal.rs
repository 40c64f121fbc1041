//! Values per image, stored as they are computed, so that interrupted work can be resumed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use diffae_data::Overwrite;
use diffae_infer::Settings;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, cannot};
use crate::evaluation::Evaluation;

/// Values of one image, by the name of the measure.
pub(crate) type Values = BTreeMap<String, f64>;

/// Name and version of the software.
pub(crate) const SOFTWARE: &str = concat!("diffae ", env!("CARGO_PKG_VERSION"));

/// A file of JSON lines: the settings, then one line per item.
#[derive(Debug)]
pub(crate) struct Journal {
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
    /// Opens the journal of a measure.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub(crate) fn of(evaluation: &Evaluation<'_>, measure: &str, settings: &Settings) -> Result<Self> {
        let (folder, name) = (evaluation.out(), format!("{measure}.items.jsonl"));
        let settings = with_software(settings);
        let mut journal = Self::open(&evaluation.file(folder, &name), &settings, evaluation.overwrite())?;
        for (_, path) in evaluation.files_of_shards(folder, &name)? {
            let bytes = fs::read(&path).map_err(cannot("read", &path))?;
            if let Some((_, items)) = read(&bytes, &settings, &path)? {
                journal.items.extend(items);
            }
        }
        Ok(journal)
    }

    /// Opens a journal; its folder is created if it is missing.
    ///
    /// An incomplete last line is dropped. A journal of other settings or of another version of the software is an
    /// error. With [`Overwrite::Replace`] the journal starts anew.
    fn open(path: &Path, settings: &Settings, overwrite: Overwrite) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(cannot("write", folder))?;
        }
        let kept = match fs::read(path) {
            _ if overwrite == Overwrite::Replace => None,
            Ok(bytes) => read(&bytes, settings, path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(cannot("read", path)(error)),
        };
        let (length, items) = if let Some(kept) = kept {
            kept
        } else {
            let header = serde_json::to_string(&Header { settings: settings.clone() })?;
            fs::write(path, format!("{header}\n")).map_err(cannot("write", path))?;
            (header.len() + 1, BTreeMap::new())
        };
        let file = OpenOptions::new().append(true).open(path).map_err(cannot("write", path))?;
        file.set_len(length as u64).map_err(cannot("write", path))?;
        Ok(Self { path: path.to_owned(), file, items })
    }

    /// Returns the values of an item, if they are known.
    pub(crate) fn get(&self, item: &str) -> Option<&Values> {
        self.items.get(item)
    }

    /// Adds an item, whose values must be finite, as JSON has no other numbers.
    pub(crate) fn add(&mut self, item: String, values: Values) -> Result<()> {
        if let Some((name, &value)) = values.iter().find(|(_, value)| !value.is_finite()) {
            let (name, cause) = (name.clone(), "the model or the image is damaged");
            return Err(Error::NonFiniteValue { name, item, value, cause });
        }
        let line = Line { item, values };
        // One call for the whole line: an interruption leaves all of it or a part that has no end.
        let text = format!("{}\n", serde_json::to_string(&line)?);
        self.file.write_all(text.as_bytes()).map_err(cannot("write", &self.path))?;
        self.items.insert(line.item, line.values);
        Ok(())
    }
}

/// Reads the items of a journal and the length of its complete lines; `None` if it holds nothing to lose.
fn read(bytes: &[u8], settings: &Settings, path: &Path) -> Result<Option<(usize, BTreeMap<String, Values>)>> {
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let mut lines = bytes[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).peekable();
    let Some(header) = lines.next() else { return Ok(None) };
    let damaged = |line: usize| move |source| Error::DamagedJournal { path: path.to_owned(), line, source };
    let header: Header = serde_json::from_slice(header).map_err(damaged(1))?;
    if header.settings != *settings {
        // A journal without items, of a command that failed at once.
        return if lines.peek().is_none() { Ok(None) } else { Err(of_another(path, &header.settings, settings)) };
    }
    let mut items = BTreeMap::new();
    for (number, line) in (2..).zip(lines) {
        let line: Line = serde_json::from_slice(line).map_err(damaged(number))?;
        items.insert(line.item, line.values);
    }
    Ok(Some((whole, items)))
}

/// Adds the software and its version to the settings, since they may decide values.
pub(crate) fn with_software(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.insert("software".to_owned(), SOFTWARE.into());
    settings
}

/// Returns the error for a file of another evaluation.
pub(crate) fn of_another(path: &Path, theirs: &Settings, ours: &Settings) -> Error {
    Error::OtherEvaluation { path: path.to_owned(), difference: difference(theirs, ours) }
}

/// Describes the first setting that differs.
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
        let open =
            |steps, overwrite| Journal::open(&folder.path().join("recon.items.jsonl"), &settings(steps), overwrite);
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
        let open =
            |steps, overwrite| Journal::open(&folder.path().join("recon.items.jsonl"), &settings(steps), overwrite);
        open(10, Overwrite::Refuse).unwrap().add("a".to_owned(), values(1.)).unwrap();
        let error = open(20, Overwrite::Refuse).unwrap_err().to_string();
        assert!(error.contains("steps is 10, not 20"), "{error}");
        assert_eq!(open(20, Overwrite::Replace).unwrap().get("a"), None);
        // Now it is empty, and nothing is in the way.
        open(30, Overwrite::Refuse).unwrap().add("a".to_owned(), values(1.)).unwrap();
        assert_eq!(open(30, Overwrite::Replace).unwrap().get("a"), None, "to overwrite is to begin anew");
    }

    #[test]
    fn damage_is_named_and_force_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let open = |overwrite| Journal::open(&folder.path().join("recon.items.jsonl"), &settings(1), overwrite);
        let mut journal = open(Overwrite::Refuse).unwrap();
        journal.add("ä".to_owned(), values(1.)).unwrap();
        assert!(journal.add("b".to_owned(), values(f64::NAN)).unwrap_err().to_string().contains("psnr of b is NaN"));
        journal.add("c".to_owned(), values(2.)).unwrap();
        let path = folder.path().join("recon.items.jsonl");
        let bytes = fs::read(&path).unwrap();
        // Torn inside a letter of two bytes.
        let torn = bytes.iter().position(|&byte| !byte.is_ascii()).unwrap() + 1;
        fs::write(&path, &bytes[..torn]).unwrap();
        assert_eq!(open(Overwrite::Refuse).unwrap().get("ä"), None);
        fs::write(&path, [&bytes[..torn], b"\n{}\n"].concat()).unwrap();
        assert!(open(Overwrite::Refuse).unwrap_err().to_string().contains("line 2"));
        assert!(open(Overwrite::Replace).is_ok());
    }
}
